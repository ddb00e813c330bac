"""Several data sets as one, for a tokenizer or a judge of all of them."""

from collections.abc import Sequence

import numpy as np

from latentlm.data.records import UNLABELLED, DataError, Record, Source


class ConcatenatedSource(Source):
    """Records of several sources, one after the other. Classes are numbered on: none is shared between two sources.

    Args:
        sources: In order; all with labels, or none.

    Raises:
        DataError: If some have labels and some have not, or they share no field.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        labelled = [source.label_names != UNLABELLED for source in sources]
        if any(labelled) != all(labelled):
            raise DataError("some of the data sets have labels and some have not; they cannot be put together")
        self._sources = tuple(sources)
        self._starts = np.cumsum([0, *map(len, sources)])
        self.fields = frozenset.intersection(*(source.fields for source in sources))
        self.rejected = tuple(bad for source in sources for bad in source.rejected)
        if "image" not in self.fields:
            raise DataError("one of the data sets has no images")
        if all(labelled):
            first_labels = np.cumsum([0, *(len(source.label_names) for source in sources)])
            self._first_labels = first_labels.tolist()
            self.labels = np.concatenate([s.labels + first for s, first in zip(sources, first_labels, strict=False)])
            self.label_names = tuple(name for source in sources for name in source.label_names)
        else:
            self._first_labels = [0] * len(sources)
            self.labels, self.label_names = np.zeros(self._starts[-1], dtype=np.int64), UNLABELLED
        pixels = [source.pixels for source in sources]
        arrays = [array for array in pixels if array is not None]
        # In memory as a whole only where all are, and of one shape.
        if len(arrays) == len(pixels) and len({array.shape[1:] for array in arrays}) == 1:
            self.pixels = np.concatenate(arrays)

    def __getitem__(self, index: int) -> Record:
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        record = self._sources[number][index - int(self._starts[number])]
        record = {**record, "key": index}
        if "label" in record:
            record["label"] += self._first_labels[number]
        return record
