"""Masked modelling of codes: the law of the mask, the loss at the masks, and parallel decoding."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import randomise
from torch import Tensor

from latentlm.baselines.maskgit import MaskGIT, MaskGITConfig, MaskGITSamplingConfig
from latentlm.baselines.maskgit.model import draw_mask, mean_num_masked
from latentlm.baselines.maskgit.sampling import masked_counts, parallel_decode
from latentlm.models.image_model import LabelledTokens, TokenSpace
from latentlm.models.transformer import TransformerConfig

GRID = (2, 3)
NUM_TOKENS = 6
NUM_CODES = 12
NULL = 4
SAMPLING = MaskGITSamplingConfig(num_iterations=4)


def tiny_config() -> MaskGITConfig:
    return MaskGITConfig(
        space=TokenSpace(num_classes=4, rows=GRID[0], columns=GRID[1], num_codes=NUM_CODES),
        transformer=TransformerConfig(hidden_size=32, num_layers=2, num_heads=4, intermediate_size=64),
    )


def some_batch(size: int = 5) -> LabelledTokens:
    generator = torch.Generator().manual_seed(0)
    return LabelledTokens(
        labels=torch.randint(NULL + 1, (size,), generator=generator),
        tokens=torch.randint(NUM_CODES, (size, NUM_TOKENS), generator=generator),
        keys=torch.arange(size),
        noise_seed=7,
    )


def drawn(model: MaskGIT, labels: list[int], *, sampling: MaskGITSamplingConfig, first_seed: int = 0) -> Tensor:
    seeds = torch.arange(first_seed, first_seed + len(labels))
    return model.sample(torch.tensor(labels), seeds=seeds, sampling=sampling, grid=GRID)


@pytest.fixture
def model() -> MaskGIT:
    return randomise(MaskGIT(tiny_config())).eval()


# -- training ----------------------------------------------------------------------------------------------------------


def test_the_mask_follows_the_cosine_law() -> None:
    num_tokens, num_examples = 16, 20_000
    mask = draw_mask(3, torch.arange(num_examples), num_tokens)
    counts = mask.sum(-1)
    assert counts.min() == 1
    assert counts.max() == num_tokens
    # P(more than k masks) = P(cos(pi/2 r) > k/N). Standard error at most 0.5 / sqrt(20000) = 0.0035; four of them.
    for k in range(num_tokens):
        assert abs((counts > k).double().mean().item() - 2 / math.pi * math.acos(k / num_tokens)) < 0.014
    # Standard deviation of a count is below N/2: 8 / sqrt(20000) = 0.057; four of them.
    assert abs(counts.double().mean().item() - mean_num_masked(num_tokens)) < 0.23
    # No position is preferred: shares of about 0.67, as above.
    shares = mask.double().mean(0)
    torch.testing.assert_close(shares, shares.mean().expand_as(shares), atol=0.014, rtol=0)


def test_the_mask_of_an_example_is_its_own() -> None:
    whole = draw_mask(3, torch.tensor([5, 9, 2]), NUM_TOKENS)
    assert torch.equal(whole[1], draw_mask(3, torch.tensor([9]), NUM_TOKENS)[0])
    assert not torch.equal(draw_mask(3, torch.arange(9), NUM_TOKENS), draw_mask(4, torch.arange(9), NUM_TOKENS))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_loss_is_the_smoothed_cross_entropy_at_the_masks(label_smoothing: float) -> None:
    model = randomise(MaskGIT(replace(tiny_config(), label_smoothing=label_smoothing)))
    batch = some_batch()
    mask = draw_mask(batch.noise_seed, batch.keys, NUM_TOKENS)
    hidden = torch.where(mask, NUM_CODES, batch.tokens)
    log_probabilities = model(batch.labels, hidden).double().log_softmax(-1)
    by_hand = []
    for b, i in mask.nonzero().tolist():
        target = torch.full((NUM_CODES,), label_smoothing / NUM_CODES, dtype=torch.float64)
        target[batch.tokens[b, i]] += 1 - label_smoothing
        by_hand.append(-(target * log_probabilities[b, i]).sum())
    # float32 sums against float64 ones: six digits.
    torch.testing.assert_close(model.losses(batch)["total"].double(), torch.stack(by_hand).mean(), rtol=1e-6, atol=0)
    assert model.loss_counts(batch) == {"total": len(by_hand)}


def test_losses_of_micro_batches_add_up_to_that_of_the_whole_batch(model: MaskGIT) -> None:
    batch = some_batch()
    parts = [
        LabelledTokens(batch.labels[part], batch.tokens[part], batch.keys[part], batch.noise_seed)
        for part in (slice(0, 2), slice(2, 5))
    ]
    totals = {"total": sum(model.loss_counts(part)["total"] for part in parts)}
    added = sum(model.losses(part, totals=totals)["total"] for part in parts)
    torch.testing.assert_close(added, model.losses(batch)["total"])


def test_the_model_reads_masks_where_it_is_asked_and_codes_elsewhere(model: MaskGIT) -> None:
    batch, read = some_batch(), []
    model.embed_codes.register_forward_hook(lambda module, inputs, output: read.append(inputs[0]))
    model.losses(batch)
    mask = draw_mask(batch.noise_seed, batch.keys, NUM_TOKENS)
    assert torch.equal(read[0], torch.where(mask, model.mask_id, batch.tokens))


def test_every_logit_depends_on_codes_before_and_after_and_on_the_class(model: MaskGIT) -> None:
    batch = some_batch()
    codes = batch.tokens.clone()
    codes[:, 3] = (codes[:, 3] + 1) % NUM_CODES
    before = model(batch.labels, batch.tokens)
    assert not torch.isclose(before, model(batch.labels, codes)).all(-1).any()
    assert not torch.isclose(before, model((batch.labels + 1) % NULL, batch.tokens)).all(-1).any()


def test_positions_are_learned(model: MaskGIT) -> None:
    model.losses(some_batch())["total"].backward()
    gradient = model.embed_positions.weight.grad
    assert gradient is not None
    assert (gradient.abs().sum(-1) > 0).all()


def test_the_mask_is_no_answer(model: MaskGIT) -> None:
    batch = some_batch()
    assert model(batch.labels, batch.tokens).shape == (5, NUM_TOKENS, NUM_CODES)


def test_label_smoothing_is_checked() -> None:
    with pytest.raises(ValueError, match="label_smoothing"):
        replace(tiny_config(), label_smoothing=1.0)


# -- parallel decoding -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_tokens", "num_iterations", "expected"),
    [
        # The cosine alone would be 16, 15, 14, 12, 9, 7, 4, 0, whose first iteration keeps nothing.
        (16, 8, [15, 14, 13, 12, 9, 7, 4, 0]),
        (16, 3, [14, 8, 0]),  # cos(pi/3) is a half: eight codes, not nine
        (16, 1, [0]),
        (6, 6, [5, 4, 3, 2, 1, 0]),
        (1, 1, [0]),
    ],
)
def test_the_schedule_of_masks_is_a_cosine_that_always_advances(
    num_tokens: int, num_iterations: int, expected: list[int]
) -> None:
    assert masked_counts(num_tokens, num_iterations) == expected


def test_every_schedule_falls_strictly_to_zero() -> None:
    for num_tokens in range(1, 70):
        for num_iterations in range(1, num_tokens + 1):
            counts = [num_tokens, *masked_counts(num_tokens, num_iterations)]
            assert len(counts) == num_iterations + 1
            assert counts[-1] == 0
            assert all(later < earlier for earlier, later in zip(counts, counts[1:], strict=False))


@pytest.mark.parametrize("num_iterations", [1, 5, 8, 16])
def test_decoding_fills_every_position_once_and_never_masks_it_again(num_iterations: int) -> None:
    seen: list[Tensor] = []

    def predict(codes: Tensor, iteration: int) -> Tensor:
        assert iteration == len(seen)
        seen.append(codes.clone())
        # Another opinion at every iteration: a kept code that was drawn again would change.
        return torch.randn(*codes.shape, 50, generator=torch.Generator().manual_seed(iteration))

    sampling = MaskGITSamplingConfig(num_iterations=num_iterations)
    final = parallel_decode(predict, seeds=torch.arange(3), sampling=sampling, num_tokens=16, mask_id=50)
    states = [*seen, final]
    for state, num_masked in zip(states, [16, *masked_counts(16, num_iterations)], strict=True):
        assert ((state == 50).sum(-1) == num_masked).all()
    for earlier, later in zip(states, states[1:], strict=False):
        kept = earlier != 50
        assert torch.equal(earlier[kept], later[kept])
    assert final.min() >= 0
    assert final.max() < 50


def test_without_noise_the_surest_codes_are_kept_first() -> None:
    sureness = torch.tensor([3.0, 9.0, 1.0, 7.0, 5.0, 8.0])
    picture = torch.tensor([2, 0, 1, 4, 3, 2])
    order: list[int] = []

    def predict(codes: Tensor, iteration: int) -> Tensor:
        order.extend(i for i in range(6) if codes[0, i] != 5 and i not in order)
        return sureness[:, None] * torch.nn.functional.one_hot(picture, 5)[None]

    sampling = MaskGITSamplingConfig(num_iterations=6, temperature=0.0, choice_temperature=0.0)
    codes = parallel_decode(predict, seeds=torch.zeros(1).long(), sampling=sampling, num_tokens=6, mask_id=5)
    assert codes.tolist() == [picture.tolist()]
    assert order == [1, 5, 3, 4, 0]  # the last one, 2, is filled by the last iteration


def test_choice_noise_changes_the_order_and_falls_to_zero() -> None:
    def first_kept(choice_temperature: float, num_iterations: int) -> set[int]:
        states: list[Tensor] = []

        def predict(codes: Tensor, iteration: int) -> Tensor:
            states.append(codes.clone())
            return torch.eye(8).mul(torch.arange(1.0, 9.0)).expand(64, 8, 8)  # position i is surer than i - 1

        sampling = MaskGITSamplingConfig(
            num_iterations=num_iterations, temperature=0.0, choice_temperature=choice_temperature
        )
        parallel_decode(predict, seeds=torch.arange(64), sampling=sampling, num_tokens=8, mask_id=8)
        return set((states[1] != 8).int().argmax(-1).tolist())

    assert first_kept(0.0, 8) == {7}
    assert len(first_kept(4.5, 8)) > 3


def test_which_codes_are_kept_says_nothing_about_what_they_are() -> None:
    states: list[Tensor] = []

    def predict(codes: Tensor, iteration: int) -> Tensor:
        states.append(codes.clone())
        return torch.zeros(*codes.shape, 50)

    parallel_decode(predict, seeds=torch.arange(500), sampling=SAMPLING, num_tokens=16, mask_id=50)
    kept = states[1][states[1] != 50].double()  # one in 16, picked by the choice noise alone
    # Uniform on 0 … 49: mean 24.5, standard error 14.4 / sqrt(500) = 0.65; four of them.
    assert len(kept) == 500
    assert abs(kept.mean().item() - 24.5) < 2.6


def test_more_iterations_than_codes_are_refused(model: MaskGIT) -> None:
    with pytest.raises(ValueError, match="num_iterations is 7 but the picture has 6 codes"):
        drawn(model, [0], sampling=MaskGITSamplingConfig(num_iterations=7))


# -- sampling from the model -------------------------------------------------------------------------------------------


def test_one_iteration_draws_every_code_from_its_own_distribution(model: MaskGIT) -> None:
    codes = drawn(model, [2] * 4000, sampling=MaskGITSamplingConfig(num_iterations=1))
    expected = model(torch.tensor([2]), torch.full((1, NUM_TOKENS), model.mask_id))[0].softmax(-1)
    shares = torch.stack([codes[:, i].bincount(minlength=NUM_CODES) / 4000 for i in range(NUM_TOKENS)])
    # Standard error of a share is at most 0.5 / sqrt(4000) = 0.008; four of them.
    torch.testing.assert_close(shares, expected, atol=0.032, rtol=0)


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_greedy_sampling_of_one_picture_follows_the_guided_logits(model: MaskGIT, schedule: str) -> None:
    sampling = MaskGITSamplingConfig(
        num_iterations=NUM_TOKENS,
        temperature=0.0,
        choice_temperature=0.0,
        cfg_scale=3.0,
        guidance_schedule=schedule,  # type: ignore[arg-type]
    )
    label, null = torch.tensor([1]), torch.tensor([NULL])
    codes = torch.full((1, NUM_TOKENS), model.mask_id)
    for iteration in range(NUM_TOKENS):
        scale = 3.0 if schedule == "constant" else 1 + 2.0 * iteration / (NUM_TOKENS - 1)
        uncond = model(null, codes)
        probabilities = (uncond + scale * (model(label, codes) - uncond)).softmax(-1)[0]
        surest = probabilities.amax(-1).masked_fill(codes[0] != model.mask_id, -1).argmax()
        codes[0, surest] = probabilities[surest].argmax()
    assert torch.equal(drawn(model, [1], sampling=sampling), codes)


def test_without_guidance_there_is_no_null_stream(model: MaskGIT) -> None:
    rows: list[int] = []
    model.transformer.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    drawn(model, [0, 1], sampling=SAMPLING)
    assert rows == [2] * 4
    drawn(model, [0, 1], sampling=replace(SAMPLING, cfg_scale=1.5))
    assert rows[4:] == [4] * 4


def test_the_linear_schedule_ends_at_the_full_scale() -> None:
    sampling = MaskGITSamplingConfig(num_iterations=3, cfg_scale=2.0, guidance_schedule="linear")
    assert [sampling.guidance_scale(iteration) for iteration in range(3)] == [1.0, 1.5, 2.0]
    assert replace(sampling, num_iterations=1).guidance_scale(0) == 2.0


def test_a_picture_depends_on_its_own_seed_and_label_alone(model: MaskGIT) -> None:
    sampling = replace(SAMPLING, cfg_scale=1.5, guidance_schedule="linear")
    together = drawn(model, [0, 3, 2], sampling=sampling)
    alone = [drawn(model, [label], sampling=sampling, first_seed=seed) for seed, label in enumerate([0, 3, 2])]
    assert torch.equal(together, torch.cat(alone))
    assert not torch.equal(together[0], drawn(model, [0], sampling=sampling, first_seed=9)[0])


def test_another_grid_is_refused(model: MaskGIT) -> None:
    with pytest.raises(ValueError, match="draws 2 x 3 codes, not 3 x 2"):
        model.sample(torch.tensor([0]), seeds=torch.tensor([0]), sampling=SAMPLING, grid=(3, 2))


def test_a_saved_model_gives_the_same_logits(model: MaskGIT, tmp_path: Path) -> None:
    batch = some_batch()
    model.save_pretrained(tmp_path / "model")
    loaded = MaskGIT.from_pretrained(tmp_path / "model")
    assert loaded.config == model.config
    assert torch.equal(loaded(batch.labels, batch.tokens), model(batch.labels, batch.tokens))


def test_flops_equal_the_formula() -> None:
    with torch.device("meta"):
        model = MaskGIT(tiny_config())
    t, d, layers, ffn = NUM_TOKENS + 1, 32, 2, 64
    # Per position and layer four projections and three matrices of SwiGLU; scores and their use over all pairs.
    backbone = layers * (t * 2 * (4 * d * d + 3 * d * ffn) + 4 * t * t * d)
    softmax = 2 * d * NUM_CODES
    # The mean of ceil(6 cos(pi/2 r)) over a fine grid of r.
    num_masked = sum(math.ceil(6 * math.cos(math.pi / 2 * (i + 0.5) / 10_000)) for i in range(10_000)) / 10_000
    plain, guided = model.flops(SAMPLING), model.flops(replace(SAMPLING, cfg_scale=2.0))
    # The grid is exact to six steps of 1/10000 in the mean of masks.
    assert plain.training == pytest.approx(3 * (backbone + num_masked * softmax), abs=3 * softmax * 6e-4)
    assert plain.generation == 4 * (backbone + NUM_TOKENS * softmax)
    assert guided == (plain.training, 2 * plain.generation)


def test_weights_start_from_a_truncated_normal() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MaskGIT(tiny_config())
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            assert weight.abs().max() <= 0.04, name
            # A normal of 0.02 cut at two deviations has 0.88 of its deviation; 160 numbers or more tell it to 6%.
            assert weight.std().item() == pytest.approx(0.0176, rel=0.23), name


def test_a_tiny_model_learns_four_pictures_by_label() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MaskGIT(tiny_config())
    tokens = torch.randint(NUM_CODES, (4, NUM_TOKENS), generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(150):
        batch = LabelledTokens(torch.arange(4), tokens, torch.arange(4), noise_seed=step)
        optimizer.zero_grad()
        model.losses(batch)["total"].backward()
        optimizer.step()
    # Label smoothing leaves a tenth of the probability to other codes; the most likely ones are the pictures.
    assert torch.equal(drawn(model, [0, 1, 2, 3], sampling=replace(SAMPLING, temperature=0.0)), tokens)


@pytest.mark.parametrize(
    "options",
    [{"num_iterations": 0}, {"cfg_scale": float("inf")}, {"temperature": -1.0}, {"choice_temperature": -0.1}],
)
def test_sampling_options_are_checked(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        MaskGITSamplingConfig(**options)  # type: ignore[arg-type]
