"""Sound files in folders, with transcripts beside them as the common corpora lay them out.

    speaker/1.wav, speaker/1.txt                        a folder per speaker (also speaker/1.normalized.txt, LibriTTS)
    19/198/19-198-0000.flac, 19/198/19-198.trans.txt    LibriSpeech: the speaker comes first in the file's name
    wavs/LJ001-0001.wav, metadata.csv                   LJ Speech: one speaker, lines `id|text|normalised text`

Files in deeper folders have the outermost folder for their speaker, and files at the top have none.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from latentlm.data.audio.decoding import AUDIO_SUFFIXES, read_header
from latentlm.data.audio.sources.records import AudioRecord, AudioSource
from latentlm.data.decode import read_file
from latentlm.data.records import BadRecord, DataError
from latentlm.data.sources.folders import split_folder

_TRANSCRIPT_SUFFIXES = (".normalized.txt", ".txt")
"""Of a transcript beside one file, the best first: numbers written out are what is said."""
_LIST_SUFFIX = ".trans.txt"
_METADATA = "metadata.csv"


class AudioFolder(AudioSource):
    """All sound files below a folder, in the order of their names.

    Args:
        path: The folder, or a folder that holds the folder `split`.
        split: See `split_folder`.
        columns: Must be empty: files have no columns.

    Raises:
        DataError: If there is no sound file.
    """

    column_names = frozenset({"text", "speaker"})

    def __init__(self, path: Path, split: str, columns: dict[str, str]) -> None:
        if columns:
            raise DataError(f"a folder of sound files has no columns to map, but columns={columns} was given")
        self._folder = split_folder(path, split)
        rejected: list[BadRecord] = []
        self._files: list[str] = []
        lists: list[str] = []
        for file in sorted(_files(self._folder, rejected)):
            if file.lower().endswith(AUDIO_SUFFIXES):
                self._files.append(file)
            elif file.endswith(_LIST_SUFFIX) or file == _METADATA:
                lists.append(file)
        self._listed: dict[str, tuple[str, str]] = {}  # name without folder and suffix: text, speaker
        for file in lists:
            self._read_list(file, rejected)
        self.rejected = tuple(rejected)
        if not self._files:
            reasons = "".join(f"\n  {bad}" for bad in rejected)
            raise DataError(f"{self._folder}: no sound file found ({', '.join(AUDIO_SUFFIXES)}){reasons}")
        self._seconds: np.ndarray | None = None

    @property
    def place(self) -> str:
        """The folder."""
        return str(self._folder)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> AudioRecord:
        file = self._files[index]
        path = self._folder / file
        return AudioRecord(path, self._text(file), self._speaker(file), str(path))

    def column(self, name: str) -> Sequence[str]:
        """`speaker`, or `text`: reading the latter opens every transcript."""
        if name == "speaker":
            return [self._speaker(file) for file in self._files]
        if name == "text":
            return [self._text(file) for file in self._files]
        return super().column(name)

    def seconds(self) -> Float64[np.ndarray, "N"]:
        """From the headers of all files, which are read once; NaN for files that have no readable one."""
        if self._seconds is None:
            self._seconds = np.array([_seconds_of(self._folder / file) for file in self._files])
        return self._seconds

    def _speaker(self, file: str) -> str:
        if Path(file).stem in self._listed:
            return self._listed[Path(file).stem][1]
        folder, separator, _ = file.partition(os.sep)
        return folder if separator else ""

    def _text(self, file: str) -> str:
        if Path(file).stem in self._listed:
            return self._listed[Path(file).stem][0]
        stem = self._folder / os.path.splitext(file)[0]
        for suffix in _TRANSCRIPT_SUFFIXES:
            path = stem.with_name(stem.name + suffix)
            if path.is_file() and path.resolve().is_relative_to(self._folder.resolve()):
                return _decoded(read_file(path), path).strip()
        return ""

    def _read_list(self, file: str, rejected: list[BadRecord]) -> None:
        path = self._folder / file
        try:
            lines = _decoded(read_file(path), path).splitlines()
        except BadRecord as error:
            rejected.append(error)
            return
        for line in lines:
            if file == _METADATA:
                name, *texts = line.split("|")
                text, speaker = next((text for text in reversed(texts) if text.strip()), ""), ""
            else:
                name, _, text = line.partition(" ")
                speaker = name.partition("-")[0]
            if name.strip() and text.strip():
                self._listed[name.strip()] = (text.strip(), speaker)


def _decoded(data: bytes, path: Path) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRecord(str(path), f"a transcript that is not UTF-8 ({error.reason})") from error


def _seconds_of(path: Path) -> float:
    try:
        seconds = read_header(path, str(path)).seconds
    except BadRecord:  # it will be named when it is to be decoded
        return float("nan")
    return float("nan") if seconds is None else seconds


def _files(root: Path, rejected: list[BadRecord]) -> Iterator[str]:
    """Paths relative to `root` of its sound files and lists; links that lead out of it go to `rejected`."""
    real_root = root.resolve()

    def name_unreadable(error: OSError) -> None:
        rejected.append(BadRecord(str(error.filename), f"folder that cannot be read ({error.strerror})"))

    for parent, folders, names in os.walk(root, onerror=name_unreadable, followlinks=False):
        for name in folders:
            if Path(parent, name).is_symlink():
                rejected.append(BadRecord(str(Path(parent, name)), "link to a folder, which is not followed"))
        for name in names:
            path = Path(parent, name)
            wanted = name.lower().endswith(AUDIO_SUFFIXES) or name.endswith(_LIST_SUFFIX) or name == _METADATA
            if not wanted or name.startswith("."):
                continue
            if path.is_symlink() and not path.resolve().is_relative_to(real_root):
                rejected.append(BadRecord(str(path), f"link out of {root}"))
            else:
                yield str(path.relative_to(root))
