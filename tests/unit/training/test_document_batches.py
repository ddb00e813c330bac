"""Rows of documents: every batch a pure function of its number, and nothing lost but what cannot be read."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from tiny_documents import ListedDocuments, picture
from torch import Tensor

from latentlm.data.documents import RawImage, RawPart
from latentlm.data.loader import TooManyBadRecords, load_numbered
from latentlm.data.records import BadRecord
from latentlm.sequence import IdsPart, LatentSlot, PackingPlan, num_tokens
from latentlm.tokenizers.text import ByteTokenizer
from latentlm.training.document_batches import DocumentBatches, DocumentPieces, PictureReader, RawPiece

MAX_LENGTH = 32
EOS = ByteTokenizer.eos_id


def read(image: RawImage) -> Tensor:
    if image.name == "picture 666":
        raise BadRecord(image.name, "cannot be decoded")
    return torch.from_numpy(image.data).clone()[None]


READER = PictureReader(read, lambda image: (2, 2), says_size=False)


def pieces_of(documents: Sequence[tuple[RawPart, ...] | None], **options: object) -> DocumentPieces:
    return DocumentPieces(
        ListedDocuments(documents),
        ByteTokenizer(),
        READER,
        max_length=MAX_LENGTH,
        **options,  # pyright: ignore[reportArgumentType]
    )


def batches_of(*sources: DocumentPieces, batch_size: int = 3, **options: int) -> DocumentBatches:
    plan = PackingPlan([s.lengths for s in sources], [1.0] * len(sources), max_length=MAX_LENGTH, seed=0)
    return DocumentBatches(sources, plan, batch_size=batch_size, **options)


def mixed(count: int) -> list[tuple[RawPart, ...] | None]:
    return [("text " + "x" * (i % 9), picture(i), "after") if i % 2 else (f"only {i}",) for i in range(count)]


def described(batch: dict[str, list[list[RawPiece]]]) -> list[list[tuple[object, ...]]]:
    return [
        [(piece.segments, [p.sum().item() for p in piece.media], piece.key, piece.group) for piece in row]
        for row in batch["rows"]
    ]


def test_lengths_are_those_of_what_is_read() -> None:
    pieces = pieces_of([("ab", picture(1), "c"), ("x" * 70,), (picture(1), picture(2))])
    # eos a b begin 4 latents end c eos; 72 tokens of text in pieces of 32; eos, two spans, eos.
    assert pieces.lengths.tolist() == [11, 32, 32, 8, 14]
    batches = batches_of(pieces, batch_size=2)
    for number in range(4):
        batch, met = batches[number]
        assert batch is not None
        assert met == []
        for row in batch["rows"]:
            assert sum(num_tokens(piece.segments) for piece in row) <= MAX_LENGTH


def test_segments_hold_the_document_between_two_ends_of_text() -> None:
    batch, _ = batches_of(pieces_of([("ab", picture(1), picture(2), "c")]), batch_size=1)[0]
    assert batch is not None
    piece = batch["rows"][0][0]
    assert piece.segments == (
        IdsPart((EOS,)),
        IdsPart((97, 98)),
        LatentSlot("image", 4, 0),
        LatentSlot("image", 4, 1),
        IdsPart((99,)),
        IdsPart((EOS,)),
    )
    assert [p.shape for p in piece.media] == [(1, 8, 8)] * 2
    assert torch.equal(piece.media[1][0], torch.from_numpy(picture(2).data))


def test_a_picture_that_stands_in_a_later_piece_is_the_right_one() -> None:
    pieces = pieces_of([("x" * 28, picture(1), "y" * 27, picture(2))])
    assert pieces.lengths.tolist() == [29, 32, 8]
    batch, _ = batches_of(pieces, batch_size=4)[0]
    assert batch is not None
    sums = [torch.from_numpy(picture(i).data).sum().item() for i in (1, 2)]
    found = set()
    for piece in itertools.chain.from_iterable(batch["rows"]):
        for part in piece.segments:
            if isinstance(part, LatentSlot):
                found.add((num_tokens(piece.segments), piece.media[part.raw].sum().item()))
    assert found == {(32, sums[0]), (8, sums[1])}


def test_batches_are_the_same_for_workers_for_ranks_and_after_a_restart() -> None:
    def make(**options: int) -> DocumentBatches:
        return batches_of(pieces_of(mixed(30)), pieces_of(mixed(11), group=1), **options)

    whole = [described(batch) for batch in itertools.islice(load_numbered(make(), make()), 12)]
    with_workers = load_numbered(make(), make(), num_workers=2)
    assert [described(batch) for batch in itertools.islice(with_workers, 6)] == whole[:6]
    with_workers.close()
    resumed = load_numbered(make(), make(), start_batch=5)
    assert [described(batch) for batch in itertools.islice(resumed, 7)] == whole[5:]
    ranks = [make(rank=rank, world_size=2) for rank in range(2)]
    dealt = [described(ranks[number % 2][number // 2][0]) for number in range(12)]  # pyright: ignore[reportArgumentType]
    assert dealt == whole


def test_keys_differ_between_pieces_and_between_epochs() -> None:
    batches = batches_of(pieces_of(mixed(7)), pieces_of(mixed(7), group=1), batch_size=20)
    batch, _ = batches[0]
    assert batch is not None
    keys = [piece.key for row in batch["rows"] for piece in row]
    assert len(keys) > 28, "several epochs"
    assert len(set(keys)) == len(keys)


def test_what_cannot_be_read_is_named_once_and_left_out() -> None:
    documents = mixed(20)
    documents[4] = None  # found when lengths are counted
    documents[6] = (picture(666), "its picture is found to be broken later")
    pieces = pieces_of(documents)
    assert [bad.name for bad in pieces.rejected] == ["document 4"]
    batches = batches_of(pieces, max_bad_records=2)
    loader = load_numbered(batches, batches)
    rows = [row for batch in itertools.islice(loader, 12) for row in batch["rows"]]
    assert all(rows)
    assert batches.named == {"document 4", "picture 666"}
    strict = batches_of(pieces, max_bad_records=1)
    with pytest.raises(TooManyBadRecords, match="picture 666: cannot be decoded"):
        list(itertools.islice(load_numbered(strict, strict), 12))


@pytest.mark.parametrize("rank", [0, 1])
def test_instead_of_a_batch_of_which_nothing_is_readable_a_rank_takes_its_own_next_one(rank: int) -> None:
    def keys_by_batch(broken: RawImage) -> list[int]:
        # Long documents fill a row each, so that batches of one row hold one document.
        documents = [("x" * 25,), (broken, "y" * 20), ("z" * 25,)]
        batches = batches_of(pieces_of(documents), batch_size=1, max_bad_records=1, rank=rank, world_size=2)
        return [batch["rows"][0][0].key for number in range(12) if (batch := batches[number][0]) is not None]

    whole, found = keys_by_batch(picture(1)), keys_by_batch(picture(666))
    changed = [number for number, (key, expected) in enumerate(zip(found, whole, strict=True)) if key != expected]
    assert changed, "no batch was unreadable"
    assert all(found[number] in whole[number + 1 :] for number in changed if number < 10)


def test_a_run_of_which_nothing_is_readable_stops() -> None:
    batches = batches_of(pieces_of([(picture(666),), (picture(666), "again")]), batch_size=1, max_bad_records=100)
    with pytest.raises(TooManyBadRecords, match="none of the 2 records can be read"):
        next(load_numbered(batches, batches))


class TwiceMade(ListedDocuments):
    """Documents of which two and two are made of one record."""

    def record(self, index: int) -> int:
        return index // 2


def test_a_record_that_makes_several_bad_documents_counts_once() -> None:
    broken = picture(666)
    documents = [("a",), ("b",), None, None, (broken, "c"), ("c", broken), ("d", picture(1)), (picture(1), "d")]
    pieces = DocumentPieces(TwiceMade(documents), ByteTokenizer(), READER, max_length=MAX_LENGTH)
    assert [bad.name for bad in pieces.rejected] == ["document 2"]
    batches = batches_of(pieces, max_bad_records=2)
    texts = set()
    for batch in itertools.islice(load_numbered(batches, batches), 6):
        for piece in itertools.chain.from_iterable(batch["rows"]):
            texts |= {part.ids for part in piece.segments if isinstance(part, IdsPart)}
    assert texts == {(EOS,), (97,), (98,), (100,)}
    assert len(batches) == 3


def test_pieces_of_one_long_document_count_each() -> None:
    documents = [("x" * 28, picture(666), "y" * 27, picture(1))]
    batches = batches_of(pieces_of(documents), batch_size=1, max_bad_records=1)
    assert len(batches) == 3
    rows = [batch["rows"] for batch in itertools.islice(load_numbered(batches, batches), 6)]
    assert all(rows), "two of its three pieces can be read"


def test_a_picture_that_no_row_holds_is_a_bad_document() -> None:
    wide = PictureReader(read, lambda image: (6, 6), says_size=False)
    pieces = DocumentPieces(ListedDocuments([(picture(1),), ("a",)]), ByteTokenizer(), wide, max_length=MAX_LENGTH)
    assert [bad.reason for bad in pieces.rejected] == [
        "a span of 38 tokens does not fit into rows of 32; raise max_length, or make pictures smaller"
    ]
    assert pieces.lengths.tolist() == [3]


def test_a_picture_of_variable_size_takes_two_more_tokens() -> None:
    sized = PictureReader(read, lambda image: (1, 3), says_size=True)
    pieces = DocumentPieces(ListedDocuments([(picture(1),)]), ByteTokenizer(), sized, max_length=MAX_LENGTH)
    assert pieces.lengths.tolist() == [2 + 3 + 2 + 2]
