"""PSNR by hand."""

import math

import pytest
import torch

from latentlm.evaluation.reconstruction import psnr


def test_an_error_of_a_tenth_of_the_range_is_twenty_decibels():
    images = torch.zeros(2, 1, 3, 3)
    # 0.2 of a range of 2; float32 holds 0.2 to 1e-8, which is far below a thousandth of a dB.
    assert psnr(images + 0.2, images) == pytest.approx(20, abs=1e-3)


def test_values_outside_the_range_count_as_clipped_and_equal_images_are_perfect():
    images = torch.ones(1, 3, 2, 2)
    assert psnr(images + 5, images) == math.inf
