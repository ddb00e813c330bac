"""Where along the path a solver steps: noise levels from pure noise to data, in float64.

Shapes: N intervals, N + 1 grid points.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from latentlm.diffusion.process import DiffusionProcess

Spacing = Literal["linspace", "leading", "trailing", "logsnr"]

# Uniform log-SNR grids stay within alpha / sigma = e^±5.1: what lies beyond costs steps and changes little. The same
# bound is customary as a clip (`min_log_snr`) for the cosine schedule, whose noisiest timesteps run down to -9.9.
MAX_LOG_SNR = 5.1


class Grid(NamedTuple):
    """Grid points from noisy to clean. The last may be data itself (sigma 0), the first pure noise (alpha 0)."""

    alphas: Float64[Tensor, "N+1"]
    sigmas: Float64[Tensor, "N+1"]
    ode_variable: Float64[Tensor, "N+1"]
    """rho of `DiffusionProcess.ode_variable`; Heun steps in it."""
    timesteps: Float64[Tensor, "N+1"]
    """As the network sees them; the network is never asked at the last point."""

    @property
    def num_steps(self) -> int:
        return len(self.alphas) - 1

    @property
    def log_snr(self) -> list[float]:
        """lambda = log(alpha / sigma) of every point: -inf at pure noise, +inf at data."""
        return (self.alphas.log() - self.sigmas.log()).tolist()

    @property
    def ends_at_data(self) -> bool:
        return self.sigmas[-1].item() == 0


def make_grid(process: DiffusionProcess, num_steps: int, spacing: Spacing, *, min_log_snr: float | None = None) -> Grid:
    """The grid of `num_steps` intervals that ends at data (alpha 1, sigma 0).

    Args:
        process: Its noisiest timestep is the first point (`leading`: nearly), unless `min_log_snr` forbids it.
        num_steps: Intervals; the network is evaluated at their noisy ends.
        spacing: Between timesteps (Lin et al. 2023, Table 2), T = num_train_timesteps.
            `linspace`: N + 1 points over 0..T-1, rounded, the cleanest dropped (the authors' code).
            `trailing`: T - 1, T - 1 - T/N, ..., rounded.
            `leading`: multiples of T // N from 0 up, which starts short of the noisiest timestep.
            `logsnr`: even in log(alpha / sigma), clipped to ±5.1; timesteps are fractions.
            Flow matching has real time: `linspace` and `trailing` are both t = k / N.
        min_log_snr: Every point's log(alpha / sigma) is at least this: the grid is laid out as if the schedule began
            at its noisiest such timestep (`lambda_min_clipped` of diffusers). The noise that sampling starts from
            stays N(0, 1), sigma being nearly 1 there. None takes the whole schedule.

    Raises:
        ValueError: If the spacing has no meaning for the process, timesteps would repeat, or none is as clean as
            `min_log_snr`.
    """
    first = _noisiest_timestep(process, min_log_snr)
    num_train_timesteps = process.config.num_train_timesteps
    is_flow = process.config.process == "flow_matching"
    index = torch.arange(num_steps, dtype=torch.float64)
    if spacing == "leading" and is_flow:
        raise ValueError("spacing 'leading' would start flow_matching short of pure noise; use 'linspace' or 'logsnr'")
    if spacing == "logsnr":
        timesteps = _log_snr_timesteps(process, num_steps, first)
    elif is_flow:
        timesteps = first + index / num_steps * (num_train_timesteps - first)
    elif spacing == "linspace":
        timesteps = torch.linspace(0, first, num_steps + 1, dtype=torch.float64).round().flip(0)[:-1]
    elif spacing == "trailing":
        timesteps = (first + 1 - index * (first + 1) / num_steps).round() - 1
    else:
        timesteps = (index * ((first + 1) // num_steps)).flip(0)
    if len(timesteps.unique()) < num_steps:
        usable = "" if min_log_snr is None else f", of which {first + 1:.0f} have a log-SNR of {min_log_snr} or more,"
        raise ValueError(
            f"num_inference_steps={num_steps} repeats timesteps of a schedule of {num_train_timesteps}{usable} with "
            f"spacing {spacing!r}; use fewer steps, or spacing 'trailing'"
        )
    alphas, sigmas = process.signal_and_noise(timesteps, dtype=torch.float64)
    end = torch.tensor([1.0], dtype=torch.float64)
    alphas, sigmas = torch.cat([alphas, end]), torch.cat([sigmas, 1 - end])
    # The network never sees the end's timestep: data's own for flow matching, one past the cleanest for ddpm.
    end_timestep = num_train_timesteps * end if is_flow else -end
    return Grid(alphas, sigmas, process.ode_variable(alphas, sigmas), torch.cat([timesteps, end_timestep]))


def _noisiest_timestep(process: DiffusionProcess, min_log_snr: float | None) -> float:
    """The noisiest timestep whose log-SNR is at least `min_log_snr`: a fraction for flow matching, else whole."""
    is_flow = process.config.process == "flow_matching"
    if min_log_snr is None:
        return 0.0 if is_flow else process.config.num_train_timesteps - 1.0
    if is_flow:
        return process.timesteps_from_log_snr(torch.tensor([min_log_snr], dtype=torch.float64)).item()
    timesteps = torch.arange(process.config.num_train_timesteps)
    num_usable = int((_log_snr(process, timesteps) >= min_log_snr).sum())  # log-SNR falls as timesteps rise
    if num_usable == 0:
        raise ValueError(f"min_log_snr={min_log_snr} leaves no timestep: the cleanest one has less; lower it")
    return num_usable - 1.0


def _log_snr_timesteps(process: DiffusionProcess, num_steps: int, noisiest: float) -> Float64[Tensor, "N"]:
    """Even in log-SNR between the noisiest and the cleanest timestep; the noisiest itself comes first."""
    cleanest = process.config.num_train_timesteps if process.config.process == "flow_matching" else 0
    ends = torch.tensor([noisiest, cleanest], dtype=torch.float64)
    low, high = _log_snr(process, ends).clamp(-MAX_LOG_SNR, MAX_LOG_SNR).tolist()
    timesteps = process.timesteps_from_log_snr(torch.linspace(low, high, num_steps + 1, dtype=torch.float64)[:-1])
    timesteps[0] = noisiest
    return timesteps


def _log_snr(process: DiffusionProcess, timesteps: Tensor) -> Float64[Tensor, "K"]:
    alphas, sigmas = process.signal_and_noise(timesteps, dtype=torch.float64)
    return alphas.log() - sigmas.log()
