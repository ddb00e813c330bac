"""The plan of rows: a pure function of its arguments that mixes by tokens, wastes little and repeats nothing."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentlm.sequence import PackingPlan, PlannedPiece, pack
from latentlm.sequence.packing import PIECES_PER_WINDOW

LENGTHS = [np.full(50, 64), np.arange(200) % 30 + 3, np.arange(90) % 40 + 10]


def make_plan(seed: int = 0) -> PackingPlan:
    return PackingPlan(LENGTHS, [2.0, 1.0, 1.0], max_length=64, seed=seed)


@settings(deadline=None)
@given(st.lists(st.integers(1, 20), max_size=40))
def test_packing_keeps_every_document_once_and_every_row_within_length(lengths: list[int]) -> None:
    rows = pack(lengths, 20)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= 20 for row in rows)
    if lengths:
        assert len(rows) <= 2 * -(-sum(lengths) // 20)  # no two rows could be merged


def test_a_document_longer_than_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="split it first"):
        pack([3, 30], 20)


def test_packing_takes_the_row_with_the_least_space_that_fits() -> None:
    # 7 opens row 0 (3 left), 6 row 1 (4 left); 4 fits row 1 exactly, 3 row 0 exactly.
    assert pack([3, 6, 4, 7], 10) == [[3, 0], [1, 2]]


def test_any_row_can_be_asked_for_in_any_order() -> None:
    whole = make_plan().rows(0, 700)
    plan = make_plan()
    assert plan.rows(600, 700) == whole[600:]  # forward over several windows
    assert plan.rows(3, 10) == whole[3:10]  # and back
    assert [row for rank in range(2) for row in make_plan().rows(350 * rank, 350 * rank + 350)] == whole
    assert make_plan(seed=1).rows(0, 700) != whole


def test_an_epoch_holds_every_piece_once_before_the_next_begins() -> None:
    pieces: list[PlannedPiece] = []
    for row in make_plan().rows(0, 3000):
        pieces += row
        if len(pieces) == 4 * PIECES_PER_WINDOW:  # rows of a window are shuffled: look at whole windows
            break
    assert len(pieces) == 4 * PIECES_PER_WINDOW
    for source, lengths in enumerate(LENGTHS):
        of_source = [piece for piece in pieces if piece.source == source]
        assert len(set(of_source)) == len(of_source)
        counts = Counter(piece.epoch for piece in of_source)
        assert all(counts[epoch] == len(lengths) for epoch in range(max(counts)))
        assert max(counts) > 3


def test_tokens_stand_in_the_ratio_of_the_weights_and_little_is_wasted() -> None:
    report = make_plan().report(1500)
    shares = np.array(report.num_tokens) / sum(report.num_tokens)
    # A stretch of rows ends inside a window, whose rows are shuffled: a few rows off of 1,500.
    assert shares == pytest.approx([0.5, 0.25, 0.25], abs=0.01)
    assert report.waste < 0.03
    rows = make_plan().rows(0, 1500)
    tokens = sum(int(LENGTHS[piece.source][piece.piece]) for row in rows for piece in row)
    assert report.waste == pytest.approx(1 - tokens / (1500 * 64))
    assert sum(report.num_pieces) == sum(map(len, rows))


def test_a_single_short_document_is_repeated_for_ever() -> None:
    plan = PackingPlan([np.array([5])], [1.0], max_length=12, seed=0)
    rows = plan.rows(0, 600)
    assert all(len(row) == 2 for row in rows)
    assert sorted(piece.epoch for row in rows[:512] for piece in row) == list(range(1024))


@pytest.mark.parametrize(
    ("lengths", "weights", "message"),
    [
        ([], [], "0 weights were given for 0 sources"),
        ([np.array([3])], [1.0, 2.0], "2 weights were given for 1 sources"),
        ([np.zeros(0, dtype=int)], [1.0], "source 0 has no document"),
        ([np.array([3])], [0.0], "source 0 has the weight 0.0; leave it out"),
        ([np.array([3])], [float("nan")], "has the weight nan"),
        ([np.array([3, 13])], [1.0], "source 0 has a piece of 13 tokens, a row 12"),
    ],
)
def test_plans_that_cannot_be_are_refused(lengths: list[np.ndarray], weights: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PackingPlan(lengths, weights, max_length=12, seed=0)


def test_a_source_with_a_name_is_refused_by_it() -> None:
    lengths = [np.array([3]), np.zeros(0, dtype=int)]
    with pytest.raises(ValueError, match="source captions has no document"):
        PackingPlan(lengths, [1.0, 1.0], max_length=12, seed=0, names=["text", "captions"])
