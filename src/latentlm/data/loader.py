"""Batches: which examples, in which order, and what happens when one cannot be read.

The law that everything else rests on: **batch b is a pure function of (data set, seed, b)**. Resuming is starting at
another b; workers change the time a batch takes, never its content. Hence no sampler state, no generator state, and no
skipping that depends on what a process has seen before.

Epochs follow each other without a gap: position p = b * batch_size + i belongs to epoch p // len, and each epoch
has its own permutation, so a batch may hold the end of one epoch and the start of the next.
"""

import itertools
import logging
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any, NoReturn, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from latentlm.data.records import BadRecord, DataError
from latentlm.nn.keyed_noise import combine_keys

Batch = dict[str, Any]
"""Field name -> tensor [B, ...], or a list of B strings."""

WORKER_TIMEOUT_SECONDS = 120.0
"""A worker that takes longer for one batch is taken for dead (PyTorch's own default is to wait for ever)."""

Bad = tuple[int, str, str]
"""A bad record as it travels from worker to parent: index in the data set, name, reason."""

BatchResult = tuple[Batch | None, list[Bad]]
"""A batch and the bad records that it met; no batch means above the limit, or that nothing is readable."""

_LOGGER = logging.getLogger("latentlm.data")


@runtime_checkable
class Tolerant(Protocol):
    """A collection of records of which some may be bad.

    Attributes:
        rejected: Records that were unusable already when it was opened.
        max_bad_records: How many bad records, those included, a run tolerates.
        named: Bad records that the log has named already, whichever loader met them.
    """

    rejected: tuple[BadRecord, ...]
    max_bad_records: int
    named: set[str]

    def __len__(self) -> int: ...


class MapDataset(ABC):
    """What a loader needs of a data set: examples by index, and optionally whole batches at once.

    Args:
        rejected: Records that were unusable already when the data set was opened.
        max_bad_records: How many bad records, those included, a run tolerates.
    """

    def __init__(self, *, rejected: Sequence[BadRecord] = (), max_bad_records: int = 0) -> None:
        self.rejected = tuple(rejected)
        self.max_bad_records = max_bad_records
        self.named: set[str] = set()
        """Bad records that the log has named already, whichever loader met them."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> dict[str, Any]:
        """One example: tensors, numbers and strings by name.

        Raises:
            BadRecord: If it cannot be read.
        """

    def take(self, indices: Sequence[int]) -> Batch | None:
        """The batch of these examples if it can be had at once and none of them can be bad; None to go one by one."""
        return None

    def augment(self, batch: Batch, *, seed: int, epochs: Tensor) -> Batch:
        """Random changes for training: a pure function of the batch's keys, `seed` and `epochs` (Int64 [B])."""
        return batch


class TooManyBadRecords(DataError):
    """More records are unreadable than `max_bad_records` allows, or all of them."""


class WorkerFailure(RuntimeError):
    """A data worker died or hung."""


def make_loader(
    dataset: MapDataset,
    *,
    batch_size: int,
    seed: int,
    start_batch: int = 0,
    num_workers: int = 0,
    shuffle: bool = True,
    timeout_seconds: float = WORKER_TIMEOUT_SECONDS,
) -> Generator[Batch, None, None]:
    """Endless batches for training. Its `close()` ends the worker processes.

    A record that cannot be read is replaced by the next readable one in the order of its epoch, and named once in the
    log `latentlm.data` (stderr unless configured otherwise).

    Args:
        dataset: Where the examples come from.
        batch_size: Examples per batch; may exceed the data set.
        seed: Of the order and of the augmentation.
        start_batch: Number of the first batch: what a resumed run passes.
        num_workers: Processes that read ahead; 0 reads in this one. The batches are the same.
        shuffle: Whether each epoch is permuted; otherwise records come in their own order.
        timeout_seconds: How long a worker may take for a batch.

    Raises:
        TooManyBadRecords: While iterating, with a list of them.
        WorkerFailure: While iterating, if a worker dies or hangs.
        ValueError: If the data set is empty or a count is out of range.
    """
    if batch_size < 1 or start_batch < 0 or num_workers < 0:
        raise ValueError(
            f"batch_size={batch_size} must be positive, start_batch={start_batch} and {num_workers=} not < 0"
        )
    if len(dataset) == 0:
        raise ValueError("cannot make batches of an empty data set")
    batches = _TrainingBatches(dataset, batch_size=batch_size, seed=seed, shuffle=shuffle)
    return load_numbered(
        batches, dataset, start_batch=start_batch, num_workers=num_workers, timeout_seconds=timeout_seconds
    )


def load_numbered(
    batches: Dataset[BatchResult],
    records: Tolerant,
    *,
    start_batch: int = 0,
    num_workers: int = 0,
    timeout_seconds: float = WORKER_TIMEOUT_SECONDS,
) -> Generator[Batch, None, None]:
    """Endless batches of anything that gives batch b as a pure function of b; see `make_loader`.

    Args:
        batches: Number to batch; picklable.
        records: What the batches are made of, and how many bad ones are tolerated.
        start_batch: Number of the first batch.
        num_workers: Processes that read ahead.
        timeout_seconds: How long a worker may take for a batch.
    """
    return _good_batches(records, _read(batches, itertools.count(start_batch), num_workers, timeout_seconds))


def loader_factory(
    dataset: MapDataset, *, batch_size: int, seed: int, num_workers: int = 0
) -> Callable[[int], Iterator[Batch]]:
    """What a trainer takes: number of the first batch to endless batches (`make_loader`)."""

    def make(start_batch: int) -> Iterator[Batch]:
        return make_loader(dataset, batch_size=batch_size, seed=seed, start_batch=start_batch, num_workers=num_workers)

    return make


def read_once(
    dataset: MapDataset,
    *,
    batch_size: int,
    start: int = 0,
    num_workers: int = 0,
    timeout_seconds: float = WORKER_TIMEOUT_SECONDS,
) -> Generator[tuple[int, Batch], None, None]:
    """Every readable example once, in order: for encoding and evaluation.

    Bad records are named and left out, so a batch may be smaller than `batch_size`. Arguments as in `make_loader`.

    Args:
        start: Index of the first example.

    Yields:
        The index after the last example of the batch (the `start` that continues from there), and the batch.
    """
    if batch_size < 1 or start < 0 or num_workers < 0:
        raise ValueError(f"batch_size={batch_size} must be positive, start={start} and {num_workers=} not negative")
    batches = _ConsecutiveBatches(dataset, batch_size=batch_size, start=start)
    results = _read(batches, range(len(batches)), num_workers, timeout_seconds)
    with closing(_good_batches(dataset, results)) as good_batches:
        for number, batch in enumerate(good_batches, start=1):
            if batch:
                yield min(start + number * batch_size, len(dataset)), batch


class _TrainingBatches(Dataset[BatchResult]):
    """Batch by number, each a pure function of it (`_bad` only saves reading a bad record again)."""

    def __init__(self, dataset: MapDataset, *, batch_size: int, seed: int, shuffle: bool) -> None:
        self._dataset = dataset
        self._batch_size = batch_size
        self._seed = seed
        self._shuffle = shuffle
        self._bad: dict[int, BadRecord] = {}
        self._orders: dict[int, np.ndarray] = {}

    def __getitem__(self, number: int) -> BatchResult:
        size = len(self._dataset)
        first = number * self._batch_size
        places = [divmod(position, size) for position in range(first, first + self._batch_size)]  # (epoch, offset)
        met: dict[int, BadRecord] = {}
        batch = self._dataset.take([self._index(epoch, offset) for epoch, offset in places])
        if batch is None:
            examples = []
            for epoch, offset in places:
                example = self._next_good(epoch, offset, met)
                if example is None:
                    return None, plain_bad_records(met)
                examples.append(example)
            batch = collate(examples)
        epochs = torch.tensor([epoch for epoch, _ in places])
        return self._dataset.augment(batch, seed=self._seed, epochs=epochs), plain_bad_records(met)

    def _index(self, epoch: int, offset: int) -> int:
        if not self._shuffle:
            return offset
        if epoch not in self._orders:
            if len(self._orders) == 2:  # two are kept: a batch may span the end of an epoch
                del self._orders[min(self._orders)]
            self._orders[epoch] = _permutation(len(self._dataset), self._seed, epoch)
        return int(self._orders[epoch][offset])

    def _next_good(self, epoch: int, offset: int, met: dict[int, BadRecord]) -> dict[str, Any] | None:
        """The example at this place, or the first readable one after it in the same epoch's order."""
        for step in range(len(self._dataset)):
            index = self._index(epoch, (offset + step) % len(self._dataset))
            if index not in self._bad:
                try:
                    return self._dataset[index]
                except BadRecord as error:
                    self._bad[index] = error
            met[index] = self._bad[index]
            if len(met) > self._dataset.max_bad_records:
                return None
        return None


class _ConsecutiveBatches(Dataset[BatchResult]):
    """Examples in order, bad ones left out."""

    def __init__(self, dataset: MapDataset, *, batch_size: int, start: int) -> None:
        self._dataset = dataset
        self._batch_size = batch_size
        self._start = start

    def __len__(self) -> int:
        return -(-max(0, len(self._dataset) - self._start) // self._batch_size)

    def __getitem__(self, number: int) -> BatchResult:
        first = self._start + number * self._batch_size
        indices = range(first, min(first + self._batch_size, len(self._dataset)))
        batch = self._dataset.take(indices)
        if batch is not None:
            return batch, []
        examples, met = [], {}
        for index in indices:
            try:
                examples.append(self._dataset[index])
            except BadRecord as error:
                met[index] = error
        return (collate(examples) if examples else {}), plain_bad_records(met)


def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    """Order of one epoch: indices sorted by a hash, hence the same on every machine and library version."""
    return torch.argsort(combine_keys(seed, epoch, torch.arange(size)), stable=True).numpy()


def collate(examples: Sequence[dict[str, Any]]) -> Batch:
    """Stack examples field by field: tensors to [B, ...], numbers to Int64 or Float32 [B], strings to a list."""
    batch: Batch = {}
    for name, first in examples[0].items():
        values = [example[name] for example in examples]
        if isinstance(first, Tensor):
            batch[name] = torch.stack(values)
        elif isinstance(first, str):
            batch[name] = values
        else:
            batch[name] = torch.tensor(values)
    return batch


def plain_bad_records(met: dict[int, BadRecord]) -> list[Bad]:
    """Bad records by index, as `BatchResult` holds them."""
    return [(index, bad.name, bad.reason) for index, bad in met.items()]


class _BadRecordList:
    """Names each bad record once, and stops above the limit. One per run, in the parent process."""

    def __init__(self, dataset: Tolerant) -> None:
        self._dataset = dataset
        self._known: dict[int, BadRecord] = {}
        self.note([(-1 - number, bad.name, bad.reason) for number, bad in enumerate(dataset.rejected)])

    def note(self, met: Sequence[Bad]) -> None:
        """Count and name what a batch met; stop above the limit."""
        for index, name, reason in met:
            if index not in self._known:
                self._known[index] = BadRecord(name, reason)
                if name not in self._dataset.named:
                    self._dataset.named.add(name)
                    _LOGGER.warning("skipped a bad record: %s: %s", name, reason)
        if len(self._known) > self._dataset.max_bad_records:
            self._stop(f"{len(self._known)} bad records, max_bad_records is {self._dataset.max_bad_records}")
        if len(self._known) - len(self._dataset.rejected) == len(self._dataset):
            self._stop(f"none of the {len(self._dataset)} records can be read")

    def _stop(self, why: str) -> NoReturn:
        raise TooManyBadRecords(f"{why}:" + "".join(f"\n  {bad}" for bad in self._known.values()))


def _good_batches(dataset: Tolerant, results: Generator[BatchResult, None, None]) -> Generator[Batch, None, None]:
    with closing(results):  # whatever ends the run also ends the workers, now rather than when garbage is collected
        bad_records = _BadRecordList(dataset)
        for batch, met in results:
            bad_records.note(met)
            assert batch is not None  # a worker gives none only after meeting more bad records than `note` accepts
            yield batch


def _read(
    batches: Dataset[BatchResult], numbers: Iterable[int], num_workers: int, timeout_seconds: float
) -> Generator[BatchResult, None, None]:
    if num_workers == 0:
        for number in numbers:
            yield batches[number]
        return
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=numbers,
        num_workers=num_workers,
        timeout=timeout_seconds,
        collate_fn=_unchanged,
        worker_init_fn=_ignore_keyboard_interrupt,
        generator=torch.Generator(),  # else starting the workers draws from the global one, and changes the run
    )
    results = iter(loader)
    failure = None
    try:
        yield from results
    except (RuntimeError, OSError, EOFError) as error:  # the last two: a batch lost with the worker that sent it
        failure = str(error)
        _LOGGER.error("a data worker failed (%s); ending all of them, which takes a few seconds", failure)
    finally:
        # The last reference ends the worker processes; hence no exception (whose traceback holds one) is kept either.
        del results, loader
    if failure is not None:
        raise WorkerFailure(f"reading data in {num_workers} worker processes failed: {failure}")


def _ignore_keyboard_interrupt(worker: int) -> None:
    """Ctrl-C reaches the whole process group; the trainer finishes its step, and needs its workers for that.

    SIGTERM is not ignored: it is how a hung worker is ended.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _unchanged(result: Any) -> Any:
    return result
