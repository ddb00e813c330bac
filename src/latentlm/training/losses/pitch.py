"""The pitch of recordings, by normalised autocorrelation, and how far a decoder's pitch is from it.

    waveforms ─frames▶ similarity to themselves at every lag ─shortest of the best▶ pitch, and is it voiced

Shapes: B clips, S samples, T frames, L lags.
"""

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
"""-60 dB of full scale: what is quieter has no pitch worth learning."""


@dataclass(frozen=True, kw_only=True)
class PitchTrack:
    """What a recording's frames sound like."""

    pitch: Float[Tensor, "B T"]
    """Hz; of no meaning where it is not voiced."""
    is_voiced: Bool[Tensor, "B T"]


@torch.no_grad()
def track_pitch(
    waveforms: Float[Tensor, "B S"], *, sample_rate: int, hop_length: int, pitch_range: tuple[float, float]
) -> PitchTrack:
    """The pitch around the start of every hop.

    Args:
        waveforms: In [-1, 1].
        sample_rate: Hz.
        hop_length: Samples from one frame to the next; T = S // hop_length.
        pitch_range: Lowest and highest, Hz.
    """
    shortest, longest = (int(sample_rate / pitch) for pitch in reversed(pitch_range))
    size = round(_SECONDS * sample_rate)
    before = (size + longest) // 2
    padded = F.pad(waveforms.float(), (before, size + longest - before))
    num_frames = waveforms.shape[1] // hop_length
    frames = padded.unfold(1, size + longest, hop_length)[:, :num_frames]  # (B, T, size + longest)
    fft_size = 1 << (2 * size + longest - 1).bit_length()
    spectrum, own = torch.fft.rfft(frames, fft_size), torch.fft.rfft(frames[..., :size], fft_size)
    products = torch.fft.irfft(spectrum * own.conj(), fft_size)[..., : longest + 1]  # (B, T, L)
    energies = F.pad(frames.square().cumsum(dim=-1), (1, 0))
    energies = energies[..., size:] - energies[..., : longest + 1]
    similarity = products / (energies * energies[..., :1] + 1e-12).sqrt()
    similarity = similarity[..., shortest:]
    best = similarity.amax(dim=-1, keepdim=True)
    is_peak = F.pad(similarity[..., 1:-1] >= torch.maximum(similarity[..., :-2], similarity[..., 2:]), (1, 1))
    lags = (is_peak & (similarity >= _NEARLY * best)).int().argmax(dim=-1) + shortest
    is_loud = energies[..., 0] > size * _MIN_RMS**2
    return PitchTrack(pitch=sample_rate / lags, is_voiced=(best.squeeze(-1) > _MIN_SIMILARITY) & is_loud)


def pitch_distance(pitch: Float[Tensor, "B T"], track: PitchTrack) -> Float[Tensor, "B"]:
    """Mean distance in octaves over all frames, those counting nothing that are not voiced.

    Args:
        pitch: Predicted, Hz.
        track: Of the recordings.
    """
    octaves = (pitch.log2() - track.pitch.log2()).abs()
    return (octaves * track.is_voiced).mean(dim=1)
