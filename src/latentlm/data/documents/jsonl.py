"""JSON Lines: one record per line (see `json_records.py`), at random access, in files of any size.

Opening reads each file once, piece by piece, and keeps three integers per line. Pictures that a line names are files
below the folder of its JSONL file: absolute names, `..` and links out of the folder are refused.
"""

from array import array
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np

from latentlm.data.decode import MAX_RECORD_BYTES, read_file
from latentlm.data.documents.document import RawImage
from latentlm.data.documents.json_records import parse_object, record_of
from latentlm.data.documents.records import RawRecord, Records, read_at
from latentlm.data.records import BadRecord, DataError

MAX_LINE_BYTES = MAX_RECORD_BYTES
"""Of one line, embedded pictures included."""
UTF8_MARK = b"\xef\xbb\xbf"
"""The byte order mark with which some programs begin a file: no part of the text."""
_PIECE_BYTES = 2**20


class JsonLinesRecords(Records):
    """The records of some JSON Lines files. Empty lines are skipped; lines above `MAX_LINE_BYTES` are `rejected`.

    Args:
        files: In the order of the records.
        columns: Our names -> the lines' (`{caption: alt_text}`).

    Raises:
        DataError: If no line can be read.
    """

    def __init__(self, files: list[Path], columns: Mapping[str, str]) -> None:
        self._columns = dict(columns)
        rejected: list[BadRecord] = []
        indices = [_index_lines(file, rejected) for file in files]
        # (line number, first byte, number of bytes) of every record, and how many records lie before each file's.
        self._lines = np.concatenate(indices)
        self._starts = np.cumsum([0, *(len(index) for index in indices)])
        self.files = tuple(files)
        self.rejected = tuple(rejected)
        if len(self._lines) == 0:
            reasons = "".join(f"\n  {bad}" for bad in rejected)
            raise DataError(f"{files[0]}: no record in {len(files)} JSON Lines file(s){reasons}")

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> RawRecord:
        path = self.files[int(np.searchsorted(self._starts, index, side="right")) - 1]
        line, offset, size = self._lines[index].tolist()
        name = f"{path}:{line}"
        content = parse_object(read_at(path, offset, size, name), name)
        return record_of(
            content,
            key=index,
            name=name,
            columns=self._columns,
            read_image=lambda reference: _read_beside(path, reference, name),
        )


def _index_lines(path: Path, rejected: list[BadRecord]) -> np.ndarray:
    """Int64 [n, 3]: line number, offset and size of every line with content. Memory does not grow with line length."""
    found = array("q")
    try:
        with path.open("rb") as file:
            position = len(UTF8_MARK) if file.read(len(UTF8_MARK)) == UTF8_MARK else 0
            file.seek(position)
            number, start, blank = 1, position, True
            while piece := file.readline(_PIECE_BYTES):
                position += len(piece)
                blank = blank and piece.isspace()
                if not piece.endswith(b"\n"):
                    continue
                _note_line(path, number, start, position, blank, found, rejected)
                number, start, blank = number + 1, position, True
            _note_line(path, number, start, position, blank, found, rejected)  # the last may lack its line end
    except OSError as error:
        rejected.append(BadRecord(str(path), f"cannot be read ({error.strerror})"))
    return np.array(found, dtype=np.int64).reshape(-1, 3)


def _note_line(
    path: Path, number: int, start: int, end: int, blank: bool, found: array, rejected: list[BadRecord]
) -> None:
    if blank:
        return
    if end - start > MAX_LINE_BYTES:
        rejected.append(BadRecord(f"{path}:{number}", f"a line of {end - start:,} bytes, above {MAX_LINE_BYTES:,}"))
    else:
        found.extend((number, start, end - start))


def _read_beside(path: Path, reference: str, name: str) -> RawImage:
    """The picture file that a line of `path` names."""
    folder = path.parent
    outside = PurePosixPath(reference).is_absolute() or PureWindowsPath(reference).anchor
    if outside or "\0" in reference or ".." in PureWindowsPath(reference).parts:
        raise BadRecord(name, f"the picture {reference!r} is refused: only files below {folder} are read")
    file = folder / reference
    try:
        if not file.resolve().is_relative_to(folder.resolve()):
            raise BadRecord(name, f"the picture {reference!r} is refused: a link out of {folder}")
        missing = not file.exists()
    except (OSError, RuntimeError) as error:  # a name too long for the disk, links in a circle
        raise BadRecord(name, f"the picture {reference!r} cannot be found ({error})") from error
    if missing:
        raise BadRecord(name, f"the picture {reference!r} is missing: there is no {file}")
    try:
        return RawImage(read_file(file), str(file))
    except BadRecord as error:
        raise BadRecord(name, f"the picture {reference!r}: {error.reason}") from error
