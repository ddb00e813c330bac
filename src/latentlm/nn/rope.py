"""Rotary position embedding (Su et al. 2021) in the rotate-half layout that Llama checkpoints use."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def rotary_frequencies(
    head_dim: int, *, theta: float = 10_000.0, inclusive: bool = False, device: torch.device | str | None = None
) -> Float[Tensor, "half"]:
    """Angular frequency of each rotated pair: theta^(-exponent).

    Args:
        head_dim: Even width of one attention head.
        theta: Base; larger for longer sequences.
        inclusive: Exponents run over 0..1 inclusive, as in the authors' image code; otherwise they stop short of 1
            (2j / head_dim), as in Llama.
        device: Where the table is made.
    """
    half = head_dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=device) / (max(half - 1, 1) if inclusive else half)
    return theta**-exponents


def rotary_tables(
    positions: Int[Tensor, "B T"], frequencies: Float[Tensor, "half"]
) -> tuple[Float[Tensor, "B 1 T half2"], Float[Tensor, "B 1 T half2"]]:
    """cos and sin of every position's angles, float32, ready to broadcast over heads."""
    angles = positions[..., None].float() * frequencies  # (B, T, half)
    angles = torch.cat([angles, angles], dim=-1)[:, None]  # (B, 1, T, head_dim)
    return angles.cos(), angles.sin()


def apply_rotary(
    x: Float[Tensor, "B H T Dh"], cos: Float[Tensor, "B 1 T Dh"], sin: Float[Tensor, "B 1 T Dh"]
) -> Float[Tensor, "B H T Dh"]:
    """Rotate channel pairs (j, j + Dh/2) by their position's angle; computed in float32."""
    first, second = x.float().chunk(2, dim=-1)
    rotated = torch.cat([-second, first], dim=-1)
    return (x.float() * cos + rotated * sin).to(x.dtype)
