"""A clock of work that several processes do one after the other, which survives kills."""

import threading
import time
from pathlib import Path

from latentlm.storage import read_json, write_file_atomically, write_json


class Stopwatch:
    """Seconds that work took over all processes that did some of it, what a kill made them repeat included.

    Args:
        path: JSON file with the sum. Written every `every` seconds, so that a kill loses no more than that.
        every: Seconds between writes.
    """

    def __init__(self, path: Path, *, every: float = 10.0) -> None:
        self.path = path
        self.every = every
        self._earlier = read_seconds(path)
        self._start = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write_regularly, daemon=True)

    @property
    def seconds(self) -> float:
        """Those of earlier processes and of this one so far."""
        return self._earlier + time.monotonic() - self._start

    def __enter__(self) -> "Stopwatch":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, round(self.seconds, 1))  # a disk that refuses is met here, not in the thread
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        self._write()

    def _write_regularly(self) -> None:
        while not self._stop.wait(self.every):
            self._write()

    def _write(self) -> None:
        write_file_atomically(self.path, f"{self.seconds:.1f}\n".encode())


def read_seconds(path: Path) -> float:
    """What a stopwatch counted; 0 if it never ran."""
    return float(read_json(path)) if path.exists() else 0.0
