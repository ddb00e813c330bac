"""The page and its plots, from records alone."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toy_experiment import toy_definition

from latentlm.experiments import ExperimentDefinition, expand, page_text, render
from latentlm.experiments.definition import ColumnDefinition, PicturesDefinition, PlotDefinition, TableDefinition
from latentlm.experiments.plots import Point, draw_plot, series_of
from latentlm.experiments.resolution import as_written
from latentlm.experiments.results import record_path

PLOT = PlotDefinition(name="width", title="Width by seed", of="scores", x="axes.seed", y="result.width")

PAGE = """\
<!-- Made by `latentlm experiment experiments/toy.yaml --render` from toy/cells/*.json; write into toy.notes.md \
instead. -->

# A toy

**Question.** Which is wider?

**Data.** None.

**Budget, written down before the runs.** Two steps each.

    latentlm experiment experiments/toy.yaml --out runs/experiments

2 of 5 cells are measured; not run: `scores.narrow-seed=1`, `scores.wide-seed=0`, `scores.wide-seed=1`.

## Widths

| method | Width |
| --- | --- |
| Narrow | 3.0, not run |
| Wide | not run |
| Floor | 1.0 |

## Width by seed

![Width by seed](toy/plots/width.png)

## Samples

| narrow-seed=0 |
| --- |
| ![scores.narrow-seed=0](toy/pictures/scores.narrow-seed=0.samples.png) |

## Remarks

By hand.

## Time and machine

| cell | training, s | training of used models, s | measuring, s |
| --- | --- | --- | --- |
| scores.narrow-seed=0 | 1,234 | 60 | 5 |
| floor |  |  | 5 |

Measured 2026-01-01 with latentlm 0.1.0 on: A CPU, 2 of 4 cores, torch 2.11. Seconds are of the clock, over all \
processes of a job, work repeated after an interruption included. Code: commit 01234567, commit 89abcdef with \
uncommitted changes, no known commit.
"""


def definition() -> ExperimentDefinition:
    column = ColumnDefinition(title="Width", path="result.width", format=".1f")
    table = TableDefinition(title="Widths", of=["scores", "floor"], rows=["method"], columns=(column,))
    return replace(
        toy_definition(), tables=(table,), plots=(PLOT,), pictures=(PicturesDefinition(title="Samples", of="scores"),)
    )


def write_record(results: Path, cell: str, **result: Any) -> None:
    """A record of the toy as it is defined now."""
    expansion = expand(toy_definition())
    run = expansion.cells[cell].run
    machine = {"cpu": "A CPU", "gpu": None, "threads": 2, "cores": 4, "torch": "2.11"}
    trained = {"train": 1234.0, "train_used": 60.0} if "." in cell else {}
    record = {
        "format_version": 1,
        "cell": cell,
        "definition_hash": "",
        "axes": dict(expansion.cells[cell].axes),
        "as_written": None if run is None else as_written(run, expansion.runs),
        "definition": {"run": {} if run else None, "protocol": "toy", "options": dict(expansion.cells[cell].options)},
        "code": {
            "train": {"commit": "0123456789", "dirty": False} if run else None,
            "measure": {"commit": "89abcdef01", "dirty": True} if run else None,
        },
        "seconds": {**trained, "measure": 5.4},
        "machine": {"train": machine if trained else None, "measure": machine},
        "result": result,
        "version": "0.1.0",
        "date": "2026-01-01",
    }
    path = record_path(results, "toy", cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    write_record(tmp_path, "scores.narrow-seed=0", width=3.0)
    write_record(tmp_path, "floor", width=1)
    (tmp_path / "toy" / "pictures").mkdir()
    (tmp_path / "toy" / "pictures" / "scores.narrow-seed=0.samples.png").touch()
    (tmp_path / "toy.notes.md").write_text("## Remarks\n\nBy hand.\n")
    return tmp_path


def test_the_page_is_made_of_records_notes_and_pictures(results: Path) -> None:
    assert page_text(definition(), results) == PAGE


def with_changed(**changes: Any) -> ExperimentDefinition:
    measurements = dict(toy_definition().measurements)
    measurements["scores"] = replace(measurements["scores"], **changes)
    return replace(definition(), measurements=measurements)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"options": {"scale": 20}}, "options.scale: 10, now 20"),
        ({"alone": True}, "alone: false, now true"),
    ],
)
def test_what_was_measured_otherwise_is_called_outdated_and_shown_nowhere(
    results: Path, changes: dict[str, Any], reason: str
) -> None:
    page = page_text(with_changed(**changes), results)
    assert f"outdated, being measured by another definition: `scores.narrow-seed=0` ({reason})." in page
    assert "1 of 5 cells are measured; not run: `scores.narrow-seed=1`, `scores.wide-seed=0`" in page
    assert "| Narrow | outdated, not run |" in page
    assert "scores.narrow-seed=0.samples.png" not in page
    assert "width.png" not in page


def test_a_run_that_is_written_otherwise_is_outdated_and_habits_of_logging_are_not(results: Path) -> None:
    def page_with(run: str, **fields: Any) -> str:
        runs = dict(toy_definition().runs)
        runs[run] = replace(runs[run], set={**runs[run].set, **fields})
        return page_text(replace(definition(), runs=runs), results)

    assert "`scores.narrow-seed=0` (run.set.width: null, now 5.0)" in page_with("narrow", width=5.0)
    assert "(run.uses.tokenizer.set.width: null, now 5.0)" in page_with("tokenizer", width=5.0)
    assert page_with("narrow", **{"trainer.log_every": 1}) == PAGE


def test_records_from_before_code_and_wording_were_noted_are_shown(results: Path) -> None:
    for path in (results / "toy" / "cells").glob("*.json"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps({key: record[key] for key in record if key not in ("code", "as_written")}))
    assert page_text(definition(), results) == PAGE.partition(" Code: ")[0] + "\n"


def test_records_of_cells_that_are_gone_are_listed(results: Path) -> None:
    cells = results / "toy" / "cells"
    (cells / "scores.old-seed=0.json").write_bytes((cells / "floor.json").read_bytes())
    sentence = "Left over from cells that the experiment no longer has, and not shown: `scores.old-seed=0`."
    assert sentence in page_text(definition(), results)


def test_the_page_says_what_was_measured_alone(results: Path) -> None:
    path = record_path(results, "toy", "scores.narrow-seed=0")
    record = json.loads(path.read_text())
    record["definition"]["alone"] = True
    path.write_text(json.dumps(record))
    page = page_text(with_changed(alone=True), results)
    assert "| scores.narrow-seed=0 | 1,234 | 60 | 5, alone |" in page
    assert "Alone: measured alone, while no other job of the experiment ran." in page
    assert "Alone:" not in PAGE


def test_rendering_twice_gives_the_same_bytes(results: Path) -> None:
    pytest.importorskip("matplotlib")
    page = render(definition(), results)
    first = page.read_bytes(), (results / "toy" / "plots" / "width.png").read_bytes()
    assert render(definition(), results) == page
    assert (page.read_bytes(), (results / "toy" / "plots" / "width.png").read_bytes()) == first
    assert first[1].startswith(b"\x89PNG")


def test_a_page_of_nothing_says_so(tmp_path: Path) -> None:
    page = render(definition(), tmp_path).read_text()
    assert "0 of 5 cells are measured" in page
    assert page.count("Not run yet.") == 2
    assert "Time and machine" not in page
    assert not (tmp_path / "toy" / "plots").exists()


def test_a_page_is_written_although_plots_cannot_be(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(ImportError, match=r"pip install 'latentlm\[plots\]'"):
        render(definition(), results)
    assert (results / "toy.md").exists()


def lines_of(plot: PlotDefinition, records: dict[str, Any]) -> dict[str, list[Point]]:
    return series_of(plot, expand(toy_definition()).cells_of(plot.of, plot.where), records)


def test_seeds_of_a_point_become_mean_and_error_bar() -> None:
    records = {
        f"scores.{run}-seed={seed}": {"cost": {"flops": 10 + seed}, "result": {"width": width}}
        for run, seed, width in (("narrow", 0, 1.0), ("narrow", 1, 3.0), ("wide", 0, 7.0))
    }
    assert lines_of(replace(PLOT, x="cost.flops"), records) == {
        "Narrow": [Point(10.5, 2.0, 0.5, 1.0)],
        "Wide": [Point(10.0, 7.0, None, None)],
    }


def test_lists_are_curves_and_other_axes_are_further_points() -> None:
    records = {
        "scores.narrow-seed=0": {"axes": {"seed": 0}, "result": {"x": [2, 1], "y": [20.0, 10.0]}},
        "scores.narrow-seed=1": {"axes": {"seed": 1}, "result": {"x": [2, 1], "y": [22.0, 10.0]}},
    }
    curve = replace(PLOT, x="result.x", y="result.y")
    assert lines_of(curve, records)["Narrow"] == [Point(1.0, 10.0, 0.0, 0.0), Point(2.0, 21.0, 0.0, 1.0)]
    by_seed = replace(curve, y="result.y", x="result.x", over="none")
    assert [point.y for point in lines_of(by_seed, records)["Narrow"]] == [10, 10, 20, 22]


def test_a_plot_of_what_is_no_number_is_refused() -> None:
    records = {"scores.wide-seed=0": {"axes": {"seed": 0}, "result": {"width": "wide"}}}
    with pytest.raises(ValueError, match=r"scores.wide-seed=0 has 1 numbers at axes.seed and 0 at result.width"):
        lines_of(PLOT, records)


def test_a_measure_that_gave_no_number_is_no_point() -> None:
    records = {
        "scores.narrow-seed=0": {"axes": {"seed": 0}, "result": {"width": 3.0}},
        "scores.wide-seed=0": {"axes": {"seed": 0}, "result": {"width": None}},
    }
    assert lines_of(PLOT, records) == {"Narrow": [Point(0.0, 3.0, None, None)]}


def test_what_a_record_leaves_out_has_the_default_of_the_plot() -> None:
    records = {
        "scores.narrow-seed=0": {"sigma": 0.5, "result": {"width": 3.0}},
        "scores.wide-seed=0": {"result": {"width": 7.0}},
    }
    lines = lines_of(replace(PLOT, x="sigma", missing_x=0.75), records)
    assert lines == {"Narrow": [Point(0.5, 3.0, None, None)], "Wide": [Point(0.75, 7.0, None, None)]}


def test_a_plot_with_logarithmic_axes_differs_from_one_without() -> None:
    pytest.importorskip("matplotlib")
    lines = {"A": [Point(1.0, 1.0, None, 0.1), Point(100.0, 10.0, None, 0.1)], "B": [Point(1.0, 2.0, 0.5, None)]}
    assert draw_plot(PLOT, lines) != draw_plot(replace(PLOT, log_x=True, log_y=True), lines)
