"""The machine and the code that made a number, for its record."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import latentlm

_GIT_TIMEOUT_SECONDS = 10.0


def describe_machine() -> dict[str, Any]:
    """CPU, cores this process may use, threads it does use, GPU, and versions."""
    return {
        "cpu": _cpu_name(),
        "cores": num_usable_cores(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def num_usable_cores() -> int:
    """Cores that this process is allowed on, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_code(folder: Path | None = None) -> dict[str, Any] | None:
    """The commit of the git checkout that a package's source lies in.

    Args:
        folder: Of the source; by default this package's.

    Returns:
        `commit`, the checkout's; `source_commit`, the last one that changed anything in `folder`; `dirty`, whether
        something in `folder` is not committed. None where that cannot be known: for an installed wheel, even in an
        environment that lies in a checkout of something else, without git, or if git does not answer.
    """
    folder = Path(latentlm.__file__).parent if folder is None else folder
    source_commit = _git(folder, "log", "-1", "--format=%H", "--", ".")
    commit, changes = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain", "--", ".")
    if not source_commit or commit is None or changes is None:  # no commit at all has an ignored folder
        return None
    return {"commit": commit, "source_commit": source_commit, "dirty": bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=_GIT_TIMEOUT_SECONDS,
            # `git status` would lock the index for a moment, in the way of somebody who commits meanwhile.
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():  # Linux; platform.processor() says no more than the architecture there
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
