"""Short-time spectra and mel filter banks: what losses, metrics and pictures of sound look at.

    waveform ─centred frames, Hann window, FFT▶ spectrum ─magnitude▶ (B, bins, frames) ─filter bank▶ (B, mels, frames)

Everything is float32 whatever the autocast type: a spectrum spans more orders of magnitude than 16 bits hold.

Shapes: B batch, S samples, bins n_fft // 2 + 1.
"""

import contextlib
import math
from typing import Literal

import torch
from jaxtyping import Complex64, Float
from torch import Tensor
from torch.nn import functional as F

MelScale = Literal["slaney", "htk"]
"""slaney: linear below 1 kHz, logarithmic above (Slaney's Auditory Toolbox); htk: 2595 log10(1 + f / 700)."""

# Slaney's scale: 200/3 Hz per mel up to 1 kHz, then 27 mels per factor of 6.4.
_SLANEY_LINEAR_HZ = 200 / 3
_SLANEY_BREAK_HZ = 1000.0
_SLANEY_LOG_STEP = math.log(6.4) / 27


def mel_filter_bank(
    sample_rate: int,
    n_fft: int,
    num_mels: int,
    fmin: float = 0.0,
    fmax: float | None = None,
    *,
    scale: MelScale = "slaney",
    norm: Literal["slaney"] | None = "slaney",
) -> Float[Tensor, "num_mels bins"]:
    """Triangular filters, evenly spaced on a mel scale: rows to multiply a spectrum with.

    Where filters are narrower than a bin (many mels over a short window) some hold no bin at all and are zero.

    Args:
        sample_rate: Hz.
        n_fft: Samples per frame; the spectrum has n_fft // 2 + 1 bins.
        num_mels: Filters.
        fmin: Lower edge of the first filter, Hz.
        fmax: Upper edge of the last filter, Hz; None is half the sample rate.
        scale: Which mel scale.
        norm: "slaney" gives every triangle the area 1 (per Hz); None the height 1.

    Raises:
        ValueError: If a size is below 1 or the edges do not lie in 0 <= fmin < fmax <= sample_rate / 2.
    """
    nyquist = sample_rate / 2
    fmax = nyquist if fmax is None else fmax
    if min(sample_rate, n_fft, num_mels) < 1:
        raise ValueError("sample_rate, n_fft and num_mels must be at least 1")
    if not 0 <= fmin < fmax <= nyquist:
        raise ValueError(
            f"mel filters from {fmin:g} to {fmax:g} Hz do not fit: at {sample_rate} Hz sound ends at {nyquist:g} Hz"
        )
    bins = torch.linspace(0, nyquist, n_fft // 2 + 1, dtype=torch.float64)
    mels = torch.linspace(_hz_to_mel(fmin, scale), _hz_to_mel(fmax, scale), num_mels + 2, dtype=torch.float64)
    corners = torch.tensor([_mel_to_hz(mel, scale) for mel in mels.tolist()], dtype=torch.float64)
    left, centre, right = corners[:-2, None], corners[1:-1, None], corners[2:, None]  # (num_mels, 1) each
    rising, falling = (bins - left) / (centre - left), (right - bins) / (right - centre)
    filters = torch.minimum(rising, falling).clamp_min(0)
    if norm == "slaney":
        filters = filters * 2 / (right - left)
    return filters.float()


def spectrogram(
    waveforms: Float[Tensor, "B S"], *, window_length: int, hop_length: int
) -> Complex64[Tensor, "B bins frames"]:
    """Short-time Fourier transform with a periodic Hann window; frame t is centred on sample t · hop_length.

    The ends are mirrored; a clip shorter than the window is first filled up with zeros.

    Args:
        waveforms: Any float type.
        window_length: Samples per frame, and size of the FFT.
        hop_length: Samples between frames.
    """
    with _without_autocast(waveforms.device):
        waveforms = waveforms.float()
        missing = window_length - waveforms.shape[1]
        if missing > 0:
            waveforms = F.pad(waveforms, (0, missing))
        window = torch.hann_window(window_length, device=waveforms.device)
        return torch.stft(
            waveforms, window_length, hop_length, window=window, center=True, pad_mode="reflect", return_complex=True
        )


def magnitude_spectrogram(
    waveforms: Float[Tensor, "B S"], *, window_length: int, hop_length: int
) -> Float[Tensor, "B bins frames"]:
    """Absolute value of `spectrogram`; its gradient is zero, not undefined, where the spectrum is."""
    return spectrogram(waveforms, window_length=window_length, hop_length=hop_length).abs()


def mel_spectrogram(
    waveforms: Float[Tensor, "B S"], filters: Float[Tensor, "num_mels bins"], *, hop_length: int
) -> Float[Tensor, "B num_mels frames"]:
    """Magnitudes gathered by mel filters, not yet on a logarithmic scale.

    Args:
        waveforms: Any float type.
        filters: From `mel_filter_bank`; their bins say how long the window is.
        hop_length: Samples between frames.
    """
    window_length = 2 * (filters.shape[1] - 1)
    with _without_autocast(waveforms.device):
        return filters @ magnitude_spectrogram(waveforms, window_length=window_length, hop_length=hop_length)


def _without_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    # The meta device, on which FLOPs are counted, knows no autocast at all.
    return contextlib.nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def _hz_to_mel(hertz: float, scale: MelScale) -> float:
    if scale == "htk":
        return 2595 * math.log10(1 + hertz / 700)
    if hertz < _SLANEY_BREAK_HZ:
        return hertz / _SLANEY_LINEAR_HZ
    return _SLANEY_BREAK_HZ / _SLANEY_LINEAR_HZ + math.log(hertz / _SLANEY_BREAK_HZ) / _SLANEY_LOG_STEP


def _mel_to_hz(mel: float, scale: MelScale) -> float:
    if scale == "htk":
        return 700 * (10 ** (mel / 2595) - 1)
    break_mel = _SLANEY_BREAK_HZ / _SLANEY_LINEAR_HZ
    if mel < break_mel:
        return mel * _SLANEY_LINEAR_HZ
    return _SLANEY_BREAK_HZ * math.exp((mel - break_mel) * _SLANEY_LOG_STEP)
