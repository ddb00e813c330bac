"""A decoder's end that speaks by pulses and noise: streams are whole, tones keep their pitch, rows are their own."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_speech import tiny_speech_codec, tiny_speech_tokenizer
from torch import Tensor

from latentlm.tokenizers.speech import SpectrumConfig
from latentlm.tokenizers.speech.harmonic import HarmonicSynthesis

RATE = 8000
CONFIG = SpectrumConfig(fft_size=256, hop_length=50, pitch_range=(60.0, 400.0))


def layer(*, channels: int = 6, seed: int = 0) -> HarmonicSynthesis:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return HarmonicSynthesis(CONFIG, channels, sample_rate=RATE).requires_grad_(False)


def voiced(pitch: float) -> HarmonicSynthesis:
    """Speaks by pulses alone, all harmonics as loud as each other, whatever it is given."""
    made = layer()
    made.projection.weight.zero_()
    made.projection.bias[0] = torch.logit(torch.tensor(math.log(pitch / 60) / math.log(400 / 60)))
    made.projection.bias[1 : 1 + 129] = 0.0
    made.projection.bias[1 + 129 :] = -30.0
    return made


def inputs(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=30)
@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6))
def test_chunks_are_what_the_whole_is(sizes: list[int]) -> None:
    synthesis, x = layer(), inputs(2, sum(sizes), 6)
    state, parts = synthesis.init_state(2), []
    for chunk in x.split(sizes, dim=1):
        part, state = synthesis.step(chunk, state)
        parts.append(part)
    if sum(sizes):
        whole = synthesis(x)
        # Of the loudest pulse: what rounds otherwise in the pitch is a pulse that is a millionth of a sample late.
        torch.testing.assert_close(
            torch.cat(parts, dim=1), whole, atol=1e-5 * max(1.0, float(whole.abs().max())), rtol=0
        )


@pytest.mark.parametrize("pitch", [61.3, 127.9, 251.0, 399.0])
def test_constant_inputs_give_harmonics_of_one_pitch_for_any_length(pitch: float) -> None:
    sound = voiced(pitch)(torch.zeros(1, 640, 6))[0, :, 0]  # four seconds
    tail = sound[-2 * RATE :].double()
    spectrum = torch.fft.rfft(tail * torch.hann_window(len(tail), dtype=torch.float64)).abs().square()
    frequencies = torch.fft.rfftfreq(len(tail), 1 / RATE, dtype=torch.float64)
    # Two seconds resolve half a hertz; a Hann window spreads a line over four bins.
    distance = (frequencies / pitch - (frequencies / pitch).round()).abs() * pitch
    assert spectrum[distance < 1.5].sum() / spectrum.sum() > 0.98
    assert spectrum[frequencies < 0.5 * pitch].sum() / spectrum.sum() < 0.01, "no constant"


def test_pulses_are_bounded_and_noise_has_the_level_of_its_spectrum() -> None:
    assert voiced(61.3)(torch.zeros(1, 320, 6)).abs().max() < 12, "at most sqrt(2 · 65) of unit power, by 0.69^2.5"
    noisy = layer()
    noisy.projection.weight.zero_()
    noisy.projection.bias[:] = -30.0
    noisy.projection.bias[1 + 129 :] = math.log(math.e - 1)  # softplus gives 1
    sound = noisy(torch.zeros(1, 2000, 6))
    # 100,000 samples of unit variance, whose deviation is known to a third of a percent.
    assert float(sound.std()) == pytest.approx(1.0, abs=0.02)
    assert float(sound.mean()) == pytest.approx(0.0, abs=0.02)


def test_a_row_sounds_as_it_does_alone_and_the_same_at_every_call() -> None:
    synthesis, x = layer(), inputs(3, 20, 6)
    together = synthesis(x)
    for row in range(3):
        torch.testing.assert_close(together[row : row + 1], synthesis(x[row : row + 1]), atol=1e-6, rtol=0)
    assert torch.equal(together, synthesis(x))


def test_the_pitch_has_a_gradient_and_the_sound_has_none_through_it() -> None:
    synthesis, x = layer().requires_grad_(True), inputs(1, 8, 6)
    waveforms, (pitch, power) = synthesis.forward_with_frames(x)
    assert (pitch.shape, power.shape) == ((1, 8), (1, 8, synthesis.config.fft_size // 2 + 1))
    assert ((pitch > 60) & (pitch < 400)).all()
    waveforms.square().sum().backward(retain_graph=True)
    assert synthesis.projection.weight.grad is not None
    assert not synthesis.projection.weight.grad[0].any()
    assert synthesis.projection.weight.grad[1:].isfinite().all()
    pitch.sum().backward()
    assert synthesis.projection.weight.grad[0].any()


def test_frames_have_the_spectra_that_they_mean_to_have() -> None:
    """Smooth ones: what rings longer than a frame is cut off. Averaged over what noise draws."""
    synthesis = layer()
    num_bins = synthesis.config.fft_size // 2 + 1
    with torch.no_grad():
        synthesis.projection.weight.zero_()
        synthesis.projection.bias[1:] = torch.linspace(0.0, -1.0, num_bins).repeat(2)
        waveforms, frames = synthesis.forward_with_frames(torch.zeros(1, 3000, 6))
    fft_size, hop_length = synthesis.config.fft_size, synthesis.config.hop_length
    sound = waveforms[0, :, 0].unfold(0, fft_size, hop_length) * synthesis.analysis_window
    heard = torch.fft.rfft(sound, norm="ortho").abs().square()[50:].mean(dim=0)
    meant = frames.power[0, 50:].mean(dim=0)
    # A thousand independent frames leave some percent of chance, edges of frames some more.
    assert (heard / meant).log().abs().max() < 0.2


def test_tokenizers_speak_by_it_if_their_spectrum_has_a_range_of_pitches() -> None:
    spectrum = SpectrumConfig(fft_size=16, hop_length=5, pitch_range=(10.0, 40.0))
    for tokenizer in (
        tiny_speech_tokenizer("spectral", spectrum=spectrum),
        tiny_speech_codec("spectral", spectrum=spectrum),
    ):
        vectors = inputs(2, 4, tokenizer.decoder.latent_dim)
        waveforms, frames = tokenizer.reconstruct_with_frames(vectors)
        assert frames is not None
        assert (waveforms.shape, frames.pitch.shape) == ((2, 120), (2, 24))
        torch.testing.assert_close(waveforms, tokenizer.reconstruct(vectors))
    assert tiny_speech_tokenizer("spectral").reconstruct_with_frames(inputs(2, 4, 3))[1] is None
    assert tiny_speech_tokenizer("waveform").reconstruct_with_frames(inputs(2, 4, 3))[1] is None


def test_a_range_of_pitches_must_be_one() -> None:
    for pitch_range in ((400.0, 60.0), (0.0, 100.0)):
        with pytest.raises(ValueError, match="give the lowest and then the highest"):
            SpectrumConfig(fft_size=16, hop_length=5, pitch_range=pitch_range)
