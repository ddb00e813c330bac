"""AdaLN-Zero (Peebles & Xie 2023): a condition shifts, scales and gates a block; all start at zero."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def modulate(
    x: Float[Tensor, "*batch D"], shift: Float[Tensor, "*#batch D"], scale: Float[Tensor, "*#batch D"]
) -> Float[Tensor, "*batch D"]:
    """x * (1 + scale) + shift; the identity at initialisation."""
    return x * (1 + scale) + shift


class AdaLNModulation(nn.Module):
    """Linear(silu(condition)), split into `num_chunks` modulations of width `hidden_size` each.

    Blocks use (shift, scale, gate), final layers (shift, scale). The linear layer is zero at initialisation, so a gated
    block starts as the identity and a final layer without modulation ("Zero" in AdaLN-Zero).
    """

    def __init__(self, hidden_size: int, num_chunks: int) -> None:
        super().__init__()
        self.num_chunks = num_chunks
        self.linear = nn.Linear(hidden_size, num_chunks * hidden_size, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, condition: Float[Tensor, "*batch D"]) -> tuple[Float[Tensor, "*batch D"], ...]:
        return self.linear(F.silu(condition)).chunk(self.num_chunks, dim=-1)
