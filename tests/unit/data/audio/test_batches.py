"""The law of the batches, b = f(data, weights, seed, rank, b), padding, and the mixture's shares."""

import itertools
import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentlm.data.audio import (
    AudioBatches,
    AudioDataConfig,
    AudioMixtureConfig,
    make_audio_loader,
    open_audio,
    open_audio_mixture,
    read_audio_once,
)
from latentlm.data.audio.batches import places
from latentlm.data.loader import TooManyBadRecords

RATE = 8000


@pytest.fixture
def make_config(tmp_path, tone, encoded):
    """`make_config(name, count, bad)`: clips of different lengths; those in `bad` are damaged."""

    def make(name: str, count: int, bad=(), **options) -> AudioDataConfig:
        clips = [b"broken" if n in bad else encoded(tone(300 + n, 0.1 + 0.05 * (n % 4))) for n in range(count)]
        columns = {"audio": clips, "text": [f"{name} {n}" for n in range(count)]}
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet", row_group_size=4)
        return AudioDataConfig(
            path=str(tmp_path / f"{name}.parquet"), sample_rate=RATE, validation_ratio=0.0, **options
        )

    return make


def brute_force(weights: list[float], stop: int) -> list[tuple[int, int]]:
    shares = np.array(weights) / sum(weights)
    due = [((n + 0.5) / share, group, n) for group, share in enumerate(shares.tolist()) for n in range(stop)]
    return [(group, n) for _, group, n in sorted(due)[:stop]]


@settings(deadline=None, max_examples=80)
@given(
    weights=st.lists(st.floats(0.001, 1000.0), min_size=1, max_size=5),
    start=st.integers(0, 200),
    count=st.integers(0, 40),
)
def test_places_are_a_window_of_one_fixed_order(weights, start, count):
    whole = brute_force(weights, start + count)
    assert [tuple(place) for place in places(weights, start, start + count)] == whole[start:]


@settings(deadline=None, max_examples=50)
@given(weights=st.lists(st.floats(0.01, 1.0), min_size=2, max_size=4), start=st.integers(0, 10**9))
def test_every_group_has_its_share_after_any_number_of_places(weights, start):
    shares = np.array(weights) / sum(weights)
    for group, number in places(weights, start, start + 50):
        # Each group is at most a half early or late by its own clock, and so is each of the others.
        assert abs(number - shares[group] * start) <= 50 * shares[group] + len(weights) + 1


def test_wrong_weights_are_refused():
    for weights in ([], [1.0, 0.0], [1.0, float("nan")], [-1.0]):
        with pytest.raises(ValueError, match="must be positive"):
            places(weights, 0, 1)


def test_batches_are_padded_and_say_what_is_sound(make_config):
    dataset = open_audio(make_config("a", 8), part="train")
    batch = next(make_audio_loader([dataset], batch_size=8, seed=0))
    assert batch["audio"].shape == (8, 2000)
    for row, (audio, length) in enumerate(zip(batch["audio"], batch["num_samples"], strict=True)):
        alone = dataset[int(batch["key"][row])]
        assert batch["text"][row] == alone["text"]
        assert torch.equal(audio[:length], alone["audio"])
        assert not audio[length:].any()


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name]
        for name, value in first.items()
    )


def test_a_resumed_loader_continues_and_workers_change_nothing(make_config):
    groups = [open_audio(make_config(name, n, crop_seconds=0.12), part="train") for name, n in (("a", 7), ("b", 3))]
    options = {"batch_size": 4, "seed": 3}
    whole = list(itertools.islice(make_audio_loader(groups, [3.0, 1.0], **options), 8))
    for start, workers in ((5, 0), (0, 2)):
        loader = make_audio_loader(groups, [3.0, 1.0], start_batch=start, num_workers=workers, **options)
        resumed = list(itertools.islice(loader, 8 - start))
        loader.close()
        assert all(same(a, b) for a, b in zip(whole[start:], resumed, strict=True))


def test_ranks_share_the_order_of_one(make_config):
    groups = [open_audio(make_config("a", 9, crop_seconds=0.1), part="train")]
    whole = AudioBatches(groups, batch_size=6, seed=1)
    halves = [AudioBatches(groups, batch_size=3, seed=1, rank=rank, world_size=2) for rank in range(2)]
    for number in range(4):
        parts = [half[number][0] for half in halves]
        assert torch.equal(whole[number][0]["key"], torch.cat([part["key"] for part in parts]))


def test_each_epoch_holds_every_recording_once_and_crops_move(make_config):
    dataset = open_audio(make_config("a", 6, crop_seconds=0.1), part="train")
    batches = list(itertools.islice(make_audio_loader([dataset], batch_size=6, seed=0), 3))
    assert all(sorted(batch["key"].tolist()) == list(range(6)) for batch in batches)
    assert batches[0]["key"].tolist() != batches[1]["key"].tolist()
    of_longest = [batch["audio"][batch["key"].tolist().index(3)] for batch in batches]
    assert not torch.equal(of_longest[0], of_longest[1])


def test_groups_have_keys_of_their_own_and_their_share(make_config):
    config = AudioMixtureConfig(
        groups={"speech": make_config("a", 5, crop_seconds=0.1), "music": make_config("b", 5, crop_seconds=0.1)},
        weights={"speech": 4.0},
    )
    batch = next(make_audio_loader(*open_audio_mixture(config, part="train"), batch_size=20, seed=0))
    assert batch["group"].tolist().count(1) == 4
    assert all(text.startswith("ab"[group]) for text, group in zip(batch["text"], batch["group"].tolist(), strict=True))
    assert len(set(batch["key"].tolist())) == 5 + 4  # all of the first group, and four of the second


def test_mixtures_that_cannot_be_are_refused(make_config):
    one, other = make_config("a", 3, crop_seconds=0.1), make_config("b", 3)
    for groups, weights, reason in (
        ({}, {}, "at least one"),
        ({"a": one}, {"c": 1.0}, "weights name"),
        ({"a": one, "b": other}, {}, "differ in crop_seconds"),
        ({"a": other, "b": other}, {}, "give crop_seconds"),
    ):
        with pytest.raises(ValueError, match=reason):
            AudioMixtureConfig(groups=groups, weights=weights)


def test_bad_recordings_are_replaced_named_once_and_counted(make_config, caplog):
    dataset = open_audio(make_config("a", 8, bad=(2, 5), crop_seconds=0.1), part="train")
    with caplog.at_level(logging.WARNING, logger="latentlm.data"):
        batches = list(itertools.islice(make_audio_loader([dataset], batch_size=8, seed=0), 3))
    assert all(batch["audio"].shape[0] == 8 for batch in batches)
    assert not {2, 5} & {key for batch in batches for key in batch["key"].tolist()}
    assert len(caplog.records) == 2
    strict = open_audio(make_config("a", 8, bad=(2, 5), max_bad_records=1), part="train")
    with pytest.raises(TooManyBadRecords, match="2 bad records"):
        next(make_audio_loader([strict], batch_size=8, seed=0))


def test_reading_once_gives_every_readable_recording_in_order(make_config):
    dataset = open_audio(make_config("a", 10, bad=(0, 1, 2, 7)), part="train")
    for workers in (0, 2):
        read = list(read_audio_once(dataset, batch_size=3, num_workers=workers))
        assert [position for position, _ in read] == [6, 9, 10]
        assert [batch["key"].tolist() for _, batch in read] == [[3, 4, 5], [6, 8], [9]]
    continued = [batch["key"].tolist() for _, batch in read_audio_once(dataset, batch_size=3, start=6)]
    assert continued == [[6, 8], [9]]
