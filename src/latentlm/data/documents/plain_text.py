"""Plain text: UTF-8 files, each one document, or cut into several by a separator. Texts stay as they are, verbatim.

Opening reads each file once, piece by piece, and keeps two integers per document. A document above `MAX_TEXT_BYTES` is
delivered as several: cut at the first line end after each `PIECE_BYTES`, so that no document takes unbounded memory.
"""

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from latentlm.data.documents.jsonl import UTF8_MARK
from latentlm.data.documents.records import RawRecord, Records, decode_text, read_at
from latentlm.data.records import BadRecord, DataError

MAX_TEXT_BYTES = 16 * 2**20
"""Of a document that is delivered whole."""
PIECE_BYTES = 2**20
"""Of a document cut from a larger one, up to its next line end; of a line that is longer itself, at most twice this."""
_READ_BYTES = 2**20


class TextRecords(Records):
    """The documents of some text files; field `text`. Documents of no bytes (two separators in a row) are left out.

    Args:
        files: In the order of the records.
        separator: What stands between two documents, exactly (a blank line is "\\n\\n", in files with Windows line ends
            "\\r\\n\\r\\n"); belongs to neither. None: one document per file.

    Raises:
        DataError: If there is no text.
    """

    fields = frozenset({"text"})

    def __init__(self, files: list[Path], separator: str | None) -> None:
        rejected: list[BadRecord] = []
        indices = [_index_file(file, separator, rejected) for file in files]
        self._spans = np.concatenate(indices)  # (first byte, byte after the last)
        self._starts = np.cumsum([0, *(len(index) for index in indices)])
        self.files = tuple(files)
        self.rejected = tuple(rejected)
        if len(self._spans) == 0:
            reasons = "".join(f"\n  {bad}" for bad in rejected)
            raise DataError(f"{files[0]}: no text in {len(files)} file(s){reasons}")

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> RawRecord:
        path = self.files[int(np.searchsorted(self._starts, index, side="right")) - 1]
        start, end = self._spans[index].tolist()
        name = f"{path}[bytes {start}:{end}]"
        text = decode_text(read_at(path, start, end - start, name), name)
        return RawRecord(fields={"text": text}, key=index, name=name)


def _index_file(path: Path, separator: str | None, rejected: list[BadRecord]) -> np.ndarray:
    """Int64 [n, 2]: first byte, and byte after the last, of every document of a file."""
    found = array("q")
    try:
        with path.open("rb") as file:
            for start, end in _documents(file, None if separator is None else separator.encode("utf-8")):
                for piece in _pieces(file, start, end):
                    found.extend(piece)
    except OSError as error:
        rejected.append(BadRecord(str(path), f"cannot be read ({error.strerror})"))
    else:
        if not found:
            rejected.append(BadRecord(str(path), "holds no text"))
    return np.array(found, dtype=np.int64).reshape(-1, 2)


def _documents(file: BinaryIO, separator: bytes | None) -> Iterator[tuple[int, int]]:
    """First byte, and byte after the last, of what lies between the separators; spans of no bytes are left out."""
    size = file.seek(0, 2)
    file.seek(0)
    start = len(UTF8_MARK) if file.read(len(UTF8_MARK)) == UTF8_MARK else 0
    if separator is not None:
        for place in _places(file, start, separator):
            if place > start:
                yield start, place
            start = place + len(separator)
    if size > start:
        yield start, size


def _places(file: BinaryIO, position: int, separator: bytes) -> Iterator[int]:
    """Where the separator occurs, from `position` on, occurrences that overlap an earlier one left out."""
    window = b""  # what is read but not searched through yet; `position` is the place of its first byte
    while True:
        file.seek(position + len(window))  # whoever takes our places may read elsewhere in between
        piece = file.read(_READ_BYTES)
        if not piece:
            return
        window += piece
        searched = 0
        while (place := window.find(separator, searched)) >= 0:
            yield position + place
            searched = place + len(separator)
        searched = max(searched, len(window) - len(separator) + 1)  # a separator may begin in the rest
        position += searched
        window = window[searched:]


def _pieces(file: BinaryIO, start: int, end: int) -> Iterator[tuple[int, int]]:
    """One document as it is, or the several that a too large one is cut into."""
    if end - start > MAX_TEXT_BYTES:
        while end - start > PIECE_BYTES:
            file.seek(start + PIECE_BYTES)
            line = file.readline(min(PIECE_BYTES, end - start - PIECE_BYTES))
            if not line.endswith(b"\n") and start + PIECE_BYTES + len(line) < end:
                # No line end near: cut before the next byte that begins a character of UTF-8 (of at most 4 bytes).
                line = line[: next((i for i, byte in enumerate(line[:4]) if byte & 0xC0 != 0x80), 0)]
            cut = start + PIECE_BYTES + len(line)
            yield start, cut
            start = cut
    if end > start:
        yield start, end
