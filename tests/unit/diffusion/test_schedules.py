"""Betas and their cumulative products."""

import pytest
import torch

from latentlm.diffusion.schedules import (
    MAX_COSINE_BETA,
    cosine_betas,
    linear_betas,
    make_alphas_cumprod,
    rescale_zero_terminal_snr,
)


def test_linear_betas_run_from_one_ten_thousandth_to_two_hundredths() -> None:
    betas = linear_betas(1000)
    assert betas[0].item() == pytest.approx(1e-4)
    assert betas[-1].item() == pytest.approx(0.02)


def test_cosine_betas_grow_and_are_capped() -> None:
    betas = cosine_betas(1000)
    assert (betas.diff() >= 0).all()
    assert betas[-1].item() == MAX_COSINE_BETA
    assert betas[-2].item() < MAX_COSINE_BETA


@pytest.mark.parametrize("beta_schedule", ["cosine", "linear"])
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_signal_decreases_from_nearly_one_to_nearly_zero(beta_schedule: str, zero_terminal_snr: bool) -> None:
    alphas_cumprod = make_alphas_cumprod(beta_schedule, 1000, zero_terminal_snr=zero_terminal_snr)  # pyright: ignore
    assert (alphas_cumprod.diff() < 0).all()
    assert alphas_cumprod[0] > 0.9998
    assert alphas_cumprod[-1] < 5e-5
    assert (alphas_cumprod[-1] == 0) == zero_terminal_snr


def test_zero_terminal_snr_keeps_the_first_timestep() -> None:
    alphas_cumprod = make_alphas_cumprod("linear", 1000)
    # float64 rounding of a square root, a product and a square.
    torch.testing.assert_close(rescale_zero_terminal_snr(alphas_cumprod)[0], alphas_cumprod[0], atol=1e-14, rtol=0)
