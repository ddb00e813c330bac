"""Small recordings that the tests of this room share."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile


def _tone(hertz: float, seconds: float, sample_rate: int = 8000, peak: float = 0.5) -> np.ndarray:
    times = np.arange(round(seconds * sample_rate)) / sample_rate
    return (peak * np.sin(2 * np.pi * hertz * times)).astype(np.float32)


def _encoded(waveform: np.ndarray, sample_rate: int = 8000, kind: str = "FLAC", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, sample_rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def _write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.fixture
def tone() -> Callable[..., np.ndarray]:
    """`tone(hertz, seconds, sample_rate, peak)`: float32 samples."""
    return _tone


@pytest.fixture
def encoded() -> Callable[..., bytes]:
    """`encoded(waveform, sample_rate, kind, subtype)`: the bytes of a sound file."""
    return _encoded


@pytest.fixture
def write() -> Callable[..., Path]:
    """`write(path, data)`: a file with its folders."""
    return _write
