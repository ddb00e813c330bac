"""Which latents MAR hides: the law of its masking ratio in training, and its schedule in sampling.

The ratio r is normal with mean 1 and standard deviation 0.25, truncated to [min_mask_ratio, 1] (Li et al. 2024,
Section 4.1 and Appendix B); ceil(r N) of N latents are masked.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

RATIO_STD = 0.25
"""Of the normal before truncation."""


def _standard_normal_cdf(z: float) -> float:
    return 0.5 * (1 + math.erf(z / math.sqrt(2)))


def mask_ratios(uniform: Float[Tensor, "*batch"], min_mask_ratio: float) -> Float[Tensor, "*batch"]:
    """Masking ratios from numbers drawn from U(0, 1), by the inverse of the distribution function."""
    lowest = _standard_normal_cdf((min_mask_ratio - 1) / RATIO_STD)
    return 1 + RATIO_STD * torch.special.ndtri(lowest + (0.5 - lowest) * uniform)


def most_visible(num_tokens: int, min_mask_ratio: float) -> int:
    """The largest number of latents that training ever leaves unmasked: fewer than (1 - min_mask_ratio) N."""
    return math.ceil(num_tokens * (1 - min_mask_ratio) - 1e-6) - 1  # 10 · (1 - 0.7) is a hair above 3


def expected_num_masked(num_tokens: int, min_mask_ratio: float) -> float:
    """E[ceil(r N)], which is the sum over j < N of P(r > j / N)."""
    lowest = _standard_normal_cdf((min_mask_ratio - 1) / RATIO_STD)
    above = [(0.5 - _standard_normal_cdf((j / num_tokens - 1) / RATIO_STD)) / (0.5 - lowest) for j in range(num_tokens)]
    return sum(min(share, 1.0) for share in above)


def reveal_schedule(num_tokens: int, num_iterations: int) -> list[int]:
    """How many latents each iteration of sampling reveals: at least one, `num_tokens` in all.

    After iteration i of K, floor(N cos(pi/2 · i/K)) latents are still masked (the cosine of MaskGIT, Chang et al.
    2022), or one less than before where that would reveal none.

    Raises:
        ValueError: If there are more iterations than latents.
    """
    if num_iterations > num_tokens:
        raise ValueError(
            f"num_iterations is {num_iterations}, but every iteration reveals at least one of {num_tokens} latents"
        )
    counts, num_masked = [], num_tokens
    for i in range(1, num_iterations + 1):
        # One latent at least remains for each later iteration, because sin(pi/2 x) >= x on [0, 1].
        remaining = min(num_masked - 1, math.floor(num_tokens * math.cos(math.pi / 2 * i / num_iterations)))
        counts.append(num_masked - remaining)
        num_masked = remaining
    return counts
