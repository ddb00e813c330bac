"""Streaming moments against numpy, and the pair of numbers that goes with a tokenizer."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentlm.tokenizers.latent_statistics import LatentStatistics, StreamingMoments

# Large means, unequal batches: where a sum of squares in float32 would be left with noise.
OFFSETS = torch.tensor([1000.0, -3.0, 0.0])
SPREADS = torch.tensor([0.01, 2.0, 1.0])


def batches(sizes: list[int], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 5, 3, generator=generator) * SPREADS + OFFSETS for size in sizes]


@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any), seed=st.integers(0, 1000))
def test_moments_equal_numpy_on_the_concatenated_data(sizes: list[int], seed: int) -> None:
    moments = StreamingMoments(3)
    given_batches = batches(sizes, seed)
    for batch in given_batches:
        moments.update(batch)
    rows = torch.cat(given_batches).reshape(-1, 3).double().numpy()
    # Float64 throughout; what remains is rounding next to a mean of 1000.
    np.testing.assert_allclose(moments.mean, rows.mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(moments.variance, rows.var(axis=0), rtol=1e-8)
    assert moments.overall_mean == pytest.approx(rows.mean(), rel=1e-12)
    assert moments.overall_variance == pytest.approx(rows.var(), rel=1e-12)


@pytest.mark.parametrize("per_channel", [False, True])
def test_normalised_latents_have_mean_zero_and_variance_one(per_channel: bool) -> None:
    statistics = LatentStatistics(3, per_channel=per_channel)
    moments = StreamingMoments(3)
    (latents,) = batches([400])
    moments.update(latents)
    statistics.set_from(moments)
    normalised = statistics.normalize(latents).double()
    axes = (0, 1) if per_channel else (0, 1, 2)
    # Float32 keeps 1000 to 6e-5, which is 0.6% of the first channel's spread of 0.01.
    assert torch.allclose(normalised.mean(dim=axes), torch.zeros((), dtype=torch.float64), atol=0.01)
    assert torch.allclose(normalised.std(dim=axes), torch.ones((), dtype=torch.float64), atol=0.01)
    # Undone up to float32 rounding at 1000.
    assert torch.allclose(statistics.denormalize(normalised.float()), latents, rtol=1e-6, atol=1e-4)


def test_bias_comes_before_scale() -> None:
    statistics = LatentStatistics(1)
    statistics.load_state_dict({"bias": torch.tensor(-4.0), "scale": torch.tensor(0.5)})
    assert statistics.normalize(torch.tensor([[[10.0]]])).item() == 3.0  # (10 - 4) / 2


def test_nothing_is_normalised_before_the_statistics_are_measured() -> None:
    statistics = LatentStatistics(3)
    for change in (statistics.normalize, statistics.denormalize):
        with pytest.raises(ValueError, match="measure_statistics"):
            change(torch.zeros(1, 1, 3))


def test_loading_decides_anew_whether_statistics_are_measured() -> None:
    statistics = LatentStatistics(2, per_channel=True)
    unmeasured = {name: tensor.clone() for name, tensor in statistics.state_dict().items()}
    statistics.load_state_dict({"bias": torch.zeros(2), "scale": torch.ones(2)})
    assert statistics.is_measured
    statistics.load_state_dict(unmeasured)
    assert not statistics.is_measured


def test_latents_that_do_not_vary_are_refused() -> None:
    moments = StreamingMoments(3)
    moments.update(torch.ones(2, 4, 3))
    with pytest.raises(ValueError, match="collapsed"):
        LatentStatistics(3).set_from(moments)


def test_moments_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="no latents"):
        LatentStatistics(3).set_from(StreamingMoments(3))
