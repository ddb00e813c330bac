"""Fixed sine-cosine positions of the tokens of a picture, as DiT adds them to its input.

Shapes: N tokens (rows · columns, in reading order), D channels.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

MAX_PERIOD = 10_000.0


def sincos_1d(positions: Int[Tensor, "N"], dim: int) -> Float[Tensor, "N D"]:
    """[sin(p f_j), cos(p f_j)] with f_j = 10000^(-j / (dim/2)) (Vaswani et al. 2017, sines first), in float32.

    Args:
        positions: From 0.
        dim: D, even.
    """
    half = dim // 2
    frequencies = MAX_PERIOD ** (-torch.arange(half, device=positions.device).float() / half)
    angles = positions.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def sincos_2d(rows: int, columns: int, dim: int, *, device: torch.device | None = None) -> Float[Tensor, "N D"]:
    """The column's `sincos_1d` in the first half of the channels, the row's in the second (the order of DiT's code).

    Args:
        rows: Of the grid.
        columns: Likewise.
        dim: D, a multiple of four.
        device: Of the result.
    """
    index = torch.arange(rows * columns, device=device)
    return torch.cat([sincos_1d(index % columns, dim // 2), sincos_1d(index // columns, dim // 2)], dim=-1)
