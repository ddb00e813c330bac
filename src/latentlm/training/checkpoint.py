"""Checkpoints: everything a run needs to continue bit for bit, in folders that are whole or absent.

    checkpoints/step_00000200/
        model.safetensors                   parameters and buffers of the objective, frozen children left out
        ema.safetensors                     float32 averages
        optimizer_<name>.safetensors        "<parameter>/exp_avg", "<parameter>/exp_avg_sq", "<parameter>/step"
        random_<rank>.safetensors           global generators of Python, NumPy and PyTorch
        state.json                          step, recipe, loss scale, consecutive bad steps
        manifest.json                       size and SHA-256 of the above, written last

The newest folder that verifies is the one to resume from; there is no "latest" link that could go stale.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentlm.pretrained import load_exactly, unique_tensors
from latentlm.storage import (
    StorageError,
    check_format_version,
    list_step_folders,
    newest_verified,
    publish_folder,
    read_json,
    read_tensors,
    remove_leftovers,
    remove_published,
    step_folder,
    verify_folder,
    write_json,
    write_tensors,
)
from latentlm.training import distributed
from latentlm.training.ema import ExponentialMovingAverage
from latentlm.training.objective import Objective
from latentlm.training.random_state import capture_random_state, restore_random_state

FORMAT_VERSION = 1
STATE_NAME = "state.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingParts:
    """The stateful parts of a run, all of which a checkpoint holds."""

    objective: Objective
    optimizers: Mapping[str, torch.optim.Optimizer]
    ema: ExponentialMovingAverage
    scaler: torch.amp.GradScaler
    recipe: Mapping[str, Any]
    """The resolved recipe as plain JSON values; a checkpoint of another recipe is refused."""
    recipe_changes: Mapping[str, Any] = field(default_factory=dict)
    """What of it is not at its default: a field that a checkpoint's version did not know yet may be at its default."""


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    step: int = 0
    """Optimizer steps done, skipped ones included."""
    num_consecutive_bad_steps: int = 0


class CheckpointFolder:
    """The checkpoints of one run.

    Args:
        parent: Holds one folder per saved step.
        keep: Good checkpoints to keep; older ones are removed once a newer one has been read back and verified.
        may_change: Recipe fields, such as "trainer.log_every", that a resumed run may set anew.
    """

    def __init__(self, parent: Path, *, keep: int, may_change: frozenset[str] = frozenset()) -> None:
        self.parent = parent
        self.keep = keep
        self.may_change = may_change
        self._good: set[int] = set()

    def save(self, parts: TrainingParts, progress: Progress) -> None:
        """Write a checkpoint; every rank calls this, rank 0 writes.

        Raises:
            StorageError: If the disk refuses; earlier checkpoints are untouched.
        """
        random_states = distributed.gather(capture_random_state())
        if distributed.rank() != 0:
            return
        folder = step_folder(self.parent, progress.step)
        # Replacing: a folder of this step can only be one that was rejected when the run was resumed.
        publish_folder(
            folder, lambda staging: _write(staging, parts, progress, random_states), step=progress.step, replace=True
        )
        verify_folder(folder)
        self._good.add(progress.step)
        self._remove_old()

    def restore_newest(self, parts: TrainingParts) -> Progress | None:
        """Load the newest checkpoint that verifies into `parts`, and remove what killed saves left behind.

        Damaged checkpoints are named in the log and stay on disk. None if there is no good one and no damaged one.

        Raises:
            ValueError: If the good checkpoint is of another recipe or model, naming what differs; if there are
                checkpoints but every one of them is damaged.
        """
        if distributed.rank() == 0:
            remove_leftovers(self.parent)
        rejected: list[str] = []

        def reject(folder: Path, error: StorageError) -> None:
            rejected.append(str(error))
            logger.warning("checkpoint %s is REJECTED: %s", folder.name, error)

        folder = newest_verified(self.parent, reject)
        if folder is None:
            if rejected:
                raise ValueError(
                    f"no checkpoint in {self.parent} can be trusted, so the run cannot be resumed; remove them to "
                    f"start anew. {'; '.join(rejected)}"
                )
            return None
        if rejected:
            logger.warning("falling back to the last good checkpoint, %s", folder.name)
        progress = self._read(folder, parts)
        self._good.add(progress.step)
        return progress

    def _read(self, folder: Path, parts: TrainingParts) -> Progress:
        state = read_json(folder / STATE_NAME)
        check_format_version(state["format_version"], FORMAT_VERSION, folder / STATE_NAME)
        _refuse_other_recipe(folder, state["recipe"], parts, self.may_change)
        if state["world_size"] != distributed.world_size():
            raise ValueError(
                f"{folder} was saved by {state['world_size']} ranks and cannot continue on {distributed.world_size()}"
            )
        leave_out = parts.objective.frozen_children
        path = folder / "model.safetensors"
        load_exactly(parts.objective, read_tensors(path), path, leave_out=leave_out)
        parts.ema.load_state_dict(read_tensors(folder / "ema.safetensors"))
        for name, optimizer in parts.optimizers.items():
            path = folder / f"optimizer_{name}.safetensors"
            _load_optimizer(optimizer, _parameter_names(parts.objective), read_tensors(path), path)
        parts.scaler.load_state_dict(state["scaler"])
        restore_random_state(read_tensors(folder / f"random_{distributed.rank():05d}.safetensors"))
        return Progress(step=state["step"], num_consecutive_bad_steps=state["num_consecutive_bad_steps"])

    def _remove_old(self) -> None:
        """Remove what is older than the `keep` newest checkpoints known to be good."""
        known_good = sorted(self._good, reverse=True)[: self.keep]
        if len(known_good) == self.keep:
            for step, folder in list_step_folders(self.parent):
                if step < known_good[-1]:
                    remove_published(folder)


def _write(folder: Path, parts: TrainingParts, progress: Progress, random_states: list[dict[str, Tensor]]) -> None:
    objective = parts.objective
    write_tensors(folder / "model.safetensors", unique_tensors(objective, leave_out=objective.frozen_children))
    write_tensors(folder / "ema.safetensors", parts.ema.state_dict())
    for name, optimizer in parts.optimizers.items():
        tensors = _optimizer_tensors(optimizer, _parameter_names(objective))
        write_tensors(folder / f"optimizer_{name}.safetensors", tensors)
    for rank, random_state in enumerate(random_states):
        write_tensors(folder / f"random_{rank:05d}.safetensors", random_state)
    state = {
        "format_version": FORMAT_VERSION,
        "kind": objective.kind,
        "step": progress.step,
        "num_consecutive_bad_steps": progress.num_consecutive_bad_steps,
        "world_size": len(random_states),
        "scaler": parts.scaler.state_dict(),
        "recipe": parts.recipe,
    }
    write_json(folder / STATE_NAME, state)


def _parameter_names(objective: Objective) -> dict[torch.nn.Parameter, str]:
    return {parameter: name for name, parameter in objective.named_parameters()}


def _optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[torch.nn.Parameter, str]) -> dict[str, Tensor]:
    """An optimizer's state by parameter name: unlike PyTorch's numbering it survives a reordering of groups."""
    owned = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        f"{names[parameter]}/{key}": value
        for parameter in owned
        if parameter in optimizer.state  # one that never had a gradient has no state
        for key, value in optimizer.state[parameter].items()
    }


def _load_optimizer(
    optimizer: torch.optim.Optimizer,
    names: Mapping[torch.nn.Parameter, str],
    tensors: Mapping[str, Tensor],
    path: Path,
) -> None:
    owned = {names[parameter]: parameter for group in optimizer.param_groups for parameter in group["params"]}
    optimizer.state.clear()
    for full_name, tensor in tensors.items():
        name, key = full_name.rsplit("/", maxsplit=1)
        if name not in owned:
            raise ValueError(f"{path} holds the state of {name}, which this optimizer does not own")
        parameter = owned[name]
        if key != "step" and tensor.shape != parameter.shape:
            raise ValueError(f"{path} holds a {key} of shape {tuple(tensor.shape)} for {name} {tuple(parameter.shape)}")
        optimizer.state[parameter][key] = tensor.to(parameter.device)


def _refuse_other_recipe(folder: Path, saved: Any, parts: TrainingParts, may_change: frozenset[str]) -> None:
    old, new = _flatten(saved), _flatten(json.loads(json.dumps(parts.recipe)))
    chosen = _flatten(json.loads(json.dumps(parts.recipe_changes)))
    unknown_then = {name for name in new.keys() - old.keys() if name not in chosen}
    differences = [
        f"{name} was {old.get(name, 'absent')} and is {new.get(name, 'absent')} now"
        for name in sorted(old.keys() | new.keys())
        if name not in may_change | unknown_then and old.get(name) != new.get(name)
    ]
    if differences:
        raise ValueError(
            f"{folder} belongs to another recipe: {'; '.join(differences)}. Take the old recipe, or a new folder"
        )


def _flatten(value: Any, name: str = "") -> dict[str, str]:
    """Nested mappings to {"a.b": "value as JSON"}; an empty mapping is a value."""
    if isinstance(value, dict) and value:
        return {
            full_name: leaf
            for key, item in value.items()
            for full_name, leaf in _flatten(item, f"{name}.{key}" if name else key).items()
        }
    return {name: json.dumps(value)}
