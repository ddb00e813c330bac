"""Tables of records as Markdown: every seed, mean ± standard error, and which rows are better, if any.

The best mean of a column is bold only if it is two standard errors of the difference away from every other row it
competes with. Otherwise it and all rows it ties with are marked ≈. What was not run is said to be so.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from latentlm.experiments.definition import ColumnDefinition, TableDefinition
from latentlm.experiments.expansion import AxisValue, Cell, axis_text
from latentlm.experiments.results import Record, compare, look_up, summarise

NOT_RUN = "not run"
OUTDATED = "outdated"
NO_VALUE = "–"
INTERVALS = "In square brackets: 95% interval over the trials of one run, by the bootstrap."
LEGEND = (
    "Mean ± standard error over seeds, the seeds in parentheses. **Bold**: best by at least two standard errors of the "
    "difference. ≈: a tie with the best, its gap being smaller than that. One seed: no verdict."
)


@dataclass(frozen=True)
class Row:
    """One row: its heading, and its cells, one for each seed."""

    heading: tuple[AxisValue, ...]
    cells: tuple[Cell, ...]

    @property
    def competes(self) -> bool:
        """Whether it can be best; what was measured without a run, such as real data, cannot."""
        return any(cell.run is not None for cell in self.cells)


def make_table(
    table: TableDefinition, cells: Sequence[Cell], records: Mapping[str, Record], outdated: Set[str] = frozenset()
) -> str:
    """A table as Markdown, with a legend if rows are compared.

    Args:
        table: What to show.
        cells: The cells it shows, measured or not.
        records: Cell name to record, of those that are measured.
        outdated: Names of cells that were measured, but not by what the file says now.

    Raises:
        ValueError: If cells of a row differ in more than seeds, if no record has a column's path, or if records differ
            at a path of `same`.
    """
    rows = rows_of(table, cells)
    for path in table.same:
        _check_same(table, path, {cell.name: records[cell.name] for cell in cells if cell.name in records})
    columns = [_column(table, column, rows, records, outdated) for column in table.columns]
    shown = [records[cell.name] for row in rows if len(row.cells) == 1 for cell in row.cells if cell.name in records]
    titles = [_title(column) for column in table.columns]
    lines = [_line([*table.rows, *titles]), _line(["---"] * (len(table.rows) + len(titles)))]
    for index, row in enumerate(rows):
        headings = ["" if value is None else axis_text(value) for value in row.heading]
        lines.append(_line([*headings, *(column[index] for column in columns)]))
    several = any(len(row.cells) > 1 for row in rows)
    compared = several and any(column.better for column in table.columns)
    intervals = any(_has_interval(look_up(record, column.path)) for column in table.columns for record in shown)
    legend = [text for text, applies in ((LEGEND, compared), (INTERVALS, intervals)) if applies]
    return "\n".join([*lines, *(["", " ".join(legend)] if legend else [])])


def rows_of(table: TableDefinition, cells: Iterable[Cell]) -> list[Row]:
    """Cells gathered into rows, in the order of the cells.

    Raises:
        ValueError: If cells of one row differ in an axis that is neither a heading nor `over`.
    """
    gathered: dict[tuple[AxisValue, ...], list[Cell]] = {}
    for cell in cells:
        gathered.setdefault(tuple(cell.traits.get(name) for name in table.rows), []).append(cell)
    for heading, members in gathered.items():
        others = [{name: value for name, value in cell.traits.items() if name != table.over} for cell in members]
        for name in dict.fromkeys(name for other in others for name in other):
            if len({other.get(name) for other in others}) > 1:
                raise ValueError(
                    f"{table.title!r}: the row {heading} mixes several values of {name!r}; name it in `rows`, or "
                    "choose one with `where`"
                )
    return [Row(heading, tuple(members)) for heading, members in gathered.items()]


def marks(values: Sequence[Sequence[float]], groups: Sequence[Any], *, better: str) -> list[Callable[[str], str]]:
    """How to write each row's text: bold, as a tie, or as it is.

    Args:
        values: Of each row, one per seed; empty for a row that does not compete.
        groups: Rows of one group compete with one another.
        better: "lower" or "higher".
    """
    written: list[Callable[[str], str]] = [str] * len(values)
    for group in dict.fromkeys(groups):
        rivals = [index for index, own in enumerate(groups) if own == group and values[index]]
        if len(rivals) < 2:
            continue
        choose = min if better == "lower" else max
        best = choose(rivals, key=lambda index: summarise(values[index]).mean)
        verdicts = {index: compare(values[best], values[index]).verdict for index in rivals if index != best}
        ties = [index for index, verdict in verdicts.items() if verdict == "tie"]
        if ties:
            for index in (best, *ties):
                written[index] = "≈ {}".format
        elif set(verdicts.values()) == {"apart"}:
            written[best] = "**{}**".format
    return written


def _check_same(table: TableDefinition, path: str, records: Mapping[str, Record]) -> None:
    values = {name: look_up(record, path) for name, record in records.items()}
    first = next(iter(values), "")
    for name, value in values.items():
        if value is None:
            raise ValueError(f"{table.title!r}: {name} has nothing at {path!r}, which all its cells must share")
        if value != values[first]:
            raise ValueError(
                f"{table.title!r}: all its cells must share {path!r}, but {first} has {json.dumps(values[first])} and "
                f"{name} has {json.dumps(value)}; measure one of them again with --redo"
            )


def _column(
    table: TableDefinition,
    column: ColumnDefinition,
    rows: Sequence[Row],
    records: Mapping[str, Record],
    outdated: Set[str],
) -> list[str]:
    absent = {cell.name: OUTDATED if cell.name in outdated else NOT_RUN for row in rows for cell in row.cells}
    found = [
        [_value(column, records[cell.name]) if cell.name in records else absent[cell.name] for cell in row.cells]
        for row in rows
    ]
    measured = [look_up(records[name], column.path) for name in absent if name in records]
    if measured and all(value is None for value in measured):
        raise ValueError(f"{table.title!r}: no measured cell has anything at {column.path!r}")
    texts = [_text(column, values) for values in found]
    if column.better is None:
        return texts
    numbers = [_numbers(values) if row.competes else [] for row, values in zip(rows, found, strict=True)]
    headings = [dict(zip(table.rows, row.heading, strict=True)) for row in rows]
    groups = [tuple(heading.get(name) for name in table.compare_within) for heading in headings]
    written = marks(numbers, groups, better=column.better)
    return [write(text) for write, text in zip(written, texts, strict=True)]


def _value(column: ColumnDefinition, record: Record) -> Any:
    value = look_up(record, column.path)
    if column.mean_from is None or value is None:
        return value
    if not isinstance(value, list) or not value[column.mean_from :]:
        raise ValueError(f"column {column.title!r}: {column.path} is no list that goes on from {column.mean_from}")
    return fmean(value[column.mean_from :])


def _text(column: ColumnDefinition, values: Sequence[Any]) -> str:
    """One field of a table: a value, with its interval if it has one, or mean ± standard error and all values."""
    each = [_one(column, _estimate(value)) for value in values]
    if len(values) == 1 and _has_interval(values[0]):
        low, high = (_one(column, values[0][end]) for end in ("low", "high"))
        return f"{each[0]} [{low}, {high}]"
    if len(set(each)) == 1:
        return each[0]
    numbers = _numbers(values)
    if len(numbers) < 2:
        return ", ".join(each)
    summary = summarise(numbers)
    return f"{_one(column, summary.mean)} ± {_one(column, summary.standard_error)} ({', '.join(each)})"


def _one(column: ColumnDefinition, value: Any) -> str:
    if value is None:
        return NO_VALUE
    if isinstance(value, bool | str):
        return axis_text(value)
    if isinstance(value, int | float):
        number = value if column.scale == 1 else value * column.scale
        return format(number, column.format)
    raise ValueError(f"column {column.title!r}: {column.path} is {type(value).__name__}, not one value")


def _numbers(values: Sequence[Any]) -> list[float]:
    estimates = map(_estimate, values)
    return [float(value) for value in estimates if isinstance(value, int | float) and not isinstance(value, bool)]


def _estimate(value: Any) -> Any:
    """What an interval is around; anything else as it is."""
    return value["estimate"] if isinstance(value, Mapping) and "estimate" in value else value


def _has_interval(value: Any) -> bool:
    return isinstance(value, Mapping) and None not in (value.get(name) for name in ("estimate", "low", "high"))


def _title(column: ColumnDefinition) -> str:
    arrow = {"lower": " ↓", "higher": " ↑", None: ""}[column.better]
    return column.title + arrow


def _line(fields: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in fields) + " |"
