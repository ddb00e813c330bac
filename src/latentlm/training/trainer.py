"""One training loop for everything. It never asks what it trains: an `Objective` answers all it needs to know.

    loader ─raw batches▶ OptimizationStep ─StepResult▶ MetricsLog
                              │ every so often, at the edge of a step
                              ├▶ evaluations and sample grid, with the averaged weights
                              └▶ checkpoint, from which the same command continues bit for bit

A run folder holds recipe.yaml, metrics.jsonl, tensorboard/, samples/, checkpoints/, model_at/STEP/ for the steps that
`keep_steps` names and, at the end, model/ (averaged weights) and model_raw/.
"""

import itertools
import logging
import math
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from latentlm.config import changes_from_defaults, dump_recipe, to_mapping
from latentlm.nn.precision import Precision
from latentlm.storage import remove_leftovers, write_file_atomically
from latentlm.training import distributed
from latentlm.training.checkpoint import CheckpointFolder, Progress, TrainingParts
from latentlm.training.compilation import compile_layers, uncompiled
from latentlm.training.ema import ExponentialMovingAverage
from latentlm.training.metrics_log import SAMPLES_FOLDER, MetricsLog
from latentlm.training.objective import Objective
from latentlm.training.random_state import preserved_random_state, seed_generators
from latentlm.training.run_guard import StopRequest, exclusive_run
from latentlm.training.step import OptimizationStep, StepRecord, StepResult, fetch

logger = logging.getLogger(__name__)

KEPT_FOLDER = "model_at"
"""Of a run folder: holds the averaged model of every step that `TrainerConfig.keep_steps` names."""

RawBatch = Mapping[str, Any]
Evaluation = Callable[[Objective, int], Mapping[str, float | int]]

# Fields that say how a run is watched and where it runs, not what it computes; a resumed run may set them anew.
MAY_CHANGE_ON_RESUME = frozenset(
    f"trainer.{name}"
    for name in (
        "log_every",
        "sample_every",
        "evaluate_every",
        "checkpoint_every",
        "keep_checkpoints",
        "num_workers",
        "device",
        "compile",
        "max_bad_steps",
        "tensorboard",
    )
)


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """Length, batch, precision and rhythm of a run."""

    num_steps: int
    """Optimizer steps of the whole run; the cosine schedule ends there."""
    batch_size: int
    """Items of one micro-batch on one rank."""
    num_accumulation_steps: int = 1
    """Micro-batches per optimizer step."""
    precision: Precision = "float32"
    """Autocast type of the forward pass; weights and optimizer state stay float32."""
    ema_half_life_ratio: float = 0.05
    """Half-life of the moving average as a share of the run; 0 exports the last weights."""
    log_every: int = 10
    """Steps between updates of the progress bar and TensorBoard; metrics.jsonl has every step."""
    sample_every: int | None = None
    """Steps between sample grids; null for none."""
    evaluate_every: int | None = None
    """Steps between evaluations; null for one at the end."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; there is always one at the end, and one when a signal asks the run to stop."""
    keep_checkpoints: int = 2
    """Good checkpoints kept on disk."""
    keep_steps: tuple[int, ...] = ()
    """Steps whose averaged model is kept in model_at/STEP/, a folder like model/: for curves over training. Under a
    cosine such a model is no finished run of that many steps, for its learning rate has not come down yet."""
    seed: int = 0
    """Of everything that is drawn: data order, noise, dropout."""
    num_workers: int = 0
    """Processes that load data."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    compile: bool = False
    """Compile the repeated layers (`torch.compile`): faster steps, once compiled. On a CPU it needs g++."""
    device: str = "auto"
    """Such as "cpu" or "cuda:1"; "auto" takes a CUDA device if there is one."""
    max_bad_steps: int = 3
    """The run stops after this many consecutive steps with a non-finite loss or gradient; each is skipped."""
    tensorboard: bool = True
    """Write TensorBoard files where it is installed."""

    def __post_init__(self) -> None:
        at_least_one = ("num_steps", "batch_size", "num_accumulation_steps", "log_every", "checkpoint_every")
        for name in (*at_least_one, "max_bad_steps", "sample_every", "evaluate_every"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, but is {value}")
        if self.num_workers < 0:
            raise ValueError(f"num_workers must be at least 0, but is {self.num_workers}")
        if self.keep_checkpoints < 2:
            raise ValueError("keep_checkpoints must be at least 2: if the newest is damaged, another must be there")
        if wrong := [step for step in self.keep_steps if not 1 <= step <= self.num_steps]:
            raise ValueError(f"keep_steps names step {wrong[0]}, but the run has the steps 1 to {self.num_steps}")
        if self.ema_half_life_ratio < 0:
            raise ValueError(f"ema_half_life_ratio cannot be negative, but is {self.ema_half_life_ratio}")


def kept_model(run_dir: Path, step: int) -> Path:
    """The folder of the averaged model that a run kept after `step` steps."""
    return run_dir / KEPT_FOLDER / str(step)


class TrainingOutcome(NamedTuple):
    """How `fit` ended."""

    step: int
    """Optimizer steps done."""
    stopped_by: signal.Signals | None
    """The signal that asked for the stop (a program's exit code is then 128 + its number), or None if all was done."""


class TooManyBadStepsError(RuntimeError):
    """The loss or its gradient was not finite for `max_bad_steps` steps in a row. No such step changed a weight."""


class Trainer:
    """Trains an objective in a run folder, continuing by itself what an earlier process began there.

    Args:
        objective: What to train.
        make_loader: Number of the first micro-batch to an endless iterator of raw micro-batches. Batch b must depend
            on b alone (and the rank), or a resumed run is not the same run.
        config: Length, batch, precision and rhythm.
        run_dir: Created if needed.
        recipe: The resolved recipe, a dataclass with a `kind`; saved in the folder and with every checkpoint.
        evaluations: Each takes (objective, steps done), with the averaged weights in place, and returns numbers.

    Raises:
        ValueError: If a trainable parameter belongs to no optimizer, or to two.
    """

    def __init__(
        self,
        objective: Objective,
        make_loader: Callable[[int], Iterator[RawBatch]],
        config: TrainerConfig,
        run_dir: Path,
        *,
        recipe: Any,
        evaluations: Sequence[Evaluation] = (),
    ) -> None:
        self.config = config
        self.objective = objective.to(resolve_device(config.device))
        self.make_loader = make_loader
        self.run_dir = run_dir
        self.recipe = recipe
        self.evaluations = evaluations
        if config.activation_checkpointing:
            objective.enable_activation_checkpointing()
        if config.compile:
            compile_layers(objective)
        distributed.copy_from_rank_0(objective)
        # The host may run ahead of an accelerator, whose results are then fetched together; a CPU has nothing to gain.
        self.fetch_every = 1 if objective.device.type == "cpu" else config.log_every
        self.ema = ExponentialMovingAverage(
            objective.ema_modules(), half_life_steps=float(config.ema_half_life_ratio * config.num_steps)
        )
        self.take_step = OptimizationStep(
            objective, num_steps=config.num_steps, precision=config.precision, ema=self.ema, seed=config.seed
        )
        self.checkpoints = CheckpointFolder(
            run_dir / "checkpoints", keep=config.keep_checkpoints, may_change=MAY_CHANGE_ON_RESUME
        )

    def fit(self) -> TrainingOutcome:
        """Train to the end, or until SIGTERM or SIGINT; then the step is finished and a checkpoint written.

        Raises:
            TooManyBadStepsError: See there.
            ValueError: If the folder's checkpoints are all damaged or of another recipe, if another process trains
                here, or if the loader ends.
            StorageError: If the disk refuses a checkpoint; earlier ones are untouched.
        """
        is_main = distributed.rank() == 0
        with exclusive_run(self.run_dir) if is_main else nullcontext(), StopRequest() as stop:
            progress = self._resume()
            log = self._open_log(progress.step) if is_main else None
            try:
                progress = self._train(progress, stop, log)
            finally:
                if log is not None:
                    log.close()
            if progress.step < self.config.num_steps:
                return TrainingOutcome(step=progress.step, stopped_by=stop.signal)
            self._export()
            return TrainingOutcome(step=progress.step, stopped_by=None)

    def _resume(self) -> Progress:
        """Continue from the newest good checkpoint, or seed the generators of a new run."""
        if distributed.rank() == 0:
            for folder in (self.run_dir, self.run_dir / SAMPLES_FOLDER, self.run_dir / KEPT_FOLDER):
                remove_leftovers(folder)
        progress = self.checkpoints.restore_newest(self._parts())
        if progress is None:
            seed_generators(self.config.seed, distributed.rank())
            progress = Progress()
        else:
            logger.info("continuing %s from step %d", self.run_dir, progress.step)
        if distributed.rank() == 0:
            write_file_atomically(self.run_dir / "recipe.yaml", dump_recipe(self.recipe).encode())
        return progress

    def _train(self, progress: Progress, stop: StopRequest, log: MetricsLog | None) -> Progress:
        config = self.config
        if progress.step == config.num_steps:
            return progress
        self._set_training()
        raw_batches = self._open_loader(progress.step * config.num_accumulation_steps)
        pending: list[tuple[int, StepResult]] = []
        for step in range(progress.step + 1, config.num_steps + 1):
            try:
                micro_batches = list(itertools.islice(raw_batches, config.num_accumulation_steps))
            except RuntimeError:
                # A batch system's SIGTERM goes to the whole process group and ends the data workers first.
                if stop.signal is None:
                    raise
                return self._stop_without_data(progress, pending, log)
            if len(micro_batches) < config.num_accumulation_steps:
                raise ValueError(f"the loader ended at step {step} of {config.num_steps}; it must be endless")
            pending.append((step, self.take_step(micro_batches, step - 1)))

            stopping = distributed.any_rank(stop.signal is not None, self.objective.device)
            last = step == config.num_steps
            must_show = last or stopping or step % config.log_every == 0
            must_save = last or stopping or step % config.checkpoint_every == 0
            must_evaluate = bool(self.evaluations) and (last or _is_due(config.evaluate_every, step))
            must_sample = _is_due(config.sample_every, step) or (last and config.sample_every is not None)
            # Before anything else is logged: the lines of metrics.jsonl stand in the order of steps.
            if must_show or must_save or must_evaluate or must_sample or step % self.fetch_every == 0:
                records = fetch(pending)
                pending = []
                if log is not None:
                    log.add_steps(records)
                    if must_show:
                        log.show(records[-1])
                progress = self._count_bad_steps(progress, records)
            if log is not None and (must_evaluate or must_sample):
                self._observe(step, log, evaluate=must_evaluate, sample=must_sample)
            if step in config.keep_steps:
                self._keep(step)  # before the checkpoint: a run resumed from it passes this step no more
            if must_save:
                if log is not None:
                    log.sync()
                self.checkpoints.save(self._parts(), progress)
            if stopping:
                break
        return progress

    def _stop_without_data(
        self, progress: Progress, pending: list[tuple[int, StepResult]], log: MetricsLog | None
    ) -> Progress:
        """Write the checkpoint of a run that was asked to stop while it waited for a batch."""
        if pending:
            records = fetch(pending)
            progress = self._count_bad_steps(progress, records)
            if log is not None:
                log.add_steps(records)
        if log is not None:
            log.sync()
        if progress.step > 0:
            self.checkpoints.save(self._parts(), progress)
        return progress

    def _count_bad_steps(self, progress: Progress, records: Sequence[StepRecord]) -> Progress:
        """Count consecutive bad steps, and give up after too many."""
        num_bad = progress.num_consecutive_bad_steps
        for record in records:
            num_bad = num_bad + 1 if record.bad else num_bad * record.skipped
            if not record.bad:
                continue
            broken = ", ".join(
                f"{name} is {value}" for name, value in record.values.items() if not math.isfinite(value)
            )
            logger.warning("step %d was skipped and changed nothing: %s", record.step, broken)
            if num_bad >= self.config.max_bad_steps:
                raise TooManyBadStepsError(
                    f"{num_bad} steps in a row, up to step {record.step}, had a loss or gradient that is not finite "
                    f"({broken}). None of them changed a weight. Try a lower learning rate, a longer warm-up, or "
                    "precision: float32, and look at the batches of these steps"
                )
        return Progress(step=records[-1].step, num_consecutive_bad_steps=num_bad)

    def _observe(self, step: int, log: MetricsLog, *, evaluate: bool, sample: bool) -> None:
        """Evaluate and draw samples after `step` steps, with the averaged weights."""
        with self._averaged_weights():
            if evaluate:
                for evaluation in self.evaluations:
                    log.add_evaluation(step, evaluation(self.objective, step))
            picture = self.objective.sample_grid(seed=self.config.seed) if sample else None
            files = self.objective.sample_files(seed=self.config.seed) if sample else {}
        if picture is not None:
            log.add_samples(step, picture)
        log.add_sample_files(step, files)

    def _keep(self, step: int) -> None:
        """Write the averaged weights as users load them; a resumed run that passes the step again writes the same."""
        if distributed.rank() != 0:
            return
        with self._averaged_weights():
            self.objective.save_pretrained(kept_model(self.run_dir, step))

    def _export(self) -> None:
        """Write what users load: the averaged weights, and the last ones."""
        if distributed.rank() != 0:
            return
        with self._averaged_weights():
            self.objective.save_pretrained(self.run_dir / "model")
        self.objective.save_pretrained(self.run_dir / "model_raw")

    @contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        """Evaluation mode with the averaged weights; leaves weights and random generators as they were."""
        with preserved_random_state(), self.ema.swapped(), torch.no_grad(), uncompiled():
            self.objective.eval()
            try:
                yield
            finally:
                self._set_training()

    def _set_training(self) -> None:
        self.objective.train()
        for name in self.objective.frozen_children:
            self.objective.get_submodule(name).eval()

    def _open_loader(self, start_batch: int) -> Iterator[RawBatch]:
        """The loader with its first batch already drawn: starting workers takes a number from PyTorch's generator."""
        with preserved_random_state():
            loader = iter(self.make_loader(start_batch))
            first = list(itertools.islice(loader, 1))
        return itertools.chain(first, loader)

    def _open_log(self, start_step: int) -> MetricsLog:
        config = self.config
        return MetricsLog(
            self.run_dir,
            num_steps=config.num_steps,
            start_step=start_step,
            items_per_step=config.batch_size * config.num_accumulation_steps * distributed.world_size(),
            tensorboard=config.tensorboard,
            description=self.objective.kind,
        )

    def _parts(self) -> TrainingParts:
        return TrainingParts(
            objective=self.objective,
            optimizers=self.take_step.optimizers,
            ema=self.ema,
            scaler=self.take_step.scaler,
            recipe=to_mapping(self.recipe),
            recipe_changes=changes_from_defaults(self.recipe),
        )


def _is_due(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0


def resolve_device(name: str) -> torch.device:
    """The device that a name such as "auto", "cpu" or "cuda:1" means here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)
