"""MAR: what is masked and how often, who sees whom, in which order latents are revealed, and what that costs."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import randomise
from torch import Tensor

from latentlm.baselines.mar import MAR, MARConfig, MARSamplingConfig
from latentlm.baselines.mar.masking import expected_num_masked, mask_ratios, most_visible, reveal_schedule
from latentlm.diffusion.process import DiffusionConfig
from latentlm.diffusion.solvers import SolverConfig, make_solver
from latentlm.models.diffusion_head import DiffusionHeadConfig
from latentlm.models.image_model import LabelledTokens, TokenSpace

SPACE = TokenSpace(num_classes=3, rows=2, columns=4, latent_dim=4)
GRID = (2, 4)
CONFIG = MARConfig(
    space=SPACE,
    hidden_size=32,
    num_encoder_layers=1,
    num_decoder_layers=2,
    num_heads=4,
    intermediate_size=48,
    num_buffer_tokens=3,
    head=DiffusionHeadConfig(num_layers=2),
)
SAMPLING = MARSamplingConfig(num_iterations=4, solver=SolverConfig(num_inference_steps=4))
DDPM = SolverConfig(name="ddpm", num_inference_steps=4)


def tiny_model(config: MARConfig = CONFIG) -> MAR:
    return randomise(MAR(config)).eval()


def tiny_batch(size: int = 6) -> LabelledTokens:
    latents = torch.randn(size, 8, 4, generator=torch.Generator().manual_seed(0))
    return LabelledTokens(labels=torch.arange(size) % 3, tokens=latents, keys=torch.arange(size), noise_seed=1)


def masked_positions(model: MAR, batch: LabelledTokens) -> Tensor:
    """True where masked, built from the order position by position."""
    order, num_visible = model.draw_masks(batch)
    is_masked = torch.ones(order.shape, dtype=torch.bool)
    for row, (positions, count) in enumerate(zip(order, num_visible, strict=True)):
        is_masked[row, positions[:count]] = False
    return is_masked


def hidden_states(model: MAR, latents: Tensor, *, num_visible: int = 2, max_visible: int = 2) -> Tensor:
    order = torch.tensor([[5, 2, 0, 1, 3, 4, 6, 7]]).expand(len(latents), -1)
    with torch.no_grad():
        return model.hidden_states(
            torch.zeros(len(latents), dtype=torch.long),
            latents,
            order,
            torch.full((len(latents),), num_visible),
            max_visible=max_visible,
        )


# -- masking ----------------------------------------------------------------------------------------------------------


def test_ratios_follow_the_truncated_normal() -> None:
    normal = 1 + 0.25 * torch.randn(400_000, generator=torch.Generator().manual_seed(0))
    kept = normal[(normal >= 0.7) & (normal <= 1)]
    uniform = (torch.arange(len(kept)) + 0.5) / len(kept)
    ratios = mask_ratios(uniform, 0.7)
    assert ratios.min() >= 0.7 - 1e-6
    assert ratios.max() <= 1
    # Quantiles of 150,000 draws from a density between 1.6 and 4 are off by 0.0008 at most; 4 times that.
    assert (ratios - kept.sort().values).abs().max() < 0.0035


@pytest.mark.parametrize("num_tokens", [10, 16, 256])
def test_the_expected_number_of_masked_latents_is_their_mean(num_tokens: int) -> None:
    num_masked = torch.ceil(num_tokens * mask_ratios((torch.arange(100_000) + 0.5) / 100_000, 0.7))
    # The grid of 100,000 quantiles misplaces a thousandth of a step of ceil.
    assert expected_num_masked(num_tokens, 0.7) == pytest.approx(num_masked.mean().item(), rel=1e-3)
    assert num_tokens - most_visible(num_tokens, 0.7) == pytest.approx(num_masked.min().item())


def test_masks_depend_on_key_and_step_alone_and_counts_are_theirs() -> None:
    model, batch = tiny_model(), tiny_batch(200)
    order, num_visible = model.draw_masks(batch)
    assert torch.equal(order.sort(dim=-1).values, torch.arange(8).expand(200, 8))
    assert set(num_visible.tolist()) == {0, 1, 2}, "8 latents, at least ceil(0.7 · 8) = 6 of them masked"
    assert model.loss_counts(batch) == {"total": 8 * 200 - int(num_visible.sum())}
    part = LabelledTokens(batch.labels[50:60], batch.tokens[50:60], batch.keys[50:60], batch.noise_seed)
    assert torch.equal(model.draw_masks(part)[0], order[50:60])
    assert torch.equal(model.draw_masks(part)[1], num_visible[50:60])
    assert not torch.equal(model.draw_masks(replace(batch, noise_seed=2))[0], order)


@pytest.mark.parametrize(("num_tokens", "num_iterations"), [(16, 16), (16, 1), (16, 5), (16, 12), (256, 64), (1, 1)])
def test_every_iteration_reveals_something_and_all_reveal_everything(num_tokens: int, num_iterations: int) -> None:
    schedule = reveal_schedule(num_tokens, num_iterations)
    assert len(schedule) == num_iterations
    assert min(schedule) >= 1
    assert sum(schedule) == num_tokens


def test_the_schedule_is_a_cosine() -> None:
    # 256 · cos(pi/2 · i/4) = 236.5, 181.02, 97.97, 0 are still masked.
    assert reveal_schedule(256, 4) == [20, 55, 84, 97]
    with pytest.raises(ValueError, match="at least one of 16"):
        reveal_schedule(16, 17)


# -- who sees whom ----------------------------------------------------------------------------------------------------


def test_masked_latents_are_never_read_and_visible_ones_are() -> None:
    model, latents = tiny_model(), tiny_batch(1).tokens
    before = hidden_states(model, latents)
    hostile = latents.clone()
    hostile[:, [0, 1, 3, 4, 6, 7]] = math.nan
    assert torch.equal(hidden_states(model, hostile), before)
    for position in (5, 2):
        changed = latents.clone()
        changed[:, position] += 1
        assert not torch.isclose(hidden_states(model, changed), before).all(dim=-1).any(), "at every position"


def test_slots_beyond_the_visible_latents_change_nothing() -> None:
    model, latents = tiny_model(), tiny_batch(1).tokens
    hostile = latents.clone()
    hostile[:, [0, 1, 3]] = math.nan
    # Softmax over more, masked entries sums in another order.
    torch.testing.assert_close(hidden_states(model, hostile, max_visible=5), hidden_states(model, latents))


def test_the_order_in_which_latents_were_revealed_is_forgotten() -> None:
    model, latents, label = tiny_model(), tiny_batch(1).tokens, torch.tensor([1])
    first, second = (
        model.hidden_states(label, latents, torch.tensor([order]), torch.tensor([3]), max_visible=3)
        for order in ([5, 2, 0, 1, 3, 4, 6, 7], [0, 5, 2, 7, 6, 4, 3, 1])
    )
    # Attention sums the visible latents in another order.
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-4)


def test_the_class_reaches_every_position() -> None:
    model, latents = tiny_model(), tiny_batch(1).tokens
    with torch.no_grad():
        one, other = (
            model.hidden_states(torch.tensor([label]), latents, torch.arange(8)[None], torch.tensor([0]), max_visible=0)
            for label in (0, 3)
        )
    assert not torch.isclose(one, other).all(dim=-1).any()


# -- the loss ---------------------------------------------------------------------------------------------------------


def test_the_loss_is_a_mean_over_masked_latents_alone() -> None:
    # A head that still answers 0, asked for x_0 itself: its loss is the mean square of what it is asked for.
    model, batch = MAR(replace(CONFIG, diffusion=DiffusionConfig(prediction_type="sample"))), tiny_batch()
    asked_for = batch.tokens[masked_positions(model, batch)]
    torch.testing.assert_close(model.losses(batch)["total"], asked_for.square().mean())
    assert model.loss_counts(batch) == {"total": len(asked_for)}
    # Normalised by what it is told, for gradient accumulation.
    totals = {"total": 2 * len(asked_for)}
    torch.testing.assert_close(model.losses(batch, totals=totals)["total"], asked_for.square().mean() / 2)


def test_the_loss_of_a_batch_is_that_of_its_parts() -> None:
    model, batch = tiny_model(), tiny_batch()
    totals = model.loss_counts(batch)
    parts = [
        LabelledTokens(batch.labels[half], batch.tokens[half], batch.keys[half], batch.noise_seed)
        for half in (slice(0, 2), slice(2, 6))
    ]
    summed = sum(model.losses(part, totals=totals)["total"] for part in parts)
    torch.testing.assert_close(model.losses(batch)["total"], summed)


def test_bfloat16_autocast_changes_the_loss_by_rounding_only() -> None:
    model, batch = tiny_model(), tiny_batch()
    plain = model.losses(batch)["total"]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model.losses(batch)["total"]
    mixed.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert mixed.dtype == torch.float32
    assert mixed.item() == pytest.approx(plain.item(), rel=0.02)  # bfloat16 keeps 8 bits


# -- sampling ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def revealed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """The positions of every call that draws latents."""
    calls: list[Tensor] = []
    original = MAR._draw

    def recording(self: MAR, conditions: Tensor, positions: Tensor, *rest: Any, **named: Any) -> Tensor:
        calls.append(positions)
        return original(self, conditions, positions, *rest, **named)

    monkeypatch.setattr(MAR, "_draw", recording)
    return calls


def test_every_position_is_revealed_once_in_an_order_of_the_pictures_own(revealed: list[Tensor]) -> None:
    tiny_model().sample(torch.zeros(6, dtype=torch.long), seeds=torch.arange(6), sampling=SAMPLING, grid=GRID)
    assert [positions.shape[1] for positions in revealed] == reveal_schedule(8, 4)
    order = torch.cat(revealed, dim=1)
    assert torch.equal(order.sort(dim=1).values, torch.arange(8).expand(6, 8))
    assert len({tuple(row) for row in order.tolist()}) == 6


def test_later_latents_are_drawn_given_the_earlier_ones(revealed: list[Tensor]) -> None:
    model, seeds = tiny_model(), torch.tensor([3])
    latents = model.sample(torch.tensor([0]), seeds=seeds, sampling=SAMPLING, grid=GRID)
    order = torch.cat(revealed, dim=1)
    last = revealed[-1].shape[1]
    num_visible = torch.tensor([8 - last])
    with torch.no_grad():
        states = model.hidden_states(torch.tensor([0]), latents, order, num_visible, max_visible=8 - last)
        solver = make_solver(model.process, SAMPLING.solver)
        again = model._draw(
            states[:, revealed[-1][0]],
            revealed[-1],
            seeds,
            solver,
            model.head.timestep_embedding(solver.timesteps),
            scale=1.0,
            temperature=1.0,
        )
    torch.testing.assert_close(latents[:, revealed[-1][0]], again)


@pytest.mark.parametrize(("cfg_scale", "rows"), [(1.0, 2), (1.5, 4)])
def test_the_null_stream_runs_only_with_guidance(cfg_scale: float, rows: int) -> None:
    model, seen = tiny_model(), set()
    model.encoder.register_forward_pre_hook(lambda module, inputs: seen.add(len(inputs[0])))
    model.sample(
        torch.tensor([0, 1]), seeds=torch.arange(2), sampling=replace(SAMPLING, cfg_scale=cfg_scale), grid=GRID
    )
    assert seen == {rows}


def test_guidance_between_equal_streams_is_none() -> None:
    model, seeds, guided = tiny_model(), torch.arange(3), replace(SAMPLING, cfg_scale=3.0)
    null, zero = torch.full((3,), 3), torch.zeros(3, dtype=torch.long)
    plain = model.sample(null, seeds=seeds, sampling=SAMPLING, grid=GRID)
    # A batch of twice as many rows rounds differently, which guidance of scale 3 and four iterations amplify.
    tolerance = {"atol": 1e-3, "rtol": 1e-3}
    torch.testing.assert_close(model.sample(null, seeds=seeds, sampling=guided, grid=GRID), plain, **tolerance)
    of_class = [model.sample(zero, seeds=seeds, sampling=config, grid=GRID) for config in (guided, SAMPLING)]
    assert not torch.allclose(*of_class, atol=1e-2)


def test_guidance_grows_with_the_share_of_revealed_latents() -> None:
    sampling = MARSamplingConfig(cfg_scale=3.0)
    assert [sampling.guidance_scale(share) for share in (0.0, 0.25, 1.0)] == [1.0, 1.5, 3.0]
    assert replace(sampling, guidance_schedule="constant").guidance_scale(0.25) == 3.0


@pytest.mark.parametrize("sampling", [SAMPLING, MARSamplingConfig(cfg_scale=2.0, num_iterations=8, solver=DDPM)])
def test_a_picture_depends_on_its_own_label_and_seed_alone(sampling: MARSamplingConfig) -> None:
    model, labels, seeds = tiny_model(), torch.tensor([0, 2, 2, 3]), torch.tensor([4, 5, 6, 7])
    together = model.sample(labels, seeds=seeds, sampling=sampling, grid=GRID)
    for i in range(4):
        alone = model.sample(labels[i : i + 1], seeds=seeds[i : i + 1], sampling=sampling, grid=GRID)
        # Matrix products of one row and of four round differently; iterations amplify it.
        torch.testing.assert_close(together[i], alone[0], atol=1e-3, rtol=1e-3)
    assert not torch.allclose(together[1], together[2], atol=1e-2), "the same label with another seed"


def test_temperature_scales_the_noise_of_the_steps() -> None:
    # A head that still answers 0 makes every step of the solver linear in its noise.
    model, labels, seeds = MAR(CONFIG), torch.tensor([0, 1]), torch.arange(2)
    cold, mild, warm = (
        model.sample(labels, seeds=seeds, sampling=replace(SAMPLING, solver=DDPM, temperature=temperature), grid=GRID)
        for temperature in (0.0, 0.5, 1.0)
    )
    torch.testing.assert_close(mild, (cold + warm) / 2)
    assert not torch.allclose(cold, warm, atol=1e-2)


def test_a_temperature_needs_a_solver_that_adds_noise() -> None:
    with pytest.raises(ValueError, match="adds none"):
        replace(SAMPLING, temperature=0.9)
    assert replace(SAMPLING, temperature=0.9, solver=SolverConfig(name="ddim", eta=0.5)).temperature == 0.9


# -- whole ------------------------------------------------------------------------------------------------------------


def test_it_learns_four_pictures_by_heart() -> None:
    pictures = torch.randn(4, 8, 4, generator=torch.Generator().manual_seed(3))
    config = replace(CONFIG, space=replace(SPACE, num_classes=4), num_decoder_layers=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MAR(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.98))
    labels, keys = torch.arange(4).repeat(4), torch.arange(16)  # four masks of each picture in a step
    for step in range(200):
        batch = LabelledTokens(labels=labels, tokens=pictures[labels], keys=keys, noise_seed=step)
        loss = model.losses(batch)["total"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    sampling = MARSamplingConfig(num_iterations=4, solver=SolverConfig(num_inference_steps=10))
    drawn = model.eval().sample(torch.arange(4), seeds=torch.arange(10, 14), sampling=sampling, grid=GRID)
    # Other pictures are at a mean square of 2; it comes out near 0.01.
    assert (drawn - pictures).square().mean() < 0.05


def test_a_saved_model_draws_the_same_latents(tmp_path: Path) -> None:
    model, labels = tiny_model(), torch.tensor([0, 1])
    model.save_pretrained(tmp_path / "mar")
    loaded = MAR.from_pretrained(tmp_path / "mar")
    assert loaded.config == CONFIG
    draw = {"seeds": torch.tensor([0, 1]), "sampling": SAMPLING, "grid": GRID}
    assert torch.equal(loaded.sample(labels, **draw), model.sample(labels, **draw))


def test_flops_are_those_of_the_formula() -> None:
    hidden, ffn, dim, num_buffer, count, noises = 32, 48, 4, 3, 8, 4

    def transformer(layers: int, length: int) -> int:
        return layers * (length * 2 * (4 * hidden**2 + 3 * hidden * ffn) + 4 * hidden * length**2)

    def backbone(visible: int) -> int:
        seen = num_buffer + visible
        projections = 2 * visible * dim * hidden + 2 * seen * hidden**2
        return transformer(1, seen) + transformer(2, num_buffer + count) + projections

    blocks = 2 * (2 * 3 * hidden * ffn + 2 * 3 * hidden**2)
    denoising = 2 * dim * hidden + blocks + 2 * 2 * hidden**2 + 2 * hidden * dim
    condition, timestep = 2 * hidden**2, 2 * (256 * hidden + hidden**2)
    per_masked = condition + noises * (denoising + timestep)
    training = 3 * (backbone(2) + round(expected_num_masked(count, 0.7) * per_masked))
    schedule = reveal_schedule(count, 4)
    generation = sum(backbone(sum(schedule[:i])) for i in range(4)) + count * (condition + 4 * denoising)
    assert tiny_model().flops(SAMPLING) == (training, generation)
    assert MAR(CONFIG).to("meta").flops(replace(SAMPLING, cfg_scale=2.0)) == (training, 2 * generation)


def test_wrong_settings_are_refused_in_a_sentence() -> None:
    model, draw = tiny_model(), {"labels": torch.tensor([0]), "seeds": torch.tensor([0])}
    with pytest.raises(ValueError, match="2 x 4 latents, not \\(4, 4\\)"):
        model.sample(**draw, sampling=SAMPLING, grid=(4, 4))
    with pytest.raises(ValueError, match="num_iterations is 9"):
        model.sample(**draw, sampling=replace(SAMPLING, num_iterations=9), grid=GRID)
    with pytest.raises(ValueError, match="latent_dim"):
        MAR(replace(CONFIG, space=replace(SPACE, latent_dim=0, num_codes=5)))
    with pytest.raises(ValueError, match="min_mask_ratio"):
        replace(CONFIG, min_mask_ratio=1.0)
    with pytest.raises(ValueError, match="at least 1"):
        replace(CONFIG, num_buffer_tokens=0)
    with pytest.raises(ValueError, match="at least one"):
        replace(SAMPLING, num_iterations=0)
    with pytest.raises(ValueError, match="temperature"):
        replace(SAMPLING, temperature=-1.0)
    with pytest.raises(ValueError, match="cfg_scale"):
        replace(SAMPLING, cfg_scale=float("inf"))
