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
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from latentlm import __version__
from latentlm.experiments.definition import ExperimentDefinition
from latentlm.experiments.expansion import Cell, Run, expand
from latentlm.experiments.job_queue import Job, QueueOutcome, run_jobs
from latentlm.experiments.locks import Stopwatch, read_seconds, waiting_lock
from latentlm.experiments.machine import describe_machine
from latentlm.experiments.protocol import MeasureContext, Protocol, to_json
from latentlm.experiments.resolution import NUM_HASH_LETTERS, ResolvedRun, Resolver
from latentlm.experiments.results import FORMAT_VERSION, Record, definition_hash, differences, read_record
from latentlm.storage import read_json, write_file_atomically

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
        return {"run": run, "protocol": cell.protocol, "options": dict(cell.options)}

    def record(self, cell: Cell) -> Record | None:
        """A cell's record, whether or not it is of the present definition."""
        return read_record(record_path(self.results, self.definition.name, cell.name))

    def state(self, cell: Cell) -> State:
        """How far a cell is; "outdated" means measured, but by another definition."""
        record = self.record(cell)
        if record is not None:
            same = record["definition_hash"] == definition_hash(self.cell_definition(cell))
            return "done" if same else "outdated"
        begun = self._scratch(cell).exists()
        if cell.run is not None:
            resolved = self.resolve(cell.run)
            begun = begun or resolved.folder.exists() or resolved.is_trained
        return "partial" if begun else "missing"

    def seconds(self, cell: Cell) -> dict[str, float]:
        """Time spent on a cell, by what it was spent on: as recorded, or so far."""
        if record := self.record(cell):
            return dict(record["seconds"])
        trained = {} if cell.run is None else {"train": self.resolve(cell.run).seconds}
        spent = {**trained, "measure": read_seconds(_clock(self._scratch(cell)))}
        return {part: seconds for part, seconds in spent.items() if seconds}

    def jobs(self, cells: Sequence[Cell], *, redo: Sequence[str] = ()) -> list[Job]:
        """Trainings and measurements that are left, each after those it needs.

        Args:
            cells: Those wanted.
            redo: Names of cells to measure although they are measured.

        Raises:
            ValueError: If a wanted cell is outdated and not among `redo`, or `redo` names no cell.
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
            jobs[cell.name] = Job(cell.name, tuple(run.key for run in missing))
        return list(jobs.values())

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
            with Stopwatch(run.beside(".seconds.json")):
                stopped_by = self.tools.train(run.recipe, run.folder)
            if stopped_by:
                return stopped_by
            if not (run.folder / "model").exists():
                raise ValueError(f"training ended, but left no model in {run.folder}")
            note = {"definition": run.definition, "seconds": run.seconds, "machine": describe_machine()}
            write_file_atomically(run.beside(".json"), to_json(note, what=run.folder.name))
        return 0

    def _measure(self, cell: Cell, *, redo: bool) -> None:
        run = None if cell.run is None else self.resolve(cell.run)
        scratch = self._scratch(cell)
        path = record_path(self.results, self.definition.name, cell.name)
        clock = _clock(scratch)
        with waiting_lock(scratch.with_name(scratch.name + ".lock")):
            if not redo and self._is_current(cell):
                return
            _open_scratch(scratch, record=path)
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
            record = self._make_record(cell, run, result, measure_seconds=read_seconds(clock))
            write_file_atomically(path, to_json(record, what=cell.name))
            shutil.rmtree(scratch)
            clock.unlink()

    def _make_record(
        self, cell: Cell, run: ResolvedRun | None, result: Mapping[str, Any], *, measure_seconds: float
    ) -> dict[str, Any]:
        definition = self.cell_definition(cell)
        seconds, training = {"measure": measure_seconds}, None
        if cell.run is not None and run is not None:
            *used, _ = self.expansion.needed_by(cell.run)
            others = sum(self.resolve(needed).seconds for needed in used)
            seconds = {"train": run.seconds, "train_used": round(others, 1), **seconds}
            training = read_json(run.beside(".json"))["machine"]
        return {
            "format_version": FORMAT_VERSION,
            "experiment": self.definition.name,
            "cell": cell.name,
            "measurement": cell.measurement,
            "run": None if cell.run is None else cell.run.key,
            "method": cell.label,
            "axes": dict(cell.axes),
            "definition": definition,
            "definition_hash": definition_hash(definition),
            "recipe": None if run is None else dict(run.content),
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
        definition = self.cell_definition(cell)
        if record["definition_hash"] == definition_hash(definition):
            return True
        changes = differences(record["definition"], json.loads(json.dumps(definition)))
        shown = "; ".join(changes[:3]) + (f"; and {len(changes) - 3} more" if len(changes) > 3 else "")
        raise ValueError(
            f"{cell.name} was measured by another definition ({shown}). `--redo {cell.name}` measures it again and "
            "replaces its record"
        )

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
    log_dir = experiment.out / "logs" / experiment.definition.name
    return run_jobs(jobs, command, num_parallel=num_parallel, log_dir=log_dir)


def record_path(results: Path, experiment: str, cell: str) -> Path:
    """The file of a cell's record."""
    return results / experiment / "cells" / f"{cell}.json"


def _open_scratch(scratch: Path, *, record: Path) -> None:
    """Make the folder of partial results, or keep what a killed measurement left there.

    What a finished one left, because it was killed while it tidied up, must not pass for a new measurement: a file
    says which record, if any, the folder's measurement is going to replace.
    """
    replaced = hashlib.sha256(record.read_bytes()).hexdigest() if record.exists() else "nothing"
    note = scratch / "replaces.txt"
    if scratch.exists() and not (note.exists() and note.read_text() == replaced):
        shutil.rmtree(scratch)
    if not scratch.exists():
        scratch.mkdir(parents=True)
        note.write_text(replaced)


def _clock(scratch: Path) -> Path:
    return scratch.with_name(scratch.name + ".seconds.json")
