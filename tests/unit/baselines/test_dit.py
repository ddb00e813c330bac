"""DiT: zero at the start, the loss in closed form, pictures of their own, guidance, cost, and that it learns."""

import dataclasses
from pathlib import Path

import pytest
import torch
from tiny_models import randomise
from torch import Tensor

from latentlm.baselines.dit import DiT, DiTConfig
from latentlm.baselines.dit.model import NOISE_STREAM, STARTING_NOISE_STREAM, TIMESTEP_STREAM
from latentlm.baselines.dit.positions import sincos_1d, sincos_2d
from latentlm.diffusion.guidance import GuidanceConfig
from latentlm.diffusion.process import DiffusionConfig
from latentlm.diffusion.solvers import SolverConfig, make_solver
from latentlm.generation.requests import LatentSamplingConfig
from latentlm.models.image_model import LabelledTokens, TokenSpace
from latentlm.nn.keyed_noise import keyed_normal, keyed_uniform

GRID = (2, 3)
SPACE = TokenSpace(num_classes=5, rows=2, columns=3, latent_dim=4)
CONFIG = DiTConfig(space=SPACE, hidden_size=32, num_layers=2, num_heads=4, intermediate_size=64)
FIVE_STEPS = LatentSamplingConfig(solver=SolverConfig(num_inference_steps=5))
# Single passes in float32: sums of numbers around 1 in another order.
ROUNDING = {"atol": 1e-5, "rtol": 1e-5}
# The same after a whole sample of a random network, which amplifies it.
SAMPLE_ROUNDING = {"atol": 1e-4, "rtol": 1e-4}


def make_model(**changes: object) -> DiT:
    return randomise(DiT(dataclasses.replace(CONFIG, **changes))).eval()


def make_batch(size: int = 6, *, seed: int = 0) -> LabelledTokens:
    generator = torch.Generator().manual_seed(seed)
    return LabelledTokens(
        labels=torch.randint(0, 6, (size,), generator=generator),
        tokens=torch.randn(size, 6, 4, generator=generator),
        keys=torch.arange(100, 100 + size),
        noise_seed=7,
    )


def take(batch: LabelledTokens, index: list[int]) -> LabelledTokens:
    return LabelledTokens(batch.labels[index], batch.tokens[index], batch.keys[index], batch.noise_seed)


# The network


def test_an_untrained_model_predicts_zero() -> None:
    batch = make_batch()
    assert torch.equal(DiT(CONFIG)(batch.tokens, torch.arange(6), batch.labels), torch.zeros(6, 6, 4))


@torch.no_grad()
def test_every_token_sees_every_other() -> None:
    model, batch = make_model(), make_batch(1)
    for changed in range(6):
        tokens = batch.tokens.clone()
        tokens[0, changed] += 1
        difference = model(tokens, torch.tensor([3]), batch.labels) - model(
            batch.tokens, torch.tensor([3]), batch.labels
        )
        assert (difference.abs().amax(dim=2) > 1e-3).all()


@torch.no_grad()
def test_a_prediction_does_not_depend_on_the_batch_around_it() -> None:
    model, batch, timesteps = make_model(), make_batch(), torch.arange(0, 600, 100)
    together = model(batch.tokens, timesteps, batch.labels)
    order = [4, 0, 5, 2, 1, 3]
    shuffled = model(batch.tokens[order], timesteps[order], batch.labels[order])
    alone = torch.cat([model(batch.tokens[i : i + 1], timesteps[i : i + 1], batch.labels[i : i + 1]) for i in range(6)])
    assert torch.allclose(shuffled, together[order], **ROUNDING)
    assert torch.allclose(alone, together, **ROUNDING)


@torch.no_grad()
def test_only_positions_tell_tokens_apart() -> None:
    model, batch, order = make_model(), make_batch(2), [3, 0, 5, 1, 2, 4]
    condition = torch.randn(2, 32, generator=torch.Generator().manual_seed(1))
    positions = model.positions(GRID)
    plain = model.denoise(batch.tokens, condition, positions)
    both_moved = model.denoise(batch.tokens[:, order], condition, positions[order])
    tokens_moved = model.denoise(batch.tokens[:, order], condition, positions)
    assert torch.allclose(both_moved, plain[:, order], **ROUNDING)
    assert (tokens_moved - plain[:, order]).abs().max() > 1e-2


def test_grouped_heads_share_keys_and_values() -> None:
    grouped, full = make_model(num_kv_heads=2), make_model()
    weights = grouped.state_dict()
    for name in weights:
        if "k_proj" in name or "v_proj" in name:
            weights[name] = weights[name].unflatten(0, (2, 8)).repeat_interleave(2, dim=0).flatten(0, 1)
    full.load_state_dict(weights)
    batch = make_batch()
    timesteps = torch.arange(6)
    with torch.no_grad():
        expected = full(batch.tokens, timesteps, batch.labels)
        assert torch.allclose(grouped(batch.tokens, timesteps, batch.labels), expected, **ROUNDING)


def test_recomputed_activations_give_the_same_gradients() -> None:
    plain, recomputing, batch = make_model(), make_model(), make_batch()
    recomputing.enable_activation_checkpointing()
    for model in (plain, recomputing):
        model.losses(batch)["total"].backward()
    for ours, theirs in zip(plain.parameters(), recomputing.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)  # pyright: ignore[reportArgumentType]


# Positions


def test_positions_of_one_axis() -> None:
    table = sincos_1d(torch.arange(7), 8)
    # Frequencies 1, 1/10, 1/100, 1/1000.
    angles = torch.arange(7)[:, None] / torch.tensor([1.0, 10.0, 100.0, 1000.0])
    assert torch.allclose(table, torch.cat([angles.sin(), angles.cos()], dim=1), atol=1e-6)  # last bits of angles < 7


def test_positions_of_a_grid_hold_the_column_first() -> None:
    table = sincos_2d(2, 3, 16)
    for token in range(6):
        row, column = divmod(token, 3)
        assert torch.equal(table[token, :8], sincos_1d(torch.tensor([column]), 8)[0])
        assert torch.equal(table[token, 8:], sincos_1d(torch.tensor([row]), 8)[0])


@pytest.mark.parametrize("encoding", ["sincos_1d", "sincos_2d"])
def test_fixed_positions_draw_any_grid(encoding: str) -> None:
    model, labels = make_model(position_encoding=encoding), torch.tensor([0, 5])
    for grid in [(2, 3), (4, 4), (1, 5)]:
        latents = model.sample(labels, seeds=torch.tensor([1, 2]), sampling=FIVE_STEPS, grid=grid)
        assert latents.shape == (2, grid[0] * grid[1], 4)
        assert latents.isfinite().all()


def test_learned_positions_refuse_another_grid() -> None:
    model = make_model(position_encoding="learned")
    labels, seeds = torch.tensor([0]), torch.tensor([1])
    assert model.sample(labels, seeds=seeds, sampling=FIVE_STEPS, grid=GRID).shape == (1, 6, 4)
    with pytest.raises(ValueError, match="2 x 3 tokens alone, not for 3 x 2"):
        model.sample(labels, seeds=seeds, sampling=FIVE_STEPS, grid=(3, 2))


# The loss


@pytest.mark.parametrize("num_noises", [1, 3])
def test_the_loss_of_an_untrained_model_in_closed_form(num_noises: int) -> None:
    model, batch = DiT(dataclasses.replace(CONFIG, num_noises_per_image=num_noises)), make_batch()
    assert model.process.alphas_cumprod is not None
    uniform = keyed_uniform(7, batch.keys, (num_noises,), stream=TIMESTEP_STREAM)
    signal = model.process.alphas_cumprod[(uniform * 1000).long()].float()[..., None, None]  # (B, R, 1, 1)
    noise = keyed_normal(7, batch.keys, (num_noises, 6, 4), stream=NOISE_STREAM)
    # Prediction 0: what is left of (prediction - v)² is v².
    velocity = signal.sqrt() * noise - (1 - signal).sqrt() * batch.tokens[:, None]
    assert torch.allclose(model.losses(batch)["total"], velocity.square().mean(), rtol=1e-5)


def test_the_loss_compares_the_prediction_at_the_noisy_latents() -> None:
    model, batch = make_model(diffusion=DiffusionConfig(prediction_type="epsilon")), make_batch()
    assert model.process.alphas_cumprod is not None
    timesteps = (keyed_uniform(7, batch.keys, (1,), stream=TIMESTEP_STREAM)[:, 0] * 1000).long()
    signal = model.process.alphas_cumprod[timesteps].float()[:, None, None]
    noise = keyed_normal(7, batch.keys, (1, 6, 4), stream=NOISE_STREAM)[:, 0]
    noisy_latents = signal.sqrt() * batch.tokens + (1 - signal).sqrt() * noise
    expected = (model(noisy_latents, timesteps, batch.labels) - noise).square().mean()
    assert torch.allclose(model.losses(batch)["total"], expected, rtol=1e-5)


@pytest.mark.parametrize("num_noises", [1, 2])
def test_losses_of_parts_add_up_to_the_loss_of_the_whole_in_any_order(num_noises: int) -> None:
    model, batch = make_model(num_noises_per_image=num_noises), make_batch()
    totals = model.loss_counts(batch)
    assert totals == {"total": 36}
    parts = [model.losses(take(batch, index), totals=totals)["total"] for index in ([5, 1], [0, 2, 4, 3])]
    assert torch.allclose(torch.stack(parts).sum(), model.losses(batch)["total"], rtol=1e-5)


def test_the_loss_under_autocast_is_float32_and_close() -> None:
    model, batch = make_model(), make_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.losses(batch)["total"]
    assert loss.dtype == torch.float32
    # bfloat16 has 8 bits; errors of many products average out.
    assert torch.allclose(loss, model.losses(batch)["total"], rtol=0.02)


# Sampling


def sample(model: DiT, labels: list[int], seeds: list[int], sampling: LatentSamplingConfig = FIVE_STEPS) -> Tensor:
    return model.sample(torch.tensor(labels), seeds=torch.tensor(seeds), sampling=sampling, grid=GRID)


@pytest.mark.parametrize("solver", ["dpm_multistep", "ddpm", "heun"])
@pytest.mark.parametrize("cfg_scale", [1.0, 3.0])
def test_a_picture_depends_on_its_own_label_and_seed_alone(solver: str, cfg_scale: float) -> None:
    model = make_model()
    solver_config = SolverConfig(name=solver, num_inference_steps=4)  # pyright: ignore[reportArgumentType]
    sampling = LatentSamplingConfig(cfg_scale=cfg_scale, solver=solver_config)
    together = sample(model, [0, 1, 2, 5], [10, 11, -3, 11], sampling)
    assert torch.equal(together, sample(model, [0, 1, 2, 5], [10, 11, -3, 11], sampling))
    pairs = torch.cat([sample(model, [5, 2], [11, -3], sampling), sample(model, [1, 0], [11, 10], sampling)])
    assert torch.allclose(pairs.flip(0), together, **SAMPLE_ROUNDING)
    assert (sample(model, [0], [12], sampling) - together[:1]).abs().max() > 0.1
    assert (sample(model, [4], [10], sampling) - together[:1]).abs().max() > 1e-2


@torch.no_grad()
def solve_by_hand(model: DiT, label: int, seed: int, scale: float, *, num_steps: int = 5) -> Tensor:
    """The sample of one picture from two separate passes per step and the formula of guidance."""

    def denoise(noisy_latents: Tensor, timestep: Tensor) -> Tensor:
        cond, uncond = (model(noisy_latents, timestep[None], torch.tensor([which])) for which in (label, 5))
        return uncond + scale * (cond - uncond)

    noise = keyed_normal(torch.tensor([seed]), torch.zeros(1, dtype=torch.int64), (6, 4), stream=STARTING_NOISE_STREAM)
    return make_solver(model.process, SolverConfig(num_inference_steps=num_steps)).sample(denoise, noise)


@pytest.mark.parametrize("cfg_scale", [1.0, 2.5, 0.0])
def test_guidance_is_uncond_plus_scale_times_the_difference(cfg_scale: float) -> None:
    model = make_model()
    guided = sample(model, [3], [9], dataclasses.replace(FIVE_STEPS, cfg_scale=cfg_scale))
    assert torch.allclose(guided, solve_by_hand(model, 3, 9, cfg_scale), **SAMPLE_ROUNDING)


def rows_per_pass(model: DiT, sampling: LatentSamplingConfig) -> list[int]:
    """Batch size of every pass of the network for three pictures."""
    rows: list[int] = []
    handle = model.blocks[0].register_forward_pre_hook(lambda module, inputs: rows.append(inputs[0].shape[0]))
    sample(model, [0, 1, 2], [1, 2, 3], sampling)
    handle.remove()
    return rows


def test_without_guidance_there_is_no_second_stream() -> None:
    model = make_model()
    assert rows_per_pass(model, FIVE_STEPS) == [3] * 5
    assert rows_per_pass(model, dataclasses.replace(FIVE_STEPS, cfg_scale=2.0)) == [6] * 5


def test_guidance_acts_inside_its_interval_alone() -> None:
    model = make_model()
    everywhere, nowhere = ((low, 2000.0) for low in (-1.0, 1500.0))
    guided = dataclasses.replace(FIVE_STEPS, cfg_scale=2.0)
    plain = sample(model, [0, 1, 2], [1, 2, 3])
    off = dataclasses.replace(guided, guidance=GuidanceConfig(interval=nowhere))
    on = dataclasses.replace(guided, guidance=GuidanceConfig(interval=everywhere))
    assert torch.equal(sample(model, [0, 1, 2], [1, 2, 3], off), plain)
    assert torch.equal(sample(model, [0, 1, 2], [1, 2, 3], on), sample(model, [0, 1, 2], [1, 2, 3], guided))
    # Five timesteps from 999 down in steps of about 200: the middle three lie between 250 and 850.
    middle = dataclasses.replace(guided, guidance=GuidanceConfig(interval=(250.0, 850.0)))
    assert rows_per_pass(model, middle) == [3, 6, 6, 6, 3]


def test_a_ramp_over_steps_begins_without_guidance() -> None:
    guidance = GuidanceConfig(step_schedule="linear_increasing")
    assert (
        rows_per_pass(make_model(), LatentSamplingConfig(cfg_scale=2.0, solver=FIVE_STEPS.solver, guidance=guidance))
        == [3] + [6] * 4
    )


def test_a_ramp_over_positions_is_refused() -> None:
    sampling = dataclasses.replace(FIVE_STEPS, guidance=GuidanceConfig(position_schedule="linear_increasing"))
    with pytest.raises(ValueError, match="DiT draws all positions of a picture together"):
        sample(make_model(), [0], [0], sampling)


def test_a_model_in_bfloat16_samples_close_to_the_one_in_float32() -> None:
    model = make_model()
    exact = sample(model, [0, 1], [1, 2])
    rounded = sample(model.bfloat16(), [0, 1], [1, 2])
    assert rounded.dtype == torch.float32
    # Three significant digits per operation, five steps, latents of size 1.
    assert (rounded - exact).abs().mean() < 0.1


# Cost


@pytest.mark.parametrize("num_kv_heads", [4, 2])
def test_flops_equal_the_formula(num_kv_heads: int) -> None:
    model = make_model(num_kv_heads=num_kv_heads, num_noises_per_image=2)
    width, tokens, latent, ffn, layers = 32, 6, 4, 64, 2
    key_width = width * num_kv_heads // 4
    per_token = width * (2 * width + 2 * key_width) + 3 * width * ffn + 2 * tokens * width
    per_image = 256 * width + width**2 + layers * 6 * width**2 + 2 * width**2  # timestep, AdaLN of blocks and end
    forward = 2 * (tokens * (layers * per_token + 2 * latent * width) + per_image)
    assert model.flops(FIVE_STEPS) == (3 * 2 * forward, 5 * forward)
    guided = dataclasses.replace(FIVE_STEPS, cfg_scale=2.0)
    assert model.flops(guided).generation == 2 * 5 * forward
    ramp = dataclasses.replace(guided, guidance=GuidanceConfig(step_schedule="linear_increasing"))
    assert model.flops(ramp).generation == 9 * forward
    heun = LatentSamplingConfig(solver=SolverConfig(name="heun", num_inference_steps=5))
    assert model.flops(heun).generation == 9 * forward


# Learning and storage


def test_a_tiny_model_learns_one_picture_per_label() -> None:
    config = dataclasses.replace(CONFIG, space=dataclasses.replace(SPACE, num_classes=4), num_noises_per_image=8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DiT(config)
    pictures = torch.randn(4, 6, 4, generator=torch.Generator().manual_seed(3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.0)
    for step in range(200):
        batch = LabelledTokens(torch.arange(4), pictures, torch.arange(4), noise_seed=step)
        optimizer.zero_grad()
        model.losses(batch)["total"].backward()
        optimizer.step()
    drawn = model.eval().sample(
        torch.arange(4).repeat(2),
        seeds=torch.arange(8),
        sampling=LatentSamplingConfig(solver=SolverConfig(num_inference_steps=10)),
        grid=GRID,
    )
    errors = (drawn - pictures.repeat(2, 1, 1)).square().mean(dim=(1, 2))
    # 0.01 to 0.08 after 200 steps. Pictures have variance 1: another label's picture is wrong by 2, their mean by 3/4.
    assert errors.max() < 0.3


@pytest.mark.parametrize("encoding", ["sincos_2d", "learned"])
def test_a_saved_model_draws_the_same_pictures(encoding: str, tmp_path: Path) -> None:
    model = make_model(position_encoding=encoding)
    model.save_pretrained(tmp_path / "model")
    loaded = DiT.from_pretrained(tmp_path / "model")
    assert loaded.config == model.config
    assert torch.equal(sample(loaded, [0, 5], [1, 2]), sample(model, [0, 5], [1, 2]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 30}, "not a multiple of num_heads 4"),
        ({"num_kv_heads": 3}, "not a multiple of num_kv_heads 3"),
        ({"hidden_size": 6, "num_heads": 2}, "not a multiple of 4, which position_encoding 'sincos_2d' needs"),
        ({"num_noises_per_image": 0}, "training needs at least one"),
    ],
)
def test_impossible_configs_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_a_space_that_is_not_filled_in_is_refused() -> None:
    with pytest.raises(ValueError, match="needs num_classes, rows, columns and latent_dim"):
        DiT(dataclasses.replace(CONFIG, space=TokenSpace()))
