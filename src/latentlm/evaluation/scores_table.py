"""Markdown tables of scores: a row per thing that was scored, a column per score."""

from collections.abc import Mapping
from typing import Any

Columns = Mapping[str, tuple[str, str]]
"""Field name -> (title, format), in the order of the table; an arrow in the title where one end is better."""


def scores_table(rows: Mapping[str, Any]) -> str:
    """The table of scores of one class, under the names of the rows.

    Args:
        rows: Name to an instance of a dataclass of scores, which says in its class attribute `columns` what is shown.

    Raises:
        ValueError: If there are no rows, or their classes differ.
    """
    classes = {type(scores) for scores in rows.values()}
    if len(classes) != 1:
        raise ValueError(f"a table shows scores of one class, but got {sorted(cls.__name__ for cls in classes)}")
    columns: Columns = classes.pop().columns
    lines = [f"| | {' | '.join(title for title, _ in columns.values())} |", "|---" * (len(columns) + 1) + "|"]
    for name, scores in rows.items():
        cells = [format(getattr(scores, column), spec) for column, (_, spec) in columns.items()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
