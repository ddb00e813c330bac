"""Perplexity and bits per byte by hand; windows that score each target once, with the promised context."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentlm.evaluation.scores_table import scores_table
from latentlm.evaluation.text_scores import TextCounts, Window, score_ids, windows


def uniform(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """A model that knows nothing about its 50 ids."""
    return torch.full((len(targets),), math.log(50))


def test_a_uniform_model_has_the_vocabulary_size_as_perplexity():
    counts = score_ids(torch.arange(31), uniform, num_bytes=90, max_length=7, stride=3)
    assert counts.num_targets == 30
    # float32 logarithms.
    assert counts.perplexity == pytest.approx(50, rel=1e-6)
    assert counts.bits_per_byte == pytest.approx(math.log2(50) * 30 / 90, rel=1e-6)


def test_counts_add_up_as_if_the_texts_were_one():
    parts = [TextCounts(nll_nats=3.0, num_targets=2, num_bytes=5), TextCounts(nll_nats=1.0, num_targets=2, num_bytes=3)]
    total = sum(parts, start=TextCounts())
    assert total == TextCounts(nll_nats=4.0, num_targets=4, num_bytes=8)
    assert total.perplexity == pytest.approx(math.e)
    assert total.bits_per_byte == pytest.approx(4 / math.log(2) / 8)
    assert "| model | 4 | 8 | 2.718 | 0.7213 |" in scores_table({"model": total})
    assert total.as_json()["perplexity"] == total.perplexity


def test_a_text_that_the_model_rules_out_has_infinite_perplexity_and_valid_json():
    for nats in (math.inf, 8000.0):
        counts = TextCounts(nll_nats=nats, num_targets=2, num_bytes=2)
        assert counts.perplexity == math.inf
        assert json.loads(json.dumps(counts.as_json(), allow_nan=False))["perplexity"] is None


def test_nothing_scored_has_no_perplexity():
    with pytest.raises(ValueError, match="no token was scored"):
        _ = TextCounts().perplexity
    with pytest.raises(ValueError, match="no bytes"):
        _ = TextCounts(nll_nats=1.0, num_targets=1).bits_per_byte


def test_windows_by_hand():
    assert list(windows(8, max_length=4, stride=2)) == [Window(0, 5, 1), Window(2, 7, 5), Window(3, 8, 7)]
    assert list(windows(4, max_length=8, stride=8)) == [Window(0, 4, 1)], "a short text is one window"
    assert list(windows(1, max_length=8, stride=8)) == list(windows(0, max_length=8, stride=8)) == []


@given(st.integers(0, 60), st.integers(1, 12), st.data())
def test_every_target_is_scored_once_with_the_promised_context(num_ids, max_length, data):
    stride = data.draw(st.integers(1, max_length))
    scored = []
    for window in windows(num_ids, max_length, stride):
        assert 0 <= window.start < window.first_target < window.stop <= num_ids
        assert window.stop - 1 - window.start <= max_length, "the model is fed all ids but the last"
        for target in range(window.first_target, window.stop):
            scored.append(target)
            assert target - window.start >= min(target, max_length - stride + 1)
    assert scored == list(range(1, num_ids))


@pytest.mark.parametrize("stride", [0, 5])
def test_a_stride_that_skips_targets_is_refused(stride):
    with pytest.raises(ValueError, match=r"stride must lie in \[1, max_length = 4\]"):
        list(windows(9, 4, stride))


def test_each_target_gets_the_value_of_its_own_window():
    """A model whose nats are the number of ids it saw: stride 1 gives each target all the context there is."""

    def context_length(inputs, targets):
        assert torch.equal(inputs[1:], targets[:-1])
        return torch.arange(1, len(targets) + 1).float()

    ids = torch.arange(6)
    assert score_ids(ids, context_length, num_bytes=1, max_length=3, stride=1).nll_nats == 1 + 2 + 3 + 3 + 3
    # Windows of targets (1, 2, 3) and then (4, 5), whose window starts at 2: contexts of two and three ids.
    assert score_ids(ids, context_length, num_bytes=1, max_length=3, stride=3).nll_nats == 1 + 2 + 3 + 2 + 3


def test_targets_that_are_no_text_are_left_out():
    counted = torch.tensor([True, True, False, False, True, True])
    by_place = score_ids(
        torch.arange(6), lambda inputs, targets: targets.float(), num_bytes=3, max_length=2, stride=1, counted=counted
    )
    assert by_place == TextCounts(nll_nats=1.0 + 4.0 + 5.0, num_targets=3, num_bytes=3)


@pytest.mark.parametrize(
    "model", [lambda inputs, targets: targets.float() * math.nan, lambda inputs, targets: torch.zeros(1)]
)
def test_a_model_that_gives_nan_or_too_few_values_is_refused(model):
    with pytest.raises(ValueError, match="3 targets"):
        score_ids(torch.arange(4), model, num_bytes=3, max_length=8, stride=8)
