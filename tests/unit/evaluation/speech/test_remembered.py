"""A recogniser that remembers reads every clip once, for every judge by itself."""

from pathlib import Path

import pytest
import torch

from latentlm.evaluation.speech.interfaces import Clips, Recogniser
from latentlm.evaluation.speech.remembered import RememberingRecogniser


class Counting:
    """Reads the first sample, and counts what it reads."""

    label = "first sample"

    def __init__(self) -> None:
        self.num_read = 0

    def transcribe(self, clips: Clips, sample_rate: int) -> list[str]:
        self.num_read += len(clips)
        return [f"{float(clip[0])} at {sample_rate}" for clip in clips]


def clip(value: float) -> torch.Tensor:
    return torch.full((5,), value)


def test_every_clip_is_read_once_in_any_order_and_by_any_process(tmp_path: Path) -> None:
    inner = Counting()
    judge = RememberingRecogniser(inner, tmp_path / "new" / "texts.sqlite", fingerprint="a")
    assert isinstance(judge, Recogniser)
    assert judge.label == "first sample"
    assert judge.transcribe([clip(1.0), clip(2.0), clip(1.0)], 8000) == ["1.0 at 8000", "2.0 at 8000", "1.0 at 8000"]
    assert inner.num_read == 2
    again = RememberingRecogniser(inner, tmp_path / "new" / "texts.sqlite", fingerprint="a")
    assert again.transcribe([clip(2.0), clip(3.0)], 8000) == ["2.0 at 8000", "3.0 at 8000"]
    assert inner.num_read == 3
    assert again.transcribe([], 8000) == []


def test_another_rate_or_another_judge_is_another_reading(tmp_path: Path) -> None:
    inner = Counting()
    for fingerprint, rate in (("a", 8000), ("a", 16000), ("b", 8000)):
        judge = RememberingRecogniser(inner, tmp_path / "texts.sqlite", fingerprint=fingerprint)
        assert judge.transcribe([clip(1.0)], rate) == [f"1.0 at {rate}"]
    assert inner.num_read == 3


def test_many_clips_are_found_again(tmp_path: Path) -> None:
    inner = Counting()
    judge = RememberingRecogniser(inner, tmp_path / "texts.sqlite", fingerprint="a")
    clips = [clip(float(number)) for number in range(1201)]
    assert judge.transcribe(clips, 8000) == judge.transcribe(clips, 8000)
    assert inner.num_read == 1201


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "texts.sqlite").write_bytes(b"no database at all, but long enough to be looked at" * 100)
    with pytest.raises(ValueError, match="is a cache, and may be deleted"):
        RememberingRecogniser(Counting(), tmp_path / "texts.sqlite", fingerprint="a")
