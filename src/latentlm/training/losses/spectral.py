"""How alike two sounds are: multi-scale log-mel distance, multi-scale STFT distance, waveform error, SI-SDR.

    both waveforms ─STFT, several window lengths▶ magnitudes ─mel filters, log10▶ ─mean |difference|▶ sum over scales

Short windows see when something happens, long ones at which pitch. The default scales, floor and units are DAC's
(Kumar et al. 2023, "High-Fidelity Audio Compression with Improved RVQGAN") for 24 kHz, so that its weights carry over:
15 for this mel distance beside 1 and 2 for the adversarial and the feature matching loss.

Everything is float32 whatever the autocast type. Padding at the end of a short clip counts as the silence that it is.

Shapes: B batch, S samples.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from latentlm.nn.mel import magnitude_spectrogram, mel_filter_bank, mel_spectrogram

# A window advances by a quarter of its length, as in DAC: Hann windows then overlap evenly.
_HOPS_PER_WINDOW = 4

# Silence against silence is 0 dB, not undefined.
_SMALLEST_ENERGY = 1e-8


@dataclass(frozen=True, kw_only=True)
class MelLossConfig:
    """The scales of the log-mel distance."""

    weight: float = 15.0
    """Times the sum over scales; with a balancer its share."""
    window_lengths: tuple[int, ...] = (32, 64, 128, 256, 512, 1024, 2048)
    """Samples per frame."""
    num_mels: tuple[int, ...] = (5, 10, 20, 40, 80, 160, 320)
    """Mel filters at each scale."""
    max_frequency: float | None = None
    """Upper edge of the filters, Hz: what a narrow corpus has nothing above. null: half the sample rate."""
    floor: float = 1e-5
    """Smaller magnitudes count as this one: silence has a logarithm."""

    def __post_init__(self) -> None:
        _check_scales(self.weight, self.window_lengths, self.floor)
        if len(self.num_mels) != len(self.window_lengths):
            raise ValueError(
                f"there are {len(self.window_lengths)} window_lengths but {len(self.num_mels)} num_mels; "
                "give one number of filters for each window"
            )


@dataclass(frozen=True, kw_only=True)
class STFTLossConfig:
    """The scales of the STFT distance, without mel filters: finer at high frequencies."""

    weight: float = 1.0
    """Times the sum over scales; with a balancer its share."""
    window_lengths: tuple[int, ...] = (512, 2048)
    """Samples per frame; DAC's."""
    floor: float = 1e-5
    """Smaller magnitudes count as this one."""

    def __post_init__(self) -> None:
        _check_scales(self.weight, self.window_lengths, self.floor)


def _check_scales(weight: float, window_lengths: tuple[int, ...], floor: float) -> None:
    if weight <= 0:
        raise ValueError(f"a spectral loss has weight {weight}; leave it out (null) rather than at zero")
    if not window_lengths or min(window_lengths) < _HOPS_PER_WINDOW or any(length % 2 for length in window_lengths):
        raise ValueError(f"window_lengths are {window_lengths}; give even numbers of at least {_HOPS_PER_WINDOW}")
    if floor <= 0:
        raise ValueError(f"floor is {floor}, but the logarithm needs something above zero")


class MultiScaleMelDistance(nn.Module):
    """Sum over scales of the mean |log10 mel(x̂) - log10 mel(x)|; the filters are constants that no checkpoint holds.

    Args:
        config: The scales.
        sample_rate: Of the waveforms, Hz.

    Raises:
        ValueError: If `max_frequency` lies above half the sample rate.
    """

    def __init__(self, config: MelLossConfig, *, sample_rate: int) -> None:
        super().__init__()
        self.config = config
        for window_length, num_mels in zip(config.window_lengths, config.num_mels, strict=True):
            filters = mel_filter_bank(sample_rate, window_length, num_mels, fmax=config.max_frequency)
            self.register_buffer(f"filters_{window_length}", filters, persistent=False)

    def forward(self, one: Float[Tensor, "B S"], other: Float[Tensor, "B S"]) -> Float[Tensor, "B"]:
        """Distance of each pair of waveforms; clips shorter than a window are filled up with zeros."""
        with torch.autocast(one.device.type, enabled=False):
            distance = torch.zeros(len(one), device=one.device)
            for window_length in self.config.window_lengths:
                difference = self._log_mels(one, window_length) - self._log_mels(other, window_length)
                distance = distance + difference.abs().mean(dim=(1, 2))
            return distance

    def _log_mels(self, waveforms: Tensor, window_length: int) -> Tensor:
        filters = self.get_buffer(f"filters_{window_length}")
        mels = mel_spectrogram(waveforms, filters, hop_length=window_length // _HOPS_PER_WINDOW)
        return mels.clamp_min(self.config.floor).log10()  # (B, mels, frames)


class MultiScaleSTFTDistance(nn.Module):
    """Sum over scales of the mean |log10 |X̂|² - log10 |X|²| + the mean ||X̂| - |X||, as in DAC.

    Args:
        config: The scales.
    """

    def __init__(self, config: STFTLossConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, one: Float[Tensor, "B S"], other: Float[Tensor, "B S"]) -> Float[Tensor, "B"]:
        """Distance of each pair of waveforms; clips shorter than a window are filled up with zeros."""
        distance = torch.zeros(len(one), device=one.device)
        for window_length in self.config.window_lengths:
            hop_length = window_length // _HOPS_PER_WINDOW
            spectra = [
                magnitude_spectrogram(waveforms, window_length=window_length, hop_length=hop_length)
                for waveforms in (one, other)
            ]
            logs = [2 * spectrum.clamp_min(self.config.floor).log10() for spectrum in spectra]
            distance = distance + (logs[0] - logs[1]).abs().mean(dim=(1, 2))
            distance = distance + (spectra[0] - spectra[1]).abs().mean(dim=(1, 2))
        return distance


def waveform_distance(one: Float[Tensor, "B S"], other: Float[Tensor, "B S"]) -> Float[Tensor, "B"]:
    """Mean absolute difference of the samples of each pair."""
    return (one.float() - other.float()).abs().mean(dim=1)


def si_sdr(estimates: Float[Tensor, "B S"], references: Float[Tensor, "B S"]) -> Float[Tensor, "B"]:
    """Scale-invariant signal-to-distortion ratio of each pair, in dB (Le Roux et al. 2019, "SDR - half-baked ...?").

    10 log10(|a x|² / |a x - x̂|²) with a = <x̂, x> / |x|², both without their mean.

    Args:
        estimates: x̂.
        references: x. A silent one has no direction: every estimate of it, silence too, is at 0 dB or below.
    """
    estimates = estimates.float() - estimates.float().mean(dim=1, keepdim=True)
    references = references.float() - references.float().mean(dim=1, keepdim=True)
    energy = references.square().sum(dim=1, keepdim=True) + _SMALLEST_ENERGY
    scale = (estimates * references).sum(dim=1, keepdim=True) / energy
    target = scale * references
    signal, distortion = target.square().sum(dim=1), (estimates - target).square().sum(dim=1)
    return 10 * ((signal + _SMALLEST_ENERGY) / (distortion + _SMALLEST_ENERGY)).log10()
