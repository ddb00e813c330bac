"""Crops of whole examples: one length, a place that hangs on seed, epoch and key alone."""

from typing import Any

import pytest
import torch

from latentlm.data.audio import AudioExamples
from latentlm.data.audio.crops import Crops


class Ramps(AudioExamples):
    """Example i counts up from 100 i, and has 5 (i + 1) samples."""

    sample_rate = 100

    def __len__(self) -> int:
        return 4

    def read(self, index: int, *, seed: int, epoch: int) -> dict[str, Any]:
        audio = 100.0 * index + torch.arange(5.0 * (index + 1))
        return {"audio": audio, "num_samples": len(audio), "key": index, "text": "ramp", "speaker": "me"}


def test_every_crop_is_a_part_of_its_example_or_all_of_it() -> None:
    crops = Crops(Ramps(), 10)
    assert len(crops) == 4
    for index in range(4):
        crop = crops[index]
        length = min(10, 5 * (index + 1))
        assert (crop["num_samples"], crop["key"], crop["speaker"]) == (length, index, "me")
        start = crop["audio"][0]
        assert torch.equal(crop["audio"][:length], start + torch.arange(float(length)))
        assert 100 * index <= start <= 100 * index + 5 * (index + 1) - length
        assert not crop["audio"][length:].any()
        assert "text" not in crop


def test_places_change_with_seed_and_epoch_and_reach_both_ends() -> None:
    crops = Crops(Ramps(), 10)
    starts = {
        (seed, epoch): int(crops.read(3, seed=seed, epoch=epoch)["audio"][0]) - 300
        for seed in range(20)
        for epoch in range(10)
    }
    assert set(starts.values()) == set(range(11))
    assert crops.read(3, seed=1, epoch=2)["audio"][0] == 300 + starts[1, 2]


def test_an_empty_crop_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        Crops(Ramps(), 0)
