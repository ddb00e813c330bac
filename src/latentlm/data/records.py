"""The data contract: what a record is, what a source promises, and how bad data is reported.

A source reads one container format (folder, tar, Parquet, ...) and yields *records*: dicts with the names in
`RECORD_NAMES`, whatever the columns of the file were called. Media stay as the source found them (encoded bytes, or a
uint8 array); `decode.py` opens them under limits, so that no source carries a decoder or a limit of its own.
"""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

RECORD_NAMES = ("image", "label", "caption", "text", "audio", "speaker")
"""The names under which every source yields its data; a column mapping goes from these to the file's own names."""

UNLABELLED = ("unlabelled",)
"""Label names of a source without labels: one class, id 0, so that a class-conditional model still trains on it."""

Record = dict[str, Any]
"""Some of `RECORD_NAMES`, and always `key` (int, unique in the source) and `name` (str, for people)."""


class DataError(ValueError):
    """The data cannot be used at all: wrong path, wrong format, or too many bad records."""


class BadRecord(DataError):
    """One record cannot be used; training goes on with the others.

    Args:
        name: The file, or the file and the place inside it, as a person would look for it.
        reason: What is wrong with it.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)  # both as args, so that the exception survives pickling
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class Source(ABC):
    """Random access to the records of one split of a data set. Picklable, so that data workers can hold a copy.

    Attributes:
        fields: Which of `RECORD_NAMES` its records hold.
        labels: Int64 [len], the class of every record; all zero in a source without labels.
        label_names: Name of each class; `labels` are positions in it.
        rejected: What was found unusable while indexing (a link out of the folder, a broken shard): not among the
            records any more, but it counts towards the limit of bad records.
        pixels: All images as one uint8 array [len, H, W] or [len, H, W, C] where the format has them so, else None.
    """

    fields: frozenset[str]
    labels: np.ndarray
    label_names: tuple[str, ...]
    rejected: tuple[BadRecord, ...] = ()
    pixels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def keys(self, indices: np.ndarray) -> np.ndarray:
        """The `key` of the records at `indices`, Int64, without reading them."""
        return indices.astype(np.int64)

    @abstractmethod
    def __getitem__(self, index: int) -> Record:
        """The record at `index` in [0, len).

        Raises:
            BadRecord: If this record cannot be read.
        """


def labels_from_values(values: np.ndarray, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class ids and class names from a column of labels: integers are kept, strings are numbered in sorted order.

    Args:
        values: [n] integers >= 0, or strings.
        where: The file, for the error message.

    Raises:
        DataError: If the labels are neither, or hold negative or absurdly large class ids.
    """
    if values.ndim != 1:
        raise DataError(f"{where}: labels have shape {values.shape}, expected one label per record")
    if values.dtype.kind in "US":
        names, ids = np.unique(values.astype(str), return_inverse=True)
        return ids.astype(np.int64), tuple(names.tolist())
    if values.dtype.kind not in "iu":
        raise DataError(f"{where}: labels have type {values.dtype}, expected integers or strings")
    ids = values.astype(np.int64)
    lowest, highest = (int(ids.min()), int(ids.max())) if len(ids) else (0, 0)
    if lowest < 0:
        raise DataError(
            f"{where}: label {lowest} is negative; class ids start at 0 (is this an unlabelled test split?)"
        )
    if highest > 1_000_000:
        raise DataError(f"{where}: label {highest} is above 1,000,000; are these class ids?")
    return ids, tuple(str(i) for i in range(highest + 1))
