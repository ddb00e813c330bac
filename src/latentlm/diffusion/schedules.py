"""Noise schedules of the DDPM process: betas and their cumulative products ᾱ_t of Eq. 2, in float64 on the CPU.

The device is named so that models built on the meta device still have a schedule.

a_t = prod_{s<=t} (1 - beta_s) is called `alphas_cumprod`; x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise.

Shapes: T num_train_timesteps.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

# Nichol & Dhariwal 2021: keeps the last beta of the cosine schedule away from the singularity at t = T.
MAX_COSINE_BETA = 0.999


def cosine_betas(num_train_timesteps: int) -> Float64[Tensor, "T"]:
    """Cosine schedule (Nichol & Dhariwal 2021, Eq. 17; `squaredcos_cap_v2` elsewhere).

    beta_i = min(1 - f((i + 1) / T) / f(i / T), 0.999) with f(s) = cos²((s + 0.008) / 1.008 · pi / 2).
    """
    time = torch.arange(num_train_timesteps + 1, dtype=torch.float64, device="cpu") / num_train_timesteps
    signal = torch.cos((time + 0.008) / 1.008 * math.pi / 2).square()
    return (1 - signal[1:] / signal[:-1]).clamp(max=MAX_COSINE_BETA)


def linear_betas(num_train_timesteps: int) -> Float64[Tensor, "T"]:
    """Linear schedule from 1e-4 to 0.02 (Ho et al. 2020, Section 4; their T is 1000)."""
    return torch.linspace(1e-4, 0.02, num_train_timesteps, dtype=torch.float64, device="cpu")


def rescale_zero_terminal_snr(alphas_cumprod: Float64[Tensor, "T"]) -> Float64[Tensor, "T"]:
    """Shift and stretch sqrt(a_t) so that the last timestep is pure noise (Lin et al. 2023, Algorithm 1)."""
    signal = alphas_cumprod.sqrt()
    first, last = signal[0], signal[-1]
    return ((signal - last) * first / (first - last)).square()


def make_alphas_cumprod(
    beta_schedule: Literal["cosine", "linear"], num_train_timesteps: int, *, zero_terminal_snr: bool = False
) -> Float64[Tensor, "T"]:
    """a_t of every training timestep; decreases from nearly 1 at t = 0 to nearly 0 (or 0) at t = T - 1."""
    betas = {"cosine": cosine_betas, "linear": linear_betas}[beta_schedule](num_train_timesteps)
    alphas_cumprod = (1 - betas).cumprod(dim=0)
    return rescale_zero_terminal_snr(alphas_cumprod) if zero_terminal_snr else alphas_cumprod
