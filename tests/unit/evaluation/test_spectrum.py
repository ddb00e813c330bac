"""Sharpness: waves by hand."""

import math

import pytest
import torch
from torch.nn import functional as F

from latentlm.evaluation.spectrum import high_frequency_energy


def wave(cycles_per_pixel: float) -> torch.Tensor:
    row = (2 * math.pi * cycles_per_pixel * torch.arange(16)).cos()
    return row.expand(1, 1, 16, 16)


def test_only_waves_above_half_of_nyquist_count_and_with_the_energy_of_their_pixels():
    # 128 = 256 pixels · mean of cos²; the spectrum of float32 pixels is exact to about 1e-5 of that.
    assert high_frequency_energy(wave(3 / 8)) == pytest.approx(128, rel=1e-5)
    assert high_frequency_energy(wave(1 / 8)) == pytest.approx(0, abs=1e-3)
    both = torch.cat([wave(3 / 8), wave(1 / 8)])
    assert high_frequency_energy(both) == pytest.approx(64, rel=1e-5)


def test_blur_lowers_it_and_noise_raises_it():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(20, 3, 12, 12, generator=generator)
    sharp = high_frequency_energy(images)
    assert high_frequency_energy(F.avg_pool2d(images, 3, stride=1, padding=1)) < 0.2 * sharp
    assert high_frequency_energy(images + 0.3 * torch.randn(images.shape, generator=generator)) > 1.5 * sharp


def test_pictures_without_high_frequencies_are_refused():
    with pytest.raises(ValueError, match="too few frequencies"):
        high_frequency_energy(torch.zeros(2, 1, 3, 3))
