"""Sinusoidal timestep embedding followed by a two-layer MLP (the form of DiT and of the authors' head)."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

MAX_PERIOD = 10_000.0


def sinusoid(timesteps: Float[Tensor, "*batch"] | Int[Tensor, "*batch"], dim: int) -> Float[Tensor, "*batch F"]:
    """[cos(t f_j), sin(t f_j)] with f_j = 10000^(-j / (dim/2)), in float32.

    In bfloat16 every timestep above 256 would lose its low bits, hence float32 whatever the model's type.
    """
    half = dim // 2
    frequencies = torch.exp(-math.log(MAX_PERIOD) * torch.arange(half, device=timesteps.device).float() / half)
    angles = timesteps.float()[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimestepEmbedding(nn.Module):
    """timesteps -> condition of width `hidden_size`.

    Args:
        hidden_size: Output width D.
        frequency_dim: Width of the sinusoid (256: DiT, and the authors' code).
    """

    def __init__(self, hidden_size: int, *, frequency_dim: int = 256) -> None:
        super().__init__()
        self.frequency_dim = frequency_dim
        self.in_proj = nn.Linear(frequency_dim, hidden_size, bias=False)
        self.out_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        # N(0, 0.02): DiT, and the authors' code.
        nn.init.normal_(self.in_proj.weight, std=0.02)
        nn.init.normal_(self.out_proj.weight, std=0.02)

    def forward(self, timesteps: Float[Tensor, "*batch"] | Int[Tensor, "*batch"]) -> Float[Tensor, "*batch D"]:
        features = sinusoid(timesteps, self.frequency_dim).to(self.in_proj.weight.dtype)
        return self.out_proj(F.silu(self.in_proj(features)))
