"""Tables: what is written in a field, who is called better, and what is refused."""

from dataclasses import replace
from typing import Any

import pytest
from toy_experiment import toy_definition

from latentlm.experiments import expand
from latentlm.experiments.definition import ColumnDefinition, RunDefinition, TableDefinition
from latentlm.experiments.tables import INTERVALS, LEGEND, make_table, marks

WIDTH = ColumnDefinition(title="Width", path="result.width", format=".1f", better="higher")
TABLE = TableDefinition(title="T", of=["scores", "floor"], rows=["method"], columns=(WIDTH,))


def records(**widths: Any) -> dict[str, Any]:
    """Records by short names: narrow0 is that of scores.narrow-seed=0."""
    names = {f"{run}{seed}": f"scores.{run}-seed={seed}" for run in ("narrow", "wide") for seed in (0, 1)}
    return {names.get(name, name): {"result": {"width": width}} for name, width in widths.items()}


def lines_of(table: TableDefinition, found: dict[str, Any]) -> list[str]:
    cells = expand(toy_definition()).cells_of(table.of, table.where)
    return make_table(table, cells, found).splitlines()


def test_seeds_stand_one_by_one_beside_mean_and_standard_error() -> None:
    # Errors: 1 and 1 (half the difference of two seeds), so of the difference √2; the gap 9 is more than twice that.
    assert lines_of(TABLE, records(narrow0=10.0, narrow1=12.0, wide0=19.0, wide1=21.0, floor=99.0)) == [
        "| method | Width ↑ |",
        "| --- | --- |",
        "| Narrow | 11.0 ± 1.0 (10.0, 12.0) |",
        "| Wide | **20.0 ± 1.0 (19.0, 21.0)** |",
        "| Floor | 99.0 |",
        "",
        LEGEND,
    ]


def test_a_tie_is_called_one() -> None:
    lines = lines_of(TABLE, records(narrow0=10.0, narrow1=12.0, wide0=11.0, wide1=14.0, floor=99.0))
    assert lines[2:4] == ["| Narrow | ≈ 11.0 ± 1.0 (10.0, 12.0) |", "| Wide | ≈ 12.5 ± 1.5 (11.0, 14.0) |"]


def test_what_was_not_run_is_said_to_be_so_and_gives_no_verdict() -> None:
    lines = lines_of(TABLE, records(narrow0=10.0, narrow1=12.0, wide0=19.0))
    assert lines[2:5] == [
        "| Narrow | 11.0 ± 1.0 (10.0, 12.0) |",
        "| Wide | 19.0, not run |",
        "| Floor | not run |",
    ]


def test_values_that_agree_are_written_once_and_texts_as_they_are() -> None:
    column = ColumnDefinition(title="N", path="result.width", format=",.1f", scale=1e-3)
    table = replace(TABLE, columns=(column,))
    lines = lines_of(table, records(narrow0=2_345_678, narrow1=2_345_678, wide0="a|b", wide1=None, floor=True))
    assert lines[2:] == ["| Narrow | 2,345.7 |", "| Wide | a\\|b, – |", "| Floor | true |"]


def test_a_single_run_shows_its_interval_and_several_their_estimates() -> None:
    around = {value: {"estimate": value, "low": value - 1, "high": value + 2} for value in (10.0, 12.0, 20.0)}
    nothing = {"estimate": None, "failure": "said nothing"}
    table = replace(TABLE, rows=["method", "seed"])
    assert lines_of(table, records(narrow0=around[10.0], narrow1=around[12.0], wide0=nothing, wide1=19.0))[2:] == [
        "| Narrow | 0 | 10.0 [9.0, 12.0] |",
        "| Narrow | 1 | 12.0 [11.0, 14.0] |",
        "| Wide | 0 | – |",
        "| Wide | 1 | 19.0 |",
        "| Floor |  | not run |",
        "",
        INTERVALS,
    ]
    both = lines_of(TABLE, records(narrow0=around[10.0], narrow1=around[12.0], wide0=around[20.0], wide1=20.0))
    assert both[2:4] == ["| Narrow | 11.0 ± 1.0 (10.0, 12.0) |", "| Wide | **20.0** |"]


def test_of_a_list_the_mean_from_some_place_on_is_shown() -> None:
    table = replace(TABLE, rows=["method", "seed"], columns=(replace(WIDTH, mean_from=1, better=None),))
    assert lines_of(table, records(narrow0=[0.0, 1.0, 4.0]))[2] == "| Narrow | 0 | 2.5 |"
    for wrong in (3.0, [1.0]):
        with pytest.raises(ValueError, match="is no list that goes on from 1"):
            lines_of(table, records(narrow0=wrong))


def test_rows_compete_only_within_their_group() -> None:
    plain, bold = "{}".format("x"), "**x**"
    values = [[1.0, 1.1], [5.0, 5.1], [9.0, 9.1], [7.0, 7.1]]
    written = [write("x") for write in marks(values, ["s", "s", "l", "l"], better="lower")]
    assert written == [bold, plain, plain, bold]
    assert [write("x") for write in marks(values, [0] * 4, better="lower")] == [bold, plain, plain, plain]


def test_a_best_row_that_ties_with_one_rival_is_not_bold() -> None:
    values = [[1.0, 1.2], [1.1, 1.2], [9.0, 9.1]]
    assert [write("x") for write in marks(values, [0] * 3, better="lower")] == ["≈ x", "≈ x", "x"]


def test_a_single_seed_or_a_single_row_gets_no_verdict() -> None:
    assert [write("x") for write in marks([[1.0], [2.0]], [0, 0], better="lower")] == ["x", "x"]
    assert [write("x") for write in marks([[1.0, 2.0], []], [0, 0], better="lower")] == ["x", "x"]


def test_a_row_that_mixes_more_than_seeds_is_refused() -> None:
    matrix = {"seed": [0, 1], "sigma": [0.1, 0.5]}
    run = RunDefinition(recipe="toy.yaml", set={"seed": "{seed}", "width": "{sigma}"}, matrix=matrix)
    cells = expand(replace(toy_definition(), runs={"narrow": run, "wide": run})).cells_of("scores", {})
    with pytest.raises(ValueError, match=r"'T': the row .* mixes several values of 'sigma'; name it in `rows`"):
        make_table(TABLE, cells, {})
    table = replace(TABLE, rows=["method", "sigma"])
    assert make_table(table, cells, {}).splitlines()[2] == "| narrow | 0.1 | not run |"


def test_cells_measured_with_different_rulers_are_refused() -> None:
    table = replace(TABLE, same=["result.judge"])

    def judged(**judges: Any) -> dict[str, Any]:
        found = records(**dict.fromkeys(judges, 1.0))
        for record, judge in zip(found.values(), judges.values(), strict=True):
            record["result"] |= {} if judge is None else {"judge": judge}
        return found

    assert lines_of(table, judged(narrow0="a", wide0="a"))[2] == "| Narrow | 1.0, not run |"
    with pytest.raises(ValueError) as refused:
        lines_of(table, judged(narrow0="a", narrow1="a", wide0="b"))
    sentence = 'must share \'result.judge\', but scores.narrow-seed=0 has "a" and scores.wide-seed=0 has "b"'
    assert sentence in str(refused.value)
    with pytest.raises(ValueError, match=r"scores.wide-seed=0 has nothing at 'result.judge'"):
        lines_of(table, judged(narrow0="a", wide0=None))
    assert lines_of(table, {}), "nothing measured: nothing to differ"


def test_an_outdated_cell_is_called_so() -> None:
    cells = expand(toy_definition()).cells_of(TABLE.of, {})
    lines = make_table(TABLE, cells, records(narrow0=10.0), {"scores.narrow-seed=1"}).splitlines()
    assert lines[2] == "| Narrow | 10.0, outdated |"


def test_a_path_that_leads_nowhere_in_all_records_is_refused() -> None:
    table = replace(TABLE, columns=(replace(WIDTH, path="result.widht"),))
    with pytest.raises(ValueError, match=r"'T': no measured cell has anything at 'result.widht'"):
        lines_of(table, records(narrow0=1.0))
    with pytest.raises(ValueError, match="column 'Width': result is dict, not one value"):
        lines_of(replace(TABLE, columns=(replace(WIDTH, path="result"),)), records(narrow0=1.0))
