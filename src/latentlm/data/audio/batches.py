"""Batches of sound: recordings of different lengths padded, and several groups of data mixed by weight.

The law is that of `data.loader`: **batch b is a pure function of (data, weights, seed, rank, b)**. Which group a place
of a batch belongs to is not drawn but laid out: item n of group g is due at (n + 1/2) / share_g, and places are given
in the order of these times. So after any number of places each group has its share to within a few, and batch b needs
no look at the batches before it.

Shapes: B batch, S samples, N places.
"""

import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Dataset

from latentlm.data.audio.config import AudioDataConfig
from latentlm.data.audio.datasets import AudioExamples, open_audio
from latentlm.data.audio.words import WordStringConfig
from latentlm.data.datasets import Part
from latentlm.data.loader import WORKER_TIMEOUT_SECONDS, Batch, BatchResult, load_numbered, plain_bad_records
from latentlm.data.records import BadRecord
from latentlm.nn.keyed_noise import combine_keys

_ORDER_STREAM = 0xA0D1


@dataclass(frozen=True, kw_only=True)
class AudioMixtureConfig:
    groups: dict[str, AudioDataConfig]
    """Data sets by name, for example speech, audio and music (paper Section 3.3.2)."""
    weights: dict[str, float] = field(default_factory=dict)
    """Share of examples of each group, up to a common factor; a group that is not named has 1."""
    words: dict[str, WordStringConfig] = field(default_factory=dict)
    """Groups whose recordings are single words, which a training of tokenizers joins into utterances."""

    def __post_init__(self) -> None:
        if not self.groups:
            raise ValueError("a mixture needs at least one group")
        for name, named in {"weights": self.weights, "words": self.words}.items():
            if unknown := sorted(set(named) - set(self.groups)):
                raise ValueError(f"{name} name {unknown}, but the groups are {', '.join(self.groups)}")
        for name in ("sample_rate", "crop_seconds"):
            values = {getattr(group, name) for group in self.groups.values()}
            if len(values) > 1:
                raise ValueError(f"the groups of a mixture differ in {name}: {sorted(map(str, values))}")
        # Without a crop a share of examples would be no share of sound.
        if len(self.groups) > 1 and next(iter(self.groups.values())).crop_seconds is None:
            raise ValueError("give crop_seconds: recordings of different lengths cannot be mixed by weight")


def open_audio_mixture(config: AudioMixtureConfig, *, part: Part) -> tuple[list[AudioExamples], list[float]]:
    """The groups of a mixture, and their weights: what `make_audio_loader` takes. Errors as in `open_audio`."""
    datasets: list[AudioExamples] = [open_audio(group, part=part) for group in config.groups.values()]
    return datasets, [config.weights.get(name, 1.0) for name in config.groups]


class Place(NamedTuple):
    """What stands at a place of the endless order of examples."""

    group: int
    number: int
    """How many examples of its group stand before it."""


def places(weights: Sequence[float], start: int, stop: int) -> list[Place]:
    """Places `start` to `stop` - 1 of the order that mixes groups by their weights; see the head of this file.

    Args:
        weights: Positive, up to a common factor.
        start: Of the first place.
        stop: One after the last.

    Raises:
        ValueError: If a weight is not positive and finite.
    """
    if not weights or not all(weight > 0 and np.isfinite(weight) for weight in weights):
        raise ValueError(f"the weights {list(weights)} must be positive numbers; leave a group out instead of 0")
    shares = np.array(weights, dtype=np.float64) / np.sum(weights)
    # At time t about t items are due: off by at most a half for each group.
    first = np.maximum(0, np.ceil(shares * (start - len(shares)) - 0.5)).astype(np.int64) - 1
    first = np.maximum(0, first)
    last = np.ceil(shares * (stop + len(shares)) + 0.5).astype(np.int64) + 1
    due = [(float((n + 0.5) / share), g, n) for g, share in enumerate(shares) for n in range(first[g], last[g])]
    ordered = sorted(due)[start - int(first.sum()) : stop - int(first.sum())]
    return [Place(group, number) for _, group, number in ordered]


class AudioBatches(Dataset[BatchResult]):
    """Training batch by number, each a pure function of it.

    A batch has the fields of the examples (see `collate_audio`), `group` Int64 [B], and keys that differ between
    groups. A recording that cannot be read is replaced by the next readable one in the order of its group's epoch.

    Attributes:
        rejected: See `data.loader.Tolerant`, as for the two below.
        max_bad_records: The sum over the groups.
        named: Bad records that the log has named already.

    Args:
        groups: Data sets with the same sample rate.
        weights: Share of examples of each.
        batch_size: Examples per batch on one rank.
        seed: Of order, crops and augmentation.
        shuffle: Whether each epoch of a group is permuted.
        rank: Of this process.
        world_size: Ranks that share the order.

    Raises:
        ValueError: If a group is empty, rates differ, or a count is out of range.
    """

    def __init__(
        self,
        groups: Sequence[AudioExamples],
        weights: Sequence[float] = (1.0,),
        *,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if len(groups) != len(weights):
            raise ValueError(f"{len(weights)} weights were given for {len(groups)} groups of recordings")
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"{batch_size=} must be positive, and {rank=} in [0, {world_size=})")
        if any(len(group) == 0 for group in groups):
            raise ValueError("cannot make batches of an empty group of recordings")
        if len({group.sample_rate for group in groups}) > 1:
            raise ValueError(f"groups of several rates, {[group.sample_rate for group in groups]} Hz, cannot be mixed")
        places(weights, 0, 1)  # refuses wrong weights now
        self.rejected = tuple(bad for group in groups for bad in group.rejected)
        self.max_bad_records = sum(group.max_bad_records for group in groups)
        self.named: set[str] = set()
        self._groups = tuple(groups)
        self._weights = tuple(weights)
        self._batch_size = batch_size
        self._seed = seed
        self._shuffle = shuffle
        self._rank = rank
        self._world_size = world_size
        self._starts = np.cumsum([0, *map(len, groups)])
        self._bad: dict[int, BadRecord] = {}  # only saves reading a bad record again
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def __len__(self) -> int:
        """Recordings of all groups."""
        return int(self._starts[-1])

    def __getitem__(self, number: int) -> BatchResult:
        first = (number * self._world_size + self._rank) * self._batch_size
        met: dict[int, BadRecord] = {}
        examples: list[dict[str, Any]] = []
        epochs: list[int] = []
        for group, item in places(self._weights, first, first + self._batch_size):
            epoch, offset = divmod(item, len(self._groups[group]))
            example = self._next_good(group, epoch, offset, met)
            if example is None:
                return None, plain_bad_records(met)
            examples.append({**example, "group": group})
            epochs.append(epoch)
        return self._augmented(collate_audio(examples), torch.tensor(epochs)), plain_bad_records(met)

    def _augmented(self, batch: Batch, epochs: Int[Tensor, "B"]) -> Batch:
        group_ids = batch["group"]
        for number in group_ids.unique().tolist():
            rows = (group_ids == number).nonzero().flatten()
            part = {name: value[rows] for name, value in batch.items() if isinstance(value, Tensor)}
            part = self._groups[number].augment(part, seed=self._seed, epochs=epochs[rows])
            for name in part:
                if name.endswith("audio"):
                    batch[name] = batch[name].index_copy(0, rows, part[name])
        if len(self._groups) > 1:
            batch["key"] = combine_keys(group_ids, batch["key"])
        return batch

    def _next_good(self, group: int, epoch: int, offset: int, met: dict[int, BadRecord]) -> dict[str, Any] | None:
        """The example at this place, or the first readable one after it in the same epoch's order."""
        dataset = self._groups[group]
        for step in range(len(dataset)):
            index = self._index(group, epoch, (offset + step) % len(dataset))
            number = int(self._starts[group]) + index
            if number not in self._bad:
                try:
                    return dataset.read(index, seed=self._seed, epoch=epoch)
                except BadRecord as error:
                    self._bad[number] = error
            met[number] = self._bad[number]
            if len(met) > self.max_bad_records:
                return None
        return None

    def _index(self, group: int, epoch: int, offset: int) -> int:
        if not self._shuffle:
            return offset
        if (group, epoch) not in self._orders:
            kept = {key: order for key, order in self._orders.items() if key[0] != group or key[1] == epoch - 1}
            numbers = torch.arange(len(self._groups[group]))
            order = torch.argsort(combine_keys(self._seed, _ORDER_STREAM, group, epoch, numbers), stable=True)
            self._orders = {**kept, (group, epoch): order.numpy()}
        return int(self._orders[group, epoch][offset])


def make_audio_loader(
    groups: Sequence[AudioExamples],
    weights: Sequence[float] = (1.0,),
    *,
    batch_size: int,
    seed: int,
    start_batch: int = 0,
    num_workers: int = 0,
    shuffle: bool = True,
    rank: int = 0,
    world_size: int = 1,
    timeout_seconds: float = WORKER_TIMEOUT_SECONDS,
) -> Generator[Batch, None, None]:
    """Endless batches for training; its `close()` ends the worker processes.

    Arguments as in `AudioBatches` and `data.loader.make_loader`, whose errors it raises too.
    """
    batches = AudioBatches(
        groups, weights, batch_size=batch_size, seed=seed, shuffle=shuffle, rank=rank, world_size=world_size
    )
    return load_numbered(
        batches, batches, start_batch=start_batch, num_workers=num_workers, timeout_seconds=timeout_seconds
    )


def audio_loader_factory(
    groups: Sequence[AudioExamples],
    weights: Sequence[float] = (1.0,),
    *,
    batch_size: int,
    seed: int,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> Callable[[int], Iterator[Batch]]:
    """What a trainer takes: number of the first batch to endless batches (`make_audio_loader`)."""

    def make(start_batch: int) -> Iterator[Batch]:
        return make_audio_loader(
            groups,
            weights,
            batch_size=batch_size,
            seed=seed,
            start_batch=start_batch,
            num_workers=num_workers,
            rank=rank,
            world_size=world_size,
        )

    return make


def read_audio_once(
    dataset: AudioExamples, *, batch_size: int, start: int = 0, num_workers: int = 0
) -> Generator[tuple[int, Batch], None, None]:
    """Every readable example once, in order, for encoding and evaluation; bad ones are named and left out.

    Args:
        dataset: Where the examples come from.
        batch_size: Examples that are read together; a batch with bad ones is smaller.
        start: Index of the first example.
        num_workers: Processes that read ahead.

    Yields:
        The index after the last example of the batch (the `start` that continues from there), and the batch.
    """
    if batch_size < 1 or start < 0 or num_workers < 0:
        raise ValueError(f"batch_size={batch_size} must be positive, start={start} and {num_workers=} not negative")
    number_of_batches = -(-max(0, len(dataset) - start) // batch_size)
    loaded = load_numbered(_ConsecutiveBatches(dataset, batch_size, start), dataset, num_workers=num_workers)
    with closing(loaded):
        for number, batch in enumerate(itertools.islice(loaded, number_of_batches), start=1):
            if batch:
                yield min(start + number * batch_size, len(dataset)), batch


class _ConsecutiveBatches(Dataset[BatchResult]):
    """Examples in order, bad ones left out; empty batches beyond the end, for workers that read ahead."""

    def __init__(self, dataset: AudioExamples, batch_size: int, start: int) -> None:
        self._dataset = dataset
        self._batch_size = batch_size
        self._start = start

    def __getitem__(self, number: int) -> BatchResult:
        first = self._start + number * self._batch_size
        examples, met = [], {}
        for index in range(first, min(first + self._batch_size, len(self._dataset))):
            try:
                examples.append(self._dataset[index])
            except BadRecord as error:
                met[index] = error
        return (collate_audio(examples) if examples else {}), plain_bad_records(met)


def collate_audio(examples: Sequence[dict[str, Any]]) -> Batch:
    """Examples to a batch: waveforms padded with zeros to the longest, numbers to [B], all else to lists.

    Any Float tensor [S] whose name ends in `audio` is a waveform; `num_samples` tells them from their padding. What not
    all examples have, such as texts in a mixture, is left out.
    """
    batch: Batch = {}
    for name, first in examples[0].items():
        if any(name not in example for example in examples):
            continue
        values = [example[name] for example in examples]
        if isinstance(first, Tensor) and name.endswith("audio"):
            batch[name] = torch.nn.utils.rnn.pad_sequence(values, batch_first=True)
        elif isinstance(first, int | float):
            batch[name] = torch.tensor(values)
        else:
            batch[name] = values
    return batch
