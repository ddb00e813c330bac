"""Partial results of a cell that is being measured, and when they are too old to go on with."""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentlm import __version__


def open_scratch(scratch: Path, *, record: Path, code: Mapping[str, Any] | None) -> None:
    """Make the folder of partial results, or keep what a killed measurement left there.

    What a finished one left, because it was killed while it tidied up, must not pass for a new measurement: a file
    says which record, if any, the folder's measurement is going to replace. It also names the code, by the last commit
    that changed the source, so that no result is made half by one and half by another. Only with uncommitted changes
    everything is kept, for development; the result's record says that there were some.

    Args:
        scratch: The folder.
        record: The record that the measurement will write.
        code: What is at work, as `machine.describe_code` tells it.
    """
    replaced = hashlib.sha256(record.read_bytes()).hexdigest() if record.exists() else "nothing"
    if code is None:
        origin, in_development = f"latentlm {__version__}", False
    else:
        origin, in_development = code["source_commit"] + (" with changes" if code["dirty"] else ""), code["dirty"]
    note = scratch / "origin.txt"
    lines = note.read_text().splitlines() if note.exists() else []
    if scratch.exists() and not (lines == [replaced, origin] or (in_development and lines[:1] == [replaced])):
        shutil.rmtree(scratch)
    scratch.mkdir(parents=True, exist_ok=True)
    note.write_text(f"{replaced}\n{origin}\n")


def clock_of(scratch: Path) -> Path:
    """The file that counts the seconds spent in a folder of partial results; it stands beside it."""
    return scratch.with_name(scratch.name + ".seconds.json")
