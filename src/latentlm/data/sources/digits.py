"""The handwritten digits that ship inside scikit-learn: 1797 real 8 x 8 pictures, no download."""

import numpy as np
import torch

from latentlm.data.records import DataError, Record, Source
from latentlm.nn.keyed_noise import combine_keys

TRAIN_RATIO = 0.7
_SPLIT_SEED = 0  # part of the rule: the test pictures must be the same in every run that reports a number on them


class DigitsSource(Source):
    """Optical Recognition of Handwritten Digits (Alpaydin & Kaynak 1998, test part, as scikit-learn has it).

    Its grey levels 0..16 (ink) are scaled to 0..255. scikit-learn defines no split; ours is fixed here: pictures are
    ordered by a hash of their index, the first 70% (1258) are `train`, the others (539) `test`.

    Args:
        split: `train` or `test`.
    """

    fields = frozenset({"image", "label"})
    label_names = tuple(str(digit) for digit in range(10))

    def __init__(self, split: str) -> None:
        if split not in ("train", "test"):
            raise DataError(f"the digits have the splits 'train' and 'test', not {split!r}")
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ImportError("the embedded digits need scikit-learn: pip install 'latentlm[train]'") from error
        digits, labels = load_digits(return_X_y=True)
        order = torch.argsort(combine_keys(_SPLIT_SEED, torch.arange(len(labels))), stable=True).numpy()
        num_train = round(TRAIN_RATIO * len(labels))
        self._indices = np.sort(order[:num_train] if split == "train" else order[num_train:])
        self.labels = labels[self._indices].astype(np.int64)
        self._digits = np.round(digits[self._indices] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
        self.pixels = self._digits

    def keys(self, indices: np.ndarray) -> np.ndarray:
        """The place of each digit among all 1797, so that no train digit shares a key with a test digit."""
        return self._indices[indices]

    def __getitem__(self, index: int) -> Record:
        return {
            "image": self._digits[index],
            "label": int(self.labels[index]),
            "key": int(self._indices[index]),
            "name": f"digit {self._indices[index]}",
        }
