"""Matrices multiplied out, placeholders filled, used runs found."""

from dataclasses import replace
from typing import Any

import pytest
from toy_experiment import toy_definition

from latentlm.config import ConfigError
from latentlm.experiments import expand
from latentlm.experiments.definition import MeasurementDefinition, RunDefinition


def run(**fields: Any) -> RunDefinition:
    return RunDefinition(**{"recipe": "toy.yaml", **fields})


def expanded(runs: dict[str, RunDefinition], **measurements: MeasurementDefinition) -> Any:
    return expand(replace(toy_definition(), runs=runs, measurements=measurements))


def test_a_matrix_becomes_one_run_per_combination_with_typed_values() -> None:
    runs = {
        "a": run(set={"seed": "{seed}", "note": "s{seed}w{w}", "list": ["{w}"]}, matrix={"seed": [0, 1], "w": [0.5]})
    }
    found = expanded(runs).runs
    assert list(found) == ["a-seed=0-w=0.5", "a-seed=1-w=0.5"]
    assert found["a-seed=1-w=0.5"].overrides == {"seed": 1, "note": "s1w0.5", "list": [0.5]}


def test_braces_that_are_no_placeholder_stay() -> None:
    found = expanded({"a": run(set={"data.columns": "{image: pixels}"})}).runs
    assert found["a"].overrides == {"data.columns": "{image: pixels}"}


def test_a_used_run_is_the_one_that_agrees_in_the_shared_axes() -> None:
    runs = {
        "model": run(set={"seed": "{seed}"}, uses={"tokenizer": "tok"}, matrix={"seed": [0, 1], "sigma": [1, 2]}),
        "tok": run(set={"sigma": "{sigma}"}, matrix={"sigma": [1, 2]}),
    }
    found = expanded(runs)
    assert list(found.runs)[:2] == ["tok-sigma=1", "tok-sigma=2"], "used runs come first"
    assert found.runs["model-seed=1-sigma=2"].uses == {"tokenizer": "tok-sigma=2"}
    assert [one.key for one in found.needed_by(found.runs["model-seed=0-sigma=1"])] == [
        "tok-sigma=1",
        "model-seed=0-sigma=1",
    ]


def test_a_used_run_can_be_named_by_a_placeholder_or_outright() -> None:
    runs = {
        "tok_small": run(),
        "tok_large": run(set={"seed": "{seed}"}, matrix={"seed": [0, 1]}),
        "a": run(uses={"tokenizer": "tok_{size}"}, matrix={"size": ["small"]}),
        "b": run(uses={"tokenizer": "tok_large-seed=1"}),
    }
    found = expanded(runs).runs
    assert found["a-size=small"].uses == {"tokenizer": "tok_small"}
    assert found["b"].uses == {"tokenizer": "tok_large-seed=1"}


def test_measurements_multiply_the_runs_with_their_own_axes() -> None:
    runs = {"a": run(set={"seed": "{seed}"}, matrix={"seed": [0, 1]})}
    scores = MeasurementDefinition(
        of="a", protocol="toy", where={"seed": 1}, options={"n": "{steps}"}, matrix={"steps": [5, 20]}
    )
    cells = expanded(runs, scores=scores, floor=MeasurementDefinition(protocol="toy")).cells
    assert list(cells) == ["scores.a-seed=1-steps=5", "scores.a-seed=1-steps=20", "floor"]
    assert cells["scores.a-seed=1-steps=20"].options == {"n": 20}
    assert cells["floor"].run is None


def test_where_does_not_confine_what_has_no_such_axis() -> None:
    runs = {"a": run(set={"seed": "{seed}"}, matrix={"seed": [0, 1]}), "b": run()}
    measurement = MeasurementDefinition(of=["a", "b"], protocol="toy")
    found = expanded(runs, scores=measurement)
    assert [cell.name for cell in found.cells_of("scores", {"seed": [1]})] == ["scores.a-seed=1", "scores.b"]
    assert [cell.name for cell in found.cells_of("scores", {"method": "b"})] == ["scores.b"]


@pytest.mark.parametrize(
    ("runs", "measurement", "sentence"),
    [
        ({"a": run(set={"x": "{seed}"})}, {}, "a: '{seed}' names 'seed', which is no axis here"),
        ({"a": run(matrix={"seed": [0, 1]})}, {}, "a: its axis seed changes nothing"),
        ({"a": run(set={"x": "{s}"}, matrix={"s": [1, 1]})}, {}, "needs values, each of them once"),
        ({"a": run(set={"x": "{s}"}, matrix={"s": []})}, {}, "needs values"),
        ({"a": run(set={"x": "{s}"}, matrix={"s": ["a/b"]})}, {}, "'a/b' of the axis s"),
        ({"a": run(matrix={"method": [1]})}, {}, "an axis cannot be called 'method'"),
        ({"a": run(uses={"t": "b"})}, {}, "a uses 'b', but the runs are: a"),
        ({"a": run(uses={"t": "b"}), "b": run(uses={"t": "a"})}, {}, "runs use each other: a uses b uses a"),
        (
            {"a": run(uses={"t": "b"}), "b": run(set={"x": "{s}"}, matrix={"s": [1, 2]})},
            {},
            "must be one run; fitting its axes {}: b-s=1, b-s=2",
        ),
        ({"a": run()}, {"of": "b"}, "m: there is no run 'b'; there are: a"),
        ({"a": run(matrix={"s": [1]})}, {"of": "a", "where": {"s": 2}}, "m: no run of a is where {'s': 2}"),
        ({"a": run()}, {"of": "a", "matrix": {"s": [1, 2]}}, "m: its axis s changes nothing"),
        ({"a": run(matrix={"s": [1]})}, {"of": "a", "matrix": {"s": [1]}}, "has an axis s already"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    runs: dict[str, RunDefinition], measurement: dict[str, Any], sentence: str
) -> None:
    measurements = {"m": MeasurementDefinition(protocol="toy", **measurement)} if measurement else {}
    with pytest.raises(ConfigError) as refused:
        expanded(runs, **measurements)
    assert sentence in str(refused.value)
