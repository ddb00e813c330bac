"""Another voice out of a recording: pitch and formants moved by two independent factors, duration kept.

    resample by p ─▶ pitch p, formants p, 1/p as long ─WSOLA▶ the old length ─warp envelope by f/p▶ pitch p, formants f

Pitch is how fast the vocal folds vibrate, formants how long the vocal tract is; speakers differ in both. Few recorded
speakers become many different voices, which is what zero-shot cloning must be trained on.

WSOLA: Verhelst and Roelands 1993. Envelopes: the first quefrencies of the cepstrum (Oppenheim and Schafer).

Shapes: S samples.
"""

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from latentlm.data.audio.decoding import resampling_library

MIN_RATIO, MAX_RATIO = 0.5, 2.0
"""An octave either way; beyond it, nothing sounds like a voice."""

_WINDOW_SECONDS = 0.04
"""At least two periods of the lowest voices (80 Hz)."""
_SEARCH_SECONDS = 0.008
"""A window may be taken this much earlier or later: together more than one period of those."""
_ENVELOPE_SECONDS = 0.002
"""Quefrencies below this make the envelope: shorter than one period of a voice of up to 500 Hz."""
_FLOOR_RATIO = 1e-4
"""-80 dB of the loudest bin: below lies rounding noise, whose envelope means nothing."""
_MAX_GAIN = 10.0
"""Of the warp in one bin, either way (20 dB)."""


def shift_voice(
    waveform: Float[Tensor, "S"], sample_rate: int, *, pitch_ratio: float, formant_ratio: float
) -> Float[Tensor, "S"]:
    """Move pitch and formants of a recording. Deterministic; the level stays.

    Args:
        waveform: In [-1, 1], on the CPU.
        sample_rate: Hz.
        pitch_ratio: New over old fundamental frequency; 1.2 is about three semitones up.
        formant_ratio: New over old resonances; 1.15 is about a man's vocal tract to a woman's.

    Raises:
        ValueError: If a ratio is outside [0.5, 2].
        ImportError: If the extra `audio` is not installed.
    """
    for name, ratio in (("pitch_ratio", pitch_ratio), ("formant_ratio", formant_ratio)):
        if not MIN_RATIO <= ratio <= MAX_RATIO:
            raise ValueError(f"{name} is {ratio}, must be in [{MIN_RATIO}, {MAX_RATIO}]")
    shifted = waveform
    if pitch_ratio != 1:
        samples = waveform.numpy().astype(np.float32)
        faster = resampling_library().resample(samples, sample_rate * pitch_ratio, sample_rate, quality="HQ")
        shifted = torch.from_numpy(stretch(faster, len(samples), sample_rate))
    if formant_ratio != pitch_ratio:
        shifted = warp_envelope(shifted, sample_rate, formant_ratio / pitch_ratio)
    level, new_level = (torch.linalg.vector_norm(x) for x in (waveform, shifted))
    shifted = shifted * (level / new_level.clamp(min=1e-12))
    return shifted / shifted.abs().amax().clamp(min=1.0) if len(shifted) else shifted


def stretch(waveform: Float32[np.ndarray, "_in"], num_samples: int, sample_rate: int) -> Float32[np.ndarray, "_out"]:
    """Change the duration and nothing else: WSOLA.

    Windows are taken from the input at the new pace, each moved to where it best continues the one before, and added
    up with half an overlap.

    Args:
        waveform: At least one sample.
        num_samples: Of the result.
        sample_rate: Hz.
    """
    hop = max(1, round(_WINDOW_SECONDS * sample_rate / 2))
    reach = round(_SEARCH_SECONDS * sample_rate)
    size = 2 * hop
    window = np.hanning(size + 1)[:-1].astype(np.float32)  # periodic: two with half an overlap add up to 1
    num_windows = -(-num_samples // hop) + 1
    # Room for the first window's reach to the left, and for the last one's continuation to the right.
    left, right = hop + reach, 2 * size + reach
    padded = np.pad(waveform, (left, right + hop))
    pace = len(waveform) / num_samples
    result = np.zeros((num_windows + 1) * hop, dtype=np.float32)
    place = left - hop
    for number in range(num_windows):
        if number:
            wished = left - hop + round(number * hop * pace)
            place = _best_place(padded, wished, place + hop, size, reach)
        result[number * hop : number * hop + size] += window * padded[place : place + size]
    return result[hop : hop + num_samples]


def _best_place(padded: np.ndarray, wished: int, natural: int, size: int, reach: int) -> int:
    """Where, around `wished`, the input looks most like what naturally followed the last window."""
    wished = min(wished, len(padded) - size - reach)
    template = padded[natural : natural + size]
    if len(template) < size:
        return wished
    stretch_of_input = padded[wished - reach : wished + reach + size]
    likeness = np.correlate(stretch_of_input, template, mode="valid")  # (2 * reach + 1,)
    energies = np.concatenate([[0.0], np.cumsum(stretch_of_input.astype(np.float64) ** 2)])
    energy = np.maximum(energies[size:] - energies[:-size], 1e-9)
    return wished - reach + int(np.argmax(likeness / np.sqrt(energy)))


def warp_envelope(waveform: Float[Tensor, "S"], sample_rate: int, ratio: float) -> Float[Tensor, "S"]:
    """Move the resonances by a factor and leave the pitch: every frame's spectral envelope is stretched by `ratio`.

    Args:
        waveform: On the CPU.
        sample_rate: Hz.
        ratio: New over old frequency of a resonance.
    """
    fft_size = 2 ** round(np.log2(_WINDOW_SECONDS * sample_rate))
    if len(waveform) <= fft_size // 2:  # too short for one frame with its mirrored edges
        return waveform
    window = torch.hann_window(fft_size)
    spectrum = torch.stft(waveform.float(), fft_size, fft_size // 4, window=window, return_complex=True)  # (F, frames)
    magnitude = spectrum.abs()
    logs = magnitude.clamp(min=float(magnitude.max()) * _FLOOR_RATIO + 1e-12).log()
    cepstrum = torch.fft.irfft(logs, n=fft_size, dim=0)
    kept = round(_ENVELOPE_SECONDS * sample_rate)
    cepstrum[kept : fft_size - kept + 1] = 0
    envelope = torch.fft.rfft(cepstrum, dim=0).real  # (F, frames), log
    bins = torch.arange(len(envelope), dtype=torch.float32)
    sources = (bins / ratio).clamp(max=len(envelope) - 1)
    low = sources.long().clamp(max=len(envelope) - 2)
    weight = (sources - low)[:, None]
    warped = envelope[low] * (1 - weight) + envelope[low + 1] * weight
    gain = (warped - envelope).exp().clamp(1 / _MAX_GAIN, _MAX_GAIN)
    return torch.istft(spectrum * gain, fft_size, fft_size // 4, window=window, length=len(waveform))
