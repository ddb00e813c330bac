"""Parallel decoding of masked codes (MaskGIT, Chang et al. 2022, Section 3.2).

Every iteration draws all codes that are still masked, keeps those the model is surest of, and masks the others again;
the cosine schedule says how many. Kept codes never change.

Shapes: B batch, N tokens of a picture, V num_codes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from latentlm.generation.text_sampling import sample_untruncated
from latentlm.nn.keyed_noise import keyed_uniform

# Streams of the keyed noise of one picture: which code is drawn, and how sure of it the model seems.
CODE_STREAM = 1
CHOICE_STREAM = 2


@dataclass(frozen=True, kw_only=True)
class MaskGITSamplingConfig:
    """How the codes of a picture are sampled; saved with a model as its default."""

    num_iterations: int = 8
    """Passes through the network, at most one per code. The paper's pictures of 256 codes take 8 to 12."""
    cfg_scale: float = 1.0
    """Classifier-free guidance on the logits, uncond + cfg_scale (cond - uncond); 1 is none. The paper has none."""
    guidance_schedule: Literal["constant", "linear"] = "constant"
    """`linear` rises from no guidance at the first iteration to `cfg_scale` at the last (Muse, Chang et al. 2023)."""
    temperature: float = 1.0
    """Divides the logits that codes are drawn from, not the confidences; 0 takes the most likely code."""
    choice_temperature: float = 4.5
    """Of the Gumbel noise on log-confidences at the start; it falls to 0 linearly. 4.5: the authors' code."""

    def __post_init__(self) -> None:
        if self.num_iterations < 1:
            raise ValueError(f"num_iterations is {self.num_iterations}; it must be at least 1")
        if not math.isfinite(self.cfg_scale):
            raise ValueError(f"cfg_scale is {self.cfg_scale}; guidance needs a finite number, 1 for none")
        for name in ("temperature", "choice_temperature"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 (no randomness) or positive")

    def guidance_scale(self, iteration: int) -> float:
        """Of one iteration, counted from 0. A single iteration is the last one."""
        if self.guidance_schedule == "constant" or self.num_iterations == 1:
            return self.cfg_scale
        return 1 + (self.cfg_scale - 1) * iteration / (self.num_iterations - 1)


def masked_counts(num_tokens: int, num_iterations: int) -> list[int]:
    """Codes that are masked after each iteration t = 1 … T: ceil(cos(pi/2 · t/T) N) (Section 3.2, step 3).

    Where that is no fewer than before, it is one fewer: like the authors' code, every iteration keeps something. The
    counts hold for all pictures, as all start from N masks and end with none.

    Raises:
        ValueError: If there are more iterations than codes: some would have nothing to do.
    """
    if num_iterations > num_tokens:
        raise ValueError(
            f"num_iterations is {num_iterations} but the picture has {num_tokens} codes; ask for at most one iteration "
            "per code"
        )
    counts = [num_tokens]
    for t in range(1, num_iterations + 1):
        # Without the small number, cos(pi/3) or cos(pi/2), rounded up, would count as one mask more.
        scheduled = math.ceil(num_tokens * math.cos(math.pi / 2 * t / num_iterations) - 1e-9)
        counts.append(min(scheduled, counts[-1] - 1))
    return counts[1:]


def parallel_decode(
    predict: Callable[[Tensor, int], Tensor],
    *,
    seeds: Int[Tensor, "B"],
    sampling: MaskGITSamplingConfig,
    num_tokens: int,
    mask_id: int,
) -> Int[Tensor, "B N"]:
    """Fill N masked codes per picture.

    Args:
        predict: Codes [B, N], with `mask_id` where they are unknown, and the iteration from 0 to logits [B, N, V].
        seeds: All noise of a picture follows from its own.
        sampling: Iterations and temperatures.
        num_tokens: N.
        mask_id: The mask token; none of the codes.

    Raises:
        ValueError: If there are more iterations than codes, or the logits are NaN.
    """
    codes = torch.full((len(seeds), num_tokens), mask_id, device=seeds.device)
    for iteration, num_masked in enumerate(masked_counts(num_tokens, sampling.num_iterations)):
        keys = torch.full_like(seeds, iteration)
        is_masked = codes == mask_id
        logits = predict(codes, iteration).float()  # (B, N, V)
        uniform = keyed_uniform(seeds, keys, (num_tokens,), stream=CODE_STREAM)
        drawn = sample_untruncated(logits, float(sampling.temperature), uniform)
        confidence = logits.log_softmax(-1).gather(-1, drawn[..., None])[..., 0]  # (B, N)
        gumbel = -(-keyed_uniform(seeds, keys, (num_tokens,), stream=CHOICE_STREAM).log()).log()
        spread = sampling.choice_temperature * (1 - (iteration + 1) / sampling.num_iterations)
        confidence = (confidence + spread * gumbel).masked_fill(~is_masked, math.inf)
        rank = confidence.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        codes = torch.where(is_masked & (rank < num_tokens - num_masked), drawn, codes)
    return codes
