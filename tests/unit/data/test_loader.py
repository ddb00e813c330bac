"""The law of the loader, batch b = f(data, seed, b), and what it does about bad records and bad workers."""

import itertools
import logging
import multiprocessing
import os
import signal
import time
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from latentlm.data.loader import (
    Batch,
    MapDataset,
    TooManyBadRecords,
    WorkerFailure,
    collate,
    make_loader,
    read_once,
)
from latentlm.data.records import BadRecord


class Numbers(MapDataset):
    """Examples that say who they are; some are bad, and some do harm to the process that reads them."""

    def __init__(self, size: int, *, bad=(), limit: int = 100, harm: str = "", rejected=()) -> None:
        super().__init__(rejected=rejected, max_bad_records=limit)
        self.size = size
        self.bad = frozenset(bad)
        self.harm = harm

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index in self.bad:
            raise BadRecord(f"file {index}", "is broken")
        if index == 7 and self.harm == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if index == 7 and self.harm == "hung":
            time.sleep(600)
        return {"value": torch.tensor([index, index * index]), "key": index, "caption": f"number {index}"}

    def augment(self, batch: Batch, *, seed: int, epochs: Tensor) -> Batch:
        return {**batch, "epoch": epochs, "seed": torch.full_like(epochs, seed)}


def keys_of(loader, count: int) -> list[list[int]]:
    return [batch["key"].tolist() for batch in itertools.islice(loader, count)]


sizes = st.integers(1, 40)


@settings(deadline=None, max_examples=60)
@given(
    size=sizes,
    batch_size=st.integers(1, 50),
    start=st.integers(0, 30),
    seed=st.integers(0, 2**31),
    shuffle=st.booleans(),
)
def test_a_resumed_loader_continues_the_uninterrupted_one(size, batch_size, start, seed, shuffle):
    options = {"batch_size": batch_size, "seed": seed, "shuffle": shuffle}
    whole = keys_of(make_loader(Numbers(size), **options), start + 3)
    assert keys_of(make_loader(Numbers(size), start_batch=start, **options), 3) == whole[start:]


@settings(deadline=None, max_examples=40)
@given(size=sizes, batch_size=st.integers(1, 50), seed=st.integers(0, 2**31))
def test_every_epoch_holds_every_record_once(size, batch_size, seed):
    num_batches = -(-3 * size // batch_size)
    batches = keys_of(make_loader(Numbers(size), batch_size=batch_size, seed=seed), num_batches)
    flat = [key for batch in batches for key in batch]
    for epoch in range(3):
        assert sorted(flat[epoch * size : (epoch + 1) * size]) == list(range(size))


@settings(deadline=None, max_examples=40)
@given(size=sizes, data=st.data(), batch_size=st.integers(1, 20), seed=st.integers(0, 2**31))
def test_bad_records_are_replaced_without_a_trace_on_the_others(size, data, batch_size, seed):
    bad = data.draw(st.sets(st.integers(0, size - 1), max_size=size - 1))
    clean = keys_of(make_loader(Numbers(size), batch_size=batch_size, seed=seed), 6)
    found = keys_of(make_loader(Numbers(size, bad=bad), batch_size=batch_size, seed=seed), 6)
    for before, after in zip(itertools.chain(*clean), itertools.chain(*found), strict=True):
        assert after not in bad
        assert after == before or before in bad
    resumed = make_loader(Numbers(size, bad=bad), batch_size=batch_size, seed=seed, start_batch=4)
    assert keys_of(resumed, 2) == found[4:]


def test_a_bad_record_is_replaced_by_the_next_good_one_of_its_epoch():
    dataset = Numbers(6, bad={2, 3, 5})
    assert keys_of(make_loader(dataset, batch_size=6, seed=0, shuffle=False), 1) == [[0, 1, 4, 4, 4, 0]]


def test_epochs_and_seeds_differ_in_their_order():
    first, second = keys_of(make_loader(Numbers(30), batch_size=30, seed=0), 2)
    (other,) = keys_of(make_loader(Numbers(30), batch_size=30, seed=1), 1)
    assert len({tuple(order) for order in (first, second, other, range(30))}) == 4


def test_augmentation_is_told_seed_and_epoch():
    batch = next(make_loader(Numbers(4), batch_size=6, seed=5, start_batch=1, shuffle=False))
    assert batch["epoch"].tolist() == [1, 1, 2, 2, 2, 2]
    assert batch["seed"].tolist() == [5] * 6


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing_in_the_batches(num_workers):
    dataset = Numbers(23, bad={3, 11})
    options = {"batch_size": 5, "seed": 4, "start_batch": 2}
    expected = list(itertools.islice(make_loader(dataset, **options), 12))
    loader = make_loader(dataset, num_workers=num_workers, **options)
    for wanted, found in zip(expected, itertools.islice(loader, 12), strict=True):
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            assert (found[name] == value).all() if isinstance(value, Tensor) else found[name] == value
    loader.close()
    assert multiprocessing.active_children() == []


def test_workers_draw_nothing_from_the_global_generator():
    before = torch.get_rng_state()
    loader = make_loader(Numbers(9), batch_size=3, seed=0, num_workers=1)
    next(loader)
    loader.close()
    assert (torch.get_rng_state() == before).all()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_each_bad_record_is_named_once(num_workers, caplog):
    dataset = Numbers(8, bad={1, 6}, rejected=[BadRecord("shard 9", "is cut short")])
    loader = make_loader(dataset, batch_size=4, seed=0, num_workers=num_workers)
    with caplog.at_level(logging.WARNING, logger="latentlm.data"):
        keys_of(loader, 10)
    loader.close()
    named = sorted(record.getMessage() for record in caplog.records)
    assert named == [
        "skipped a bad record: file 1: is broken",
        "skipped a bad record: file 6: is broken",
        "skipped a bad record: shard 9: is cut short",
    ]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_too_many_bad_records_stop_the_run_with_a_list(num_workers):
    loader = make_loader(Numbers(40, bad=range(4), limit=3), batch_size=8, seed=0, num_workers=num_workers)
    with pytest.raises(TooManyBadRecords, match="4 bad records, max_bad_records is 3") as caught:
        keys_of(loader, 5)
    assert all(f"file {index}: is broken" in str(caught.value) for index in range(4))


def test_as_many_bad_records_as_allowed_do_not_stop_the_run():
    assert len(keys_of(make_loader(Numbers(40, bad=range(3), limit=3), batch_size=8, seed=0), 15)) == 15


def test_records_rejected_at_opening_count_towards_the_limit():
    rejected = [BadRecord("link", "leads out"), BadRecord("shard", "is cut short")]
    with pytest.raises(TooManyBadRecords, match="leads out"):
        next(make_loader(Numbers(5, limit=1, rejected=rejected), batch_size=1, seed=0))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_data_set_of_bad_records_only_stops_the_run(num_workers):
    dataset = Numbers(5, bad=range(5))
    with pytest.raises(TooManyBadRecords, match="none of the 5 records can be read"):
        next(make_loader(dataset, batch_size=2, seed=0, num_workers=num_workers))
    with pytest.raises(TooManyBadRecords, match="none of the 5 records can be read"):
        list(read_once(dataset, batch_size=2, num_workers=num_workers))


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"start_batch": -1}, {"num_workers": -1}])
def test_counts_out_of_range_are_refused_at_once(options):
    with pytest.raises(ValueError, match="must be positive"):
        make_loader(Numbers(3), **{"batch_size": 1, "seed": 0, **options})


def test_an_empty_data_set_is_refused_at_once():
    with pytest.raises(ValueError, match="empty data set"):
        make_loader(Numbers(0), batch_size=1, seed=0)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("start", [0, 3, 10, 12])
def test_reading_once_gives_every_good_record_in_order(start, num_workers):
    dataset = Numbers(11, bad={0, 1, 5})
    results = list(read_once(dataset, batch_size=2, start=start, num_workers=num_workers))
    keys = [key for _, batch in results for key in batch["key"].tolist()]
    assert keys == [index for index in range(start, 11) if index not in dataset.bad]
    for position, batch in results:  # going on from any position finds what comes after it
        assert batch["key"].tolist()[-1] < position
        again = [key for _, later in read_once(dataset, batch_size=2, start=position) for key in later["key"].tolist()]
        assert again == [key for key in keys if key >= position]


def test_collating_stacks_tensors_numbers_and_texts():
    batch = collate([{"image": torch.ones(2), "label": 1, "weight": 0.5, "caption": "a"}] * 3)
    assert batch["image"].shape == (3, 2)
    assert batch["label"].dtype == torch.int64
    assert batch["weight"].dtype == torch.float32
    assert batch["caption"] == ["a", "a", "a"]


# A killed worker may leave half a connection behind, which Python reports when it collects our end of it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("harm", ["killed", "hung"])
def test_a_killed_or_hung_worker_is_noticed_and_none_is_left(harm):
    loader = make_loader(
        Numbers(20, harm=harm), batch_size=4, seed=0, num_workers=2, shuffle=False, timeout_seconds=1.0
    )
    # PyTorch reports a death by a signal, which may find us between two batches: then it is its own RuntimeError.
    with pytest.raises(WorkerFailure if harm == "hung" else RuntimeError, match="worker"):
        keys_of(loader, 10)
    loader.close()
    assert multiprocessing.active_children() == []
