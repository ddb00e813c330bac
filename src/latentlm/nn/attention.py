"""Scaled dot-product attention, by whichever form is fastest where it runs.

PyTorch's fused CPU kernel is made for long sequences: at a few dozen positions its backward pass in bfloat16 is slower
than the same formula written as two matrix products. Block masks go to flex attention, which skips the blocks that
nobody may look at; on a CPU it has no backward pass, so that masks there are plain tensors. Everywhere else the fused
kernel is used.

Shapes: B batch, H query heads, G key-value heads, T queries, S keys, Dh head_dim.
"""

import functools
import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

MAX_PLAIN_LENGTH = 128
"""Longest sequence for which the plain form is used on a CPU: its scores take T · S numbers per head."""


def attend(
    query: Float[Tensor, "B H T Dh"],
    key: Float[Tensor, "B G S Dh"],
    value: Float[Tensor, "B G S Dh"],
    *,
    mask: Bool[Tensor, "#B 1 T S"] | BlockMask | None = None,
    is_causal: bool = False,
) -> Float[Tensor, "B H T Dh"]:
    """softmax(q kᵀ / sqrt(Dh)) v.

    Args:
        query: Of every query head.
        key: Fewer heads than queries means grouped-query attention: H / G query heads share one.
        value: Likewise.
        mask: True where a query may look, as a tensor or by blocks; None for everywhere.
        is_causal: A query looks at its own and earlier positions; instead of a mask.
    """
    grouped = query.shape[1] != key.shape[1]
    if isinstance(mask, BlockMask):
        return _flex(query.device)(query, key, value, block_mask=mask, enable_gqa=grouped)
    is_training = torch.is_grad_enabled() and query.requires_grad
    if query.device.type != "cpu" or not is_training or grouped or key.shape[2] > MAX_PLAIN_LENGTH:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=is_causal, enable_gqa=grouped
        )
    scores = (query / math.sqrt(query.shape[-1])) @ key.transpose(-1, -2)  # (B, H, T, S)
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype) @ value


@functools.cache
def _flex(device: torch.device) -> Callable[..., Tensor]:
    """Flex attention is fast only when compiled; on a CPU, where it serves tests, the plain form will do."""
    return flex_attention if device.type == "cpu" else torch.compile(flex_attention)
