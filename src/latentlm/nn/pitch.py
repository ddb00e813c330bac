"""The pitch of sounds, by normalised autocorrelation.

    frames ─similarity to themselves at every lag▶ ─shortest lag that is nearly the best▶ pitch, and is it voiced

Shapes: B clips, S samples, T frames, n samples of a frame, L lags.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

_SECONDS = 0.04
"""Of sound that is compared with itself: two to three periods of a low voice."""
_MIN_SIMILARITY = 0.6
"""Less is not voiced."""
_NEARLY = 0.95
"""Of the best similarity: twice the period is as like as the period, and a hair better by chance."""
_MIN_RMS = 1e-3
"""-60 dB of full scale: what is quieter has no pitch."""


@dataclass(frozen=True, kw_only=True)
class PitchTrack:
    """How high frames sound."""

    pitch: Float[Tensor, "B T"]
    """Hz; of no meaning where it is not voiced."""
    is_voiced: Bool[Tensor, "B T"]


@dataclass(frozen=True)
class PitchTracker:
    """Finds the pitch of frames.

    Attributes:
        sample_rate: Hz.
        pitch_range: Lowest and highest pitch, Hz.
    """

    sample_rate: int
    pitch_range: tuple[float, float]

    @property
    def num_compared(self) -> int:
        """Samples that are compared with later ones."""
        return round(_SECONDS * self.sample_rate)

    @property
    def longest_lag(self) -> int:
        """Samples of the longest period."""
        return int(self.sample_rate / self.pitch_range[0])

    @property
    def frame_length(self) -> int:
        """Samples of a frame."""
        return self.num_compared + self.longest_lag

    @torch.no_grad()
    def of_frames(self, frames: Float[Tensor, "B T n"]) -> PitchTrack:
        """The pitch of frames of `frame_length` samples, each by itself."""
        size, longest, shortest = self.num_compared, self.longest_lag, int(self.sample_rate / self.pitch_range[1])
        fft_size = 1 << (2 * size + longest - 1).bit_length()
        spectrum, own = torch.fft.rfft(frames, fft_size), torch.fft.rfft(frames[..., :size], fft_size)
        products = torch.fft.irfft(spectrum * own.conj(), fft_size)[..., : longest + 1]  # (B, T, L)
        energies = F.pad(frames.square().cumsum(dim=-1), (1, 0))
        energies = energies[..., size:] - energies[..., : longest + 1]
        similarity = (products / (energies * energies[..., :1] + 1e-12).sqrt())[..., shortest:]
        best = similarity.amax(dim=-1, keepdim=True)
        is_peak = similarity[..., 1:-1] >= torch.maximum(similarity[..., :-2], similarity[..., 2:])
        lags = (F.pad(is_peak, (1, 1)) & (similarity >= _NEARLY * best)).int().argmax(dim=-1) + shortest
        is_loud = energies[..., 0] > size * _MIN_RMS**2
        return PitchTrack(pitch=self.sample_rate / lags, is_voiced=(best.squeeze(-1) > _MIN_SIMILARITY) & is_loud)

    def of_clips(self, waveforms: Float[Tensor, "B S"], *, hop_length: int) -> PitchTrack:
        """The pitch around the start of every hop of clips in [-1, 1]; T = S // hop_length."""
        before = self.frame_length // 2
        padded = F.pad(waveforms.float(), (before, self.frame_length - before))
        num_frames = waveforms.shape[1] // hop_length
        return self.of_frames(padded.unfold(1, self.frame_length, hop_length)[:, :num_frames])

    def features(self, track: PitchTrack) -> Float[Tensor, "B T 2"]:
        """For a network: octaves from the middle of the range, 0 where it is not voiced; and whether it is."""
        middle = math.log2(self.pitch_range[0] * self.pitch_range[1]) / 2
        return torch.stack([(track.pitch.log2() - middle) * track.is_voiced, track.is_voiced.float()], dim=-1)
