"""A recogniser that reads a clip once: real recordings are judged again beside every model, and slowly.

Texts lie in an SQLite file, by a hash of judge, rate and samples, so that processes may share it.

Shapes: S samples.
"""

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import torch

from latentlm.evaluation.speech.interfaces import Clips, Recogniser

_SECONDS_TO_WAIT = 60.0
"""For another process that writes."""
_KEYS_PER_QUERY = 500


class RememberingRecogniser:
    """Reads by another recogniser what nobody has read before.

    Args:
        recogniser: Reads each clip by itself, whatever stands around it.
        path: The file; made if there is none.
        fingerprint: Of everything that the texts hang on beside the clips: weights, versions, a grammar.

    Raises:
        ValueError: If the file is damaged, or another process never lets go of it.
    """

    def __init__(self, recogniser: Recogniser, path: Path, *, fingerprint: str) -> None:
        self.label = recogniser.label
        self._recogniser, self._path, self._fingerprint = recogniser, path, fingerprint
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._open() as file:
            file.execute("CREATE TABLE IF NOT EXISTS texts (key TEXT PRIMARY KEY, text TEXT NOT NULL)")

    def transcribe(self, clips: Clips, sample_rate: int) -> list[str]:
        """A text per clip, in order."""
        keys = [self._key(clip, sample_rate) for clip in clips]
        known = self._known(keys)
        unknown = {key: clip for key, clip in zip(keys, clips, strict=True) if key not in known}
        if unknown:
            read = self._recogniser.transcribe(list(unknown.values()), sample_rate)
            new = dict(zip(unknown, read, strict=True))
            with self._open() as file:
                file.executemany("INSERT OR IGNORE INTO texts VALUES (?, ?)", new.items())
            known |= new
        return [known[key] for key in keys]

    def _known(self, keys: list[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        with self._open() as file:
            for start in range(0, len(keys), _KEYS_PER_QUERY):
                some = keys[start : start + _KEYS_PER_QUERY]
                marks = ", ".join("?" * len(some))
                found.update(file.execute(f"SELECT key, text FROM texts WHERE key IN ({marks})", some))
        return found

    def _key(self, clip: torch.Tensor, sample_rate: int) -> str:
        digest = hashlib.sha256(f"{self._fingerprint}\n{sample_rate}\n".encode())
        digest.update(clip.detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection that commits at its end, or changes nothing."""
        try:
            with closing(sqlite3.connect(self._path, timeout=_SECONDS_TO_WAIT)) as file, file:
                yield file
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{self._path} cannot be used ({error}); it is a cache, and may be deleted") from error
