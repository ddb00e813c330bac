"""The results page of an experiment, made of its records and nothing else, so that anyone can make it again.

RESULTS/<experiment>/cells/*.json  ──▶  RESULTS/<experiment>.md, RESULTS/<experiment>/plots/*.png
RESULTS/<experiment>.notes.md, written by hand, is taken into the page as it is
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from latentlm.experiments.definition import ExperimentDefinition, PicturesDefinition
from latentlm.experiments.expansion import Expansion, expand
from latentlm.experiments.plots import draw_plot, series_of
from latentlm.experiments.protocol import picture_name
from latentlm.experiments.results import Record, look_up, read_record
from latentlm.experiments.runner import record_path
from latentlm.experiments.tables import make_table
from latentlm.storage import write_file_atomically


def render(definition: ExperimentDefinition, results: Path) -> Path:
    """Write the page and its plots.

    Returns:
        The page's file.

    Raises:
        ValueError: If a record does not have what a table or plot shows.
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
        ValueError: If a record does not have what a table or plot shows.
    """
    expansion = expand(definition)
    records = read_records(definition, expansion, results)
    name = definition.name
    parts = [
        f"<!-- Made by `latentlm experiment experiments/{name}.yaml --render` from {name}/cells/*.json; write into "
        f"{name}.notes.md instead. -->",
        f"# {definition.title}",
        f"**Question.** {definition.question.strip()}",
        f"**Data.** {definition.data.strip()}",
        f"**Budget, written down before the runs.** {definition.budget.strip()}",
        f"    latentlm experiment experiments/{name}.yaml --out runs/experiments",
        _completeness(expansion, records),
    ]
    for table in definition.tables:
        cells = expansion.cells_of(table.of, table.where)
        parts += [f"## {table.title}", make_table(table, cells, records)]
    for plot in definition.plots:
        drawn = series_of(plot, expansion.cells_of(plot.of, plot.where), records)
        picture = f"![{plot.title}]({plot_path(definition, plot.name)})" if drawn else "Not run yet."
        parts += [f"## {plot.title}", picture]
    for pictures in definition.pictures:
        parts += [f"## {pictures.title}", _picture_grid(definition, pictures, expansion, results)]
    notes = results / f"{name}.notes.md"
    if notes.exists():
        parts.append(notes.read_text(encoding="utf-8").strip())
    if records:
        parts += ["## Time and machine", _times(list(records.values()))]
    return "\n\n".join(parts) + "\n"


def read_records(definition: ExperimentDefinition, expansion: Expansion, results: Path) -> dict[str, Record]:
    """Cell name to record, of the cells that are measured."""
    found = {name: read_record(record_path(results, definition.name, name)) for name in expansion.cells}
    return {name: record for name, record in found.items() if record is not None}


def plot_path(definition: ExperimentDefinition, name: str) -> str:
    """A plot's file, relative to the page."""
    return f"{definition.name}/plots/{name}.png"


def _completeness(expansion: Expansion, records: Mapping[str, Record]) -> str:
    missing = [f"`{name}`" for name in expansion.cells if name not in records]
    if not missing:
        return f"All {len(expansion.cells)} cells are measured."
    return f"{len(records)} of {len(expansion.cells)} cells are measured; not run: {', '.join(missing)}."


def _picture_grid(
    definition: ExperimentDefinition, pictures: PicturesDefinition, expansion: Expansion, results: Path
) -> str:
    shown = []
    for cell in expansion.cells_of(pictures.of, pictures.where):
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
        lines.append(f"| {record['cell']} | {' | '.join('' if s is None else f'{s:,.0f}' for s in seconds)} |")
    machines = dict.fromkeys(
        _machine_text(machine) for record in records for machine in record["machine"].values() if machine is not None
    )
    dates, versions = sorted({record["date"] for record in records}), sorted({record["version"] for record in records})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    footer = (
        f"Measured {when} with latentlm {', '.join(versions)} on: {'; '.join(machines)}. Seconds are of the clock, "
    )
    footer += "over all processes of a job, work repeated after an interruption included."
    return "\n".join([*lines, "", footer])


def _machine_text(machine: Mapping[str, str | int | None]) -> str:
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    return f"{machine['cpu']}{gpu}, {machine['threads']} of {machine['cores']} cores, torch {machine['torch']}"
