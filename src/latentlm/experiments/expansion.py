"""An experiment multiplied out: every run to train and every cell to measure, by name.

latentlm: {matrix: {seed: [0, 1], sigma: [0.1, 0.5]}}  ──▶  latentlm-seed=0-sigma=0.1, latentlm-seed=0-sigma=0.5, …
scores: {of: latentlm, matrix: {steps: [5, 20]}}       ──▶  scores.latentlm-seed=0-sigma=0.1-steps=5, …
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from latentlm.config import ConfigError
from latentlm.experiments.definition import (
    RESERVED_AXES,
    ExperimentDefinition,
    MeasurementDefinition,
    RunDefinition,
    as_list,
)

AxisValue = str | int | float | bool | None

_PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)\}")
_AXIS_TEXT = re.compile(r"[A-Za-z0-9_.+-]+")


@dataclass(frozen=True)
class Run:
    """One thing to train.

    Attributes:
        name: Of its definition.
        label: The method's name.
        axes: Axis to value.
        recipe: Recipe file.
        overrides: Full name of a field to its value.
        uses: Field of the recipe to the key of the run that fills it.
    """

    name: str
    label: str
    axes: Mapping[str, AxisValue]
    recipe: str
    overrides: Mapping[str, Any]
    uses: Mapping[str, str]

    @property
    def key(self) -> str:
        """Its name with its axes: latentlm-seed=0-sigma=0.1."""
        return _key(self.name, self.axes)


@dataclass(frozen=True)
class Cell:
    """One measurement of one run, or of none.

    Attributes:
        measurement: Of its definition.
        run: The measured run.
        label: The method's name.
        axes: Those of the run and the measurement's own.
        protocol: Its name.
        options: For the protocol.
    """

    measurement: str
    run: Run | None
    label: str
    axes: Mapping[str, AxisValue]
    protocol: str
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        """scores.latentlm-seed=0-steps=20: its files are called so."""
        return _key(self.measurement if self.run is None else f"{self.measurement}.{self.run.name}", self.axes)

    @property
    def traits(self) -> dict[str, AxisValue]:
        """What tells it from others: its axes and "method", "measurement" and "run", if it has one."""
        run = {} if self.run is None else {"run": self.run.name}
        return {"method": self.label, "measurement": self.measurement, **run, **self.axes}


@dataclass(frozen=True)
class Expansion:
    """All of an experiment.

    Attributes:
        runs: By key; a run stands after those it uses.
        cells: By name, in the order of the file.
    """

    runs: Mapping[str, Run]
    cells: Mapping[str, Cell]

    def cells_of(self, measurements: str | list[str], where: Mapping[str, Any]) -> list[Cell]:
        """The cells that a table or plot shows."""
        names = as_list(measurements)
        return [cell for cell in self.cells.values() if cell.measurement in names and _matches(cell.traits, where)]

    def needed_by(self, run: Run) -> list[Run]:
        """A run and all it uses, directly or not, the used ones first."""
        found: dict[str, Run] = {}
        for key in run.uses.values():
            found.update((used.key, used) for used in self.needed_by(self.runs[key]))
        return [*found.values(), run]


def expand(definition: ExperimentDefinition) -> Expansion:
    """Multiply all matrices out, fill in all placeholders and find all used runs.

    Raises:
        ConfigError: Naming the run or measurement: a placeholder that is no axis, an axis that changes nothing, a used
            run that does not exist or is not one alone, runs that use each other.
    """
    runs: dict[str, Run] = {}
    for name in _used_first(definition.runs):
        run = definition.runs[name]
        _check_axes(name, run.matrix)
        for axes in _combinations(run.matrix):
            uses = {
                target: _used_run(_fill(used, axes, where=name), axes, runs, where=name).key
                for target, used in run.uses.items()
            }
            filled = _fill(run.set, axes, where=name)
            expanded = Run(name, run.label or name, axes, run.recipe, filled, uses)
            runs[expanded.key] = expanded
        _check_every_axis_matters(name, run, runs)
    cells: dict[str, Cell] = {}
    for name, measurement in definition.measurements.items():
        for cell in _cells(name, measurement, definition, runs):
            cells[cell.name] = cell
    return Expansion(runs, cells)


def _cells(
    name: str, measurement: MeasurementDefinition, definition: ExperimentDefinition, runs: Mapping[str, Run]
) -> Iterator[Cell]:
    _check_axes(name, measurement.matrix)
    for axis, values in measurement.matrix.items():
        if len(values) > 1 and axis not in _placeholders(measurement.options):
            raise ConfigError(f"{name}: its axis {axis} changes nothing; use {{{axis}}} in the options")
    for run in _measured_runs(name, measurement, definition, runs):
        run_axes = {} if run is None else run.axes
        if both := set(run_axes) & set(measurement.matrix):
            raise ConfigError(f"{name}: what it measures has an axis {sorted(both)[0]} already; rename this one")
        for own_axes in _combinations(measurement.matrix):
            axes = {**run_axes, **own_axes}
            label = (measurement.label or name) if run is None else run.label
            options = _fill(measurement.options, axes, where=name)
            yield Cell(name, run, label, axes, measurement.protocol, options)


def _measured_runs(
    name: str, measurement: MeasurementDefinition, definition: ExperimentDefinition, runs: Mapping[str, Run]
) -> list[Run | None]:
    of = as_list(measurement.of)
    for wanted in of:
        if wanted not in definition.runs:
            raise ConfigError(f"{name}: there is no run {wanted!r}; there are: {', '.join(definition.runs)}")
    chosen: list[Run | None] = [
        run for wanted in of for run in runs.values() if run.name == wanted and _matches(run.axes, measurement.where)
    ]
    if of and not chosen:
        raise ConfigError(f"{name}: no run of {', '.join(of)} is where {dict(measurement.where)}")
    return chosen or [None]


def _matches(traits: Mapping[str, AxisValue], where: Mapping[str, Any]) -> bool:
    """Whether each trait has a value that `where` allows; what has no such axis is not confined by it."""
    return all(traits[name] in as_list(wanted) for name, wanted in where.items() if name in traits)


def _used_run(text: str, axes: Mapping[str, AxisValue], runs: Mapping[str, Run], *, where: str) -> Run:
    """The one run that `uses` means: named by its key, or by its name and the axes that the two share."""
    if text in runs:
        return runs[text]
    fitting = [
        run
        for run in runs.values()
        if run.name == text and all(axes.get(axis, value) == value for axis, value in run.axes.items())
    ]
    if len(fitting) != 1:
        found = ", ".join(run.key for run in fitting) or "none"
        raise ConfigError(f"{where} uses {text!r}, which must be one run; fitting its axes {dict(axes)}: {found}")
    return fitting[0]


def _used_first(runs: Mapping[str, RunDefinition]) -> list[str]:
    """Names of runs, each after those it uses. A used name may hold placeholders: then whatever begins like it."""
    ordered: list[str] = []

    def visit(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            raise ConfigError(f"runs use each other: {' uses '.join((*above, name))}")
        if name in ordered:
            return
        for used in runs[name].uses.values():
            pattern = _PLACEHOLDER.sub("\0", used.partition("-")[0]).split("\0")
            matcher = re.compile(".*".join(map(re.escape, pattern)))
            matching = [other for other in runs if matcher.fullmatch(other)]
            if not matching:
                raise ConfigError(f"{name} uses {used!r}, but the runs are: {', '.join(runs)}")
            for other in matching:
                visit(other, (*above, name))
        ordered.append(name)

    for name in runs:
        visit(name, ())
    return ordered


def _check_axes(name: str, matrix: Mapping[str, list[Any]]) -> None:
    for axis, values in matrix.items():
        if axis in RESERVED_AXES or not axis.isidentifier():
            raise ConfigError(f"{name}: an axis cannot be called {axis!r}")
        texts = [axis_text(value) for value in values]
        if not values or len(set(texts)) < len(texts):
            raise ConfigError(f"{name}: the axis {axis} needs values, each of them once, but has {values}")
        for value, text in zip(values, texts, strict=True):
            if not isinstance(value, AxisValue) or not _AXIS_TEXT.fullmatch(text):
                raise ConfigError(
                    f"{name}: {value!r} of the axis {axis} becomes part of file names: letters, digits _.+-"
                )


def _check_every_axis_matters(name: str, run: RunDefinition, runs: Mapping[str, Run]) -> None:
    """An axis that nothing reads would train the same model several times under several names."""
    read = _placeholders([run.set, run.uses])
    read |= {axis for own in runs.values() if own.name == name for key in own.uses.values() for axis in runs[key].axes}
    for axis, values in run.matrix.items():
        if len(values) > 1 and axis not in read:
            raise ConfigError(f"{name}: its axis {axis} changes nothing; use {{{axis}}} in a value of `set` or `uses`")


def _combinations(matrix: Mapping[str, list[Any]]) -> Iterator[dict[str, AxisValue]]:
    for values in itertools.product(*matrix.values()):
        yield dict(zip(matrix, values, strict=True))


def _fill(value: Any, axes: Mapping[str, AxisValue], *, where: str) -> Any:
    """`value` with every `{axis}` replaced; a string that is nothing but one placeholder becomes the value itself."""
    if isinstance(value, Mapping):
        return {key: _fill(item, axes, where=where) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_fill(item, axes, where=where) for item in value]
    if not isinstance(value, str):
        return value
    for axis in _placeholders(value):
        if axis not in axes:
            raise ConfigError(f"{where}: {value!r} names {axis!r}, which is no axis here; there are: {', '.join(axes)}")
    if whole := _PLACEHOLDER.fullmatch(value):
        return axes[whole[1]]
    return _PLACEHOLDER.sub(lambda match: axis_text(axes[match[1]]), value)


def _placeholders(value: Any) -> set[str]:
    if isinstance(value, Mapping):
        return _placeholders(list(value.values()))
    if isinstance(value, Iterable) and not isinstance(value, str):
        return {name for item in value for name in _placeholders(item)}
    return set(_PLACEHOLDER.findall(value)) if isinstance(value, str) else set()


def axis_text(value: Any) -> str:
    """How an axis's value is spelled in file names and tables: as in YAML."""
    return {True: "true", False: "false", None: "null"}[value] if isinstance(value, bool | None) else str(value)


def _key(name: str, axes: Mapping[str, AxisValue]) -> str:
    return "-".join([name, *(f"{axis}={axis_text(value)}" for axis, value in axes.items())])
