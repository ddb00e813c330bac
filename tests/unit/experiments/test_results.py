"""Hashes of definitions, records, and the rule for ties."""

import math
from pathlib import Path

import pytest

from latentlm.experiments import compare, summarise
from latentlm.experiments.results import definition_hash, differences, listed, look_up, read_record
from latentlm.storage import write_json


def test_a_hash_ignores_the_order_of_keys_and_nothing_else() -> None:
    assert definition_hash({"a": 1, "b": [1, 2]}) == definition_hash({"b": [1, 2], "a": 1})
    assert definition_hash({"a": 1, "b": [1, 2]}) != definition_hash({"a": 1, "b": [2, 1]})


def test_differences_name_the_fields() -> None:
    old, new = {"recipe": {"lr": 0.1, "same": 1}}, {"recipe": {"lr": 0.2, "same": 1, "more": "x"}}
    assert differences(old, new) == ["recipe.lr: 0.1, now 0.2", 'recipe.more: null, now "x"']


def test_what_only_one_side_has_is_no_difference_of_what_is_shared() -> None:
    old = {"lr": 0.1, "gone": 1, "layers": [{"size": 1}, {"size": 2}], "betas": [0.9, 0.98]}
    new = {"lr": 0.1, "added": 1, "layers": [{"size": 1, "added": 1}, {"size": 3}], "betas": (0.9, 0.98)}
    assert differences(old, new, shared_only=True) == ["layers.1.size: 2, now 3"]
    assert differences({"a": None}, {"a": {"b": 1}}, shared_only=True) == ['a: null, now {"b": 1}']


def test_only_the_first_differences_are_listed() -> None:
    assert listed(["a", "b"]) == "a; b"
    assert listed(["a", "b", "c", "d", "e"]) == "a; b; c; and 2 more"


def test_the_standard_error_is_that_of_the_mean() -> None:
    summary = summarise([1.0, 2.0, 3.0])
    assert summary.mean == 2.0
    assert summary.standard_error == pytest.approx(1 / math.sqrt(3))  # s = 1 over n - 1; approx: rounding alone
    assert summarise([4.0]).standard_error is None
    with pytest.raises(ValueError, match="no mean of no values"):
        summarise([])


def test_a_gap_under_two_standard_errors_of_the_difference_is_a_tie() -> None:
    # Both spread by 1, so each mean has the error 1/√3 and the difference √(2/3) = 0.816; twice that is 1.633.
    first = [1.0, 2.0, 3.0]
    just_under, just_over = [value + 1.63 for value in first], [value + 1.64 for value in first]
    assert compare(first, just_under).verdict == "tie"
    assert compare(first, just_over).verdict == "apart"
    assert compare(first, just_over).standard_error == pytest.approx(math.sqrt(2 / 3))  # approx: rounding alone
    assert compare(just_over, first).gap == compare(first, just_over).gap


def test_equal_values_are_a_tie_and_one_seed_gives_no_verdict() -> None:
    assert compare([1.0, 1.0], [1.0, 1.0]).verdict == "tie"
    assert compare([1.0, 1.0], [1.5, 1.5]).verdict == "apart"
    assert compare([1.0], [9.0, 9.1]).verdict == "unknown"


def test_a_path_leads_into_a_record_or_nowhere() -> None:
    record = {"result": {"judge": {"accuracy": 0.9}}}
    assert look_up(record, "result.judge.accuracy") == 0.9
    assert look_up(record, "result.judge.accuracy.more") is None
    assert look_up(record, "result.other") is None


def test_files_that_are_no_records_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "cell.json"
    assert read_record(path) is None
    write_json(path, {"something": 1})
    with pytest.raises(ValueError, match="is not the record of a cell"):
        read_record(path)
    write_json(path, {"definition_hash": "", "result": {}, "format_version": 99})
    with pytest.raises(ValueError, match="has format_version 99; this version reads 1"):
        read_record(path)
