"""Several pictures of one class as one example: long documents out of small pictures.

An example is `{"image": Float [K, C, H, W], "label": int, "key": Int64 [K]}`. Its first picture is the one of its
index; the others are drawn from the same class, as a pure function of (index, place), so that an epoch still meets
every picture as a first one and a resumed run meets the same groups.

Shapes: B batch, K pictures of a group.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from latentlm.data.datasets import ImageDataset
from latentlm.data.loader import Batch, MapDataset
from latentlm.nn.keyed_noise import combine_keys, keyed_uniform

_COMPANION_STREAM = 0x6409
_GROUP_KEY = 0x6410


class PictureGroups(MapDataset):
    """Groups of pictures of one class.

    Args:
        pictures: Where they come from; all in memory, since a group is made of pictures from everywhere.
        group_size: K.

    Raises:
        ValueError: If the pictures are not in memory in the right size.
    """

    def __init__(self, pictures: ImageDataset, group_size: int) -> None:
        super().__init__(rejected=pictures.rejected, max_bad_records=pictures.max_bad_records)
        if pictures.take([0]) is None:
            raise ValueError("groups of pictures need data in memory (idx, npz) of exactly data.image_size")
        self.pictures = pictures
        self.group_size = group_size
        labels = pictures.labels
        self._members = {label: np.flatnonzero(labels == label) for label in np.unique(labels).tolist()}

    @property
    def label_names(self) -> tuple[str, ...]:
        """Name of each class."""
        return self.pictures.label_names

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.pictures.num_classes

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> dict[str, Any]:
        batch = self.take([index])
        return {"image": batch["image"][0], "label": int(batch["label"][0]), "key": batch["key"][0]}

    def take(self, indices: Sequence[int]) -> Batch:
        """The groups whose first pictures are these: `image` [B, K, C, H, W], `label` [B], `key` [B, K]."""
        groups = np.stack([self._group(int(index)) for index in indices])  # (B, K)
        batch = self.pictures.take(groups.ravel().tolist())
        assert batch is not None, "checked in the constructor"
        shape = groups.shape
        # A picture can meet itself in a group, or the same one in two: each place gets noise of its own.
        keys = combine_keys(_GROUP_KEY, torch.from_numpy(groups[:, :1]), torch.arange(self.group_size))
        return {
            "image": batch["image"].unflatten(0, shape),
            "label": batch["label"].unflatten(0, shape)[:, 0],
            "key": keys,
        }

    def augment(self, batch: Batch, *, seed: int, epochs: torch.Tensor) -> Batch:
        """As the pictures are augmented one by one, each keyed by its own place in its group (see `ImageDataset`)."""
        flat = {"image": batch["image"].flatten(0, 1), "key": batch["key"].flatten()}
        augmented = self.pictures.augment(flat, seed=seed, epochs=epochs.repeat_interleave(self.group_size))
        return {**batch, "image": augmented["image"].unflatten(0, batch["key"].shape)}

    def _group(self, index: int) -> np.ndarray:
        members = self._members[int(self.pictures.labels[index])]
        numbers = keyed_uniform(0, torch.tensor(index), (self.group_size - 1,), stream=_COMPANION_STREAM).double()
        companions = (numbers * len(members)).long().clamp(max=len(members) - 1).numpy()
        return np.concatenate([[index], members[companions]])
