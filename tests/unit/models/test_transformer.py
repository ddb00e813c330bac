"""Laws of the backbone and its cache."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import randomise

from latentlm.models.transformer import Transformer, TransformerConfig
from latentlm.sequence import document_causal_mask


def make(num_kv_heads: int = 2) -> Transformer:
    config = TransformerConfig(
        hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=num_kv_heads, intermediate_size=64
    )
    return randomise(Transformer(config)).eval()


def embeds(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, length, 32, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_output_is_unmoved_by_later_input() -> None:
    model, x = make(), embeds(1, 12)
    changed = x.clone()
    changed[:, 7:] += 1
    positions = torch.arange(12)[None]
    assert torch.equal(model(x, positions)[:, :7], model(changed, positions)[:, :7])
    assert not torch.allclose(model(x, positions)[:, 7:], model(changed, positions)[:, 7:])


@torch.no_grad()
@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.sampled_from([1, 2, 4]))
def test_cached_decoding_in_any_chunks_equals_the_full_pass(chunks: list[int], num_kv_heads: int) -> None:
    model, length = make(num_kv_heads), sum(chunks)
    x, positions = embeds(2, length), torch.arange(length).expand(2, -1)
    cache = model.allocate_cache(2, length)
    outputs, start = [], 0
    for chunk in chunks:
        span = slice(start, start + chunk)
        start += chunk
        view = cache.view(positions[:, span], length=start)
        outputs.append(model(x[:, span], positions[:, span], cache=view))
    # Other shapes of the same matrix products: float32 rounding.
    assert torch.allclose(torch.cat(outputs, dim=1), model(x, positions), atol=2e-5)


@torch.no_grad()
def test_rows_of_a_cache_may_have_different_lengths() -> None:
    model = make()
    x = embeds(2, 9)
    cache = model.allocate_cache(2, 10)
    # Row 0 reads five tokens, row 1 three and two of padding, which go to the last slot.
    positions = torch.tensor([[0, 1, 2, 3, 4], [0, 1, 2, 9, 9]])
    model(x[:, :5], positions, cache=cache.view(positions, length=5))
    step = torch.tensor([[5], [3]])
    new = torch.stack([x[0, 5:6], x[1, 3:4]])
    actual = model(new, step, cache=cache.view(step, length=6))
    for row, count in ((0, 6), (1, 4)):
        alone = model(x[row : row + 1, :count], torch.arange(count)[None])
        assert torch.allclose(actual[row, 0], alone[0, -1], atol=2e-5)


@torch.no_grad()
def test_some_rows_of_a_cache_can_be_read_alone() -> None:
    model, x = make(), embeds(3, 4)
    cache = model.allocate_cache(3, 4)
    positions = torch.arange(3).expand(3, -1)
    model(x[:, :3], positions, cache=cache.view(positions, length=3))
    rows = torch.tensor([2, 0])
    step = torch.full((2, 1), 3)
    actual = model(x[rows, 3:], step, cache=cache.view(step, length=4, rows=rows))
    full = model(x, torch.arange(4).expand(3, -1))
    assert torch.allclose(actual[:, 0], full[rows, -1], atol=2e-5)


@torch.no_grad()
def test_documents_in_a_row_do_not_see_each_other() -> None:
    model = make()
    first, second = embeds(1, 5, seed=1), embeds(1, 4, seed=2)
    ids = torch.tensor([[0] * 5 + [1] * 4])
    positions = torch.cat([torch.arange(5), torch.arange(4)])[None]
    packed = model(torch.cat([first, second], dim=1), positions, attention_mask=document_causal_mask(ids))
    assert torch.allclose(packed[:, :5], model(first, torch.arange(5)[None]), atol=2e-5)
    assert torch.allclose(packed[:, 5:], model(second, torch.arange(4)[None]), atol=2e-5)


def test_activation_checkpointing_changes_no_gradient() -> None:
    model, x, positions = make(), embeds(2, 6), torch.arange(6).expand(2, -1)
    gradients = []
    for checkpointing in (False, True):
        model.activation_checkpointing = checkpointing
        model.zero_grad()
        model(x, positions).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    assert len(gradients[0]) == len(list(model.parameters()))
    assert all(torch.equal(first, second) for first, second in zip(*gradients, strict=True))


def test_a_cache_that_is_too_short_is_refused() -> None:
    cache = make().allocate_cache(1, 4)
    with pytest.raises(ValueError, match="needs 5 positions but the cache holds 4"):
        cache.view(torch.zeros(1, 1, dtype=torch.long), length=5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, "not a multiple of num_heads"),
        ({"num_kv_heads": 3}, "not a multiple of num_kv_heads"),
        ({"num_heads": 32}, "head_dim 1 is odd"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**{"hidden_size": 32, "num_layers": 1, "num_heads": 4, "intermediate_size": 64} | changes)
