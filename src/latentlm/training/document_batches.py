"""Rows of documents for training: sources mixed by weight, cut, packed, read on demand.

    DocumentSource ─text tokenizer▶ segments ─cut▶ pieces; their lengths ─PackingPlan▶ rows ─read▶ RawPiece

Lengths are found once, when a source is opened; pictures are decoded when a row is read. Batch b is a pure function of
(sources, weights, seed, rank, b), as the trainer asks; see `data.loader` and `sequence.packing`.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from latentlm.data.documents import DocumentSource, RawDocument, RawImage, StoredMedium
from latentlm.data.loader import BatchResult, plain_bad_records
from latentlm.data.records import BadRecord
from latentlm.nn.keyed_noise import combine_keys
from latentlm.sequence import IdsPart, LatentSlot, PackingPlan, PlannedPiece, Segment, TextTokenizer, cut, num_tokens

_CACHED_IDS = 32_000_000
"""Ids of text that a source keeps: pieces of one long document are read in shuffled order."""


class PictureReader:
    """How pictures of documents are opened, and how many latents they will have.

    Args:
        read: A picture to pixels, uint8 [C, H, W], of a size that the tokenizer takes. Raises BadRecord.
        grid: Picture to rows and columns of its latents, without decoding it. Raises BadRecord.
        says_size: Whether sequences say the grid, because pictures differ in size.
    """

    def __init__(
        self,
        read: Callable[[RawImage], UInt8[Tensor, "C H W"]],
        grid: Callable[[RawImage], tuple[int, int]],
        *,
        says_size: bool,
    ) -> None:
        self.read = read
        self._grid = grid
        self._says_size = says_size

    def slot(self, picture: RawImage, number: int) -> LatentSlot:
        """The place of the document's medium `number` in its sequence."""
        rows, columns = self._grid(picture)
        return LatentSlot("image", rows * columns, number, (rows, columns) if self._says_size else None)


def stored_slot(medium: StoredMedium, number: int) -> LatentSlot:
    """The place of the document's medium `number`, which was encoded beforehand."""
    return LatentSlot(medium.modality, medium.num_tokens, number)


def segments_of(document: RawDocument, text_tokenizer: TextTokenizer, pictures: PictureReader) -> list[Segment]:
    """A whole document with its begin and end of text, before its pictures are encoded."""
    segments: list[Segment] = [IdsPart((text_tokenizer.bos_id,))]
    number = 0
    for part in document.parts:
        if isinstance(part, str):
            segments.append(IdsPart(tuple(text_tokenizer.encode(part))))
        else:
            is_stored = isinstance(part, StoredMedium)
            segments.append(stored_slot(part, number) if is_stored else pictures.slot(part, number))
            number += 1
    return [*segments, IdsPart((text_tokenizer.eos_id,))]


@dataclass(frozen=True, eq=False)
class RawPiece:
    """A piece of a document as the loader gives it.

    Attributes:
        segments: Its text, and slots whose `raw` counts `media`.
        media: Pictures, uint8 [C, H, W] each, and what was encoded beforehand.
        key: Identity of the piece in this epoch; noise hangs on it.
        group: Number of its source.
        begins_anew: It was reduced to one medium on purpose, which is to begin as a document does.
    """

    segments: tuple[Segment, ...]
    media: tuple[Tensor | StoredMedium, ...]
    key: int
    group: int
    begins_anew: bool = False


class DocumentPieces:
    """One source, cut into pieces of known length.

    Args:
        source: Its documents are read once here, without decoding pictures.
        text_tokenizer: For their text.
        pictures: For their pictures.
        max_length: Longest piece, in tokens.
        group: Number of the source, for its pieces.
        progress: Show a progress bar of this name; None for none.

    Attributes:
        source: As given.
        lengths: Int64, tokens of every piece.
        num_units: Pieces, those that templates make of the same record counted as one.
        rejected: Records that could not be read, each once.
    """

    def __init__(
        self,
        source: DocumentSource,
        text_tokenizer: TextTokenizer,
        pictures: PictureReader,
        *,
        max_length: int,
        group: int = 0,
        progress: str | None = None,
    ) -> None:
        self.source = source
        self._group = group
        self._text_tokenizer = text_tokenizer
        self._pictures = pictures
        self._max_length = max_length
        self._cache: OrderedDict[int, list[tuple[Segment, ...]]] = OrderedDict()
        self._cached_ids = 0
        rejected: dict[int, BadRecord] = {}
        places: list[tuple[int, int]] = []
        lengths: list[int] = []
        for index in tqdm(range(len(source)), desc=progress, unit="document", disable=progress is None):
            try:
                pieces = self._cut(index, source[index])
            except BadRecord as error:
                rejected.setdefault(source.record(index), error)
                continue
            places += [(index, number) for number in range(len(pieces))]
            lengths += [num_tokens(piece) for piece in pieces]
        self.rejected = (*source.rejected, *rejected.values())
        self.lengths = np.array(lengths, dtype=np.int64)
        self._places = np.array(places, dtype=np.int64).reshape(-1, 2)
        # The same piece of a record's documents by several templates is one: what is broken in it is broken in all.
        records = np.array([source.record(index) for index, _ in places], dtype=np.int64)
        distinct, self._units = np.unique(records * len(places) + self._places[:, 1], return_inverse=True)
        self.num_units = len(distinct)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_cache": OrderedDict(), "_cached_ids": 0}

    def read(self, planned: PlannedPiece) -> RawPiece:
        """A piece with its pictures decoded.

        Raises:
            BadRecord: If the document or one of its pictures cannot be read.
        """
        index, number = self._places[planned.piece].tolist()
        document = self.source[index]
        segments: list[Segment] = []
        media: list[Tensor | StoredMedium] = []
        raw = [part for part in document.parts if not isinstance(part, str)]
        for segment in self._pieces(index, document)[number]:
            if isinstance(segment, LatentSlot):
                medium = raw[segment.raw]
                media.append(medium if isinstance(medium, StoredMedium) else self._pictures.read(medium))
                segment = LatentSlot(segment.modality, segment.num_latents, len(media) - 1, segment.grid)
            segments.append(segment)
        key = int(combine_keys(self._group, document.key, number, planned.epoch))
        return RawPiece(tuple(segments), tuple(media), key, self._group)

    def unit(self, piece: int) -> int:
        """Number of a piece in [0, num_units), for counting bad ones."""
        return int(self._units[piece])

    def _pieces(self, index: int, document: RawDocument) -> list[tuple[Segment, ...]]:
        if index not in self._cache:
            pieces = self._cut(index, document)
            if len(pieces) == 1:  # read once an epoch
                return pieces
            self._cache[index] = pieces
            self._cached_ids += sum(map(num_tokens, pieces))
            while self._cached_ids > _CACHED_IDS and len(self._cache) > 1:
                _, oldest = self._cache.popitem(last=False)
                self._cached_ids -= sum(map(num_tokens, oldest))
        self._cache.move_to_end(index)
        return self._cache[index]

    def _cut(self, index: int, document: RawDocument) -> list[tuple[Segment, ...]]:
        try:
            return cut(segments_of(document, self._text_tokenizer, self._pictures), self._max_length)
        except BadRecord:
            raise
        except ValueError as error:  # a picture longer than a row, or a text that is no text
            raise BadRecord(document.name, str(error)) from error


class DocumentBatches(Dataset[BatchResult]):
    """Batch by number: `{"rows": [[RawPiece, ...], ...]}`, `batch_size` rows.

    A piece that cannot be read leaves a gap in its row; see `Tolerant` for the attributes that count them.

    Args:
        sources: By number.
        plan: Made of their lengths.
        batch_size: Rows of a batch on one rank.
        rank: Of this process.
        world_size: Ranks that share the plan.
        max_bad_records: How many documents may be unreadable; those that templates make of one record count once.
    """

    def __init__(
        self,
        sources: Sequence[DocumentPieces],
        plan: PackingPlan,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        max_bad_records: int = 100,
    ) -> None:
        self.rejected = tuple(bad for source in sources for bad in source.rejected)
        self.max_bad_records = max_bad_records
        self.named: set[str] = set()
        self._sources = sources
        self._plan = plan
        self._batch_size = batch_size
        self._rank = rank
        self._world_size = world_size

    def __len__(self) -> int:
        """Pieces in all sources, as bad ones are counted."""
        return sum(source.num_units for source in self._sources)

    def __getitem__(self, number: int) -> BatchResult:
        met: dict[int, BadRecord] = {}
        rows: list[list[RawPiece]] = []
        # Instead of a batch of which nothing is readable this rank's next one is taken, here and again in its turn: the
        # rows that follow are those of other ranks, which train on them in this very step.
        while not rows and len(met) <= self.max_bad_records and len(met) < len(self):
            start = (number * self._world_size + self._rank) * self._batch_size
            planned = self._plan.rows(start, start + self._batch_size)
            rows = [row for planned_row in planned if (row := self._read_row(planned_row, met))]
            number += 1
        usable = rows and len(met) <= self.max_bad_records
        return ({"rows": rows} if usable else None), plain_bad_records(met)

    def _read_row(self, planned_row: Sequence[PlannedPiece], met: dict[int, BadRecord]) -> list[RawPiece]:
        row = []
        for planned in planned_row:
            try:
                row.append(self._sources[planned.source].read(planned))
            except BadRecord as error:
                met[self._record_number(planned)] = error
        return row

    def _record_number(self, planned: PlannedPiece) -> int:
        before = sum(source.num_units for source in self._sources[: planned.source])
        return before + self._sources[planned.source].unit(planned.piece)
