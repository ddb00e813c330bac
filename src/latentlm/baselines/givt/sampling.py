"""How GIVT draws latents."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class GIVTSamplingConfig:
    """Sampling options; the official ImageNet runs at 256 pixels use temperature 0.95 and cfg_scale 1.4."""

    cfg_scale: float = 1.0
    """Density-based classifier-free guidance: 1 is none, the paper's w is one less."""
    temperature: float = 1.0
    """Multiplies every standard deviation, in both streams of guidance."""
    num_candidates: int = 512
    """Draws among which guidance chooses; unused without it. Only a few of them have a weight worth the name."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.cfg_scale):
            raise ValueError(f"cfg_scale is {self.cfg_scale}; guidance needs a finite number, 1 for none")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; a standard deviation cannot be scaled to nothing")
        if self.num_candidates < 1:
            raise ValueError(f"num_candidates is {self.num_candidates}; there must be one to choose from")
