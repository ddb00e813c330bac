"""What a protocol is: a function that measures one cell, and may be cut off at any moment and called again.

    def image_generator(context: MeasureContext) -> Mapping[str, Any]:
        samples = remembered(context.scratch_dir, "samples", lambda: {"images": draw(context.run_dir / "model")})
        return {"accuracy": score(samples["images"])}

What it returns becomes the `result` of the cell's record: JSON, finite numbers only.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from latentlm.experiments.expansion import AxisValue
from latentlm.storage import read_json, read_tensors, write_file_atomically, write_tensors


@dataclass(frozen=True, kw_only=True)
class MeasureContext:
    """What a protocol is given.

    Attributes:
        cell: Name of the cell.
        axes: Its axes.
        run_dir: Run folder of the measured run: `model/`, `model_raw/`, recipe.yaml; None for a cell without a run.
        recipe: The run's resolved recipe; None for a cell without a run.
        options: From the experiment file, placeholders filled in.
        scratch_dir: For partial results; this cell's alone, kept until the cell is measured.
        cache_dir: For what several cells share, such as a trained judge. Two cells may want to make the same thing at
            the same time: hold a `locks.waiting_lock` meanwhile.
        assets_dir: For pictures to keep and show; see `picture_path`.
        load: Folder of a trained model to the thing, as users hold it.
        progress: Whether to show progress bars.
    """

    cell: str
    axes: Mapping[str, AxisValue]
    run_dir: Path | None
    recipe: Any
    options: Mapping[str, Any]
    scratch_dir: Path
    cache_dir: Path
    assets_dir: Path
    load: Callable[[Path], Any]
    progress: bool = True

    def picture_path(self, name: str = "samples") -> Path:
        """Where to write a PNG file that the results page can show under this name."""
        self.assets_dir.mkdir(parents=True, exist_ok=True)
        return self.assets_dir / picture_name(self.cell, name)


Protocol = Callable[[MeasureContext], Mapping[str, Any]]
"""Measures one cell."""


def picture_name(cell: str, name: str) -> str:
    """File name of a picture of a cell."""
    return f"{cell}.{name}.png"


def remembered(scratch_dir: Path, key: str, function: Callable[[], Any]) -> Any:
    """`function()`, computed once: a later call with this key, after a kill too, reads what the first one stored.

    Args:
        scratch_dir: The cell's folder; created if needed.
        key: Names the file.
        function: Returns a mapping of names to tensors, stored as safetensors, or else anything that JSON can hold.

    Returns:
        What was stored, the first time too: tensors on the CPU, lists for tuples.

    Raises:
        ValueError: If JSON cannot hold it: NaN and infinity, for example.
        StorageError: If the disk refuses.
    """
    tensors_path, json_path = scratch_dir / f"{key}.safetensors", scratch_dir / f"{key}.json"
    if not tensors_path.exists() and not json_path.exists():
        scratch_dir.mkdir(parents=True, exist_ok=True)
        value = function()
        if isinstance(value, Mapping) and value and all(isinstance(item, Tensor) for item in value.values()):
            temporary = tensors_path.with_name(f".{tensors_path.name}.staging-{os.getpid()}")
            write_tensors(temporary, dict(value))
            # No fsync: after a power cut an empty file is refused as unreadable, and nothing but time is lost.
            os.rename(temporary, tensors_path)
        else:
            write_file_atomically(json_path, to_json(value, what=key))
    return read_tensors(tensors_path) if tensors_path.exists() else read_json(json_path)


def to_json(value: Any, *, what: str) -> bytes:
    """Indented JSON, keys in the order given, refusing what JSON cannot hold.

    Raises:
        ValueError: Naming `what`, for NaN, infinity and objects.
    """
    try:
        return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{what} cannot be recorded: {error}; results are finite numbers, text, lists, dicts"
        ) from error
