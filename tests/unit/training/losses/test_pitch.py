"""The pitch of known sounds is found, and what has none is told."""

import math

import pytest
import torch
from torch import Tensor

from latentlm.nn.pitch import PitchTrack, PitchTracker
from latentlm.training.losses.pitch import pitch_distance

RATE, HOP, RANGE = 8000, 50, (60.0, 400.0)


def vowel(pitch: float, *, seconds: float = 0.5) -> Tensor:
    """Harmonics of falling strength with a formant at 700 Hz."""
    time = torch.arange(int(seconds * RATE), dtype=torch.float64) / RATE
    harmonics = torch.arange(1, int(3500 / pitch) + 1, dtype=torch.float64)
    strengths = 1 / harmonics + torch.exp(-(((harmonics * pitch - 700) / 200) ** 2))
    tones = torch.cos(2 * math.pi * pitch * harmonics[:, None] * time + harmonics[:, None])
    return (0.05 * strengths[:, None] * tones).sum(dim=0).float()


def track(*clips: Tensor) -> PitchTrack:
    return PitchTracker(RATE, RANGE).of_clips(torch.stack(clips), hop_length=HOP)


@pytest.mark.parametrize("pitch", [70.0, 110.0, 173.0, 240.0, 380.0])
def test_the_pitch_of_a_vowel_is_found(pitch: float) -> None:
    found = track(vowel(pitch))
    inner = slice(5, -8)  # at the ends a frame reaches into silence
    assert found.pitch.shape == (1, 80)
    assert found.is_voiced[0, inner].all()
    # A lag is a whole number of samples: at 380 Hz, 21 of them, half a sample is 2.4%.
    assert (found.pitch[0, inner] / pitch - 1).abs().max() < 0.03


def test_noise_and_silence_are_not_voiced() -> None:
    noise = 0.1 * torch.randn(4000, generator=torch.Generator().manual_seed(0))
    found = track(noise, torch.zeros(4000), 1e-4 * vowel(110.0))
    assert found.is_voiced[0].float().mean() < 0.05
    assert not found.is_voiced[1:].any()


def test_a_pitch_that_moves_is_followed() -> None:
    time = torch.arange(8000, dtype=torch.float64) / RATE
    phase = 2 * math.pi * (100 * time + 50 * time**2)  # from 100 to 200 Hz within a second
    clip = sum(torch.cos(k * phase + k) / k for k in range(1, 12))
    found = track(0.1 * clip.float())
    truth = 100 + 100 * torch.arange(160) * HOP / RATE
    inner = slice(5, -8)
    assert (found.pitch[0, inner] / truth[inner] - 1).abs().max() < 0.05


def test_the_distance_counts_octaves_of_voiced_frames() -> None:
    known = PitchTrack(
        pitch=torch.tensor([[100.0, 100.0, 100.0, 100.0]]), is_voiced=torch.tensor([[True, True, False, False]])
    )
    predicted = torch.tensor([[200.0, 100.0, 400.0, 50.0]])
    assert pitch_distance(predicted, known).tolist() == [0.25]
