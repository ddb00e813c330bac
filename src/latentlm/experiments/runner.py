"""Runs an experiment: trains what is missing and measures what is missing.

    OUT/runs/<run>-<hash>/             run folders of the trainer; see resolution.py
    OUT/scratch/<exp>/<cell>-<hash>/   partial results of a cell, until it is measured
    OUT/cache/                         what cells share, such as judges
    OUT/logs/<exp>/<job>.log           output of every job
    RESULTS/<exp>/cells/<cell>.json    the records, from which everything else is made
    RESULTS/<exp>/pictures/, plots/, RESULTS/<exp>.md

Killed at any moment, it goes on from there when it is called again.
"""

import datetime
import fnmatch
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from latentlm import __version__
from latentlm.experiments.definition import ExperimentDefinition
from latentlm.experiments.expansion import Cell, Run, expand
from latentlm.experiments.job_queue import Job, QueueOutcome, run_jobs
from latentlm.experiments.machine import describe_code, describe_machine
from latentlm.experiments.protocol import MeasureContext, Protocol, to_json
from latentlm.experiments.resolution import NUM_HASH_LETTERS, ResolvedRun, Resolver, as_written
from latentlm.experiments.results import (
    FORMAT_VERSION,
    Record,
    definition_hash,
    differences,
    listed,
    read_record,
    record_path,
)
from latentlm.experiments.scratch import clock_of, open_scratch
from latentlm.experiments.stopwatch import Stopwatch, read_seconds
from latentlm.storage import read_json, waiting_lock, write_file_atomically

State = Literal["done", "outdated", "partial", "missing"]


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What the runner is told from outside; it knows no recipe and no protocol by name.

    Attributes:
        train: Trains a recipe in a run folder, continuing what is there, and leaves `model/`; returns the number of the
            signal that stopped it, or 0.
        read_recipe: Name of a recipe file and flags (`--optim.lr=0.001`) to a recipe, a dataclass with a `kind`.
        protocols: Name to protocol.
        load: Folder of a trained model to the thing, for protocols.
        cost: Recipe to what a run of it costs, for the record: parameters, FLOPs, images seen.
    """

    train: Callable[[Any, Path], int]
    read_recipe: Callable[[str, list[str]], Any]
    protocols: Mapping[str, Protocol]
    load: Callable[[Path], Any]
    cost: Callable[[Any], Mapping[str, Any]]


class Experiment:
    """An experiment and where its files are.

    Args:
        definition: What to do.
        tools: How.
        out: Runs, logs and partial results; shared by experiments.
        results: Records and pages, to be kept; shared by experiments.

    Raises:
        ValueError: If the definition does not hold together, or names an unknown protocol.
    """

    def __init__(self, definition: ExperimentDefinition, tools: Tools, *, out: Path, results: Path) -> None:
        self.definition = definition
        self.tools = tools
        self.out = out.resolve()  # resumed runs compare their recipes, which hold folders of used models
        self.results = results
        self.expansion = expand(definition)
        self._resolver = Resolver(self.expansion.runs, tools.read_recipe, self.out / "runs")
        for name, measurement in definition.measurements.items():
            if measurement.protocol not in tools.protocols:
                known = ", ".join(tools.protocols) or "none"
                raise ValueError(f"{name}: there is no protocol {measurement.protocol!r}; there are: {known}")

    # What is to be done

    def select(self, patterns: Sequence[str]) -> list[Cell]:
        """Cells whose name fits one of the patterns (`*` and `?` as in a shell); all of them without patterns.

        Raises:
            ValueError: If a pattern fits nothing.
        """
        cells = self.expansion.cells
        for pattern in patterns:
            if not fnmatch.filter(cells, pattern):
                raise ValueError(f"no cell fits {pattern!r}; --list shows their names")
        return [cell for cell in cells.values() if not patterns or any(fnmatch.fnmatch(cell.name, p) for p in patterns)]

    def resolve(self, run: Run) -> ResolvedRun:
        """A run with its recipe read.

        Raises:
            ConfigError: If the recipe refuses a field of `set` or `uses`.
        """
        return self._resolver.resolve(run)

    def cell_definition(self, cell: Cell) -> dict[str, Any]:
        """All that decides a cell's result."""
        run = None if cell.run is None else dict(self.resolve(cell.run).definition)
        alone = {"alone": True} if self.measured_alone(cell) else {}  # absent otherwise, as it is in older records
        return {"run": run, "protocol": cell.protocol, "options": dict(cell.options), **alone}

    def measured_alone(self, cell: Cell) -> bool:
        """Whether no other job is to run while this cell is measured."""
        return self.definition.measurements[cell.measurement].alone

    def record(self, cell: Cell) -> Record | None:
        """A cell's record, whether or not it is of the present definition."""
        return read_record(record_path(self.results, self.definition.name, cell.name))

    def state(self, cell: Cell) -> State:
        """How far a cell is; "outdated" means measured, but by another definition."""
        record = self.record(cell)
        if record is not None:
            return "outdated" if self._changes(cell, record) else "done"
        trained = cell.run is not None and self.resolve(cell.run).folder.exists()
        return "partial" if trained or self._scratch(cell).exists() else "missing"

    def seconds(self, cell: Cell) -> dict[str, float]:
        """Time spent on a cell, by what it was spent on: as recorded, or so far."""
        if record := self.record(cell):
            return dict(record["seconds"])
        trained = {} if cell.run is None else {"train": self.resolve(cell.run).seconds}
        spent = {**trained, "measure": read_seconds(clock_of(self._scratch(cell)))}
        return {part: seconds for part, seconds in spent.items() if seconds}

    def jobs(self, cells: Sequence[Cell], *, redo: Sequence[str] = ()) -> list[Job]:
        """Trainings and measurements that are left, each after those it needs.

        Args:
            cells: Those wanted.
            redo: Names of cells to measure although they are measured.

        Raises:
            ValueError: If a wanted cell is outdated and not among `redo`, if `redo` names no cell, or if a needed run
                was trained with other defaults.
        """
        for name in redo:
            if name not in self.expansion.cells:
                raise ValueError(f"--redo {name}: there is no such cell; --list shows their names")
        jobs: dict[str, Job] = {}
        for cell in cells:
            if cell.name not in redo and self._is_current(cell):
                continue
            missing = [] if cell.run is None else self.expansion.needed_by(cell.run)
            missing = [run for run in missing if not self.resolve(run).is_trained]
            for run in missing:
                used = [key for key in run.uses.values() if not self.resolve(self.expansion.runs[key]).is_trained]
                jobs.setdefault(run.key, Job(run.key, tuple(used)))
            jobs[cell.name] = Job(cell.name, tuple(run.key for run in missing), alone=self.measured_alone(cell))
        return list(jobs.values())

    def refresh_wording(self, cells: Sequence[Cell]) -> None:
        """Where the file says in other words what a cell was measured by, take the new words into its record.

        Whoever renders a page has no recipes at hand and compares words: a learning rate that moved from the experiment
        file into the recipe would make its cell look outdated.
        """
        for cell in cells:
            record, words = self.record(cell), self._words(cell)
            if record is None or self._changes(cell, record) or all(record.get(key) == words[key] for key in words):
                continue
            path = record_path(self.results, self.definition.name, cell.name)
            write_file_atomically(path, to_json({**record, **words}, what=cell.name))

    # Doing it

    def do(self, name: str, *, redo: bool = False) -> int:
        """Do one job in this process: train a run, or measure a cell, which trains what it needs first.

        Args:
            name: Key of a run, or name of a cell.
            redo: Measure the cell even if it is measured.

        Returns:
            0, or the number of the signal that stopped it.

        Raises:
            ValueError: If there is no such job, or it cannot be done.
        """
        if name in self.expansion.runs:
            return self._train_with_uses(self.expansion.runs[name])
        if name not in self.expansion.cells:
            raise ValueError(f"{name!r} is neither a cell nor a run of {self.definition.name}; --list shows them")
        cell = self.expansion.cells[name]
        if not redo and self._is_current(cell):
            return 0
        stopped_by = 0 if cell.run is None else self._train_with_uses(cell.run)
        if not stopped_by:
            self._measure(cell, redo=redo)
        return stopped_by

    def _train_with_uses(self, run: Run) -> int:
        for needed in self.expansion.needed_by(run):
            if stopped_by := self._train(self.resolve(needed)):
                return stopped_by
        return 0

    def _train(self, run: ResolvedRun) -> int:
        with waiting_lock(run.beside(".lock")):
            if run.is_trained:  # perhaps by the process that held the lock
                return 0
            code = describe_code()  # at once: the checkout may move on while this process trains
            with Stopwatch(run.beside(".seconds.json")):
                stopped_by = self.tools.train(run.recipe, run.folder)
            if stopped_by:
                return stopped_by
            if not (run.folder / "model").exists():
                raise ValueError(f"training ended, but left no model in {run.folder}")
            note = {
                "definition": run.definition,
                "content": run.content,
                "seconds": run.seconds,
                "machine": describe_machine(),
                "code": code,
            }
            write_file_atomically(run.beside(".json"), to_json(note, what=run.folder.name))
        return 0

    def _measure(self, cell: Cell, *, redo: bool) -> None:
        run = None if cell.run is None else self.resolve(cell.run)
        scratch = self._scratch(cell)
        path = record_path(self.results, self.definition.name, cell.name)
        clock = clock_of(scratch)
        with waiting_lock(scratch.with_name(scratch.name + ".lock")):
            if not redo and self._is_current(cell):
                return
            code = describe_code()
            open_scratch(scratch, record=path, code=code)
            context = MeasureContext(
                cell=cell.name,
                axes=cell.axes,
                run_dir=None if run is None else run.folder,
                recipe=None if run is None else run.recipe,
                options=cell.options,
                scratch_dir=scratch,
                cache_dir=self.out / "cache",
                assets_dir=self.results / self.definition.name / "pictures",
                load=self.tools.load,
            )
            with Stopwatch(clock):
                result = self.tools.protocols[cell.protocol](context)
            path.parent.mkdir(parents=True, exist_ok=True)
            record = self._make_record(cell, run, result, measure_seconds=read_seconds(clock), code=code)
            write_file_atomically(path, to_json(record, what=cell.name))
            shutil.rmtree(scratch)
            clock.unlink()

    def _make_record(
        self,
        cell: Cell,
        run: ResolvedRun | None,
        result: Mapping[str, Any],
        *,
        measure_seconds: float,
        code: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        definition = self.cell_definition(cell)
        seconds, training, training_code = {"measure": measure_seconds}, None, None
        if cell.run is not None and run is not None:
            *used, _ = self.expansion.needed_by(cell.run)
            others = sum(self.resolve(needed).seconds for needed in used)
            seconds = {"train": run.seconds, "train_used": round(others, 1), **seconds}
            note = read_json(run.beside(".json"))
            training, training_code = note["machine"], note.get("code")
        return {
            "format_version": FORMAT_VERSION,
            "experiment": self.definition.name,
            "cell": cell.name,
            "measurement": cell.measurement,
            "run": None if cell.run is None else cell.run.key,
            "method": cell.label,
            **self._words(cell),
            "definition": definition,
            "definition_hash": definition_hash(definition),
            **({"recipe": None, "used_recipes": {}} if run is None else run.content),
            "code": {"train": training_code, "measure": None if code is None else dict(code)},
            "seconds": seconds,
            "machine": {"train": training, "measure": describe_machine()},
            "cost": {} if run is None else dict(self.tools.cost(run.recipe)),
            "result": dict(result),
            "version": __version__,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        }

    def _is_current(self, cell: Cell) -> bool:
        """Whether a cell is measured.

        Raises:
            ValueError: If it is, but by another definition.
        """
        record = self.record(cell)
        if record is None:
            return False
        if changes := self._changes(cell, record):
            raise ValueError(
                f"{cell.name} was measured by another definition ({listed(changes)}). `--redo {cell.name}` measures it "
                "again and replaces its record"
            )
        return True

    def _changes(self, cell: Cell, record: Record) -> list[str]:
        """How the present definition differs from the record's; if it does not, which default has changed since."""
        definition = self.cell_definition(cell)
        if record["definition_hash"] != definition_hash(definition):
            return differences(record["definition"], definition) or ["the spelling of a value"]
        return [] if cell.run is None else differences(record, self.resolve(cell.run).content, shared_only=True)

    def _words(self, cell: Cell) -> dict[str, Any]:
        """What a record has of the experiment file as it was written."""
        written = None if cell.run is None else as_written(cell.run, self.expansion.runs)
        return {"axes": dict(cell.axes), "as_written": written}

    def _scratch(self, cell: Cell) -> Path:
        letters = definition_hash(self.cell_definition(cell))[:NUM_HASH_LETTERS]
        return self.out / "scratch" / self.definition.name / f"{cell.name}-{letters}"


def run_experiment(
    experiment: Experiment,
    command: Callable[[str], Sequence[str]],
    *,
    num_parallel: int = 1,
    only: Sequence[str] = (),
    redo: Sequence[str] = (),
) -> QueueOutcome:
    """Do all jobs that are left, each in a process of its own, several at a time.

    Args:
        experiment: What to run.
        command: Name of a job to the command line that does it (`Experiment.do`) in a new process.
        num_parallel: Jobs at a time.
        only: Patterns of cells; all without any.
        redo: Cells to measure again; they count as selected.

    Returns:
        How it went; nothing is lost if it was stopped, and the same call goes on.

    Raises:
        ValueError: If the selection is wrong, before anything is started.
    """
    cells = experiment.select(only or ()) if only or not redo else []
    chosen = {cell.name: cell for cell in cells}
    chosen.update((name, experiment.expansion.cells[name]) for name in redo if name in experiment.expansion.cells)
    jobs = experiment.jobs(list(chosen.values()), redo=redo)
    experiment.refresh_wording([cell for name, cell in chosen.items() if name not in redo])
    log_dir = experiment.out / "logs" / experiment.definition.name
    return run_jobs(jobs, command, num_parallel=num_parallel, log_dir=log_dir)
