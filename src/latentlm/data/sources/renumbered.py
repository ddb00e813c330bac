"""A source whose classes bear the numbers that another data set gave them: test pictures, numbered as in training."""

from collections.abc import Sequence

import numpy as np

from latentlm.data.records import UNLABELLED, DataError, Record, Source


def names_are_numbers(label_names: Sequence[str]) -> bool:
    """Whether class ids came as numbers, or not at all: then they mean the same in every file."""
    return tuple(label_names) == UNLABELLED or list(label_names) == [str(i) for i in range(len(label_names))]


class RenumberedSource(Source):
    """The same records, under other class ids.

    Args:
        source: With names of its classes.
        label_names: Those of the other data set, in its order.

    Raises:
        DataError: If a class of the source is not among them.
    """

    def __init__(self, source: Source, label_names: Sequence[str]) -> None:
        numbers = {name: number for number, name in enumerate(label_names)}
        if strangers := [name for name in source.label_names if name not in numbers]:
            raise DataError(
                f"the test pictures have classes that are not in training: {', '.join(map(repr, strangers[:5]))}; "
                f"training has {', '.join(map(repr, label_names[:5]))}, ..."
            )
        self._source = source
        self._numbers = np.array([numbers[name] for name in source.label_names], dtype=np.int64)
        self.fields = source.fields
        self.labels = self._numbers[source.labels]
        self.label_names = tuple(label_names)
        self.rejected = source.rejected
        self.pixels = source.pixels

    def keys(self, indices: np.ndarray) -> np.ndarray:
        """Those of the source."""
        return self._source.keys(indices)

    def __getitem__(self, index: int) -> Record:
        record = self._source[index]
        return {**record, "label": int(self._numbers[record["label"]])} if "label" in record else record
