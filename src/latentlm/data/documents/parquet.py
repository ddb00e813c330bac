"""Parquet files of documents: a `parts` column, or columns for a template. Row groups are read on demand.

A `parts` column is a list of structs {text: string, image: binary}, of which each entry fills one. Other columns
become fields, binary ones excepted: the picture is the one column mapped to `image`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentlm.data.decode import check_record_bytes
from latentlm.data.documents.document import RawImage, RawPart
from latentlm.data.documents.records import RawRecord, Records, renamed
from latentlm.data.records import BadRecord, DataError
from latentlm.data.sources.shards import split_files
from latentlm.data.sources.tables import _declared_class_names, _medium, _ParquetRows, _pyarrow, _resolve_columns


class ParquetRecords(Records):
    """The rows of some Parquet files.

    Args:
        path: For messages.
        files: In the order of the rows. Unreadable ones beside readable ones are `rejected`.
        columns: Our names -> the table's; pictures, captions, texts and labels are also found under their usual names.

    Raises:
        DataError: If no file can be read, or a mapped column is missing.
        ImportError: Without pyarrow; the message names the extra.
    """

    def __init__(self, path: Path, files: list[Path], columns: Mapping[str, str]) -> None:
        rejected: list[BadRecord] = []
        self._rows = _ParquetRows(files, rejected)
        self.files = tuple(files)
        self.rejected = tuple(rejected)
        present = self._rows.schema.names
        self.has_parts = columns.get("parts", "parts") in present
        self._columns = dict(columns)
        if self.has_parts:
            missing = sorted(set(columns.values()) - set(present))
            if missing:
                raise DataError(f"{path}: has no column {', '.join(missing)}; its columns are {', '.join(present)}")
        else:
            self._columns |= _resolve_columns(path, present, dict(columns))
        media = {self._columns.get(name, name) for name in ("image", "parts")}
        types = _pyarrow().types
        self._names = [
            field.name for field in self._rows.schema if field.name in media or not _is_binary(types, field.type)
        ]
        names = renamed(dict.fromkeys(self._names), self._columns).keys()
        self._label_names = _declared_class_names(self._rows.schema, self._columns.get("label", "label"))
        if self._label_names:
            names |= {"label_name"}
        self.fields = frozenset(names - {"parts"})

    def __len__(self) -> int:
        return self._rows.num_rows

    def __getitem__(self, index: int) -> RawRecord:
        name = self._rows.place(index)
        fields = renamed(self._rows.row(index, self._names), self._columns)
        if self.has_parts:
            parts = _parts(fields.pop("parts"), name)
            return RawRecord(parts=parts, fields=fields, key=index, name=name)
        cell = fields.pop("image", None)
        image = None if cell is None else _image(cell, name)
        label = fields.get("label")
        if self._label_names and isinstance(label, int) and 0 <= label < len(self._label_names):
            fields["label_name"] = self._label_names[label]
        return RawRecord(image=image, fields=fields, key=index, name=name)


def _is_binary(types: Any, kind: Any) -> bool:
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)


def _parts(cell: Any, name: str) -> tuple[RawPart, ...]:
    if not isinstance(cell, list) or not cell:
        raise BadRecord(name, "parts is empty; a document has at least one part")
    parts: list[RawPart] = []
    for number, entry in enumerate(cell):
        where = f"{name}[part {number}]"
        given = {kind: value for kind, value in entry.items() if value is not None} if isinstance(entry, dict) else {}
        if given.keys() == {"text"} and isinstance(given["text"], str):
            parts.append(given["text"])
        elif given.keys() == {"image"}:
            parts.append(_image(given["image"], where))
        else:
            raise BadRecord(where, f"expected a struct with one of text, image, found {sorted(given) or 'neither'}")
    return tuple(parts)


def _image(cell: Any, name: str) -> RawImage:
    medium = _medium(cell, name)
    return RawImage(check_record_bytes(medium, name) if isinstance(medium, bytes) else medium, name)


def open_parquet(path: Path, split: str, columns: Mapping[str, str]) -> ParquetRecords:
    """A Parquet file, or the Parquet files of one split in a folder (see `shards.split_files`).

    Raises:
        DataError: As `ParquetRecords`, and if there are none.
    """
    return ParquetRecords(path, split_files(path, ".parquet", split), columns)
