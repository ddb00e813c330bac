"""Tables of scores."""

from dataclasses import dataclass, fields
from typing import ClassVar

import pytest

from latentlm.evaluation.image_scores import ImageScores
from latentlm.evaluation.scores_table import Columns, scores_table


@dataclass(frozen=True)
class Toy:
    share: float
    count: int
    columns: ClassVar[Columns] = {"share": ("share ↑", ".1%"), "count": ("count", "d")}


def test_a_table_has_a_row_per_name_and_a_formatted_column_per_score():
    assert scores_table({"a": Toy(0.5, 3), "b": Toy(0.25, 4)}) == (
        "| | share ↑ | count |\n|---|---|---|\n| a | 50.0% | 3 |\n| b | 25.0% | 4 |\n"
    )


def test_rows_of_different_scores_do_not_share_a_table():
    with pytest.raises(ValueError, match=r"of one class, but got \['Toy', 'dict'\]"):
        scores_table({"a": Toy(0.5, 3), "b": {}})


def test_every_score_of_an_image_set_is_shown():
    assert {"num_images", *ImageScores.columns} == {field.name for field in fields(ImageScores)}
