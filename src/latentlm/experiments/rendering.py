"""The results page of an experiment, made of its records and nothing else, so that anyone can make it again.

RESULTS/<experiment>/cells/*.json  ──▶  RESULTS/<experiment>.md, RESULTS/<experiment>/plots/*.png
RESULTS/<experiment>.notes.md, written by hand, is taken into the page as it is

A record counts only if it was measured by what the experiment file says now, as far as that can be told without
recipes; otherwise its cell is called outdated.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from latentlm.experiments.definition import ExperimentDefinition, PicturesDefinition
from latentlm.experiments.expansion import Cell, Expansion, expand
from latentlm.experiments.plots import draw_plot, series_of
from latentlm.experiments.protocol import picture_name
from latentlm.experiments.resolution import as_written
from latentlm.experiments.results import Record, differences, listed, look_up, read_record, record_path
from latentlm.experiments.tables import make_table
from latentlm.storage import write_file_atomically

_NUM_COMMIT_LETTERS = 8


def render(definition: ExperimentDefinition, results: Path) -> Path:
    """Write the page and its plots.

    Returns:
        The page's file.

    Raises:
        ValueError: See `page_text`.
        ImportError: If plots are wanted and matplotlib is missing; the page itself is written before.
    """
    page = results / f"{definition.name}.md"
    results.mkdir(parents=True, exist_ok=True)
    write_file_atomically(page, page_text(definition, results).encode())
    expansion = expand(definition)
    records = read_records(definition, expansion, results)
    for plot in definition.plots:
        if lines := series_of(plot, expansion.cells_of(plot.of, plot.where), records):
            path = results / plot_path(definition, plot.name)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file_atomically(path, draw_plot(plot, lines))
    return page


def page_text(definition: ExperimentDefinition, results: Path) -> str:
    """The page as Markdown. Reads records, the notes, and which pictures exist; writes nothing.

    Raises:
        ValueError: If a record does not have what a table or plot shows, or if records differ where a table's `same`
            says that they must not.
    """
    expansion = expand(definition)
    records = read_records(definition, expansion, results)
    outdated = outdated_cells(definition, expansion, results)
    name = definition.name
    parts = [
        f"<!-- Made by `latentlm experiment experiments/{name}.yaml --render` from {name}/cells/*.json; write into "
        f"{name}.notes.md instead. -->",
        f"# {definition.title}",
        f"**Question.** {definition.question.strip()}",
        f"**Data.** {definition.data.strip()}",
        f"**Budget, written down before the runs.** {definition.budget.strip()}",
        f"    latentlm experiment experiments/{name}.yaml --out runs/experiments",
        _completeness(expansion, records, outdated),
    ]
    if left_over := _left_over(definition, expansion, results):
        parts.append(f"Left over from cells that the experiment no longer has, and not shown: {', '.join(left_over)}.")
    for table in definition.tables:
        cells = expansion.cells_of(table.of, table.where)
        parts += [f"## {table.title}", make_table(table, cells, records, outdated.keys())]
    for plot in definition.plots:
        drawn = series_of(plot, expansion.cells_of(plot.of, plot.where), records)
        picture = f"![{plot.title}]({plot_path(definition, plot.name)})" if drawn else "Not run yet."
        parts += [f"## {plot.title}", picture]
    for pictures in definition.pictures:
        parts += [f"## {pictures.title}", _picture_grid(definition, pictures, expansion, results, outdated)]
    notes = results / f"{name}.notes.md"
    if notes.exists():
        parts.append(notes.read_text(encoding="utf-8").strip())
    if records:
        parts += ["## Time and machine", _times(list(records.values()))]
    return "\n\n".join(parts) + "\n"


def read_records(definition: ExperimentDefinition, expansion: Expansion, results: Path) -> dict[str, Record]:
    """Cell name to record, of the cells that are measured by what the file says now."""
    outdated = outdated_cells(definition, expansion, results)
    found = _all_records(definition, expansion, results)
    return {name: record for name, record in found.items() if name not in outdated}


def outdated_cells(definition: ExperimentDefinition, expansion: Expansion, results: Path) -> dict[str, str]:
    """Cell name to what differs between its record and the experiment file, of the cells where something does.

    Compared are protocol, options, axes, and the run as it is written. What a recipe file or a default says is not:
    the runner compares that (`Experiment.state`).
    """
    changes = {
        name: _changes(definition, expansion, expansion.cells[name], record)
        for name, record in _all_records(definition, expansion, results).items()
    }
    return {name: listed(lines, at_most=1) for name, lines in changes.items() if lines}


def plot_path(definition: ExperimentDefinition, name: str) -> str:
    """A plot's file, relative to the page."""
    return f"{definition.name}/plots/{name}.png"


def _all_records(definition: ExperimentDefinition, expansion: Expansion, results: Path) -> dict[str, Record]:
    found = {name: read_record(record_path(results, definition.name, name)) for name in expansion.cells}
    return {name: record for name, record in found.items() if record is not None}


def _changes(definition: ExperimentDefinition, expansion: Expansion, cell: Cell, record: Record) -> list[str]:
    """How the file differs from a record; records older than `as_written` are not compared in that."""
    measured = record["definition"]
    stored: dict[str, Any] = {"protocol": measured["protocol"], "options": measured["options"], "axes": record["axes"]}
    asked: dict[str, Any] = {"protocol": cell.protocol, "options": cell.options, "axes": cell.axes}
    stored["alone"], asked["alone"] = measured.get("alone", False), definition.measurements[cell.measurement].alone
    if "as_written" in record:
        stored["run"] = record["as_written"]
        asked["run"] = None if cell.run is None else as_written(cell.run, expansion.runs)
    return differences(stored, asked)


def _left_over(definition: ExperimentDefinition, expansion: Expansion, results: Path) -> list[str]:
    """Names of records that no cell of the experiment has."""
    folder = record_path(results, definition.name, "any").parent
    return [f"`{path.stem}`" for path in sorted(folder.glob("*.json")) if path.stem not in expansion.cells]


def _completeness(expansion: Expansion, records: Mapping[str, Record], outdated: Mapping[str, str]) -> str:
    missing = [f"`{name}`" for name in expansion.cells if name not in records and name not in outdated]
    if len(records) == len(expansion.cells):
        return f"All {len(expansion.cells)} cells are measured."
    text = f"{len(records)} of {len(expansion.cells)} cells are measured"
    if missing:
        text += f"; not run: {', '.join(missing)}"
    if outdated:
        reasons = ", ".join(f"`{name}` ({reason})" for name, reason in outdated.items())
        text += f"; outdated, being measured by another definition: {reasons}"
    return f"{text}."


def _picture_grid(
    definition: ExperimentDefinition,
    pictures: PicturesDefinition,
    expansion: Expansion,
    results: Path,
    outdated: Collection[str],
) -> str:
    shown = []
    for cell in expansion.cells_of(pictures.of, pictures.where):
        if cell.name in outdated:
            continue
        path = f"{definition.name}/pictures/{picture_name(cell.name, pictures.name)}"
        if (results / path).exists():
            shown.append((cell.name.partition(".")[2] or cell.name, f"![{cell.name}]({path})"))
    if not shown:
        return "Not run yet."
    lines = []
    for start in range(0, len(shown), pictures.columns):
        row = shown[start : start + pictures.columns]
        lines += [f"| {' | '.join(caption for caption, _ in row)} |", f"|{' --- |' * len(row)}"]
        lines += [f"| {' | '.join(picture for _, picture in row)} |", ""]
    return "\n".join(lines).strip()


def _times(records: Sequence[Record]) -> str:
    lines = ["| cell | training, s | training of used models, s | measuring, s |", "| --- | --- | --- | --- |"]
    for record in records:
        seconds = [look_up(record, f"seconds.{part}") for part in ("train", "train_used", "measure")]
        texts = ["" if number is None else f"{number:,.0f}" for number in seconds]
        if record["definition"].get("alone"):
            texts[-1] += ", alone"
        lines.append(f"| {record['cell']} | {' | '.join(texts)} |")
    machines = dict.fromkeys(
        _machine_text(machine) for record in records for machine in record["machine"].values() if machine is not None
    )
    dates, versions = sorted({record["date"] for record in records}), sorted({record["version"] for record in records})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    footer = (
        f"Measured {when} with latentlm {', '.join(versions)} on: {'; '.join(machines)}. Seconds are of the clock, "
    )
    footer += "over all processes of a job, work repeated after an interruption included."
    if any(record["definition"].get("alone") for record in records):
        footer += " Alone: measured alone, while no other job of the experiment ran."
    if codes := _codes(records):
        footer += f" Code: {', '.join(codes)}."
    return "\n".join([*lines, "", footer])


def _codes(records: Sequence[Record]) -> list[str]:
    """The code of trainings and measurements, each once; nothing if all records are older than the noting of it."""
    if not any("code" in record for record in records):
        return []
    codes = []
    for record in records:
        parts = ["measure"] if record["definition"]["run"] is None else ["train", "measure"]
        codes += [_code_text(look_up(record, f"code.{part}")) for part in parts]
    return list(dict.fromkeys(codes))


def _code_text(code: Mapping[str, str | bool] | None) -> str:
    if code is None:
        return "no known commit"
    changes = " with uncommitted changes" if code["dirty"] else ""
    return f"commit {str(code['commit'])[:_NUM_COMMIT_LETTERS]}{changes}"


def _machine_text(machine: Mapping[str, str | int | None]) -> str:
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    return f"{machine['cpu']}{gpu}, {machine['threads']} of {machine['cores']} cores, torch {machine['torch']}"
