"""Tables with one record per row: Parquet files and Hugging Face data sets saved to disk (Arrow files).

A cell with an image (or a sound) is its encoded bytes, or the struct {bytes, path} that the `datasets` library
writes, or nested lists of numbers. The path of such a struct is never followed: a data set must not name files of ours.
"""

import json
from abc import ABC, abstractmethod
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latentlm.data.records import (
    RECORD_NAMES,
    UNLABELLED,
    BadRecord,
    DataError,
    Record,
    Source,
    labels_from_values,
)
from latentlm.data.sources.shards import split_files

if TYPE_CHECKING:
    import pyarrow as pa

_USUAL_COLUMNS = {
    "image": ("image", "img", "images"),
    "label": ("label", "labels", "fine_label"),
    "caption": ("caption",),
    "text": ("text",),
    "audio": ("audio",),
    "speaker": ("speaker",),
}
_CACHE_BYTES = 2**30
"""Decoded row groups that a process keeps. A shuffled epoch over a larger Parquet set reads row groups again and again:
many small row groups, or a WebDataset, suit that better."""
_MAX_ROW_GROUP_BYTES = 2**31


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("Parquet and Arrow files need pyarrow: pip install 'latentlm[data]'") from error
    return pyarrow


def _damage() -> tuple[type[Exception], ...]:
    """What pyarrow raises on damaged files: its own errors, and Python's on names and texts that are not UTF-8."""
    return (_pyarrow().ArrowException, OSError, ValueError, LookupError, TypeError, OverflowError)


class _Rows(ABC):
    """Random access to the rows of one table in some files; holds no open file, so it can be pickled."""

    schema: "pa.Schema"
    num_rows: int

    @abstractmethod
    def column(self, name: str) -> list[Any]:
        """All cells of one small column (labels)."""

    @abstractmethod
    def row(self, index: int, names: list[str]) -> dict[str, Any]:
        """Some cells of one row. Raises BadRecord."""

    @abstractmethod
    def place(self, index: int) -> str:
        """Where a person finds that row."""


class TableSource(Source):
    """Records of a table through a column mapping.

    Args:
        path: For messages.
        rows: The table.
        columns: Our names -> the table's; what is not mapped is looked for under the usual names.
        rejected: Files of the table that could not be opened.

    Raises:
        DataError: If a mapped column is missing, or none of `RECORD_NAMES` is found.
    """

    def __init__(self, path: Path, rows: _Rows, columns: dict[str, str], rejected: list[BadRecord]) -> None:
        self._rows = rows
        self._columns = _resolve_columns(path, rows.schema.names, columns)
        self.fields = frozenset(self._columns)
        self.rejected = tuple(rejected)
        if "label" in self._columns:
            self.labels, self.label_names = _labels(path, rows, self._columns["label"])
        else:
            self.labels, self.label_names = np.zeros(rows.num_rows, dtype=np.int64), UNLABELLED

    def __getitem__(self, index: int) -> Record:
        name = self._rows.place(index)
        wanted = {ours: theirs for ours, theirs in self._columns.items() if ours != "label"}
        cells = self._rows.row(index, list(wanted.values()))
        record: Record = {"key": index, "name": name}
        for ours, theirs in wanted.items():
            record[ours] = _medium(cells[theirs], name) if ours in ("image", "audio") else cells[theirs]
        if "label" in self._columns:
            record["label"] = int(self.labels[index])
        return record


def _resolve_columns(path: Path, present: list[str], columns: dict[str, str]) -> dict[str, str]:
    missing = sorted(set(columns.values()) - set(present))
    if missing:
        raise DataError(f"{path}: has no column {', '.join(missing)}; its columns are {', '.join(present)}")
    resolved = {}
    for name in RECORD_NAMES:
        usual = next((column for column in _USUAL_COLUMNS[name] if column in present), None)
        if name in columns or usual:
            resolved[name] = columns.get(name, usual)
    if not resolved:
        raise DataError(f"{path}: none of the columns {', '.join(present)} is known; map them with columns")
    return resolved


def _labels(path: Path, rows: _Rows, column: str) -> tuple[np.ndarray, tuple[str, ...]]:
    cells = rows.column(column)
    if any(cell is None for cell in cells):
        raise DataError(f"{path}: column {column!r} has rows without a label")
    labels, names = labels_from_values(np.array(cells) if cells else np.zeros(0, dtype=np.int64), f"{path}:{column}")
    declared = _declared_class_names(rows.schema, column)
    if declared and labels.max(initial=0) < len(declared):
        names = declared
    return labels, names


def _declared_class_names(schema: "pa.Schema", column: str) -> tuple[str, ...]:
    """The names of a `ClassLabel` feature, which `datasets` keeps as JSON in the schema; empty if there are none."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        names = features[column]["names"]
    except (KeyError, TypeError, ValueError):  # a note by another program: then class ids are the names
        return ()
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()


def _medium(cell: Any, name: str) -> bytes | np.ndarray:
    if isinstance(cell, dict):
        cell = cell.get("bytes")
        if cell is None:
            raise BadRecord(name, "holds no bytes, only the path of a file, which is not followed")
    if isinstance(cell, bytes):
        return cell
    try:
        array = np.asarray(cell)
    except ValueError as error:
        raise BadRecord(name, "neither encoded bytes nor an array: its rows differ in length") from error
    if array.dtype.kind in "iu" and array.size and array.min() >= 0 and array.max() <= 255:
        return array.astype(np.uint8)
    raise BadRecord(name, f"neither encoded bytes nor an array of numbers from 0 to 255 ({type(cell).__name__})")


class _ParquetRows(_Rows):
    """Rows of Parquet files. Row groups are decoded on demand and kept, least recently used out first."""

    def __init__(self, files: list[Path], rejected: list[BadRecord]) -> None:
        pa = _pyarrow()
        self._groups: list[tuple[Path, int]] = []
        starts = [0]
        schema = None
        for file in files:
            try:
                parquet = pa.parquet.ParquetFile(file)
                metadata, file_schema = parquet.metadata, parquet.schema_arrow
                groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
            except _damage() as error:
                rejected.append(BadRecord(str(file), f"not a readable Parquet file ({error})"))
                continue
            schema = schema or file_schema
            if not file_schema.equals(schema):
                rejected.append(BadRecord(str(file), "other columns than the first file"))
                continue
            largest = max((group.total_byte_size for group in groups), default=0)
            if largest > _MAX_ROW_GROUP_BYTES:
                rejected.append(BadRecord(str(file), f"a row group of {largest:,} bytes: write smaller ones"))
                continue
            for i, group in enumerate(groups):
                self._groups.append((file, i))
                starts.append(starts[-1] + group.num_rows)
        if schema is None:
            raise DataError("no Parquet file can be read:" + "".join(f"\n  {bad}" for bad in rejected))
        self.schema = schema
        self.num_rows = starts[-1]
        self._starts = np.array(starts)
        self._cache: OrderedDict[tuple[int, tuple[str, ...]], Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": OrderedDict()}

    def column(self, name: str) -> list[Any]:
        try:
            return [cell for group in range(len(self._groups)) for cell in self._read(group, [name])[name].to_pylist()]
        except _damage() as error:
            raise DataError(f"{self._groups[0][0].parent}: column {name!r} is damaged ({error})") from error

    def row(self, index: int, names: list[str]) -> dict[str, Any]:
        group, offset = self._locate(index)
        try:
            table = self._cached(group, tuple(names))
            return {name: table[name][offset].as_py() for name in names}
        except _damage() as error:
            raise BadRecord(self.place(index), f"its row group is damaged ({error})") from error

    def place(self, index: int) -> str:
        group, offset = self._locate(index)
        return f"{self._groups[group][0]}[row group {self._groups[group][1]}, row {offset}]"

    def _cached(self, group: int, names: tuple[str, ...]) -> Any:
        key = (group, names)
        if key not in self._cache:
            self._cache[key] = self._read(group, list(names))
            while len(self._cache) > 1 and sum(table.nbytes for table in self._cache.values()) > _CACHE_BYTES:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key]

    def _locate(self, index: int) -> tuple[int, int]:
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        return group, index - int(self._starts[group])

    def _read(self, group: int, names: list[str]) -> Any:
        file, number = self._groups[group]
        # Opened anew each time: an open file would not survive pickling, and is shared badly over a fork.
        return _pyarrow().parquet.ParquetFile(file).read_row_group(number, columns=names, use_threads=False)


class _ArrowRows(_Rows):
    """Rows of memory-mapped Arrow stream files, the format of `datasets`."""

    def __init__(self, files: list[Path]) -> None:
        self._files = files
        self._table = self._open()
        self.schema = self._table.schema
        self.num_rows = self._table.num_rows

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_table": None}

    def column(self, name: str) -> list[Any]:
        try:
            return self._opened()[name].to_pylist()
        except _damage() as error:
            raise DataError(f"{self._files[0].parent}: column {name!r} is damaged ({error})") from error

    def row(self, index: int, names: list[str]) -> dict[str, Any]:
        try:
            return {name: self._opened()[name][index].as_py() for name in names}
        except _damage() as error:
            raise BadRecord(self.place(index), f"damaged ({error})") from error

    def place(self, index: int) -> str:
        return f"{self._files[0].parent}[row {index}]"

    def _opened(self) -> Any:
        if self._table is None:
            self._table = self._open()
        return self._table

    def _open(self) -> Any:
        pa = _pyarrow()
        tables = []
        for file in self._files:
            try:
                table = pa.ipc.open_stream(pa.memory_map(str(file))).read_all()
                table.validate(full=True)  # offsets inside a damaged file may point anywhere, and Arrow follows them
            except _damage() as error:
                raise DataError(f"{file}: not a readable Arrow file ({error})") from error
            tables.append(table)
        try:
            return pa.concat_tables(tables)
        except _damage() as error:
            raise DataError(f"{self._files[0].parent}: its files differ in their columns ({error})") from error


def open_parquet(path: Path, split: str, columns: dict[str, str]) -> TableSource:
    """A Parquet file, or the Parquet files of one split in a folder (see `shards.split_files`).

    Unreadable files beside readable ones are `rejected`, as bad records are.

    Raises:
        DataError: If no file can be read, or the columns are not there.
    """
    if path.is_file() and split != "train":
        raise DataError(f"{path}: one Parquet file has one split; give test_path to read {split!r}")
    rejected: list[BadRecord] = []
    rows = _ParquetRows(split_files(path, ".parquet", split), rejected)
    return TableSource(path, rows, columns, rejected)


def open_hf_dataset(path: Path, split: str, columns: dict[str, str]) -> TableSource:
    """A folder written by `save_to_disk` of the Hugging Face library `datasets` (which is not needed to read it).

    Raises:
        DataError: If the folder, its file list or its Arrow files are not what that function writes.
    """
    if (path / "dataset_dict.json").is_file():
        splits = _read_json(path / "dataset_dict.json").get("splits")
        if not isinstance(splits, list) or split not in splits:
            raise DataError(f"{path}: has no split {split!r}, only {splits}")
        path = path / _plain_name(split, path)
    elif split != "train":
        raise DataError(f"{path}: a data set without splits; give test_path to read {split!r}")
    state = _read_json(path / "state.json")
    entries = state.get("_data_files")
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(f"{path / 'state.json'}: lists no data files")
    files = [path / _plain_name(entry.get("filename"), path) for entry in entries]
    return TableSource(path, _ArrowRows(files), columns, [])


def _plain_name(name: object, where: Path) -> str:
    if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name:
        raise DataError(f"{where}: names the file {name!r}, which is not a plain file name in this folder")
    return name


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a JSON object")
    return content
