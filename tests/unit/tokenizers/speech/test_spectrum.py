"""The causal Fourier transform and its inverse: PyTorch's numbers, and sound back from its first sample on."""

import pytest
import torch
from tiny_speech import sound
from torch import Tensor, nn

from latentlm.tokenizers.speech.spectrum import SpectralAnalysis, SpectralSynthesis, SpectrumConfig, synthesis_window

GEOMETRIES = [(16, 5), (16, 4), (8, 8), (256, 50), (6, 1)]


def with_identity(layer: SpectralAnalysis | SpectralSynthesis) -> nn.Module:
    """The transform alone: its linear layer passes features through."""
    with torch.no_grad():
        nn.init.eye_(layer.projection.weight)
        nn.init.zeros_(layer.projection.bias)
    return layer.requires_grad_(False)


def compressed(spectrum: Tensor, power: float) -> Tensor:
    """Real and imaginary parts of |S|^power with the phase of S."""
    return torch.view_as_real(torch.polar(spectrum.abs() ** power, spectrum.angle())).flatten(2)


def turns(fft_size: int, hop_length: int, num_frames: int) -> Tensor:
    """By how much each bin of each frame is turned: [T, F]."""
    angles = 2 * torch.pi * torch.outer(torch.arange(num_frames) * hop_length, torch.fft.rfftfreq(fft_size))
    return torch.polar(torch.ones_like(angles), angles)


def test_a_tone_of_a_bin_has_one_phase_in_all_frames_however_many_there_were() -> None:
    config = SpectrumConfig(fft_size=16, hop_length=5)
    time = torch.arange(2000, dtype=torch.float64)
    tone = torch.cos(2 * torch.pi * 3 / 16 * time + 1.0).float()
    features = with_identity(SpectralAnalysis(config, config.num_features, sample_rate=8000))(tone[None, :, None])
    phases = torch.view_as_complex(features.unflatten(-1, (-1, 2)))[0, 4:, 3].angle()
    torch.testing.assert_close(phases, phases[:1].expand(len(phases)), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("fft_size", "hop_length"), GEOMETRIES)
def test_analysis_is_a_short_time_fourier_transform_whose_frames_end_with_the_newest_samples(
    fft_size: int, hop_length: int
) -> None:
    config = SpectrumConfig(fft_size=fft_size, hop_length=hop_length)
    waveforms = sound(2, 6 * hop_length + hop_length // 2)
    features = with_identity(SpectralAnalysis(config, config.num_features, sample_rate=8000))(waveforms.unsqueeze(-1))
    window = torch.hann_window(fft_size)
    spectrum = torch.stft(
        nn.functional.pad(waveforms, (fft_size - hop_length, 0)),
        fft_size,
        hop_length,
        window=window,
        center=False,
        return_complex=True,
    ).transpose(1, 2)  # (B, T, F)
    spectrum = spectrum / window.square().sum().sqrt()
    assert spectrum.shape[1] == 6
    spectrum = spectrum * turns(fft_size, hop_length, 6).conj()
    # The power 0.4 is steep at zero: a bin of 1e-7 instead of 0 is 1.6e-3 after it.
    torch.testing.assert_close(features, compressed(spectrum, 0.4), atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize(("fft_size", "hop_length"), GEOMETRIES)
def test_the_true_spectra_of_synthesis_frames_give_the_sound_back_from_its_first_sample(
    fft_size: int, hop_length: int
) -> None:
    config = SpectrumConfig(fft_size=fft_size, hop_length=hop_length)
    num_frames = 7
    waveforms = sound(2, (num_frames - 1) * hop_length + fft_size)
    frames = waveforms.unfold(1, fft_size, hop_length)
    features = compressed(
        torch.fft.rfft(frames, norm="ortho") * turns(fft_size, hop_length, num_frames).conj(), config.power
    )
    restored = with_identity(SpectralSynthesis(config, config.num_features))(features).squeeze(-1)
    assert restored.shape == (2, num_frames * hop_length)
    # Magnitudes go through the powers 0.4 and 2.5.
    torch.testing.assert_close(restored, waveforms[:, : num_frames * hop_length], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("fft_size", "hop_length"), GEOMETRIES)
def test_the_newest_frame_counts_from_its_first_hop_on(fft_size: int, hop_length: int) -> None:
    window = synthesis_window(SpectrumConfig(fft_size=fft_size, hop_length=hop_length))
    assert window.shape == (fft_size,)
    assert window.min() > 0
    assert window[:hop_length].argmax() == hop_length - 1
    assert (window[hop_length:].diff() < 0).all()


def test_silence_has_finite_gradients() -> None:
    """The root of |S|² has no derivative at 0."""
    config = SpectrumConfig(fft_size=16, hop_length=5)
    analysis, synthesis = SpectralAnalysis(config, 4, sample_rate=8000), SpectralSynthesis(config, 4)
    with torch.no_grad():
        synthesis.projection.weight.zero_()
    waveforms = torch.zeros(1, 40, 1, requires_grad=True)
    synthesis(analysis(waveforms)).sum().backward()
    assert waveforms.grad is not None
    assert waveforms.grad.isfinite().all()
    for parameter in (*analysis.parameters(), *synthesis.parameters()):
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


def test_the_sound_is_float32_under_autocast() -> None:
    config = SpectrumConfig(fft_size=16, hop_length=5)
    with torch.autocast("cpu", torch.bfloat16):
        hidden_states = SpectralAnalysis(config, 4, sample_rate=8000)(sound(1, 40, 1))
        assert hidden_states.dtype == torch.bfloat16
        assert SpectralSynthesis(config, 4)(hidden_states).dtype == torch.float32
