"""Next-token prediction of codes: the shift by one, the cache, guidance, and how codes are drawn."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import randomise
from torch import Tensor

from latentlm.baselines.vq_ar import VQAR, CodeSamplingConfig, VQARConfig
from latentlm.models.image_model import LabelledTokens, TokenSpace
from latentlm.models.transformer import TransformerConfig

GRID = (2, 3)
NUM_CODES = 12
NULL = 4
GREEDY = CodeSamplingConfig(temperature=0.0)


def tiny_config(*, tie_embeddings: bool = False) -> VQARConfig:
    return VQARConfig(
        space=TokenSpace(num_classes=4, rows=GRID[0], columns=GRID[1], num_codes=NUM_CODES),
        transformer=TransformerConfig(hidden_size=32, num_layers=2, num_heads=4, intermediate_size=64),
        tie_embeddings=tie_embeddings,
    )


def some_batch(size: int = 5) -> LabelledTokens:
    generator = torch.Generator().manual_seed(0)
    return LabelledTokens(
        labels=torch.randint(NULL + 1, (size,), generator=generator),
        tokens=torch.randint(NUM_CODES, (size, 6), generator=generator),
        keys=torch.arange(size),
        noise_seed=7,
    )


def drawn(model: VQAR, labels: list[int], *, sampling: CodeSamplingConfig, first_seed: int = 0) -> Tensor:
    seeds = torch.arange(first_seed, first_seed + len(labels))
    return model.sample(torch.tensor(labels), seeds=seeds, sampling=sampling, grid=GRID)


@pytest.fixture
def model() -> VQAR:
    return randomise(VQAR(tiny_config())).eval()


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_weights_start_as_in_llamagen(tie_embeddings: bool) -> None:
    config = tiny_config(tie_embeddings=tie_embeddings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VQAR(config)
    matrices = {name: weight for name, weight in model.named_parameters() if weight.dim() == 2}
    assert len(matrices) == 2 + 2 * 7 + (not tie_embeddings)
    for name, weight in matrices.items():
        # Relative standard error of a deviation of 160 numbers or more: 1 / sqrt(320) = 6%; four of them.
        assert weight.std().item() == pytest.approx(0.02, rel=0.23), name
    loss = model.losses(some_batch())["total"].item()
    assert loss == pytest.approx(math.log(NUM_CODES), abs=0.1)  # logits near 0.02 sqrt(32) = 0.1


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_loss_is_the_cross_entropy_of_every_code(tie_embeddings: bool) -> None:
    model, batch = randomise(VQAR(tiny_config(tie_embeddings=tie_embeddings))), some_batch()
    logits = model(batch.labels, batch.tokens).double()
    by_hand = [
        logits[b, i].exp().sum().log() - logits[b, i, int(batch.tokens[b, i])] for b in range(5) for i in range(6)
    ]
    # float32 sums against float64 ones: six digits.
    torch.testing.assert_close(model.losses(batch)["total"].double(), torch.stack(by_hand).mean(), rtol=1e-6, atol=0)


def test_totals_replace_the_number_of_codes(model: VQAR) -> None:
    batch = some_batch()
    assert model.loss_counts(batch) == {"total": 30}
    torch.testing.assert_close(model.losses(batch, totals={"total": 60})["total"] * 2, model.losses(batch)["total"])


def test_logits_of_a_code_depend_on_class_and_earlier_codes_alone(model: VQAR) -> None:
    batch, changed = some_batch(), 3
    tokens = batch.tokens.clone()
    tokens[:, changed] = (tokens[:, changed] + 1) % NUM_CODES
    before, after = model(batch.labels, batch.tokens), model(batch.labels, tokens)
    assert torch.equal(before[:, : changed + 1], after[:, : changed + 1])
    assert not torch.isclose(before[:, changed + 1 :], after[:, changed + 1 :]).all(-1).any()
    other_class = model((batch.labels + 1) % NULL, batch.tokens)
    assert not torch.isclose(before, other_class).all(-1).any()


@pytest.mark.parametrize("cfg_scale", [1.0, 2.5])
def test_cached_greedy_sampling_equals_teacher_forced_argmax(model: VQAR, cfg_scale: float) -> None:
    labels = torch.tensor([0, 1, 2, 3, 1])
    codes = drawn(model, labels.tolist(), sampling=replace(GREEDY, cfg_scale=cfg_scale))
    cond, uncond = model(labels, codes), model(torch.full_like(labels, NULL), codes)
    assert torch.equal((uncond + cfg_scale * (cond - uncond)).argmax(-1), codes)
    assert len({tuple(row) for row in codes.tolist()}) > 1  # or the test would not tell rows apart


def test_without_guidance_there_is_no_null_stream(model: VQAR) -> None:
    rows: list[int] = []
    model.transformer.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    drawn(model, [0, 1], sampling=CodeSamplingConfig())
    assert rows == [2] * 6
    drawn(model, [0, 1], sampling=CodeSamplingConfig(cfg_scale=1.5))
    assert rows[6:] == [4] * 6


def test_guidance_does_nothing_to_a_picture_without_a_condition(model: VQAR) -> None:
    plain = drawn(model, [NULL] * 3, sampling=CodeSamplingConfig())
    assert torch.equal(plain, drawn(model, [NULL] * 3, sampling=CodeSamplingConfig(cfg_scale=3.0)))


def test_a_picture_depends_on_its_own_seed_and_label_alone(model: VQAR) -> None:
    sampling = CodeSamplingConfig(cfg_scale=1.5, top_k=8)
    together = drawn(model, [0, 3, 2], sampling=sampling)
    alone = [drawn(model, [label], sampling=sampling, first_seed=seed) for seed, label in enumerate([0, 3, 2])]
    assert torch.equal(together, torch.cat(alone))
    assert not torch.equal(together[0], drawn(model, [0], sampling=sampling, first_seed=9)[0])


def test_samples_follow_the_distribution_of_the_first_code(model: VQAR) -> None:
    codes = drawn(model, [2] * 4000, sampling=CodeSamplingConfig())[:, 0]
    expected = model(torch.tensor([2]), torch.zeros(1, 6, dtype=torch.long))[0, 0].softmax(-1)
    # Standard error of a share is at most 0.5 / sqrt(4000) = 0.008; four of them.
    torch.testing.assert_close(codes.bincount(minlength=NUM_CODES) / 4000, expected, atol=0.032, rtol=0)


def test_every_code_of_a_picture_has_its_own_noise(model: VQAR) -> None:
    torch.nn.init.zeros_(model.lm_head.weight)  # type: ignore[union-attr]
    codes = drawn(model, [0] * 2000, sampling=CodeSamplingConfig())
    equal = (codes[:, :-1] == codes[:, 1:]).double().mean(0)  # all codes being equally likely, one in 12
    # Standard error sqrt(1/12 · 11/12 / 2000) = 0.006; four of them.
    torch.testing.assert_close(equal, torch.full_like(equal, 1 / NUM_CODES), atol=0.025, rtol=0)


def test_another_grid_is_refused(model: VQAR) -> None:
    with pytest.raises(ValueError, match="draws 2 x 3 codes, not 3 x 2"):
        model.sample(torch.tensor([0]), seeds=torch.tensor([0]), sampling=GREEDY, grid=(3, 2))


def test_damaged_weights_are_refused_when_sampling(model: VQAR) -> None:
    torch.nn.init.constant_(model.embed_classes.weight, torch.nan)
    with pytest.raises(ValueError, match="NaN"):
        drawn(model, [0], sampling=GREEDY)


def test_a_space_of_latents_is_refused() -> None:
    with pytest.raises(ValueError, match="num_codes"):
        VQAR(replace(tiny_config(), space=TokenSpace(num_classes=4, rows=2, columns=3, latent_dim=8)))


def test_logits_stay_in_float32_under_autocast(model: VQAR) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(some_batch().labels, some_batch().tokens)
    assert logits.dtype == torch.float32


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_a_saved_model_gives_the_same_logits(tie_embeddings: bool, tmp_path: Path) -> None:
    model, batch = randomise(VQAR(tiny_config(tie_embeddings=tie_embeddings))).eval(), some_batch()
    model.save_pretrained(tmp_path / "model")
    loaded = VQAR.from_pretrained(tmp_path / "model")
    assert loaded.config == model.config
    assert torch.equal(loaded(batch.labels, batch.tokens), model(batch.labels, batch.tokens))


def test_flops_equal_the_formula() -> None:
    with torch.device("meta"):
        model = VQAR(tiny_config())
    n, d, layers, ffn = 6, 32, 2, 64
    # Per position and layer four projections and three matrices of SwiGLU; scores and their use over all pairs.
    forward = layers * (n * 2 * (4 * d * d + 3 * d * ffn) + 4 * n * n * d) + n * 2 * d * NUM_CODES
    assert model.flops(CodeSamplingConfig()) == (3 * forward, forward)
    assert model.flops(CodeSamplingConfig(cfg_scale=2.0)) == (3 * forward, 2 * forward)


def test_a_tiny_model_learns_four_pictures_by_label() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VQAR(tiny_config())
    tokens = torch.randint(NUM_CODES, (4, 6), generator=torch.Generator().manual_seed(1))
    batch = LabelledTokens(torch.arange(4), tokens, torch.arange(4), noise_seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(80):
        optimizer.zero_grad()
        model.losses(batch)["total"].backward()
        optimizer.step()
    # So sure of every code that sampling at temperature 1 gives it, too.
    assert torch.equal(drawn(model, [0, 1, 2, 3], sampling=CodeSamplingConfig()), tokens)


@pytest.mark.parametrize("options", [{"cfg_scale": float("nan")}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_k": 0}])
def test_sampling_options_are_checked(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        CodeSamplingConfig(**options)  # type: ignore[arg-type]
