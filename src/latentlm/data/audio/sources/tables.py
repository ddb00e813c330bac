"""Parquet files and Hugging Face data sets with a column of encoded sound, through `data.sources.tables`.

Beside the sound a Parquet file has columns that are read whole: speakers, texts, lengths (`num_samples` with
`sample_rate`, or `duration`), and whatever else a data set is filtered by.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from latentlm.data.audio.sources.records import AudioRecord, AudioSource
from latentlm.data.records import BadRecord, DataError, Source
from latentlm.data.sources.shards import split_files
from latentlm.data.sources.tables import open_hf_dataset, open_parquet
from latentlm.data.sources.webdataset import open_webdataset


class RecordAudio(AudioSource):
    """Recordings among the records of a container that knows nothing of sound (a tar, an Arrow file).

    Args:
        place: The file or folder, for messages.
        source: Has the field `audio`; `text` (or `caption`) and `speaker` where there are.

    Raises:
        DataError: If there is no sound in it.
    """

    def __init__(self, place: Path, source: Source) -> None:
        if "audio" not in source.fields:
            raise DataError(
                f"{place}: has no audio, only {', '.join(sorted(source.fields))}; name it: columns={{audio: ...}}"
            )
        self._place = place
        self._source = source
        self.rejected = source.rejected

    @property
    def place(self) -> str:
        """The file or folder."""
        return str(self._place)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> AudioRecord:
        record = self._source[index]
        audio = record["audio"]
        if not isinstance(audio, bytes):
            raise BadRecord(record["name"], "its sound is an array of numbers, expected an encoded file")
        text = record.get("text", record.get("caption"))  # tars call any .txt a caption
        return AudioRecord(audio, _as_text(text), _as_text(record.get("speaker")), record["name"])


class AudioTable(RecordAudio):
    """A Parquet data set. Arguments as in `open_audio_parquet`."""

    def __init__(self, path: Path, split: str, columns: dict[str, str]) -> None:
        source = open_parquet(path, split, columns)
        super().__init__(path, source)
        broken = {bad.name for bad in source.rejected}
        self._files = [file for file in split_files(path, ".parquet", split) if str(file) not in broken]
        present = _parquet().read_schema(self._files[0]).names
        usual = {name: name for name in ("text", "speaker") if name in present}
        self._renamed = usual | {ours: theirs for ours, theirs in columns.items() if ours in ("text", "speaker")}
        self.column_names = frozenset(present) - {columns.get("audio", "audio")} | frozenset(self._renamed)
        self._columns: dict[str, list[str]] = {}
        self._seconds = self._read_seconds(present)

    def column(self, name: str) -> Sequence[str]:
        """One column, as texts; empty for null."""
        if name not in self.column_names:
            return super().column(name)
        if name not in self._columns:
            self._columns[name] = [_as_text(cell) for cell in self._read(self._renamed.get(name, name))]
        return self._columns[name]

    def seconds(self) -> Float64[np.ndarray, "N"] | None:
        """From the columns named above."""
        return self._seconds

    def _read_seconds(self, present: list[str]) -> np.ndarray | None:
        if {"num_samples", "sample_rate"} <= set(present):
            return self._numbers("num_samples") / self._numbers("sample_rate")
        return self._numbers("duration") if "duration" in present else None

    def _numbers(self, name: str) -> np.ndarray:
        """A column of positive numbers; what is not one becomes NaN."""
        try:
            numbers = np.array(self._read(name), dtype=np.float64)  # null becomes NaN
        except (TypeError, ValueError) as error:
            raise DataError(f"{self.place}: column {name!r} should hold numbers ({error})") from error
        return np.where(numbers > 0, numbers, np.nan)

    def _read(self, name: str) -> list[Any]:
        """All cells of a small column, in the order of the records."""
        import pyarrow as pa

        try:
            cells = [
                cell
                for file in self._files
                for cell in _parquet().read_table(file, columns=[name], partitioning=None)[name].to_pylist()
            ]
        except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, OverflowError) as error:
            raise DataError(f"{self.place}: column {name!r} is damaged ({error})") from error
        if len(cells) != len(self):
            raise DataError(f"{self.place}: column {name!r} has {len(cells)} cells for {len(self)} records")
        return cells


def open_audio_parquet(path: Path, split: str, columns: dict[str, str]) -> AudioTable:
    """A Parquet file, or the Parquet files of one split in a folder.

    Args:
        path: The file or folder.
        split: See `data.sources.shards.split_files`.
        columns: Our names -> the file's (`{text: text_normalized}`).

    Raises:
        DataError: If no file can be read, or a column is not there.
        ImportError: If the extra `data` is not installed.
    """
    return AudioTable(path, split, columns)


def open_audio_hf_dataset(path: Path, split: str, columns: dict[str, str]) -> RecordAudio:
    """A folder written by `save_to_disk` of the library `datasets`. Arguments and errors as in `open_audio_parquet`."""
    return RecordAudio(path, open_hf_dataset(path, split, columns))


def open_audio_webdataset(path: Path, split: str, columns: dict[str, str]) -> RecordAudio:
    """WebDataset tars: `000042.flac` and `000042.txt` make up record 000042.

    Args:
        path: A tar, or a folder of them.
        split: See `data.sources.shards.split_files`.
        columns: Our names -> extensions in the tar; sound is `flac` unless it says otherwise (`{audio: wav}`).

    Raises:
        DataError: If no tar holds a record with sound.
    """
    return RecordAudio(path, open_webdataset(path, split, {"audio": "flac", **columns}))


def _as_text(cell: Any) -> str:
    return "" if cell is None else str(cell)


def _parquet() -> Any:
    import pyarrow.parquet  # `open_parquet` has asked for it before, by the name of the extra

    return pyarrow.parquet
