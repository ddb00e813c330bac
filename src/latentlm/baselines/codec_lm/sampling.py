"""How codes are drawn: repetition-aware sampling for the first ones (VALL-E 2, Chen et al. 2024, Algorithm 1).

Shapes: B rows, V codes and the end, K codes of the window.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentlm.generation.requests import TextSamplingConfig
from latentlm.generation.text_sampling import sample_ids, sample_untruncated


@dataclass(frozen=True, kw_only=True)
class CodecSamplingConfig:
    """How an utterance's codes are sampled; saved with the model as its default."""

    cfg_scale: float = 1.0
    """Classifier-free guidance on the logits of first codes, away from neither text nor voice; 1 is none, as in
    VALL-E. The other codes are not guided."""
    temperature: float = 1.0
    """Of the first codes: divides their logits; 0 is greedy."""
    top_p: float = 0.9
    """Of the first codes: keep the smallest set whose probability reaches p."""
    repetition_window: int = 10
    """Codes before a first code among which it is counted; 0 samples by top_p alone, as VALL-E does."""
    repetition_threshold: float = 0.1
    """Share of the window above which a first code repeats too often: it is drawn again from the whole distribution,
    neither tempered nor truncated."""
    other_temperature: float = 0.0
    """Of the codes 2 … Q; greedy in VALL-E."""

    def __post_init__(self) -> None:
        TextSamplingConfig(temperature=self.temperature, top_p=self.top_p)  # refuses what it would refuse when drawing
        if not math.isfinite(self.cfg_scale):
            raise ValueError(f"cfg_scale is {self.cfg_scale}; guidance needs a finite number, 1 for none")
        if self.repetition_window < 0 or not 0 <= self.repetition_threshold <= 1:
            raise ValueError("repetition_window must be 0 or more, and repetition_threshold lie in [0, 1]")
        if self.other_temperature < 0:
            raise ValueError(f"other_temperature is {self.other_temperature}; it must be 0 (greedy) or positive")


def sample_first_codes(
    logits: Float[Tensor, "B V"],
    history: Int[Tensor, "B K"],
    config: CodecSamplingConfig,
    uniform: Float[Tensor, "B 2"],
    *,
    allowed: Bool[Tensor, "B V"],
) -> Int[Tensor, "B"]:
    """Draw one first code per row.

    A code from the nucleus stands unless it makes up more than `repetition_threshold` of the window: loops, of silence
    above all, are left that way.

    Args:
        logits: Of every code and the end.
        history: The `repetition_window` codes before, those of the voice too; negative where there were fewer.
        config: Temperature, truncation, repetition.
        uniform: Random numbers in (0, 1) that decide, in the nucleus and outside it.
        allowed: Codes that may come, one at least.

    Raises:
        ValueError: If a logit is NaN.
    """
    nucleus = TextSamplingConfig(temperature=config.temperature, top_p=config.top_p)
    codes = sample_ids(logits, nucleus, uniform[:, 0], allowed=allowed)
    if not config.repetition_window:
        return codes
    repeats = (history == codes[:, None]).sum(dim=-1) > config.repetition_threshold * config.repetition_window
    anew = sample_untruncated(logits.masked_fill(~allowed, -torch.inf), 1.0, uniform[:, 1])
    return torch.where(repeats, anew, codes)
