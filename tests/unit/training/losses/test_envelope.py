"""Distance of spectra: none between noise and what is expected of it, 20 dB where a band is ten times too loud."""

import math

import torch

from latentlm.tokenizers.speech.harmonic import unit_hann_window
from latentlm.training.losses.envelope import EnvelopeDistance

FFT_SIZE, HOP_LENGTH, RATE = 256, 64, 8000


def distance() -> EnvelopeDistance:
    return EnvelopeDistance(unit_hann_window(FFT_SIZE), sample_rate=RATE, hop_length=HOP_LENGTH)


def test_a_recording_is_at_no_distance_from_its_own_spectra() -> None:
    waveforms = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0))
    frames = waveforms.unfold(1, FFT_SIZE, HOP_LENGTH) * unit_hann_window(FFT_SIZE)
    power = torch.fft.rfft(frames, norm="ortho").abs().square()
    torch.testing.assert_close(distance()(power, waveforms), torch.zeros(2))
    torch.testing.assert_close(distance()(100 * power, waveforms), torch.full((2,), math.log(10)), rtol=1e-4, atol=0)
    # Frames of a latent that the recording does not fill do not count.
    padded = torch.nn.functional.pad(power, (0, 0, 0, 5), value=7.0)
    torch.testing.assert_close(distance()(padded, waveforms), torch.zeros(2))


def test_the_expected_spectrum_of_noise_is_the_best_flat_one() -> None:
    noise = 0.1 * torch.randn(1, 80_000, generator=torch.Generator().manual_seed(1))
    flat = torch.ones(1, noise.shape[1] // HOP_LENGTH, FFT_SIZE // 2 + 1)
    found = [float(distance()(level * flat, noise)) for level in (0.005, 0.01, 0.02)]
    # 0.01 is the noise's power; a quarter of a nat is how far single frames of noise lie from their mean.
    assert found[1] < 0.3
    assert found[1] < min(found[0], found[2])


def test_too_short_a_recording_says_nothing_and_the_spectra_have_gradients() -> None:
    power = torch.ones(2, 4, FFT_SIZE // 2 + 1, requires_grad=True)
    assert distance()(power, torch.zeros(2, FFT_SIZE - 1)).tolist() == [0.0, 0.0]
    distance()(power, torch.randn(2, 400)).sum().backward()
    assert power.grad is not None
    assert power.grad.isfinite().all()
