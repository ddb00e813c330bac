"""Sound files -> mono waveforms of one rate, under limits.

Nothing is trusted: the header is looked at before anything is decoded, samples are decoded block by block and counted,
and whatever is wrong with a file is a `BadRecord` that says what. libsndfile tells the format from the content, so what
a file is called does not matter.

Shapes: S samples.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

from latentlm.data.records import BadRecord

if TYPE_CHECKING:
    from soundfile import SoundFile

AUDIO_FORMATS = ("WAV", "WAVEX", "RF64", "W64", "FLAC", "OGG", "MP3", "AIFF")
"""The only formats that are decoded (OGG: Vorbis, Opus and FLAC inside). libsndfile knows older ones, little tested."""
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff")
"""By which the files of a folder are found."""

MAX_CHANNELS = 64
MIN_FILE_RATE, MAX_FILE_RATE = 2_000, 768_000
"""Hz. A header with 1 Hz would turn a second of samples into hours."""
MAX_OVERSHOOT = 8.0
"""A float file with samples beyond this was never scaled to [-1, 1] (16-bit numbers kept as floats)."""
MIN_DECODED_RATIO = 0.95
"""A file that yields less of what its header promises is cut short: its transcript would not fit it."""

_BLOCK_VALUES = 2**19
"""Samples times channels that are decoded at a time: 2 MiB, whatever the file holds."""
_MAX_KNOWN_FRAMES = 2**48
"""libsndfile gives 2^63 - 1 for a stream that does not say its length."""


@dataclass(frozen=True)
class AudioHeader:
    """What a sound file says of itself.

    Attributes:
        num_frames: Samples of each channel; None where the file does not say.
        sample_rate: Hz.
        num_channels: 1 is mono.
        format: One of `AUDIO_FORMATS`.
    """

    num_frames: int | None
    sample_rate: int
    num_channels: int
    format: str

    @property
    def seconds(self) -> float | None:
        """Duration; None where the file does not say."""
        return None if self.num_frames is None else self.num_frames / self.sample_rate


def read_header(data: bytes | Path, name: str) -> AudioHeader:
    """What the header of a sound file says, without decoding it.

    Raises:
        BadRecord: If it is no sound file, damaged, or outside the limits of this file.
        ImportError: If the extra `audio` is not installed.
    """
    with _opened(data, name) as file:
        return _header(file, name)


def decode_audio(
    data: bytes | Path,
    name: str,
    *,
    sample_rate: int,
    max_seconds: float,
    offset_seconds: float = 0.0,
    duration_seconds: float | None = None,
) -> Float32[np.ndarray, "S"]:
    """A sound file, or a stretch of it, mixed down to mono, resampled, and clipped to [-1, 1].

    Only the stretch is decoded. Its samples are those of the whole file but for the resampler's edges (some
    milliseconds).

    Args:
        data: An encoded file, or where one lies.
        name: For the error message.
        sample_rate: Of the result, Hz.
        max_seconds: Longer stretches are refused: before decoding where the header tells, else while counting.
        offset_seconds: Where the stretch begins.
        duration_seconds: Its length; None for the rest of the file.

    Returns:
        At least one sample, all finite.

    Raises:
        BadRecord: If it is no sound file, empty, damaged, cut short, too long, holds NaN or infinite samples or samples
            that were never scaled to [-1, 1], or the stretch is not inside it.
        ImportError: If the extra `audio` is not installed.
    """
    blocks = stream_audio(
        data,
        name,
        sample_rate=sample_rate,
        max_seconds=max_seconds,
        offset_seconds=offset_seconds,
        duration_seconds=duration_seconds,
    )
    waveform = np.concatenate([np.zeros(0, dtype=np.float32), *blocks])
    if len(waveform) == 0:
        raise BadRecord(name, f"holds less than one sample at {sample_rate} Hz")
    return waveform


def stream_audio(
    data: bytes | Path,
    name: str,
    *,
    sample_rate: int,
    max_seconds: float,
    offset_seconds: float = 0.0,
    duration_seconds: float | None = None,
) -> Iterator[Float32[np.ndarray, "S"]]:
    """What `decode_audio` gives, in blocks: a recording of hours takes no more memory than one of seconds.

    Arguments and errors as there. What is wrong with later samples shows when they are reached, and that a file is cut
    short at its end.
    """
    with _opened(data, name) as file:
        header = _header(file, name)
        rate = header.sample_rate
        start = round(offset_seconds * rate)
        wanted = _frames_wanted(header, name, start, duration_seconds)
        limit = int(max_seconds * rate)
        if wanted is not None and wanted > limit:
            raise BadRecord(name, f"{wanted / rate:.1f} s of sound, above the limit of {max_seconds:g} s (max_seconds)")
        if start:
            file.seek(start)
        resample = _resampler(rate, sample_rate)
        decoded = 0
        for block in _mono_blocks(file, limit + 1 if wanted is None else wanted, name):
            decoded += len(block)
            if decoded > limit:
                raise BadRecord(name, f"more than the limit of {max_seconds:g} s (max_seconds)")
            yield np.clip(resample(block, False), -1.0, 1.0)  # lossy decoders and the resampler overshoot slightly
    if wanted is not None and decoded < MIN_DECODED_RATIO * wanted:
        raise BadRecord(name, f"cut short: {wanted / rate:.2f} s are promised, {decoded / rate:.2f} s are there")
    yield np.clip(resample(np.zeros(0, dtype=np.float32), True), -1.0, 1.0)


def _frames_wanted(header: AudioHeader, name: str, start: int, duration_seconds: float | None) -> int | None:
    """How many frames a stretch has; None if that shows only at the end of the file."""
    wanted = None if duration_seconds is None else round(duration_seconds * header.sample_rate)
    if header.num_frames is None:
        return wanted
    if header.num_frames == 0:
        raise BadRecord(name, "holds no samples")
    rest = header.num_frames - start
    if rest <= 0 or wanted == 0:
        raise BadRecord(
            name, f"has nothing at {start / header.sample_rate:.3f} s: its header says {header.seconds:.3f} s"
        )
    return rest if wanted is None else min(wanted, rest)


def sound_library() -> Any:
    """The module `soundfile`, or an error that names the extra."""
    try:
        import soundfile
    except ImportError as error:
        raise ImportError("sound files need soundfile and soxr: pip install 'latentlm[audio]'") from error
    return soundfile


def resampling_library() -> Any:
    """The module `soxr`, or an error that names the extra."""
    try:
        import soxr
    except ImportError as error:
        raise ImportError("resampling needs soundfile and soxr: pip install 'latentlm[audio]'") from error
    return soxr


@contextmanager
def _opened(data: bytes | Path, name: str) -> "Iterator[SoundFile]":
    """The open file; what libsndfile has against it, then or later, becomes a BadRecord."""
    soundfile = sound_library()
    try:
        with _open(data, name) as file:
            yield file
    except soundfile.LibsndfileError as error:
        # Its own text names an io.BytesIO object, or says that a file that is there does not exist.
        reason = error.error_string.rstrip(".")
        raise BadRecord(name, f"not a sound file that can be decoded ({', '.join(AUDIO_FORMATS)}): {reason}") from error
    except OSError as error:
        raise BadRecord(name, f"cannot be read ({error.strerror})") from error


def _open(data: bytes | Path, name: str) -> "SoundFile":
    if isinstance(data, Path) and not data.is_file():  # a named pipe would wait for ever
        raise BadRecord(name, "not a regular file")
    if not data if isinstance(data, bytes) else data.stat().st_size == 0:
        raise BadRecord(name, "empty file")
    try:
        return sound_library().SoundFile(io.BytesIO(data) if isinstance(data, bytes) else str(data))
    except TypeError as error:  # soundfile wants to be told all about a file that is called .raw
        raise BadRecord(name, f"a file without a header cannot be decoded ({error})") from error


def _header(file: "SoundFile", name: str) -> AudioHeader:
    if file.format not in AUDIO_FORMATS:
        raise BadRecord(name, f"a sound file of the kind {file.format}; {', '.join(AUDIO_FORMATS)} are decoded")
    if not 1 <= file.channels <= MAX_CHANNELS:
        raise BadRecord(name, f"{file.channels} channels, above the limit of {MAX_CHANNELS}")
    if not MIN_FILE_RATE <= file.samplerate <= MAX_FILE_RATE:
        raise BadRecord(name, f"a rate of {file.samplerate} Hz, outside {MIN_FILE_RATE} to {MAX_FILE_RATE}")
    frames = file.frames if file.frames < _MAX_KNOWN_FRAMES else None
    return AudioHeader(frames, file.samplerate, file.channels, file.format)


def _mono_blocks(file: "SoundFile", num_frames: int, name: str) -> Iterator[Float32[np.ndarray, "S"]]:
    """The next `num_frames` frames or what there is of them, channels averaged."""
    block_frames = max(1, _BLOCK_VALUES // file.channels)
    while num_frames > 0:
        values = file.read(min(block_frames, num_frames), dtype="float32", always_2d=True)  # (frames, channels)
        if len(values) == 0:
            return
        peak = float(np.abs(values).max())
        if not np.isfinite(peak):
            raise BadRecord(name, "holds samples that are NaN or infinite")
        if peak > MAX_OVERSHOOT:
            raise BadRecord(name, f"holds samples up to {peak:g}: a float file that was not scaled to [-1, 1]")
        num_frames -= len(values)
        yield values.mean(axis=1)


def _resampler(file_rate: int, sample_rate: int) -> Any:
    """A function (block, is it the last) -> its samples at `sample_rate`; keeps the filter's state between blocks."""
    if file_rate == sample_rate:
        return lambda block, last: block
    stream = resampling_library().ResampleStream(file_rate, sample_rate, 1, dtype="float32", quality="HQ")
    return lambda block, last: stream.resample_chunk(block, last=last)
