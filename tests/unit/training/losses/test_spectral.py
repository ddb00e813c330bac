"""Spectral losses: against librosa and plain forms, on short and silent clips, in reduced precision."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from latentlm.nn.mel import mel_filter_bank, mel_spectrogram
from latentlm.training.losses.spectral import (
    MelLossConfig,
    MultiScaleMelDistance,
    MultiScaleSTFTDistance,
    STFTLossConfig,
    si_sdr,
    waveform_distance,
)

SMALL = MelLossConfig(window_lengths=(32, 256), num_mels=(5, 40))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.1


@pytest.mark.filterwarnings("ignore:Empty filters")  # DAC's many filters over short windows
@pytest.mark.parametrize("scale", ["slaney", "htk"])
@pytest.mark.parametrize(("sample_rate", "n_fft", "num_mels"), [(24000, 2048, 320), (24000, 32, 5), (8000, 512, 40)])
def test_the_filter_bank_is_librosas(scale, sample_rate: int, n_fft: int, num_mels: int) -> None:
    librosa = pytest.importorskip("librosa")
    ours = mel_filter_bank(sample_rate, n_fft, num_mels, fmin=60.0, fmax=3500.0, scale=scale)
    theirs = librosa.filters.mel(sr=sample_rate, n_fft=n_fft, n_mels=num_mels, fmin=60, fmax=3500, htk=scale == "htk")
    # Both compute in float64 and round to float32.
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-7)


def test_the_mel_spectrogram_is_librosas() -> None:
    librosa = pytest.importorskip("librosa")
    waveform = noise(3000)
    ours = mel_spectrogram(waveform[None], mel_filter_bank(24000, 512, 40), hop_length=128)[0]
    theirs = librosa.feature.melspectrogram(
        y=waveform.numpy(), sr=24000, n_fft=512, hop_length=128, n_mels=40, power=1.0, pad_mode="reflect"
    )
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-5)  # float32 FFTs of 512 points


def test_the_mel_distance_is_its_formula() -> None:
    one, other = noise(2, 2, 1000)
    expected = torch.zeros(2)
    for length, num_mels in ((32, 5), (256, 40)):
        filters = mel_filter_bank(8000, length, num_mels)
        window = torch.hann_window(length)
        logs = []
        for waveforms in (one, other):
            spectra = torch.stft(waveforms, length, length // 4, window=window, return_complex=True).abs()
            logs.append(torch.einsum("mf,bft->bmt", filters, spectra).clamp(1e-5).log10())
        expected += (logs[0] - logs[1]).abs().mean(dim=(1, 2))
    distance = MultiScaleMelDistance(SMALL, sample_rate=8000)(one, other)
    assert expected.min() > 0.1
    assert torch.allclose(distance, expected, rtol=1e-5)  # float32 sums in another order


def test_the_default_scales_are_dacs() -> None:
    config = MelLossConfig()
    assert config.window_lengths == tuple(2**power for power in range(5, 12))
    assert config.num_mels == tuple(5 * 2**power for power in range(7))
    distance = MultiScaleMelDistance(config, sample_rate=24000)
    assert not distance.state_dict()
    assert distance(noise(1, 24000), noise(1, 24000)).item() == 0


def test_a_factor_of_ten_in_level_costs_one_per_scale_above_the_floor() -> None:
    config = MelLossConfig(window_lengths=(256,), num_mels=(10,))
    waveforms = noise(1, 4000)
    distance = MultiScaleMelDistance(config, sample_rate=8000)(waveforms, waveforms / 10)
    assert distance.item() == pytest.approx(1, rel=1e-5)  # log10


def test_sound_above_the_highest_filter_is_not_heard() -> None:
    time = torch.arange(4800) / 24000
    high = (torch.sin(2 * math.pi * 6000 * time) * torch.hann_window(4800))[None]  # without clicks at its ends
    silence = torch.zeros_like(high)
    config = MelLossConfig(window_lengths=(1024,), num_mels=(80,), floor=1e-2)
    deaf = MelLossConfig(window_lengths=(1024,), num_mels=(80,), floor=1e-2, max_frequency=4000.0)
    heard = MultiScaleMelDistance(config, sample_rate=24000)(high, silence)
    # What leaks through the window lies below the floor.
    assert heard.item() > 0.02  # two of 80 filters
    assert MultiScaleMelDistance(deaf, sample_rate=24000)(high, silence).item() < 0.01 * heard.item()
    with pytest.raises(ValueError, match="12000 Hz"):
        MultiScaleMelDistance(MelLossConfig(max_frequency=13000.0), sample_rate=24000)


@pytest.mark.parametrize("num_samples", [1, 100, 2047])
def test_clips_shorter_than_the_longest_window_have_a_distance_and_a_gradient(num_samples: int) -> None:
    one = noise(2, num_samples).requires_grad_()
    for distance in (
        MultiScaleMelDistance(MelLossConfig(), sample_rate=24000),
        MultiScaleSTFTDistance(STFTLossConfig()),
    ):
        (gradient,) = torch.autograd.grad(distance(one, noise(2, num_samples, seed=1)).sum(), one)
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0


def test_silence_has_a_finite_gradient() -> None:
    silence = torch.zeros(1, 4096, requires_grad=True)
    for distance in (MultiScaleMelDistance(SMALL, sample_rate=8000), MultiScaleSTFTDistance(STFTLossConfig())):
        (gradient,) = torch.autograd.grad(distance(silence, noise(1, 4096)).sum(), silence)
        assert gradient.isfinite().all()


def test_losses_are_float32_under_autocast() -> None:
    one, other = noise(2, 2, 1000)
    for distance in (MultiScaleMelDistance(SMALL, sample_rate=8000), MultiScaleSTFTDistance(STFTLossConfig())):
        exact = distance(one, other)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(distance(one, other), exact)


def test_the_stft_distance_is_its_formula() -> None:
    one, other = noise(2, 1, 1024)
    spectra = [
        torch.stft(waveforms, 512, 128, window=torch.hann_window(512), return_complex=True).abs()
        for waveforms in (one, other)
    ]
    log_ratio = (spectra[0].square().clamp(1e-10) / spectra[1].square().clamp(1e-10)).log10().abs().mean()
    expected = log_ratio + (spectra[0] - spectra[1]).abs().mean()
    distance = MultiScaleSTFTDistance(STFTLossConfig(window_lengths=(512,)))(one, other)
    assert distance.item() == pytest.approx(expected.item(), rel=1e-5)


def test_si_sdr_by_hand() -> None:
    reference = torch.tensor([[3.0, -3.0, 1.0, -1.0]])
    orthogonal = torch.tensor([[1.0, 1.0, -1.0, -1.0]])  # no mean, no part along the reference
    # |x|² = 20, |d|² = 4: 10 log10(5).
    value = si_sdr(reference + orthogonal, reference)
    assert value.item() == pytest.approx(10 * math.log10(5), abs=1e-4)
    assert si_sdr(0.01 * (reference + orthogonal) + 7, reference).item() == pytest.approx(value.item(), abs=1e-3)
    assert si_sdr(reference, reference).item() > 80


def test_si_sdr_of_silence_is_finite() -> None:
    silence, sound = torch.zeros(1, 100), noise(1, 100)
    assert si_sdr(silence, silence).item() == 0
    assert si_sdr(sound, silence).item() < 0
    assert si_sdr(silence, sound).item() == 0


def test_waveform_distance_is_the_mean_absolute_difference() -> None:
    assert waveform_distance(torch.tensor([[1.0, -1.0]]), torch.tensor([[0.5, 0.0]])).tolist() == [0.75]


def test_scales_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="one number of filters for each window"):
        MelLossConfig(window_lengths=(32, 64), num_mels=(5,))
    with pytest.raises(ValueError, match="even numbers"):
        STFTLossConfig(window_lengths=(513,))
    with pytest.raises(ValueError, match="rather than at zero"):
        MelLossConfig(weight=0.0)
    with pytest.raises(ValueError, match="logarithm"):
        STFTLossConfig(floor=0.0)
