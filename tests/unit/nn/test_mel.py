"""Mel filters and spectrograms: where the bands lie, what they weigh, and clips of any length."""

import pytest
import torch

from latentlm.nn.mel import magnitude_spectrogram, mel_filter_bank, mel_spectrogram


def tone(frequency: float, num_samples: int = 4000, sample_rate: int = 8000) -> torch.Tensor:
    return torch.sin(2 * torch.pi * frequency * torch.arange(num_samples) / sample_rate)[None]


@pytest.mark.parametrize("scale", ["htk", "slaney"])
def test_filters_are_triangles_between_the_corners(scale):
    filters = mel_filter_bank(16000, 2048, 10, fmin=200.0, fmax=4000.0, scale=scale, norm=None)
    frequencies = torch.linspace(0, 8000, 1025)
    inside = (frequencies > 200) & (frequencies < 4000)
    assert not filters[:, ~inside].any()
    # Neighbours overlap and sum to one between the first centre and the last.
    between = slice(int(filters[0].argmax()) + 1, int(filters[-1].argmax()))
    # float32 rounding of two slopes.
    torch.testing.assert_close(filters.sum(dim=0)[between], torch.ones(between.stop - between.start), atol=1e-5, rtol=0)


def test_slaney_norm_gives_every_filter_the_same_area():
    filters = mel_filter_bank(16000, 8192, 20)
    area = filters.sum(dim=1) * (8000 / 4096)  # weight times hertz
    # The area of a triangle of height 2 / width is 1; sums over bins 2 Hz wide approximate it.
    torch.testing.assert_close(area, torch.ones(20), atol=1e-2, rtol=0)


def test_a_tone_lands_in_the_band_that_holds_its_frequency():
    filters = mel_filter_bank(8000, 512, 20, norm=None)
    bands = mel_spectrogram(tone(1000.0), filters, hop_length=128)[0].mean(dim=1)
    assert bands.argmax() == filters[:, round(1000 / 8000 * 512)].argmax()


def test_frames_are_centred_on_multiples_of_the_hop():
    click = torch.zeros(1, 1000)
    click[0, 400] = 1.0
    frames = magnitude_spectrogram(click, window_length=128, hop_length=100)[0]
    assert frames.shape == (65, 11)
    assert frames[10].argmax() == 4


@pytest.mark.parametrize("num_samples", [1, 50, 64, 65, 200])
def test_clips_shorter_than_the_window_have_a_spectrogram_too(num_samples):
    frames = magnitude_spectrogram(torch.ones(2, num_samples), window_length=128, hop_length=32)
    assert frames.isfinite().all()
    assert frames.shape[:2] == (2, 65)


def test_half_precision_is_computed_in_float32():
    waveforms = tone(440.0)
    exact = magnitude_spectrogram(waveforms.bfloat16().float(), window_length=256, hop_length=64)
    assert torch.equal(magnitude_spectrogram(waveforms.bfloat16(), window_length=256, hop_length=64), exact)


@pytest.mark.parametrize(("fmin", "fmax"), [(0.0, 4001.0), (500.0, 500.0), (-1.0, None)])
def test_bands_that_do_not_fit_the_sample_rate_are_refused(fmin, fmax):
    with pytest.raises(ValueError, match="8000 Hz"):
        mel_filter_bank(8000, 512, 20, fmin=fmin, fmax=fmax)
