"""The contract of a source of recordings: what a record is, and what is known of it before anything is decoded."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from latentlm.data.records import BadRecord, DataError


@dataclass(frozen=True)
class AudioRecord:
    """One recording, not decoded yet.

    Attributes:
        audio: An encoded file, or where one lies.
        text: What is said; empty where that is not known.
        speaker: Who speaks; empty where that is not known.
        name: Where a person finds it.
        offset_seconds: Where the recording begins in the file.
        duration_seconds: How long it is; None for the rest of the file.
    """

    audio: bytes | Path
    text: str
    speaker: str
    name: str
    offset_seconds: float = 0.0
    duration_seconds: float | None = None


class AudioSource(ABC):
    """Random access to the recordings of one split of a data set. Picklable, so that data workers can hold a copy.

    Attributes:
        column_names: What `column` answers to; `text` and `speaker` are called so whatever the file calls them.
        rejected: What was found unusable while indexing; it counts towards the limit of bad records.
    """

    column_names: frozenset[str] = frozenset()
    rejected: tuple[BadRecord, ...] = ()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> AudioRecord:
        """The record at `index` in [0, len).

        Raises:
            BadRecord: If it cannot be read.
        """

    def column(self, name: str) -> Sequence[str]:
        """One text per record, read without reading any sound; empty where there is none.

        Raises:
            DataError: If there is no such column; the message names those that there are.
        """
        known = ", ".join(sorted(self.column_names)) or "none"
        raise DataError(f"{self.place}: has no column {name!r} that can be read without the sound; it has {known}")

    @property
    @abstractmethod
    def place(self) -> str:
        """The file or folder, for messages."""

    def seconds(self) -> Float64[np.ndarray, "N"] | None:
        """How long each record is, NaN where that is not known; None if nothing is known of any."""
        return None
