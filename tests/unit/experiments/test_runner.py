"""The runner: everything once, in order, whatever kills it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
import toy_experiment as toy
from toy_experiment import ToyRecipe, read_journal, toy_definition

from latentlm.experiments import Experiment, MeasureContext, page_text, remembered, run_experiment, runner
from latentlm.experiments.definition import MeasurementDefinition
from latentlm.experiments.machine import describe_code
from latentlm.experiments.results import record_path

ALL_JOBS = [
    "tokenizer",
    "narrow-seed=0",
    "scores.narrow-seed=0",
    "narrow-seed=1",
    "scores.narrow-seed=1",
    "wide-seed=0",
    "scores.wide-seed=0",
    "wide-seed=1",
    "scores.wide-seed=1",
    "floor",
]


def do_all(experiment: Experiment) -> list[str]:
    names = [job.name for job in experiment.jobs(experiment.select([]))]
    for name in names:
        assert experiment.do(name) == 0
    return names


def record_of(root: Path, cell: str) -> dict[str, Any]:
    return json.loads(record_path(root / "results", "toy", cell).read_text())


def with_changed_width(width: float) -> dict[str, Any]:
    runs = dict(toy_definition().runs)
    runs["wide"] = replace(runs["wide"], set={"width": width, "seed": "{seed}"})
    return {"runs": runs}


def test_jobs_stand_in_the_order_of_what_they_need(tmp_path: Path) -> None:
    experiment = toy.toy_experiment(tmp_path)
    jobs = {job.name: job.needs for job in experiment.jobs(experiment.select([]))}
    assert list(jobs) == ALL_JOBS
    assert jobs["narrow-seed=0"] == ("tokenizer",)
    assert jobs["scores.wide-seed=1"] == ("tokenizer", "wide-seed=1")
    assert jobs["floor"] == ()


def test_every_run_is_trained_once_and_every_cell_measured_once(tmp_path: Path) -> None:
    assert do_all(toy.toy_experiment(tmp_path)) == ALL_JOBS
    journal = read_journal(tmp_path)
    assert len(journal) == len(set(journal)) == 5 * 2 + 5 * 2
    again = toy.toy_experiment(tmp_path)
    assert again.jobs(again.select([])) == []
    assert again.do("scores.wide-seed=1") == 0
    assert read_journal(tmp_path) == journal


def test_a_record_holds_what_its_number_needs_to_be_believed(tmp_path: Path) -> None:
    experiment = toy.toy_experiment(tmp_path)
    assert experiment.do("scores.wide-seed=1") == 0
    record = record_of(tmp_path, "scores.wide-seed=1")
    assert record["result"] == {"width": pytest.approx(21)}  # approx: 2 + 1/10 is not exact
    assert (record["method"], record["axes"], record["cost"]) == ("Wide", {"seed": 1}, {"steps": 2})
    recipe = record["recipe"]
    assert (recipe["kind"], recipe["width"], recipe["trainer"]) == ("toy", 2.0, {"num_steps": 2})
    assert "tokenizer" not in recipe, "a folder of this machine"
    assert record["definition"]["run"]["recipe"]["width"] == 2.0
    assert record["definition"]["run"]["uses"]["tokenizer"]["recipe"] == {"kind": "toy"}, "all at its defaults"
    assert set(record["seconds"]) == {"train", "train_used", "measure"}
    assert record["machine"]["measure"]["cores"] >= 1
    assert record["machine"]["train"]["torch"]
    assert record["used_recipes"]["tokenizer"]["recipe"]["width"] == 1.0
    assert set(record["code"]) == {"train", "measure"}
    tokenizer = {"recipe": "toy.yaml", "set": {}, "uses": {}}
    written = {"recipe": "toy.yaml", "set": {"width": 2.0, "seed": 1}, "uses": {"tokenizer": tokenizer}}
    assert record["as_written"] == written


def test_a_cell_without_a_run_needs_no_training(tmp_path: Path) -> None:
    assert toy.toy_experiment(tmp_path).do("floor") == 0
    assert read_journal(tmp_path) == ["first half of floor", "second half of floor"]
    assert record_of(tmp_path, "floor")["definition"]["run"] is None


def test_a_changed_definition_is_refused_until_it_is_redone(tmp_path: Path) -> None:
    do_all(toy.toy_experiment(tmp_path))
    changed = toy.toy_experiment(tmp_path, **with_changed_width(3.0))
    cell = changed.expansion.cells["scores.wide-seed=0"]
    assert changed.state(cell) == "outdated"
    with pytest.raises(ValueError) as refused:
        changed.jobs(changed.select([]))
    assert "scores.wide-seed=0 was measured by another definition (run.recipe.width: 2.0, now 3.0)" in str(
        refused.value
    )
    assert "`--redo scores.wide-seed=0`" in str(refused.value)
    jobs = changed.jobs([cell], redo=[cell.name])
    assert [job.name for job in jobs] == ["wide-seed=0", "scores.wide-seed=0"]
    assert changed.do(cell.name, redo=True) == 0
    assert record_of(tmp_path, cell.name)["result"]["width"] == pytest.approx(30)  # approx: see above
    assert changed.state(cell) == "done"


def with_other_defaults(root: Path, change: Callable[[ToyRecipe], Any]) -> Experiment:
    """The toy as a later version of the code would have it, in which recipes are read with other defaults."""
    experiment = toy.toy_experiment(root)
    tools = replace(experiment.tools, read_recipe=lambda *given: change(experiment.tools.read_recipe(*given)))
    return Experiment(experiment.definition, tools, out=root / "out", results=root / "results")


@dataclass(frozen=True, kw_only=True)
class WiderToyRecipe(ToyRecipe):
    """One whose default has changed."""

    width: float = 1.5


@dataclass(frozen=True, kw_only=True)
class LongerToyRecipe(ToyRecipe):
    """One with a field more."""

    added: int = 7


def widen(recipe: ToyRecipe) -> WiderToyRecipe:
    values = {field.name: getattr(recipe, field.name) for field in fields(recipe)}
    return WiderToyRecipe(**values | ({"width": 1.5} if recipe.width == 1.0 else {}))


def lengthen(recipe: ToyRecipe) -> LongerToyRecipe:
    return LongerToyRecipe(**{field.name: getattr(recipe, field.name) for field in fields(recipe)})


def test_a_default_that_changed_is_detected_in_runs_and_records_and_nothing_is_trained_over(tmp_path: Path) -> None:
    toy.toy_experiment(tmp_path).do("scores.narrow-seed=0")
    journal = read_journal(tmp_path)
    later = with_other_defaults(tmp_path, widen)
    cell = later.expansion.cells["scores.narrow-seed=0"]
    assert later.resolve(later.expansion.runs["narrow-seed=0"]).folder.exists(), "the hash does not tell"
    assert later.state(cell) == "outdated"
    with pytest.raises(ValueError, match=r"measured by another definition \(recipe.width: 1.0, now 1.5; used_recipes"):
        later.jobs([cell])
    for attempt in (lambda: later.jobs([cell], redo=[cell.name]), lambda: later.do(cell.name, redo=True)):
        with pytest.raises(ValueError, match=r"trained with other values \(.*recipe.width: 1.0, now 1.5") as refused:
            attempt()
        assert "Move that folder and" in str(refused.value)
        assert "or choose another --out" in str(refused.value)
    assert read_journal(tmp_path) == journal


def test_a_default_of_a_used_run_that_changed_is_detected(tmp_path: Path) -> None:
    experiment = toy.toy_experiment(tmp_path)
    experiment.do("scores.wide-seed=0")
    later = with_other_defaults(tmp_path, widen)  # of the two, the tokenizer alone has the default width
    with pytest.raises(ValueError, match=r"\(used_recipes.tokenizer.recipe.width: 1.0, now 1.5\)"):
        later.do("scores.wide-seed=0")


def test_a_field_that_was_added_is_tolerated(tmp_path: Path) -> None:
    do_all(toy.toy_experiment(tmp_path))
    later = with_other_defaults(tmp_path, lengthen)
    assert later.jobs(later.select([])) == []
    assert all(later.resolve(run).is_trained for run in later.expansion.runs.values())


def test_the_same_in_other_words_is_taken_into_the_record(tmp_path: Path) -> None:
    do_all(toy.toy_experiment(tmp_path))
    runs = dict(toy_definition().runs)
    runs["narrow"] = replace(runs["narrow"], set={"width": 1.0, "seed": "{seed}"})  # the recipe's own
    reworded = toy.toy_experiment(tmp_path, runs=runs)
    assert "`scores.narrow-seed=0` (run.set.width: null, now 1.0)" in page_text(
        reworded.definition, tmp_path / "results"
    )
    kept = record_of(tmp_path, "scores.narrow-seed=0")
    assert run_experiment(reworded, lambda job: ["false"]).done == []
    assert "All 5 cells are measured." in page_text(reworded.definition, tmp_path / "results")
    changed = record_of(tmp_path, "scores.narrow-seed=0")
    assert changed.pop("as_written")["set"] == {"width": 1.0, "seed": 0}
    del kept["as_written"]
    assert changed == kept


def test_redo_measures_an_unchanged_cell_anew(tmp_path: Path) -> None:
    experiment = toy.toy_experiment(tmp_path)
    experiment.do("floor")
    experiment.do("floor", redo=True)
    assert read_journal(tmp_path) == ["first half of floor", "second half of floor"] * 2


def test_what_a_finished_measurement_left_behind_does_not_pass_for_a_new_one(tmp_path: Path) -> None:
    experiment = toy.toy_experiment(tmp_path)
    cell = experiment.expansion.cells["floor"]
    record = record_path(tmp_path / "results", "toy", "floor")
    experiment.do("floor")
    kept = record.read_bytes()
    record.unlink()
    (tmp_path / "out" / "hold").touch()
    killed_in_the_middle(tmp_path, "floor")
    (tmp_path / "out" / "hold").unlink()
    record.write_bytes(kept)  # as if it had been killed between writing the record and removing the scratch folder
    assert experiment.state(cell) == "done"
    experiment.do("floor", redo=True)
    assert read_journal(tmp_path)[-3:] == ["first half of floor", "first half of floor", "second half of floor"]


def test_partial_results_of_other_code_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second half fails; then the measurement goes on with the code given."""

    def halves_done(commit: str | None, *, dirty: bool = False) -> int:
        code = None if commit is None else {"commit": f"docs of {commit}", "source_commit": commit, "dirty": dirty}
        monkeypatch.setattr(runner, "describe_code", lambda: code)
        num_before = len(read_journal(tmp_path))
        with pytest.raises(ZeroDivisionError):
            failing.do("floor")
        return len(read_journal(tmp_path)) - num_before

    def measure(context: MeasureContext) -> dict[str, float]:
        first = remembered(context.scratch_dir, "first", lambda: tools.protocols["toy"](context))
        return {"width": first["width"] / 0}

    tools = toy.toy_tools(tmp_path / "out")
    experiment = toy.toy_experiment(tmp_path)
    failing = Experiment(
        experiment.definition,
        replace(tools, protocols={"toy": measure}),
        out=tmp_path / "out",
        results=tmp_path / "results",
    )
    done = [
        halves_done("a"),
        halves_done("a"),  # the same code
        halves_done("b"),  # other code
        halves_done("b", dirty=True),  # in development everything is kept,
        halves_done("c", dirty=True),
        halves_done("c"),  # but what changes took part in is not taken for that of a commit
        halves_done(None),
        halves_done(None),  # an installed wheel: the same version
    ]
    assert [number > 0 for number in done] == [True, False, True, False, False, True, True, False]


def test_the_code_is_noted_of_training_and_of_measuring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = [{"commit": letter, "source_commit": letter, "dirty": False} for letter in "abc"]
    coming = iter(codes)
    monkeypatch.setattr(runner, "describe_code", lambda: next(coming))
    toy.toy_experiment(tmp_path).do("scores.wide-seed=1")  # trains the tokenizer and the model, and measures
    assert record_of(tmp_path, "scores.wide-seed=1")["code"] == {"train": codes[1], "measure": codes[2]}


def test_what_is_to_be_measured_alone_comes_as_such_a_job_and_is_outdated_if_it_was_not(tmp_path: Path) -> None:
    toy.toy_experiment(tmp_path).do("floor")
    measurements = dict(toy_definition().measurements)
    measurements["floor"] = replace(measurements["floor"], alone=True)
    quiet = toy.toy_experiment(tmp_path, measurements=measurements)
    assert [job.name for job in quiet.jobs(quiet.select([]), redo=["floor"]) if job.alone] == ["floor"]
    with pytest.raises(ValueError, match=r"floor was measured by another definition \(alone: null, now true\)"):
        quiet.jobs(quiet.select([]))
    quiet.do("floor", redo=True)
    assert record_of(tmp_path, "floor")["definition"]["alone"] is True


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_code_is_named_by_its_commit_and_by_the_last_one_that_changed_it(tmp_path: Path) -> None:
    package = tmp_path / "src" / "package"
    package.mkdir(parents=True)
    (package / "a.py").touch()
    assert describe_code(package) is None, "no checkout"
    git(tmp_path, "init")
    assert describe_code(package) is None, "no commit"
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "one")
    one = describe_code(package)
    assert one is not None
    assert (one["commit"], one["dirty"]) == (one["source_commit"], False)
    (tmp_path / "docs.md").touch()
    assert describe_code(package) == one, "changes elsewhere are not the code's"
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "two")
    two = describe_code(package)
    assert two is not None
    assert two["commit"] != one["commit"]
    assert two["source_commit"] == one["source_commit"]
    (package / "a.py").write_text("changed")
    assert describe_code(package) == {**two, "dirty": True}
    installed = tmp_path / ".venv" / "package"
    installed.mkdir(parents=True)
    assert describe_code(installed) is None, "a wheel in a checkout of something else"


def test_without_git_the_code_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert describe_code() is None


def test_habits_of_logging_decide_nothing_and_the_recipe_does(tmp_path: Path) -> None:
    folders = []
    for changes in ({}, {"trainer.log_every": 1}, {"trainer.num_steps": 3}):
        runs = dict(toy_definition().runs)
        runs["tokenizer"] = replace(runs["tokenizer"], set=changes)
        experiment = toy.toy_experiment(tmp_path, runs=runs)
        folders.append([experiment.resolve(run).folder.name for run in experiment.expansion.runs.values()])
    assert folders[0] == folders[1]
    assert not set(folders[0]) & set(folders[2]), "the models on another tokenizer are other models"


def test_another_experiment_shares_equal_runs(tmp_path: Path) -> None:
    do_all(toy.toy_experiment(tmp_path))
    other = toy.toy_experiment(tmp_path, name="other")
    assert [job.name for job in other.jobs(other.select([]))] == [name for name in ALL_JOBS if "scores" in name] + [
        "floor"
    ]


def test_another_name_does_not_train_an_equal_run_again(tmp_path: Path) -> None:
    do_all(toy.toy_experiment(tmp_path))
    journal = read_journal(tmp_path)
    runs = dict(toy_definition().runs)
    runs["broad"] = runs.pop("wide")
    scores = replace(toy_definition().measurements["scores"], of="broad")
    renamed = toy.toy_experiment(tmp_path, name="renamed", runs=runs, measurements={"scores": scores})
    assert [job.name for job in renamed.jobs(renamed.select([]))] == ["scores.broad-seed=0", "scores.broad-seed=1"]
    assert renamed.do("scores.broad-seed=1") == 0
    assert read_journal(tmp_path)[len(journal) :] == [
        "first half of scores.broad-seed=1",
        "second half of scores.broad-seed=1",
    ]


def test_a_training_is_continued_after_it_was_stopped(tmp_path: Path) -> None:
    experiment = toy.toy_experiment(tmp_path)
    stopping = replace(experiment.tools, train=lambda recipe, run_dir: signal.SIGTERM)
    stopped = Experiment(experiment.definition, stopping, out=tmp_path / "out", results=tmp_path / "results")
    assert stopped.do("scores.wide-seed=0") == signal.SIGTERM
    assert not record_path(tmp_path / "results", "toy", "scores.wide-seed=0").exists()
    assert experiment.do("scores.wide-seed=0") == 0


def test_a_result_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    experiment = toy.toy_experiment(tmp_path)
    broken = replace(experiment.tools, protocols={"toy": lambda context: {"score": float("inf")}})
    refusing = Experiment(experiment.definition, broken, out=tmp_path / "out", results=tmp_path / "results")
    with pytest.raises(ValueError, match="floor cannot be recorded"):
        refusing.do("floor")
    assert refusing.state(refusing.expansion.cells["floor"]) == "partial"


def test_wrong_names_are_refused_before_anything_runs(tmp_path: Path) -> None:
    experiment = toy.toy_experiment(tmp_path)
    with pytest.raises(ValueError, match="no cell fits 'x\\*'"):
        experiment.select(["x*"])
    with pytest.raises(ValueError, match="--redo nothing: there is no such cell"):
        experiment.jobs([], redo=["nothing"])
    with pytest.raises(ValueError, match="'nothing' is neither a cell nor a run of toy"):
        experiment.do("nothing")
    with pytest.raises(ValueError, match="floor: there is no protocol 'other'; there are: toy"):
        toy.toy_experiment(tmp_path, measurements={"floor": MeasurementDefinition(protocol="other")})


def killed_in_the_middle(root: Path, job: str) -> None:
    """Start a job in a process and kill -9 it after the first half of its measurement."""
    num_lines = len(read_journal(root))
    process = subprocess.Popen(
        [sys.executable, toy.__file__, str(root), job], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    deadline = time.monotonic() + 120  # only guards against a hang
    scratch = root / "out" / "scratch" / "toy"
    while not list(scratch.glob(f"{job}-*/first.json")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert len(read_journal(root)) > num_lines


def test_a_killed_job_goes_on_where_it_was(tmp_path: Path) -> None:
    experiment = toy.toy_experiment(tmp_path)
    cell = experiment.expansion.cells["scores.narrow-seed=1"]
    (tmp_path / "out" / "hold").touch()
    killed_in_the_middle(tmp_path, cell.name)
    assert experiment.state(cell) == "partial"
    assert experiment.record(cell) is None
    (tmp_path / "out" / "hold").unlink()
    assert experiment.do(cell.name) == 0
    journal = read_journal(tmp_path)
    assert len(journal) == len(set(journal)), "no step and no half was done twice"
    assert journal[-2:] == [f"first half of {cell.name}", f"second half of {cell.name}"]
    assert list((tmp_path / "out" / "scratch" / "toy").glob("*/")) == [], "partial results are removed in the end"


def test_jobs_run_in_processes_of_their_own_several_at_a_time(tmp_path: Path) -> None:
    experiment = toy.toy_experiment(tmp_path)
    experiment.do("tokenizer")
    outcome = run_experiment(
        experiment,
        lambda job: [sys.executable, toy.__file__, str(tmp_path), job],
        num_parallel=2,
        only=["*narrow-seed=0", "floor"],
    )
    assert outcome.failed == {}
    assert sorted(outcome.done) == ["floor", "narrow-seed=0", "scores.narrow-seed=0"]
    states = [experiment.state(cell) for cell in experiment.expansion.cells.values()]
    assert states == ["done", "missing", "missing", "missing", "done"]
