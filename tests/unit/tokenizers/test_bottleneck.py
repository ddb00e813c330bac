"""Eq. 5 and its rivals: moments of the noise, the law E|s| = latent_sigma, KL against its closed form."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from latentlm.tokenizers.base import Posterior
from latentlm.tokenizers.bottleneck import BottleneckConfig, draw_keyed_noise, draw_noise, make_bottleneck


def draws_at_zero(config: BottleneckConfig, num_examples: int) -> torch.Tensor:
    """Samples of a posterior whose mean is 0: the noise alone, [B, N, C]."""
    posterior = Posterior(torch.zeros(num_examples, 8, 8), None)
    noise = draw_noise(posterior, generator=torch.Generator().manual_seed(0))
    return make_bottleneck(config).sample(posterior, noise)


def test_expected_size_of_the_scalar_is_latent_sigma_up_to_the_authors_rounding() -> None:
    config = BottleneckConfig(latent_sigma=0.75)
    assert config.sigma_scale == 0.9375  # C_sigma of the authors' images: 0.75 / 0.8
    noise = torch.randn(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    size = (config.sigma_scale * noise).abs()
    # Four standard errors, and the 0.27% by which 0.8 differs from sqrt(2 / pi).
    tolerance = 4 * size.std().item() / math.sqrt(len(size)) + 0.0027 * 0.75
    assert size.mean().item() == pytest.approx(0.75, abs=tolerance)


def test_the_scalar_is_shared_within_an_example_and_differs_between_examples() -> None:
    sampled = draws_at_zero(BottleneckConfig(latent_sigma=0.5), 4000)
    spread = sampled.std(dim=(1, 2))  # |s| of each example, known to 1 / sqrt(128) of itself
    normal_quantile = 0.6745  # median of |n|
    assert spread.median().item() == pytest.approx(normal_quantile * 0.5 / 0.8, rel=0.08)
    assert spread.quantile(0.05).item() < 0.1  # near zero for some examples, so the decoder sees every level
    halves = sampled[:, :4].std(dim=(1, 2)), sampled[:, 4:].std(dim=(1, 2))
    assert torch.corrcoef(torch.stack(halves))[0, 1] > 0.95  # one scalar rules both halves


def test_constant_sigma_gives_every_example_the_same_spread() -> None:
    sampled = draws_at_zero(BottleneckConfig(latent_sigma=0.5, sigma_distribution="constant"), 4000)
    # 256,000 normal numbers: their deviation is known to 0.14%; four of that.
    assert sampled.std().item() == pytest.approx(0.5, rel=0.006)
    # The deviation of an example's 64 numbers scatters by 1 / sqrt(128) = 9%; 4000 examples stay within five of that.
    assert sampled.std(dim=(1, 2)).sub(0.5).abs().max().item() < 5 * 0.5 * 0.09


def test_sigma_vae_regularizer_is_the_mean_square_and_ignores_sigma() -> None:
    posterior = Posterior(torch.tensor([[[3.0, 1.0]], [[0.0, 2.0]]]), None)
    for sigma in (0.1, 2.0):
        config = BottleneckConfig(latent_sigma=sigma)
        assert make_bottleneck(config).regularizer(posterior).tolist() == [5.0, 2.0]


def test_vae_regularizer_is_the_closed_form_of_the_kl_divergence() -> None:
    bottleneck = make_bottleneck(BottleneckConfig(kind="vae"))
    posterior = bottleneck.posterior(torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0)))
    assert posterior.log_std is not None
    expected = kl_divergence(Normal(posterior.mean, posterior.log_std.exp()), Normal(0.0, 1.0)).mean(dim=(1, 2))
    # Float32 sums of 20 terms of order one.
    assert torch.allclose(bottleneck.regularizer(posterior), expected, atol=1e-6, rtol=1e-6)


def test_vae_samples_have_the_learned_spread() -> None:
    bottleneck = make_bottleneck(BottleneckConfig(kind="vae"))
    outputs = torch.tensor([1.0, -1.0, math.log(0.1), math.log(2.0)]).expand(20_000, 1, 4)
    posterior = bottleneck.posterior(outputs)
    sampled = bottleneck.sample(posterior, draw_noise(posterior, generator=torch.Generator().manual_seed(0)))[:, 0]
    # 20,000 numbers: deviations are known to 0.5%, means to 0.7% of the deviation; four of each.
    assert sampled.std(dim=0).tolist() == pytest.approx([0.1, 2.0], rel=0.02)
    assert sampled.mean(dim=0).tolist() == pytest.approx([1.0, -1.0], abs=0.06)


def test_autoencoder_samples_are_the_mean_and_cost_nothing() -> None:
    bottleneck = make_bottleneck(BottleneckConfig(kind="ae"))
    posterior = bottleneck.posterior(torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(bottleneck.sample(posterior, draw_noise(posterior)), posterior.mean)
    assert bottleneck.regularizer(posterior).tolist() == [0.0, 0.0, 0.0]


def test_keyed_noise_has_independent_standard_normal_parts() -> None:
    posterior = Posterior(torch.zeros(20_000, 2, 1), None)
    noise = draw_keyed_noise(posterior, 3, torch.arange(20_000))
    columns = torch.stack([noise.example, *noise.element.flatten(1).T])  # (3, B)
    # Entries of the correlation matrix of 20,000 independent examples scatter by 0.7%; four of that.
    assert torch.allclose(torch.corrcoef(columns), torch.eye(3), atol=0.03)
    assert columns.std(dim=1).tolist() == pytest.approx([1, 1, 1], rel=0.02)


def test_a_sigma_that_is_no_spread_is_refused() -> None:
    with pytest.raises(ValueError, match="kind: ae"):
        BottleneckConfig(latent_sigma=0.0)
