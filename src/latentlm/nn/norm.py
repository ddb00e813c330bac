"""RMSNorm (Zhang & Sennrich 2019), computed in float32 whatever the autocast type."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps), times a learned weight per channel.

    Args:
        hidden_size: Channels D.
        eps: Added to the mean square.
        elementwise_affine: Learn a weight. Without it the norm equals one whose weights are all ones.
    """

    def __init__(self, hidden_size: int, *, eps: float = 1e-6, elementwise_affine: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size)) if elementwise_affine else None

    def forward(self, hidden_states: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        x = hidden_states.float()
        x = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + self.eps)
        # Cast before the weight is applied, as Llama does: parity with its checkpoints in half precision.
        x = x.to(hidden_states.dtype)
        return x if self.weight is None else x * self.weight.to(x.dtype)
