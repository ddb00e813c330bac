"""How loud a clip is, how much of it is silent or clipped, and bringing clips to one level.

Shapes: S samples.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

_FRAME_SECONDS = 0.05
_GATE_DB = 30.0
"""Frames this much below the loudest one are pauses: they do not count towards the level (gating as in ITU-R BS.1770,
without its frequency weighting)."""
_MAX_GAIN_DB = 50.0
"""Anything quieter than this below the target is noise or silence, and is left as it is."""
_FULL_SCALE = 0.999
_CLIPPED_RUN = 3
"""Samples in a row at full scale: a single one may be a peak that just fits."""
_SILENCE_DB = -60.0
_FLOOR = 1e-10


@dataclass(frozen=True)
class LevelReport:
    """What a look at a waveform tells.

    Attributes:
        peak: Largest absolute sample.
        level_db: Active level, dB of full scale; -inf for digital silence.
        silent_ratio: Share of frames below -60 dB of full scale.
        clipped_ratio: Share of samples in runs of three or more at full scale.
    """

    peak: float
    level_db: float
    silent_ratio: float
    clipped_ratio: float


def report_levels(waveform: Float32[np.ndarray, "S"], sample_rate: int) -> LevelReport:
    """Peak, level, silence and clipping of one clip (not empty, in [-1, 1])."""
    frames_db = _frames_db(waveform, sample_rate)
    at_limit = np.abs(waveform) >= _FULL_SCALE
    edges = np.flatnonzero(np.diff(np.concatenate([[False], at_limit, [False]]).astype(np.int8)))
    runs = edges[1::2] - edges[::2]  # each run begins at an even edge and ends before the next odd one
    return LevelReport(
        peak=float(np.abs(waveform).max()),
        level_db=active_level_db(waveform, sample_rate),
        silent_ratio=float((frames_db < _SILENCE_DB).mean()),
        clipped_ratio=float(runs[runs >= _CLIPPED_RUN].sum() / len(waveform)),
    )


def active_level_db(waveform: Float32[np.ndarray, "S"], sample_rate: int) -> float:
    """Root mean square of the frames that are not pauses, dB of full scale; -inf for digital silence."""
    frames_db = _frames_db(waveform, sample_rate)
    loudest = frames_db.max()
    if loudest <= 10 * np.log10(_FLOOR):
        return float("-inf")
    active = frames_db[frames_db >= loudest - _GATE_DB]
    return float(10 * np.log10(np.mean(10 ** (active / 10))))


def normalize_level(waveform: Float32[np.ndarray, "S"], sample_rate: int, level_db: float) -> Float32[np.ndarray, "S"]:
    """Scale a clip to an active level; a gain that would push a peak beyond 1 is reduced to what fits.

    Args:
        waveform: In [-1, 1]. Silence, and what lies more than 50 dB below the level, comes back as it is.
        sample_rate: Hz.
        level_db: dB of full scale, for example -23.
    """
    gain_db = level_db - active_level_db(waveform, sample_rate)
    if gain_db > _MAX_GAIN_DB:
        return waveform
    gain = min(10 ** (gain_db / 20), 1.0 / float(np.abs(waveform).max()))
    return waveform * np.float32(gain)


def _frames_db(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    size = max(1, round(_FRAME_SECONDS * sample_rate))
    if len(waveform) < size:
        powers = np.array([np.mean(waveform.astype(np.float64) ** 2)])
    else:
        whole = waveform[: len(waveform) // size * size].astype(np.float64).reshape(-1, size)
        powers = np.mean(whole**2, axis=1)
    return 10 * np.log10(np.maximum(powers, _FLOOR))
