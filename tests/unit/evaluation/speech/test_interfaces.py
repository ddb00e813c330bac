"""Rates, bandwidths and silence: what every judge of speech does with a clip first."""

import math

import pytest
import torch

from latentlm.evaluation.speech.interfaces import Unscorable, limit_bandwidth, peak, refuse_silence, resample

pytest.importorskip("soxr")


def tone(frequency: float, num_samples: int, sample_rate: int) -> torch.Tensor:
    return torch.sin(2 * torch.pi * frequency * torch.arange(num_samples) / sample_rate)


def test_a_tone_stays_the_same_tone_at_another_rate():
    there = resample(tone(440.0, 8000, 8000), 8000, 24000)
    assert len(there) == 24000
    inside = slice(2000, 22000)  # the resampler's filter rings at the ends
    # The filter's ripple in the pass band.
    torch.testing.assert_close(there[inside], tone(440.0, 24000, 24000)[inside], atol=1e-3, rtol=0)


@pytest.mark.parametrize("num_samples", [0, 1, 7, 801])
def test_clips_of_any_length_have_the_length_that_belongs_to_the_rate(num_samples):
    assert len(resample(torch.zeros(num_samples), 8000, 16000)) == 2 * num_samples


@pytest.mark.parametrize("num_samples", [1, 999, 1000, 4801])
def test_limiting_the_bandwidth_keeps_length_and_low_tones_and_removes_high_ones(num_samples):
    low, high = (tone(frequency, num_samples, 24000) for frequency in (1000.0, 6000.0))
    limited = limit_bandwidth(low + high, 24000, 3700.0)
    assert len(limited) == num_samples
    if num_samples > 4000:
        inside = slice(600, -600)
        # The filter's ripple, and 6 kHz damped by it.
        torch.testing.assert_close(limited[inside], low[inside], atol=2e-3, rtol=0)


def test_a_bandwidth_that_the_rate_does_not_pass_changes_nothing():
    clip = tone(1000.0, 500, 8000)
    assert torch.equal(limit_bandwidth(clip, 8000, 4000.0), clip)


def test_silence_and_values_that_are_not_finite_are_told_apart():
    assert peak(torch.zeros(0)) == 0
    for silent in (torch.zeros(10), torch.zeros(0), torch.full((10,), 5e-5)):
        with pytest.raises(Unscorable, match="silence"):
            refuse_silence(silent)
    for broken in (math.nan, math.inf):
        with pytest.raises(ValueError, match="not finite"):
            refuse_silence(torch.tensor([0.1, broken]))
