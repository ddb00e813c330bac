"""Classifier-free guidance (Ho & Salimans 2022): guided = uncond + scale (cond - uncond); scale 1 is none.

A negative condition is the same formula: give the other prompt's stream as `uncond`. Rows carry their own scale. The
scale may vary over solver steps, over the positions of the sequence, and be switched off outside a range of timesteps.

Shapes: K network evaluations of the solver, B rows, C latent_dim.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Ramp = Literal["constant", "linear_increasing", "linear_decreasing", "cosine_increasing"]


@dataclass(frozen=True, kw_only=True)
class GuidanceConfig:
    """Where guidance acts. The scale itself belongs to each request, not here.

    scale = 1 + (cfg_scale - 1) · ramp over steps · ramp over positions · [timestep inside the interval],
    ramps between 0 and 1: whatever the schedule, cfg_scale 1 stays exactly 1.
    """

    step_schedule: Ramp = "constant"
    """Over the solver's evaluations, first (noisiest) to last (Wang et al. 2024 find increasing ones better)."""
    position_schedule: Ramp = "constant"
    """Over the latents of a span, first to last (MAR, Li et al. 2024, uses a linear increase)."""
    interval: tuple[float, float] | None = None
    """Guide only where interval[0] <= timestep <= interval[1], in timesteps as the network sees them
    (Kynkäänniemi et al. 2024: leave out the noisiest steps). ddpm: high is noisy; flow matching: low is noisy."""

    def __post_init__(self) -> None:
        if self.interval is not None and not self.interval[0] <= self.interval[1]:
            raise ValueError(
                f"the guidance interval {self.interval} is empty: give the lower timestep first, whichever end is noisy"
            )


def _ramp(shape: Ramp, progress: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    match shape:
        case "constant":
            return torch.ones_like(progress)
        case "linear_increasing":
            return progress
        case "linear_decreasing":
            return 1 - progress
        case "cosine_increasing":
            return (1 - torch.cos(math.pi * progress)) / 2


def guidance_scales(
    config: GuidanceConfig,
    cfg_scale: Float[Tensor, "B"],
    timesteps: Float[Tensor, "K"],
    *,
    position: int | Int[Tensor, "B"] = 0,
    num_positions: int | Int[Tensor, "B"] = 1,
) -> Float[Tensor, "K B"]:
    """The scale of every solver evaluation and row.

    Args:
        config: Schedules and interval.
        cfg_scale: Of each row; 1 is no guidance.
        timesteps: `Solver.timesteps`.
        position: Index of the latent within its span, for all rows or each.
        num_positions: Length of the span, for all rows or each. A ramp over a single position is at its end.

    Returns:
        float32, on the device of `cfg_scale`; nothing is read back to the host.
    """
    device = cfg_scale.device
    # Counted from the end: a single evaluation is the last one, where an increasing ramp is full.
    steps = torch.linspace(1, 0, timesteps.shape[0], device=device).flip(0)
    last = torch.as_tensor(num_positions, device=device).float() - 1
    progress = torch.where(last > 0, torch.as_tensor(position, device=device) / last.clamp(min=1), 1.0)
    by_step = _ramp(config.step_schedule, steps)  # (K,)
    if config.interval is not None:
        low, high = config.interval
        by_step = by_step * ((timesteps >= low) & (timesteps <= high)).to(device)
    by_row = (cfg_scale.float() - 1) * _ramp(config.position_schedule, progress)  # (B,)
    return 1 + by_step[:, None] * by_row


def guide(
    cond: Float[Tensor, "*rows C"], uncond: Float[Tensor, "*rows C"], scale: Float[Tensor, "*#rows"]
) -> Float[Tensor, "*rows C"]:
    """uncond + scale (cond - uncond), in float32 (float64 for float64 predictions).

    Args:
        cond: The network's raw prediction for the conditional stream.
        uncond: The same for the stream without condition, or with a negative one.
        scale: Per row, or anything that broadcasts over rows.
    """
    dtype = torch.float64 if cond.dtype == torch.float64 else torch.float32
    cond, uncond = cond.to(dtype), uncond.to(dtype)
    # The same number, written so that scale 1 gives `cond` to the last bit.
    return cond + (scale.to(dtype)[..., None] - 1) * (cond - uncond)
