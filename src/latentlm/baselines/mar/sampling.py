"""How MAR draws latents."""

import math
from dataclasses import dataclass, field
from typing import Literal

from latentlm.diffusion.solvers import SolverConfig


@dataclass(frozen=True, kw_only=True)
class MARSamplingConfig:
    """Sampling options."""

    cfg_scale: float = 1.0
    """Classifier-free guidance of the head's predictions: 1 is none."""
    num_iterations: int = 16
    """Passes of the backbone, each revealing several latents; as many as there are latents reveals one at a time. The
    paper uses 64 (256 for its best numbers) for 256 latents."""
    solver: SolverConfig = field(default_factory=SolverConfig)
    """Of the head. LatentLM's default; MAR's own is `name: ddpm` with 100 steps."""
    temperature: float = 1.0
    """Multiplies the noise that the solver adds at every step (tau of MAR); needs a solver that adds some."""
    guidance_schedule: Literal["linear", "constant"] = "linear"
    """linear: the scale grows from 1 to cfg_scale with the share of latents revealed (as in Muse)."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.cfg_scale):
            raise ValueError(f"cfg_scale is {self.cfg_scale}; guidance needs a finite number, 1 for none")
        if self.num_iterations < 1:
            raise ValueError(f"num_iterations is {self.num_iterations}; sampling takes at least one")
        if not self.temperature >= 0:
            raise ValueError(f"temperature is {self.temperature}; it must be 0 or positive")
        is_stochastic = self.solver.name in ("ddpm", "dpm_sde") or self.solver.eta > 0
        if self.temperature != 1 and not is_stochastic:
            raise ValueError(
                f"temperature {self.temperature} scales the noise of the solver's steps, but {self.solver.name} adds "
                "none; use ddpm, dpm_sde or ddim with eta above 0, or leave the temperature at 1"
            )

    def guidance_scale(self, share_revealed: float) -> float:
        """The scale of an iteration after which `share_revealed` of the latents are known."""
        ramp = share_revealed if self.guidance_schedule == "linear" else 1.0
        return 1 + (self.cfg_scale - 1) * ramp
