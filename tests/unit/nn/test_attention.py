"""Attention: both forms are one formula."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from latentlm.nn.attention import MAX_PLAIN_LENGTH, attend


def some_heads(length: int, *, dtype: torch.dtype = torch.float64, heads: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    return [torch.randn(2, heads, length, 8, generator=generator, dtype=dtype).requires_grad_() for _ in range(3)]


def attended(tensors: list[Tensor], **options: object) -> list[Tensor]:
    """The output and the gradients of a fixed function of it."""
    out = attend(*tensors, **options)  # type: ignore[arg-type]
    return [out, *torch.autograd.grad(out.square().sum(), tensors)]


@pytest.mark.parametrize("length", [1, 17, MAX_PLAIN_LENGTH, MAX_PLAIN_LENGTH + 1])
@pytest.mark.parametrize("is_causal", [False, True])
def test_output_and_gradients_equal_pytorch_on_both_sides_of_the_length_limit(length: int, is_causal: bool) -> None:
    tensors = some_heads(length)
    reference = F.scaled_dot_product_attention(*tensors, is_causal=is_causal)
    expected = [reference, *torch.autograd.grad(reference.square().sum(), tensors)]
    for ours, theirs in zip(attended(tensors, is_causal=is_causal), expected, strict=True):
        # The softmax is taken in float32 whatever the type: seven digits.
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_mask_hides_what_it_says() -> None:
    q, k, v = some_heads(9)
    mask = torch.rand(2, 1, 9, 9, generator=torch.Generator().manual_seed(0)) < 0.5
    mask |= torch.eye(9, dtype=torch.bool)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(attend(q, k, v, mask=mask), expected, atol=1e-5, rtol=1e-5)


def test_grouped_heads_share_keys_and_values() -> None:
    q, (k, v) = some_heads(5, heads=4)[0], some_heads(5, heads=2)[:2]
    repeated = F.scaled_dot_product_attention(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1))
    torch.testing.assert_close(attend(q, k, v), repeated)


def test_half_precision_stays_half_precision() -> None:
    tensors = some_heads(4, dtype=torch.bfloat16)
    assert attend(*tensors, is_causal=True).dtype == torch.bfloat16
