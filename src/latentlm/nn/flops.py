"""FLOPs of matrix products and attention, a multiplication and an addition each, as PyTorch's own counter sees them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


class ImageFlops(NamedTuple):
    """What one picture costs a generator; its tokenizer is not included."""

    training: int
    """Forward and backward."""
    generation: int
    """All evaluations of the network, both streams where guidance is on."""


def count_flops(function: Callable[..., Any], *inputs: Any, **named_inputs: Any) -> int:
    """FLOPs of one call; a module on the meta device takes meta tensors and computes nothing.

    Attention is counted over all pairs of positions although a causal mask or a cache needs only half of them. A
    backward pass costs twice its forward pass.
    """
    # The counter has no formula for the fused attention of CPUs; the plain form is two products that it sees.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        function(*inputs, **named_inputs)
    return counter.get_total_flops()
