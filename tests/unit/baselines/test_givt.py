"""GIVT: its mixture against torch.distributions, its loop against one pass, its guidance against Gaussians by hand."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import randomise
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from latentlm.baselines.givt import GIVT, GaussianMixture, GIVTConfig, GIVTSamplingConfig, sample_guided
from latentlm.baselines.givt import mixture as givt_mixture
from latentlm.models.image_model import LabelledTokens, TokenSpace
from latentlm.models.transformer import TransformerConfig
from latentlm.nn.keyed_noise import keyed_normal, keyed_uniform

SPACE = TokenSpace(num_classes=3, rows=2, columns=3, latent_dim=4)
GRID = (2, 3)
CONFIG = GIVTConfig(
    space=SPACE,
    transformer=TransformerConfig(hidden_size=32, num_layers=2, num_heads=4, intermediate_size=48),
    num_components=3,
)


def tiny_model(config: GIVTConfig = CONFIG) -> GIVT:
    return randomise(GIVT(config)).eval()


def tiny_batch(size: int = 5) -> LabelledTokens:
    latents = torch.randn(size, 6, 4, generator=torch.Generator().manual_seed(0))
    return LabelledTokens(labels=torch.arange(size) % 3, tokens=latents, keys=torch.arange(size), noise_seed=1)


def as_distribution(mixture: GaussianMixture) -> MixtureSameFamily:
    return MixtureSameFamily(Categorical(logits=mixture.logits), Independent(Normal(mixture.means, mixture.scales), 1))


def gaussian(mean: float, scale: float, count: int) -> GaussianMixture:
    shape = (count, 1, 1)
    return GaussianMixture(torch.zeros(count, 1), torch.full(shape, mean), torch.full(shape, scale))


def guided_draws(cond: GaussianMixture, uncond: GaussianMixture, cfg_scale: float, num_candidates: int) -> Tensor:
    keys = torch.arange(len(cond.logits))
    return sample_guided(
        cond,
        uncond,
        cfg_scale,
        uniform=keyed_uniform(0, keys, (num_candidates,), stream=1),
        normal=keyed_normal(0, keys, (num_candidates, cond.means.shape[-1]), stream=2),
        selection=keyed_uniform(0, keys, (num_candidates,), stream=3),
    )


@pytest.mark.parametrize("max_elements", [1, 100])
def test_weighing_candidates_in_chunks_draws_the_same(max_elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = tiny_model(), tiny_batch()
    with torch.no_grad():
        cond, uncond = (
            GaussianMixture(*(part[:, 2] for part in model.mixtures(labels, batch.tokens)))
            for labels in (batch.labels, torch.full_like(batch.labels, SPACE.null_class))
        )
    at_once = guided_draws(cond, uncond, 1.5, 37)
    monkeypatch.setattr(givt_mixture, "_MAX_ELEMENTS", max_elements)
    assert torch.equal(guided_draws(cond, uncond, 1.5, 37), at_once)


def test_the_loss_is_the_likelihood_of_torch_distributions_per_dimension() -> None:
    model, batch = tiny_model(), tiny_batch()
    expected = -as_distribution(model.mixtures(batch.labels, batch.tokens)).log_prob(batch.tokens).mean() / 4
    torch.testing.assert_close(model.losses(batch)["total"], expected)
    # Normalised by what it is told, for gradient accumulation: twice as many tokens, half the share of the loss.
    assert model.loss_counts(batch) == {"total": 30}
    torch.testing.assert_close(model.losses(batch, totals={"total": 60})["total"], expected / 2)


def test_outputs_are_read_as_logits_means_and_positive_scales() -> None:
    outputs = torch.tensor([0.1, 0.2, 1.0, 2.0, 3.0, 4.0, -100.0, 0.0, 0.0, 100.0])
    mixture = GaussianMixture.from_outputs(outputs, num_components=2, min_scale=0.01)
    assert mixture.logits.tolist() == pytest.approx([0.1, 0.2])
    assert mixture.means.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    ln_2 = 0.693147
    assert mixture.scales.flatten().tolist() == pytest.approx([0.01, ln_2 + 0.01, ln_2 + 0.01, 100.01])


def test_samples_have_the_moments_of_the_mixture() -> None:
    count = 40_000
    mixture = GaussianMixture(
        torch.tensor([0.5, -0.5, 0.0]).expand(count, 3),
        torch.tensor([[-2.0, 0.0], [0.0, 1.0], [3.0, 3.0]]).expand(count, 3, 2),
        torch.tensor([[0.5, 1.0], [0.1, 0.1], [1.0, 2.0]]).expand(count, 3, 2),
    )
    keys = torch.arange(count)
    samples = mixture.sample(keyed_uniform(0, keys, stream=1), keyed_normal(0, keys, (2,), stream=2))
    authority = as_distribution(mixture)
    # Standard deviations are near 2, so a mean over 40,000 draws is off by 0.01 and a variance by 0.03; 4 times that.
    torch.testing.assert_close(samples.mean(0), authority.mean[0], atol=0.04, rtol=0.0)
    torch.testing.assert_close(samples.var(0), authority.variance[0], atol=0.12, rtol=0.0)
    # Component 1 is so narrow that its draws can be counted; its share is off by 0.002.
    is_narrow = ((samples - torch.tensor([0.0, 1.0])).abs() < 0.5).all(dim=1)
    others = is_narrow.float().mean() - mixture.logits[0].softmax(0)[1]
    assert 0 <= others < 0.05, "the rest is what wider components put there"


@pytest.mark.parametrize(("uniform", "component"), [(1e-7, 0), (0.24, 0), (0.26, 1), (1 - 2**-24, 1)])
def test_the_uniform_number_picks_the_component(uniform: float, component: int) -> None:
    mixture = GaussianMixture(torch.tensor([0.25, 0.75]).log(), torch.tensor([[10.0], [20.0]]), torch.ones(2, 1))
    assert mixture.sample(torch.tensor(uniform), torch.zeros(1)).item() == (10.0, 20.0)[component]


def test_temperature_scales_the_deviation_from_the_mean() -> None:
    mixture, normal = gaussian(3.0, 2.0, 1), torch.tensor([[0.5]])
    assert mixture.tempered(0.5).sample(torch.tensor([0.5]), normal).item() == 3.5


@pytest.mark.parametrize("means", [(1.0, 0.0), (0.0, 0.0)])
def test_guided_samples_follow_the_product_of_densities(means: tuple[float, float]) -> None:
    count, cfg_scale = 4000, 2.0
    samples = guided_draws(gaussian(means[0], 1.0, count), gaussian(means[1], 2.0, count), cfg_scale, 512)
    # p_cond² / p_uncond of Gaussians is a Gaussian: precisions 2 · 1 - 1 · 1/4, means weighted by them.
    precision = 2.0 - 0.25
    mean = (2.0 * means[0] - 0.25 * means[1]) / precision
    # A mean over 4000 draws is off by 0.012, a variance by 0.013; 4 times that, and the bias of 512 candidates is less.
    assert samples.mean().item() == pytest.approx(mean, abs=0.05)
    assert samples.var().item() == pytest.approx(1 / precision, abs=0.05)


def test_one_candidate_is_the_conditional_draw() -> None:
    cond, uncond = gaussian(1.0, 1.0, 50), gaussian(-1.0, 3.0, 50)
    keys = torch.arange(50)
    plain = cond.sample(keyed_uniform(0, keys, stream=1), keyed_normal(0, keys, (1,), stream=2))
    torch.testing.assert_close(guided_draws(cond, uncond, 3.0, 1), plain)


def test_a_mixture_is_unmoved_by_its_own_and_later_latents() -> None:
    model, batch = tiny_model(), tiny_batch()
    changed = batch.tokens.clone()
    changed[:, 3:] += 1
    before, after = (model.mixtures(batch.labels, latents) for latents in (batch.tokens, changed))
    for ours, theirs in zip(before, after, strict=True):
        assert torch.equal(ours[:, :4], theirs[:, :4])
        assert not torch.allclose(ours[:, 4:], theirs[:, 4:])


@pytest.mark.parametrize("cfg_scale", [1.0, 2.5])
def test_latents_drawn_with_the_cache_are_those_of_one_pass_over_the_picture(cfg_scale: float) -> None:
    model, labels, seeds = tiny_model(), torch.tensor([0, 2, 1]), torch.tensor([5, 6, 7])
    sampling = GIVTSamplingConfig(cfg_scale=cfg_scale, num_candidates=8)
    latents = model.sample(labels, seeds=seeds, sampling=sampling, grid=GRID)
    with torch.no_grad():
        streams = [labels, torch.full_like(labels, 3)] if cfg_scale != 1 else [labels]
        whole = model.mixtures(torch.cat(streams), latents.repeat(len(streams), 1, 1))
        for position in range(SPACE.num_tokens):
            mixture = GaussianMixture(*(part[:, position] for part in whole))
            again = model._draw(mixture, position, seeds, sampling)
            # Rounding of attention in another order of sums.
            torch.testing.assert_close(latents[:, position], again, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("cfg_scale", "rows"), [(1.0, 2), (1.5, 4)])
def test_the_null_stream_runs_only_with_guidance(cfg_scale: float, rows: int) -> None:
    model, seen = tiny_model(), set()
    model.transformer.register_forward_pre_hook(lambda module, inputs: seen.add(len(inputs[0])))
    sampling = GIVTSamplingConfig(cfg_scale=cfg_scale)
    model.sample(torch.tensor([0, 1]), seeds=torch.tensor([0, 1]), sampling=sampling, grid=GRID)
    assert seen == {rows}


@pytest.mark.parametrize("cfg_scale", [1.0, 2.0])
def test_a_picture_depends_on_its_own_label_and_seed_alone(cfg_scale: float) -> None:
    model, labels, seeds = tiny_model(), torch.tensor([0, 2, 2, 3]), torch.tensor([4, 5, 6, 7])
    sampling = GIVTSamplingConfig(cfg_scale=cfg_scale, num_candidates=8)
    together = model.sample(labels, seeds=seeds, sampling=sampling, grid=GRID)
    for i in range(4):
        alone = model.sample(labels[i : i + 1], seeds=seeds[i : i + 1], sampling=sampling, grid=GRID)
        # Matrix products of one row and of four round differently.
        torch.testing.assert_close(together[i], alone[0], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(together[1], together[2], atol=1e-2), "the same label with another seed"


def test_it_learns_four_pictures_by_heart() -> None:
    pictures = torch.randn(4, 6, 4, generator=torch.Generator().manual_seed(3))
    config = replace(CONFIG, space=replace(SPACE, num_classes=4))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GIVT(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, betas=(0.9, 0.98))
    labels, keys = torch.arange(4).repeat(4), torch.arange(16)
    for step in range(250):
        # As from a sigma-VAE, a fresh sample at every reading: from pictures without noise it learns points, and is
        # lost as soon as a draw lies a little beside one.
        tokens = pictures[labels] + 0.1 * keyed_normal(step, keys, (6, 4))
        loss = model.losses(LabelledTokens(labels=labels, tokens=tokens, keys=keys, noise_seed=step))["total"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # The entropy of N(0, 0.1²) is log 0.1 + 1.42 = -0.88 nats; before training the loss was above 1.4.
    assert loss.item() < -0.5
    labels = torch.arange(4).repeat(16)
    drawn = model.eval().sample(labels, seeds=torch.arange(64), sampling=GIVTSamplingConfig(temperature=0.1), grid=GRID)
    errors = (drawn - pictures[labels]).square().mean(dim=(1, 2))
    # Other pictures are at a mean square of 2. Temperature acts on the scales, not on the weights: about one picture
    # in sixty picks a component of small weight somewhere and goes astray.
    assert (errors < 0.02).float().mean() > 0.9


def test_bfloat16_autocast_changes_the_loss_by_rounding_only() -> None:
    model, batch = tiny_model(), tiny_batch()
    plain = model.losses(batch)["total"]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model.losses(batch)["total"]
    assert mixed.dtype == torch.float32
    # bfloat16 keeps 8 bits, and a likelihood divides its errors by the scales.
    assert mixed.item() == pytest.approx(plain.item(), rel=0.05)


def test_a_saved_model_draws_the_same_latents(tmp_path: Path) -> None:
    model, labels = tiny_model(), torch.tensor([0, 1])
    model.save_pretrained(tmp_path / "givt")
    loaded = GIVT.from_pretrained(tmp_path / "givt")
    assert loaded.config == CONFIG
    draw = {"seeds": torch.tensor([0, 1]), "sampling": GIVTSamplingConfig(), "grid": GRID}
    assert torch.equal(loaded.sample(labels, **draw), model.sample(labels, **draw))


def test_flops_are_those_of_the_formula() -> None:
    hidden, layers, ffn, components, dim, count = 32, 2, 48, 3, 4, 6
    per_token = layers * 2 * (4 * hidden**2 + 3 * hidden * ffn) + 2 * hidden * components * (1 + 2 * dim)
    matrices = count * per_token + (count - 1) * 2 * dim * hidden
    pairs_in_training, pairs_with_cache = count * count, sum(range(1, count + 1))
    forward = matrices + layers * 4 * hidden * pairs_in_training
    drawing = matrices + layers * 4 * hidden * pairs_with_cache
    assert tiny_model().flops(GIVTSamplingConfig()) == (3 * forward, drawing)
    assert GIVT(CONFIG).to("meta").flops(GIVTSamplingConfig(cfg_scale=2.0)) == (3 * forward, 2 * drawing)


def test_wrong_settings_are_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="2 x 3 latents, not \\(3, 3\\)"):
        tiny_model().sample(torch.tensor([0]), seeds=torch.tensor([0]), sampling=GIVTSamplingConfig(), grid=(3, 3))
    with pytest.raises(ValueError, match="latent_dim"):
        GIVT(replace(CONFIG, space=replace(SPACE, latent_dim=0, num_codes=5)))
    with pytest.raises(ValueError, match="mixture has at least one"):
        replace(CONFIG, num_components=0)
    with pytest.raises(ValueError, match="floor"):
        replace(CONFIG, min_scale=0.0)
    with pytest.raises(ValueError, match="temperature"):
        GIVTSamplingConfig(temperature=0.0)
    with pytest.raises(ValueError, match="num_candidates"):
        GIVTSamplingConfig(num_candidates=0)
    with pytest.raises(ValueError, match="cfg_scale"):
        GIVTSamplingConfig(cfg_scale=float("nan"))
