"""Plots of records: what the lines are (plain numbers), and how matplotlib draws them, the same bytes every time."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latentlm.experiments.definition import PlotDefinition
from latentlm.experiments.expansion import AxisValue, Cell, axis_text
from latentlm.experiments.results import Record, look_up, summarise

_TITLE_WIDTH = 70
"""Letters of a line of a title."""
_MARKERS = "osD^vPX*<>"


@dataclass(frozen=True)
class Point:
    """One point of a line: means over seeds and their standard errors, None for a single seed."""

    x: float
    y: float
    x_error: float | None
    y_error: float | None


def series_of(plot: PlotDefinition, cells: Sequence[Cell], records: Mapping[str, Record]) -> dict[str, list[Point]]:
    """The lines of a plot, each a list of points by growing x; cells without a record, or a number, are left out.

    Cells that differ in the axis `plot.over` alone are seeds of one point (of one curve, where x and y are lists).

    Raises:
        ValueError: If a record has no such numbers, or if lists are not of one length.
    """
    groups: dict[tuple[str, tuple], list[tuple[list[float], list[float]]]] = {}
    for cell in cells:
        if cell.name not in records:
            continue
        traits = cell.traits
        line = ", ".join(axis_text(traits[name]) for name in plot.series if name in traits)
        point = tuple((name, value) for name, value in traits.items() if name != plot.over)
        if not _is_missing(records[cell.name], plot.y):
            groups.setdefault((line, point), []).append(_numbers(plot, cell, records[cell.name]))
    lines: dict[str, list[Point]] = {}
    for (line, _), seeds in groups.items():
        if len({len(xs) for xs, _ in seeds}) > 1:
            raise ValueError(f"{plot.title!r}: the seeds of {line} give lists of different lengths")
        for index in range(len(seeds[0][0])):
            x, y = (summarise([seed[side][index] for seed in seeds]) for side in (0, 1))
            lines.setdefault(line, []).append(Point(x.mean, y.mean, x.standard_error, y.standard_error))
    return {line: sorted(points, key=lambda point: point.x) for line, points in lines.items()}


def draw_plot(plot: PlotDefinition, lines: Mapping[str, Sequence[Point]]) -> bytes:
    """The plot as a PNG file; the same numbers give the same bytes with the same version of matplotlib.

    Raises:
        ImportError: Naming the extra, if matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'latentlm[plots]'") from error
    figure = Figure(figsize=(6.4, 4.0), dpi=120, layout="constrained")  # no pyplot: no global state, no display
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, (line, points) in enumerate(lines.items()):
        style: dict[str, Any] = {"marker": _MARKERS[number % len(_MARKERS)], "markersize": 4, "capsize": 3}
        axes.errorbar(
            [point.x for point in points],
            [point.y for point in points],
            xerr=[point.x_error or 0.0 for point in points],
            yerr=[point.y_error or 0.0 for point in points],
            label=line,
            linewidth=1.2,
            **style,
        )
    if plot.log_x:
        axes.set_xscale("log")
    if plot.log_y:
        axes.set_yscale("log")
    axes.set_xlabel(plot.x_label or plot.x)
    axes.set_ylabel(plot.y_label or plot.y)
    axes.set_title(textwrap.fill(plot.title, _TITLE_WIDTH), fontsize="medium")
    axes.grid(alpha=0.3)
    if lines:
        axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})  # the version of matplotlib is no content
    return buffer.getvalue()


def _numbers(plot: PlotDefinition, cell: Cell, record: Record) -> tuple[list[float], list[float]]:
    xs, ys = (_as_numbers(look_up(record, path)) for path in (plot.x, plot.y))
    if not xs and plot.missing_x is not None:
        xs = [plot.missing_x]
    if not xs or len(xs) != len(ys):
        raise ValueError(
            f"{plot.title!r}: {cell.name} has {len(xs)} numbers at {plot.x} and {len(ys)} at {plot.y}; a point needs "
            "one and one, a curve as many and as many"
        )
    return xs, ys


def _is_missing(record: Record, path: str) -> bool:
    """Whether a measure was tried and gave no number: a model that said nothing, whose voice nobody could compare."""
    parent, _, name = path.rpartition(".")
    values = look_up(record, parent)
    return isinstance(values, Mapping) and name in values and values[name] is None


def _as_numbers(value: AxisValue | list[Any]) -> list[float]:
    items = value if isinstance(value, list) else [value]
    return [float(item) for item in items if isinstance(item, int | float) and not isinstance(item, bool)]
