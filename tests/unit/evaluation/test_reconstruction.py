"""PSNR and SSIM by hand; SSIM against another implementation is in tests/parity."""

import math

import pytest
import torch

from latentlm.evaluation.reconstruction import psnr, ssim


def test_an_error_of_a_tenth_of_the_range_is_twenty_decibels():
    images = torch.zeros(2, 1, 3, 3)
    # 0.2 of a range of 2; float32 holds 0.2 to 1e-8, which is far below a thousandth of a dB.
    assert psnr(images + 0.2, images) == pytest.approx(20, abs=1e-3)


def test_values_outside_the_range_count_as_clipped_and_equal_images_are_perfect():
    images = torch.ones(1, 3, 2, 2)
    assert psnr(images + 5, images) == math.inf


def test_ssim_of_equal_images_is_one_and_of_inverted_ones_near_minus_one():
    images = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert ssim(images, images) == pytest.approx(1, abs=1e-12)  # float64 rounding
    # Means and variances are alike and covariances opposite; the local means differ, and c1 and c2 are not 0.
    assert -1 < ssim(-images, images) < -0.5


def test_ssim_of_two_constant_images_is_its_luminance_term():
    a, b = torch.full((1, 3, 12, 12), 0.5), torch.full((1, 3, 12, 12), 0.25)
    c1 = (0.01 * 2) ** 2
    expected = (2 * 1.5 * 1.25 + c1) / (1.5**2 + 1.25**2 + c1)  # intensities count from black, which is -1
    assert ssim(a, b) == pytest.approx(expected, abs=1e-9)  # variances of constants round to 1e-17, against c2 = 0.0036


def test_ssim_takes_pictures_smaller_than_the_window_and_any_number_of_them():
    images = torch.rand(1030, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noisy = images + 0.1
    each = [ssim(noisy[i : i + 1], images[i : i + 1]) for i in (0, 600, 1029)]
    assert all(0 < value < 1 for value in each)
    parts = [ssim(noisy[:600], images[:600]) * 600, ssim(noisy[600:], images[600:]) * 430]
    assert ssim(noisy, images) == pytest.approx(sum(parts) / 1030, abs=1e-12)  # a mean over images, in float64
