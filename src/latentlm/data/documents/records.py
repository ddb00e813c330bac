"""What the readers of this room share: a record, which is a document or the makings of one, and plain checks of text.

file ─reader▶ RawRecord ─its own parts, or a template▶ RawDocument
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentlm.data.documents.document import RawImage, RawMedium, RawPart, StoredMedium
from latentlm.data.records import BadRecord

MAX_DOCUMENT_BYTES = 256 * 2**20
"""Of all pictures of one document, encoded: a short line can name the same large file a million times."""


@dataclass(frozen=True, eq=False, kw_only=True)
class RawRecord:
    """One record of a file.

    Attributes:
        parts: The document, if the record spells it out; else a template makes it from `image` and `fields`.
        image: The picture of a record that has one.
        encoded: The sound of a record that has one, which a template asks for by the name of its modality.
        fields: All other columns. A None counts as absent.
        key: Unique in the source.
        name: The file and the place inside it.
    """

    parts: tuple[RawPart, ...] | None = None
    image: RawImage | None = None
    encoded: StoredMedium | None = None
    fields: Mapping[str, Any]
    key: int
    name: str

    @property
    def present(self) -> frozenset[str]:
        """The fields that a template finds filled in this record."""
        filled = {name for name, value in self.fields.items() if value is not None}
        return frozenset(filled | self.media.keys())

    @property
    def media(self) -> dict[str, RawMedium]:
        """Its media, by the names that templates have for them."""
        media: dict[str, RawMedium] = {} if self.image is None else {"image": self.image}
        return media if self.encoded is None else {**media, self.encoded.modality: self.encoded}


class Records(ABC):
    """Random access to the records of one split. Picklable.

    Attributes:
        fields: What a template can ask of every record, `image` among them; None if that differs by record.
        has_parts: Whether every record spells its document out, so that templates have no use.
        files: The indexed files, or the folder that holds them.
        rejected: See `DocumentSource`.
    """

    fields: frozenset[str] | None = None
    has_parts: bool = False
    files: tuple[Path, ...] = ()
    rejected: tuple[BadRecord, ...] = ()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> RawRecord:
        """The record at `index` in [0, len).

        Raises:
            BadRecord: If it cannot be read.
        """


def decode_text(data: bytes, name: str) -> str:
    """UTF-8 to text, line ends as they are.

    Raises:
        BadRecord: If it is no UTF-8.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRecord(name, f"text that is not UTF-8 ({error.reason} at byte {error.start:,})") from error


def read_at(path: Path, offset: int, size: int, name: str) -> bytes:
    """`size` bytes of a file from `offset` on.

    Raises:
        BadRecord: If they are not there (any more), or the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(size)
    except OSError as error:
        raise BadRecord(name, f"cannot be read ({error.strerror})") from error
    if len(data) != size:
        raise BadRecord(name, f"the file ends inside it; has {path.name} changed since it was opened?")
    return data


def renamed(content: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The entries of a record under our names.

    Args:
        content: By the file's own names.
        columns: Our names -> the file's. A column of the file that bears one of our names, but is not the one that is
            mapped to it, is left out: two values cannot share a name.
    """
    ours = {theirs: name for name, theirs in columns.items()}
    return {ours.get(name, name): value for name, value in content.items() if name in ours or name not in columns}
