"""Waveforms -> 16-bit WAV files and streams. No library needed: a WAV header is 44 bytes.

Shapes: S samples.
"""

import struct
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from latentlm.storage import write_file_atomically

_UNKNOWN_LENGTH = 0xFFFFFFFF
"""In the two length fields of a stream: players read on to its end."""
_HEADER_BYTES = 44
_BYTES_PER_SAMPLE = 2
_MAX_SAMPLES = (_UNKNOWN_LENGTH - _HEADER_BYTES) // _BYTES_PER_SAMPLE


def wav_header(sample_rate: int, num_samples: int | None) -> bytes:
    """The 44 bytes before the samples of a mono 16-bit WAV file (RIFF, a `fmt ` and a `data` chunk).

    Args:
        sample_rate: Hz.
        num_samples: How many follow; None if that is not known yet.

    Raises:
        ValueError: If there are more samples than the format can count (12 hours at 48 kHz).
    """
    if num_samples is not None and not 0 <= num_samples <= _MAX_SAMPLES:
        raise ValueError(f"a WAV file holds at most {_MAX_SAMPLES:,} samples, not {num_samples:,}; write several")
    data_bytes = _UNKNOWN_LENGTH if num_samples is None else num_samples * _BYTES_PER_SAMPLE
    riff_bytes = _UNKNOWN_LENGTH if num_samples is None else data_bytes + _HEADER_BYTES - 8
    pcm, mono = 1, 1
    bytes_per_second = sample_rate * _BYTES_PER_SAMPLE
    form = struct.pack("<HHIIHH", pcm, mono, sample_rate, bytes_per_second, _BYTES_PER_SAMPLE, 8 * _BYTES_PER_SAMPLE)
    return struct.pack("<4sI4s4sI16s4sI", b"RIFF", riff_bytes, b"WAVE", b"fmt ", 16, form, b"data", data_bytes)


def pcm_bytes(waveform: Float[Tensor, "S"]) -> bytes:
    """Samples as little-endian 16-bit integers; what lies outside [-1, 1] is clipped.

    Raises:
        ValueError: If a sample is NaN or infinite.
    """
    samples = waveform.detach().cpu().float()
    if not torch.isfinite(samples).all():
        raise ValueError("the waveform holds NaN or infinite samples; it is not written")
    return (samples.clamp(-1.0, 1.0) * 32767.0).round().numpy().astype(np.dtype("<i2")).tobytes()


def write_wav(path: Path, waveform: Float[Tensor, "S"], sample_rate: int) -> None:
    """Write a mono 16-bit WAV file; it appears under its name when it is whole.

    Args:
        path: An existing file is replaced.
        waveform: In [-1, 1]; any device and float type.
        sample_rate: Hz.

    Raises:
        ValueError: If a sample is NaN or infinite, or there are too many.
        StorageError: If the disk refuses.
    """
    write_file_atomically(path, wav_header(sample_rate, len(waveform)) + pcm_bytes(waveform))


class WavEncoder:
    """Waveform chunks -> bytes for a player or a pipe, from the first chunk on.

    Args:
        sample_rate: Hz.
        container: `wav` begins with a header of unknown length; `pcm` is samples alone.
    """

    def __init__(self, sample_rate: int, container: Literal["wav", "pcm"] = "wav") -> None:
        self._pending = wav_header(sample_rate, None) if container == "wav" else b""

    def encode(self, chunk: Float[Tensor, "S"]) -> bytes:
        """The bytes that follow the earlier ones; a chunk may be empty.

        Raises:
            ValueError: If a sample is NaN or infinite.
        """
        data = self._pending + pcm_bytes(chunk)
        self._pending = b""
        return data
