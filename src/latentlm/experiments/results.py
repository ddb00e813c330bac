"""Records of measured cells, and what may be concluded from a few seeds.

A record is one JSON file with everything that its number needs to be believed: the whole definition with its hash,
recipes, code, machine, seconds, cost, version and date. Tables and plots are made of records alone.
"""

import hashlib
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from latentlm.storage import read_json

FORMAT_VERSION = 1

Record = Mapping[str, Any]


def definition_hash(definition: Mapping[str, Any]) -> str:
    """SHA-256, as hex, of a definition's content, whatever the order of its keys."""
    text = json.dumps(definition, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(old: Any, new: Any, path: str = "", *, shared_only: bool = False) -> list[str]:
    """Where two definitions differ, as sentences: `recipe.optim.lr: 0.001, now 0.002`.

    Args:
        old: Plain values, as stored.
        new: Plain values; tuples count as lists.
        path: Of the two, for the sentences.
        shared_only: Compare only the fields that both sides have: what a later version added or removed is no change.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [key for key in old if key in new] if shared_only else dict.fromkeys([*old, *new])
        return [
            line
            for key in keys
            for line in differences(
                old.get(key), new.get(key), f"{path}.{key}" if path else str(key), shared_only=shared_only
            )
        ]
    old, new = (list(side) if isinstance(side, tuple) else side for side in (old, new))
    if shared_only and isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [line for i, (a, b) in pairs for line in differences(a, b, f"{path}.{i}", shared_only=True)]
    return [] if old == new else [f"{path}: {json.dumps(old)}, now {json.dumps(new)}"]


def listed(changes: Sequence[str], *, at_most: int = 3) -> str:
    """Differences in one line, the first few of them."""
    more = f"; and {len(changes) - at_most} more" if len(changes) > at_most else ""
    return "; ".join(changes[:at_most]) + more


def record_path(results: Path, experiment: str, cell: str) -> Path:
    """The file of a cell's record."""
    return results / experiment / "cells" / f"{cell}.json"


def read_record(path: Path) -> Record | None:
    """A cell's record; None if there is none.

    Raises:
        ValueError: If the file is no record, or of a newer format.
    """
    if not path.exists():
        return None
    record = read_json(path)
    if not isinstance(record, dict) or "definition_hash" not in record or "result" not in record:
        raise ValueError(f"{path} is not the record of a cell")
    if record.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format_version {record.get('format_version')}; this version reads {FORMAT_VERSION}"
        )
    return record


def look_up(record: Record, path: str) -> Any:
    """The value at a dotted path of a record; None where there is none."""
    value: Any = record
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


@dataclass(frozen=True)
class Summary:
    """Mean over seeds, with its standard error, which is None for a single seed."""

    mean: float
    standard_error: float | None


def summarise(values: Sequence[float]) -> Summary:
    """Mean and standard error, s / √n with s² over n - 1.

    Raises:
        ValueError: If there are no values.
    """
    if not values:
        raise ValueError("there is no mean of no values")
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return Summary(statistics.fmean(values), error)


@dataclass(frozen=True)
class Comparison:
    """How far apart two methods are.

    Attributes:
        gap: Difference of the means, without its sign.
        standard_error: Of that difference: √(e₁² + e₂²); None if one side has a single seed.
        verdict: "unknown" without a standard error.
    """

    gap: float
    standard_error: float | None
    verdict: Literal["apart", "tie", "unknown"]


def compare(best: Sequence[float], other: Sequence[float]) -> Comparison:
    """Compare two methods over their seeds: a gap under two standard errors of the difference is a tie.

    Args:
        best: One value per seed.
        other: Likewise; the seeds need not be the same, and their number neither.
    """
    first, second = summarise(best), summarise(other)
    gap = abs(first.mean - second.mean)
    if first.standard_error is None or second.standard_error is None:
        return Comparison(gap, None, "unknown")
    error = math.hypot(first.standard_error, second.standard_error)
    return Comparison(gap, error, "tie" if gap < 2 * error or gap == 0 else "apart")
