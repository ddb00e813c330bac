"""Jobs in processes of their own, several at a time, in the order of what they need; some of them alone, at the end.

A signal to stop is passed on to the running jobs, which save what they have; nothing new is started. A job that fails
takes those that need it with it, and no other.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from tqdm import tqdm

from latentlm.experiments.machine import num_usable_cores

_POLL_SECONDS = 0.1
_NUM_LOG_LINES = 15


@dataclass(frozen=True)
class Job:
    """One thing to do, after the jobs that it needs.

    Attributes:
        name: Of the job.
        needs: Names of the jobs that must be done before.
        alone: Run while no other job runs, when no other is left that could: what is timed wants a quiet machine.
    """

    name: str
    needs: tuple[str, ...] = ()
    alone: bool = False


@dataclass
class QueueOutcome:
    """How a queue ended.

    Attributes:
        done: Names of finished jobs, in the order in which they finished.
        failed: Name of a failed job to what is known of it: exit code and last lines of its log, or the job that it
            needed.
        stopped_by: The signal that ended the queue early.
    """

    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    stopped_by: int | None = None


def run_jobs(
    jobs: Sequence[Job], command: Callable[[str], Sequence[str]], *, num_parallel: int, log_dir: Path
) -> QueueOutcome:
    """Run every job once.

    Args:
        jobs: Each stands after those it needs; a need that is not among them counts as met.
        command: Name of a job to its command line.
        num_parallel: Processes at a time; each gets its share of the cores, and one that runs alone no more.
        log_dir: Gets <job>.log with all output; a repeated job is appended.

    Raises:
        ValueError: If `num_parallel` is below 1.
    """
    if num_parallel < 1:
        raise ValueError(f"--jobs is {num_parallel}; it must be at least 1")
    log_dir.mkdir(parents=True, exist_ok=True)
    outcome = QueueOutcome()
    waiting = {job.name: job for job in jobs}
    alone = {job.name for job in jobs if job.alone}
    running: dict[str, subprocess.Popen] = {}
    environment = job_environment(os.environ, num_parallel=num_parallel)
    # A terminal is refreshed often; a log file should not fill with bars.
    interval = 0.2 if sys.stderr.isatty() else 60.0
    with _StopSignals() as stop, tqdm(total=len(jobs), unit="job", mininterval=interval) as bar:
        while running or (waiting and stop.number is None):
            _give_up_hopeless(waiting, outcome, bar)
            if stop.number is None:
                for name in _to_start(waiting, running, alone=alone, num_parallel=num_parallel):
                    del waiting[name]
                    running[name] = _start(command(name), log_dir / f"{name}.log", environment)
            bar.set_postfix_str(", ".join(running), refresh=False)
            bar.update(0)
            time.sleep(_POLL_SECONDS)
            outcome.stopped_by = stop.number
            stop.pass_on(running)
            for name, process in list(running.items()):
                code = process.poll()
                if code is not None:
                    del running[name]
                    _note_end(name, code, log_dir / f"{name}.log", outcome, bar)
    return outcome


def job_environment(environment: Mapping[str, str], *, num_parallel: int) -> dict[str, str]:
    """The environment of a job; what the user has set already wins."""
    return {
        "OMP_NUM_THREADS": str(max(1, num_usable_cores() // num_parallel)),
        # glibc: take large blocks from the heap and keep them. By default every step of a training on the CPU maps and
        # unmaps its activations anew, and the page faults cost time.
        "MALLOC_MMAP_THRESHOLD_": str(2**30),
        "MALLOC_TRIM_THRESHOLD_": str(2**32),
        **environment,
    }


def _to_start(
    waiting: Mapping[str, Job], running: Mapping[str, subprocess.Popen], *, alone: Set[str], num_parallel: int
) -> list[str]:
    """Jobs to start now, in their order: none of their needs is still waiting or running."""
    ready = [name for name, job in waiting.items() if not any(need in waiting or need in running for need in job.needs)]
    together = [name for name in ready if name not in alone]
    if any(name in alone for name in running):
        return []
    if together or running:
        return together[: num_parallel - len(running)]
    return ready[:1]


def _start(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen:
    with log.open("ab") as file:
        # A session of its own: Ctrl-C in a terminal reaches the whole foreground group, and a job that gets it both
        # from there and from us would take the second one for impatience and die without saving.
        return subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
        )


def _note_end(name: str, code: int, log: Path, outcome: QueueOutcome, bar: tqdm) -> None:
    if code == 0:
        outcome.done.append(name)
        bar.write(f"done    {name}", sys.stderr)
    elif outcome.stopped_by is not None:
        bar.write(f"stopped {name}", sys.stderr)
        return
    else:
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        lines = log.read_text(errors="replace").splitlines()[-_NUM_LOG_LINES:]
        outcome.failed[name] = "\n".join([f"{how}; {log} ends with:", *(f"    {line}" for line in lines)])
        bar.write(f"FAILED  {name} ({how})", sys.stderr)
    bar.update()


def _give_up_hopeless(waiting: dict[str, Job], outcome: QueueOutcome, bar: tqdm) -> None:
    for name, job in list(waiting.items()):
        if lost := [need for need in job.needs if need in outcome.failed]:
            del waiting[name]
            outcome.failed[name] = f"not begun: it needs {lost[0]}"
            bar.update()


class _StopSignals:
    """Counts SIGTERM and SIGINT, and passes each on to every running job once.

    The second one reaches the jobs too: it ends those that do not come to a stop by themselves. Outside the main
    thread, where Python forbids handlers, nothing is installed.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._count = 0
        self._passed_on: Counter[str] = Counter()
        self._previous = {}

    def __enter__(self) -> "_StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        # No more than that: a job may be being started at this very moment, and must get the signal too.
        self.number = number
        self._count += 1

    def pass_on(self, running: Mapping[str, subprocess.Popen]) -> None:
        """Send every job the signals that it has not got yet."""
        for name, process in running.items():
            while self.number is not None and self._passed_on[name] < self._count:
                process.send_signal(self.number)  # of a process that has ended: does nothing
                self._passed_on[name] += 1
