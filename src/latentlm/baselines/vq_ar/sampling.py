"""How the codes of a picture are sampled one after the other."""

import math
from dataclasses import dataclass

from latentlm.generation.requests import TextSamplingConfig


@dataclass(frozen=True, kw_only=True)
class CodeSamplingConfig(TextSamplingConfig):
    """A code is chosen as the next id of a text is, with guidance besides."""

    cfg_scale: float = 1.0
    """Classifier-free guidance on the logits, uncond + cfg_scale (cond - uncond); 1 is none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.cfg_scale):
            raise ValueError(f"cfg_scale is {self.cfg_scale}; guidance needs a finite number, 1 for none")
