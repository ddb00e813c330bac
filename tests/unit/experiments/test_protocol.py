"""What a protocol remembers between two lives."""

from pathlib import Path

import pytest
import torch

from latentlm.experiments import Stopwatch, remembered
from latentlm.experiments.stopwatch import read_seconds


def refuse() -> None:
    raise AssertionError("computed twice")


def test_a_remembered_value_is_computed_once_and_is_the_same_both_times(tmp_path: Path) -> None:
    first = remembered(tmp_path / "new", "scores", lambda: {"pair": (1, 2.5), "name": "ä"})
    assert first == {"pair": [1, 2.5], "name": "ä"}
    assert remembered(tmp_path / "new", "scores", refuse) == first


def test_remembered_tensors_come_back_to_the_bit(tmp_path: Path) -> None:
    images = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    first = remembered(tmp_path, "images", lambda: {"images": images})
    assert torch.equal(first["images"], images)
    assert torch.equal(remembered(tmp_path, "images", refuse)["images"], images)
    assert [path.name for path in tmp_path.iterdir()] == ["images.safetensors"], "no temporary file stays"


def test_what_json_cannot_hold_is_refused_and_not_remembered(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="score cannot be recorded: Out of range float"):
        remembered(tmp_path, "score", lambda: {"nan": float("nan")})
    with pytest.raises(ValueError, match="score cannot be recorded: Object of type"):
        remembered(tmp_path, "score", lambda: [object()])
    assert remembered(tmp_path, "score", lambda: 1) == 1


def test_a_stopwatch_adds_to_what_it_counted_before(tmp_path: Path) -> None:
    path = tmp_path / "new" / "seconds.json"
    assert read_seconds(path) == 0
    with Stopwatch(path):
        pass
    path.write_text("100.0\n")
    with Stopwatch(path, every=0.001) as watch:
        assert watch.seconds >= 100
    assert read_seconds(path) >= 100
