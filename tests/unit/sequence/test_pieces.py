"""Cutting loses nothing and never cuts a span."""

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentlm.sequence import IdsPart, LatentSlot, Segment, cut, num_tokens

MAX_LENGTH = 12

shapes = st.lists(st.tuples(st.sampled_from(["text", "image", "speech"]), st.integers(0, 40)), max_size=8)


def document_of(shape: list[tuple[str, int]]) -> list[Segment]:
    """A document in which every token and every span is another one."""
    counter = itertools.count()
    document: list[Segment] = []
    for kind, size in shape:
        if kind == "text":
            document.append(IdsPart(tuple(itertools.islice(counter, size))))
        elif kind == "image":
            count = 1 + size % (MAX_LENGTH - 4)
            document.append(LatentSlot("image", count, next(counter), (1, count)))
        else:
            document.append(LatentSlot("speech", 1 + size % (MAX_LENGTH - 2), next(counter)))
    return document


def units(parts: list[Segment] | tuple[Segment, ...]) -> list[int | LatentSlot]:
    return [unit for part in parts for unit in (part.ids if isinstance(part, IdsPart) else (part,))]


@settings(deadline=None)
@given(shapes)
def test_pieces_fit_and_hold_everything_but_lonely_tokens(shape: list[tuple[str, int]]) -> None:
    document = document_of(shape)
    pieces = cut(document, MAX_LENGTH)
    assert all(2 <= num_tokens(piece) <= MAX_LENGTH for piece in pieces)
    kept = [unit for piece in pieces for unit in units(piece)]
    lost = [unit for unit in units(document) if unit not in kept]
    assert kept == [unit for unit in units(document) if unit in kept], "the order changed"
    assert all(isinstance(unit, int) for unit in lost), "a span was lost"
    assert len(lost) <= 1 + sum(isinstance(part, LatentSlot) for part in document)  # one before each cut


def test_text_alone_loses_at_most_its_last_token() -> None:
    document = [IdsPart(tuple(range(25)))]
    assert [num_tokens(piece) for piece in cut(document, 12)] == [12, 12]
    assert [unit for piece in cut(document, 12) for unit in units(piece)] == list(range(24))
    assert [num_tokens(piece) for piece in cut(document, 10)] == [10, 10, 5]


class CountedIds(tuple[int, ...]):
    """Ids that say how many of them were copied; what is taken of them counts on."""

    num_copied = 0

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, int):
            return super().__getitem__(place)
        taken = CountedIds(super().__getitem__(place))
        CountedIds.num_copied += len(taken)
        assert CountedIds.num_copied <= 5_000_000, "ids are copied again and again: long texts take hours"
        return taken


def test_a_long_text_is_cut_without_copying_its_rest_for_every_piece() -> None:
    pieces = cut([IdsPart(CountedIds((7,) * 5_000_000))], 256)
    assert CountedIds.num_copied == 5_000_000
    assert [num_tokens(piece) for piece in pieces] == [256] * 19_531 + [64]


def test_a_span_that_does_not_fit_opens_the_next_piece() -> None:
    picture = LatentSlot("image", 6, 0)
    pieces = cut([IdsPart((1, 2, 3, 4, 5)), picture, IdsPart((6, 7))], MAX_LENGTH)
    assert pieces == [(IdsPart((1, 2, 3, 4, 5)),), (picture, IdsPart((6, 7)))]


def test_a_span_longer_than_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match=r"span of 13 tokens does not fit into rows of 12; raise max_length"):
        cut([LatentSlot("image", 11, 0)], MAX_LENGTH)
