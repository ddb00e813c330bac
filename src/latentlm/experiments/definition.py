"""What an experiment file says: things to train, things to measure on them, and the tables and plots to make of it.

    runs (a recipe over a matrix of axes) ──▶ measurements (a protocol over further axes) ──▶ tables, plots, pictures

The file is written before anything runs. Nothing here knows what is trained or measured: a run names a recipe, a
measurement names a protocol. `expansion.py` multiplies the matrices out.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from latentlm.config import ConfigError, load_recipe

RESERVED_AXES = frozenset({"method", "run", "measurement"})
"""What the rows of a table can be told apart by besides axes; no axis may have such a name."""

_NAME = re.compile(r"[A-Za-z0-9_]+")


@dataclass(frozen=True, kw_only=True)
class RunDefinition:
    """One thing to train, or a matrix of them. `{axis}` in a value of `set` or `uses` stands for the axis's value."""

    recipe: str
    """The recipe file, as `latentlm train` takes it."""
    label: str | None = None
    """The method's name in tables and plots; by default the run's own. Several runs may share one."""
    set: dict[str, Any] = field(default_factory=dict)
    """Fields of the recipe by their full names, written over the file."""
    uses: dict[str, str] = field(default_factory=dict)
    """Field of the recipe to the run whose trained model fills it: {tokenizer: NAME}. Of a run with axes, the one is
    meant that agrees in all axes the two have in common; NAME-axis=value names one outright."""
    matrix: dict[str, list[Any]] = field(default_factory=dict)
    """Axis to its values; there is one run for each combination."""


@dataclass(frozen=True, kw_only=True)
class MeasurementDefinition:
    """What is measured, and on which runs. Each run, times the measurement's own matrix, is one cell."""

    protocol: str
    """A name of the table of protocols."""
    of: str | list[str] = field(default_factory=list)
    """Runs. None at all: one cell without a run, such as real data scored like samples; it competes in no table."""
    label: str | None = None
    """Method's name of a cell without a run; by default the measurement's own."""
    where: dict[str, Any] = field(default_factory=dict)
    """Axis to the value, or list of values, to which the runs are confined: {seed: 0}."""
    options: dict[str, Any] = field(default_factory=dict)
    """Handed to the protocol; `{axis}` stands for an axis's value."""
    matrix: dict[str, list[Any]] = field(default_factory=dict)
    """Further axes, to be used in `options`."""
    alone: bool = False
    """Measure each cell when everything else is done and no other job of the runner is at work: for speed."""


@dataclass(frozen=True, kw_only=True)
class ColumnDefinition:
    """One column of a table."""

    title: str
    path: str
    """Dotted path into a cell's record: result.judge.accuracy, cost.parameters, seconds.train. Where it leads to an
    estimate with `low` and `high`, a row of one run shows these too."""
    mean_from: int | None = None
    """Where the path leads to a list, such as a value of every bin: the mean of its items from this place on."""
    format: str = ".3f"
    """Python's format of a number."""
    scale: float = 1.0
    """Numbers are multiplied by this."""
    better: Literal["lower", "higher"] | None = None
    """Which end is good; rows are then compared."""


@dataclass(frozen=True, kw_only=True)
class TableDefinition:
    """One row per combination of `rows`; the cells of a row differ in the axis `over` alone."""

    title: str
    of: str | list[str]
    """Measurements."""
    rows: list[str]
    """Axes, or "method", "run", "measurement"."""
    columns: tuple[ColumnDefinition, ...]
    over: str = "seed"
    """The axis whose values are shown one by one, with mean and standard error."""
    compare_within: list[str] = field(default_factory=list)
    """Only rows that agree in these compete with one another."""
    where: dict[str, Any] = field(default_factory=dict)
    """Axis, "method" or "run" to the value, or list of values, of the cells to show."""
    same: list[str] = field(default_factory=list)
    """Dotted paths into records at which all shown cells must have one value: result.judges.fingerprint. Otherwise
    their numbers were not measured with one ruler, and the page is refused."""


@dataclass(frozen=True, kw_only=True)
class PlotDefinition:
    """Lines or points, with error bars of one standard error over the axis `over`."""

    name: str
    """Of the picture file."""
    title: str
    of: str | list[str]
    """Measurements."""
    x: str
    """Dotted path into a cell's record (axes.steps, result.images_per_second); two lists of one length are a curve."""
    y: str
    missing_x: float | None = None
    """x of records that do not say it: they leave out fields of a recipe that have their default."""
    series: list[str] = field(default_factory=lambda: ["method"])
    """Axes, or "method", "run", "measurement", that tell lines apart."""
    x_label: str | None = None
    y_label: str | None = None
    log_x: bool = False
    log_y: bool = False
    over: str = "seed"
    where: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PicturesDefinition:
    """Pictures that a protocol kept, side by side."""

    title: str
    of: str | list[str]
    """Measurements."""
    name: str = "samples"
    """The protocol's name of the picture (`MeasureContext.picture_path`)."""
    columns: int = 3
    """Pictures in a row."""
    where: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ExperimentDefinition:
    """A whole experiment."""

    name: str
    """That of the file, without .yaml."""
    title: str
    question: str
    """What is asked."""
    data: str
    """Public origin of the data, and its split."""
    budget: str
    """What every method gets, written down before the run."""
    runs: dict[str, RunDefinition] = field(default_factory=dict)
    measurements: dict[str, MeasurementDefinition] = field(default_factory=dict)
    tables: tuple[TableDefinition, ...] = ()
    plots: tuple[PlotDefinition, ...] = ()
    pictures: tuple[PicturesDefinition, ...] = ()

    def __post_init__(self) -> None:
        for name in (self.name, *self.runs, *self.measurements, *(plot.name for plot in self.plots)):
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} becomes part of file names: letters, digits and _ alone")
        if both := set(self.runs) & set(self.measurements):
            raise ValueError(f"a run and a measurement are both called {sorted(both)[0]}; rename one")
        for part in (*self.tables, *self.plots, *self.pictures):
            for name in as_list(part.of):
                if name not in self.measurements:
                    known = ", ".join(self.measurements)
                    raise ValueError(f"{part.title!r} shows the measurement {name!r}; there are: {known}")


def read_experiment(path: Path) -> ExperimentDefinition:
    """Read an experiment file: YAML with `kind: experiment`, strict as recipes are.

    Raises:
        ConfigError: In a sentence, for anything that is wrong with the file.
    """
    definition = load_recipe(path, [], {"experiment": ExperimentDefinition})
    if definition.name != path.stem:
        raise ConfigError(f"{path}: name is {definition.name!r}, but results are found by the file's: {path.stem!r}")
    return definition


def as_list(value: Any) -> list[Any]:
    """A value that may be one or a list, as a list."""
    return list(value) if isinstance(value, list | tuple) else [value]
