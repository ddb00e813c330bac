"""What protects a run from the outside: requests to stop, and a second process in the same run folder."""

import errno
import fcntl
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

logger = logging.getLogger(__name__)


class StopRequest:
    """Remembers SIGTERM or SIGINT, so that the loop can stop at the edge of a step with a checkpoint.

    The handler does nothing but set a flag: saving inside it could interrupt a save. A second signal acts as usual,
    for a run that does not come to an edge. Outside the main thread, where Python forbids handlers, nothing is
    installed.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


@contextmanager
def exclusive_run(run_dir: Path) -> Iterator[None]:
    """Hold `run_dir/.lock`, so that two processes cannot train in one folder. The lock dies with its process.

    Raises:
        ValueError: If another process holds it.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / ".lock").open("a") as file:
        try:
            # A record lock: unlike flock it is not inherited by data workers, which may outlive a killed parent.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise ValueError(f"another process (not {os.getpid()}) is training in {run_dir}") from error
            logger.warning("%s cannot be locked (%s); make sure that only one process trains there", run_dir, error)
        yield
