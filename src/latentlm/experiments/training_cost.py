"""What a training took, counted from its own first batches: rows are packed, and no formula knows how full they are."""

from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

from latentlm.nn.flops import count_flops

Build = Callable[[Any], tuple[Any, Any, Any]]
"""Recipe to objective, loader and recipe, as `catalog.build`."""

_NUM_COUNTED_BATCHES = 4
"""Whose FLOPs stand for all."""


def training_flops(recipe: Any, build: Build, *, num_steps: int | None = None) -> float:
    """FLOPs of a training; a backward pass counts as two forward ones. Those of frozen tokenizers are not included.

    Args:
        recipe: Of the run.
        build: Makes its objective and its batches.
        num_steps: Of the training, None for all.
    """
    trainer = recipe.trainer
    objective, make_batches, _ = build(recipe)
    with closing(make_batches(0)) as batches:
        counted = [_forward_flops(objective, next(batches)) for _ in range(_NUM_COUNTED_BATCHES)]
    micro_batches = (trainer.num_steps if num_steps is None else num_steps) * trainer.num_accumulation_steps
    return 3 * micro_batches * sum(counted) / len(counted)


def document_training(recipe: Any, build: Build, *, num_steps: int | None = None) -> dict[str, int | float]:
    """How long a model of documents was trained.

    Args:
        recipe: Of the run.
        build: As in `training_flops`.
        num_steps: As there.

    Returns:
        `steps`; `tokens`, the positions of all rows, padding included; `flops`.
    """
    trainer = recipe.trainer
    steps = trainer.num_steps if num_steps is None else num_steps
    rows = steps * trainer.batch_size * trainer.num_accumulation_steps
    flops = training_flops(recipe, build, num_steps=steps)
    return {"steps": steps, "tokens": rows * recipe.max_length, "flops": flops}


def _forward_flops(objective: Any, raw_batch: Mapping[str, Any]) -> int:
    batch = objective.prepare(raw_batch, step=0, seed=0)
    totals = objective.counts(batch)
    return count_flops(objective.losses, batch, step=0, totals=totals)
