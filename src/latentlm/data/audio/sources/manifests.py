"""Manifests: JSON Lines, plain or gzipped, that name stretches of sound files. Two forms are read:

    {"audio_filepath": "a/1.wav", "offset": 1.5, "duration": 4.0, "text": "...", "speaker": "..."}        NeMo
    {"start": 1.5, "duration": 4.0, "recording": {"sources": [{"type": "file", "source": "a/1.flac"}]},
     "supervisions": [{"text": "...", "speaker": "..."}]}                                   Lhotse cuts, Libriheavy

Of a long file only the stretch is read. A manifest from a stranger must not read the rest of the disk: only files below
its own folder, or below an `audio_root` that the user names, are opened. A Lhotse source can also be a shell command or
a URL; those are refused.
"""

import gzip
import math
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from latentlm.data.audio.sources.records import AudioRecord, AudioSource
from latentlm.data.documents.json_records import parse_object
from latentlm.data.records import BadRecord, DataError
from latentlm.data.sources.shards import split_files

MANIFEST_SUFFIXES = (".jsonl", ".jsonl.gz", ".json")
"""NeMo calls its JSON Lines files `.json`."""
MAX_LINE_BYTES = 2**20
"""Of one entry; a Libriheavy cut with its context takes a few kilobytes."""
_MAX_REJECTED = 1000
"""Unusable entries that are remembered; a file with more of them is no manifest."""
_PATH_NAMES = ("audio_filepath", "audio")


class AudioManifest(AudioSource):
    """The recordings that a manifest lists.

    Args:
        path: The file, or a folder of files named for their splits.
        split: See `data.sources.shards.split_files`.
        columns: Our names -> the entries' (`{audio: path, text: transcript}`), for flat entries.
        audio_root: The folder that names of files begin from and must stay in; None for the manifest's own.

    Raises:
        DataError: If it cannot be read, or holds no usable entry.
    """

    column_names = frozenset({"text", "speaker"})

    def __init__(self, path: Path, split: str, columns: dict[str, str], audio_root: Path | None = None) -> None:
        files = _manifest_files(path, split)
        self._path = path
        self._root = (audio_root or (path if path.is_dir() else path.parent)).resolve()
        rejected: list[BadRecord] = []
        numbers: dict[str, int] = {}  # a long file is named by thousands of entries, and kept once
        self._file_numbers, self._offsets, self._durations = array("q"), array("d"), array("d")
        self._texts: list[str] = []
        self._speakers: list[str] = []
        speakers: dict[str, str] = {}
        for name, line in _lines(files, rejected):
            try:
                entry = _entry(parse_object(line, name), name, columns)
            except BadRecord as error:
                rejected.append(error)
                if len(rejected) > _MAX_REJECTED:
                    raise DataError(
                        f"{path}: more than {_MAX_REJECTED:,} unusable entries; the last: {error}"
                    ) from error
                continue
            file, offset, duration, text, speaker = entry
            self._file_numbers.append(numbers.setdefault(file, len(numbers)))
            self._offsets.append(offset)
            self._durations.append(duration)
            self._texts.append(text)
            self._speakers.append(speakers.setdefault(speaker, speaker))
        self._files = list(numbers)
        self.rejected = tuple(rejected)
        if not self._texts:
            raise DataError(f"{path}: no usable entry" + "".join(f"\n  {bad}" for bad in rejected[:10]))

    @property
    def place(self) -> str:
        """The manifest."""
        return str(self._path)

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: int) -> AudioRecord:
        file = self._files[self._file_numbers[index]]
        offset, duration = self._offsets[index], self._durations[index]
        name = f"{file} at {offset:.3f} s ({self._path}, entry {index})"
        known = None if math.isnan(duration) else duration
        return AudioRecord(self._confined(file, name), self._texts[index], self._speakers[index], name, offset, known)

    def column(self, name: str) -> Sequence[str]:
        """`speaker` or `text`."""
        if name not in self.column_names:
            return super().column(name)
        return self._texts if name == "text" else self._speakers

    def seconds(self) -> Float64[np.ndarray, "N"]:
        """As the entries say; NaN where one says nothing."""
        return np.array(self._durations)

    def _confined(self, file: str, name: str) -> Path:
        try:
            path = (self._root / file).resolve()
        except (OSError, ValueError, RuntimeError) as error:  # a zero byte, too long a name, links in a circle
            raise BadRecord(name, f"a name of a file that cannot be looked for ({error})") from error
        if not path.is_relative_to(self._root):
            raise BadRecord(name, f"refused: only files below {self._root} are read (audio_root names another folder)")
        return path


def _manifest_files(path: Path, split: str) -> list[Path]:
    if path.is_file():
        if split != "train":
            raise DataError(f"{path}: one manifest has one split; give test_path to read {split!r}")
        return [path]
    for suffix in MANIFEST_SUFFIXES:
        if any(file for folder in (path, path / "data", path / split) for file in folder.glob(f"*{suffix}")):
            return split_files(path, suffix, split)
    raise DataError(f"{path}: holds no manifest ({', '.join(MANIFEST_SUFFIXES)})")


def _lines(files: list[Path], rejected: list[BadRecord]) -> Iterator[tuple[str, bytes]]:
    """Place and content of every line that is not empty. Memory does not grow with the length of a line."""
    for file in files:
        number = 0
        try:
            with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as stream:
                while line := stream.readline(MAX_LINE_BYTES + 1):
                    number += 1
                    if len(line) > MAX_LINE_BYTES:
                        raise BadRecord(f"{file}:{number}", f"a line of more than {MAX_LINE_BYTES:,} bytes")
                    if line.strip():
                        yield f"{file}:{number}", line
        except BadRecord as error:  # what follows in this file is not read: it is no list of recordings
            rejected.append(error)
        except (OSError, EOFError, zlib.error) as error:
            rejected.append(BadRecord(str(file), f"cannot be read beyond line {number} ({error})"))


def _entry(content: Mapping[str, Any], name: str, columns: Mapping[str, str]) -> tuple[str, float, float, str, str]:
    """File, offset, duration (NaN if not said), text and speaker of one entry."""
    if "recording" in content:
        return _lhotse_entry(content, name)
    path_names = (columns["audio"],) if "audio" in columns else _PATH_NAMES
    file = next((content[key] for key in path_names if key in content), None)
    if not isinstance(file, str) or not file:
        raise BadRecord(name, f"names no file: expected {' or '.join(path_names)}, or a recording as Lhotse writes it")
    text, speaker = (content.get(columns.get(key, key)) for key in ("text", "speaker"))
    offset, duration = _number(content, "offset", name, 0.0), _number(content, "duration", name, math.nan)
    return file, offset, duration, _text(text, name), _text(speaker, name)


def _lhotse_entry(content: Mapping[str, Any], name: str) -> tuple[str, float, float, str, str]:
    recording = content["recording"]
    sources = recording.get("sources") if isinstance(recording, dict) else None
    source = sources[0] if isinstance(sources, list) and len(sources) == 1 else None
    if not isinstance(source, dict) or source.get("type") != "file" or not isinstance(source.get("source"), str):
        raise BadRecord(name, "its recording is not one source of the type 'file' (commands and URLs are not followed)")
    if isinstance(source.get("channels"), list) and len(source["channels"]) > 1:
        raise BadRecord(name, "one channel of several: mixed down, it would hold the others too")
    supervisions = content.get("supervisions")
    first = supervisions[0] if isinstance(supervisions, list) and supervisions else {}
    if not isinstance(first, dict):
        raise BadRecord(name, "its supervision is not an object")
    offset, duration = _number(content, "start", name, 0.0), _number(content, "duration", name, math.nan)
    return source["source"], offset, duration, _lhotse_text(first, name), _text(first.get("speaker"), name)


def _lhotse_text(supervision: Mapping[str, Any], name: str) -> str:
    """`text`, or the first of Libriheavy's `custom.texts`: the book's own, with its case and punctuation."""
    custom = supervision.get("custom")
    texts = custom.get("texts") if isinstance(custom, dict) else None
    if supervision.get("text") is None and isinstance(texts, list) and texts:
        return _text(texts[0], name)
    return _text(supervision.get("text"), name)


def _number(content: Mapping[str, Any], key: str, name: str, default: float) -> float:
    value = content.get(key)
    if value is None:
        return default
    # Also true, which is a number to Python, and integers that no float can hold.
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1e9:
        raise BadRecord(name, f"{key} is {value!r}, expected seconds")
    return float(value)


def _text(value: Any, name: str) -> str:
    if isinstance(value, int):
        return str(value)  # numbers of speakers
    if value is not None and not isinstance(value, str):
        raise BadRecord(name, f"a text or speaker that is a {type(value).__name__}")
    return value or ""
