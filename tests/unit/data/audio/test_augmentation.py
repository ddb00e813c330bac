"""Augmentation: keyed, inside the sound only; another voice has the pitch and the resonances that were asked for."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from latentlm.data.audio import AugmentationConfig, augment_waveforms, shift_voice
from latentlm.data.audio.augmentation import equalize, low_pass
from latentlm.data.audio.voice_shift import stretch, warp_envelope

RATE = 16000
ALL = AugmentationConfig(
    gain_db=6.0, flip_polarity=True, noise_ratio=0.5, band_limit_ratio=0.5, equalizer_ratio=0.5, voice_shift_ratio=0.3
)
VOWEL = (700.0, 1800.0, 2900.0)
"""Hz, the resonances of something like an a."""


def vowel(f0: float, formants: tuple[float, ...] = VOWEL, seconds: float = 1.0) -> torch.Tensor:
    """A pulse train through resonators: a sustained vowel, whose pitch and resonances are known exactly."""
    count = round(seconds * RATE)
    spectrum = torch.zeros(count // 2 + 1)
    harmonics = np.arange(1, int(RATE / 2 / f0)) * f0
    spectrum[torch.from_numpy(np.round(harmonics * seconds).astype(int))] = 1.0
    frequencies = torch.fft.rfftfreq(count, 1 / RATE)
    gain = sum(1 / (1 + ((frequencies - formant) / 100) ** 2) for formant in formants) + 0.003
    wave = torch.fft.irfft(spectrum * gain, n=count)
    return 0.5 * wave / wave.abs().max()


def pitch(wave: torch.Tensor) -> float:
    """Fundamental frequency, Hz: the first great peak of the autocorrelation, interpolated."""
    middle = wave[len(wave) // 4 : 3 * len(wave) // 4].double()
    power = torch.fft.rfft(middle, n=2 * len(middle)).abs().square()
    correlation = torch.fft.irfft(power)[: RATE // 60]
    correlation = correlation / torch.linspace(1, 1 - len(correlation) / len(middle), len(correlation))
    lags = torch.arange(RATE // 450, len(correlation) - 1)
    peaks = lags[(correlation[lags] > correlation[lags - 1]) & (correlation[lags] >= correlation[lags + 1])]
    lag = int(next(p for p in peaks if correlation[p] > 0.9 * correlation[peaks].max()))
    a, b, c = correlation[lag - 1 : lag + 2].tolist()
    return RATE / (lag + 0.5 * (a - c) / (a - 2 * b + c))


def envelope(wave: torch.Tensor) -> np.ndarray:
    """Log spectrum in bins of 20 Hz, smoothed until no harmonic of a voice below 300 Hz shows."""
    power = torch.stft(wave, 800, 200, window=torch.hann_window(800), return_complex=True).abs().square().mean(dim=1)
    smooth = np.convolve(power.numpy(), np.hanning(33), mode="same")
    return np.log(smooth)


def formant_ratio_between(wave: torch.Tensor, shifted: torch.Tensor) -> float:
    """By what factor the frequency axis of the first envelope must be stretched to be most like the second."""
    bins = np.arange(15, 200)  # 300 to 4000 Hz
    before, after = envelope(wave), envelope(shifted)
    ratios = np.arange(0.7, 1.4, 0.005)
    stretched = [np.interp(bins / ratio, np.arange(len(before)), before) for ratio in ratios]
    return float(ratios[np.argmax([np.corrcoef(one, after[bins])[0, 1] for one in stretched])])


def test_the_yardsticks_measure_what_was_made():
    assert pitch(vowel(120.0)) == pytest.approx(120.0, rel=0.002)
    for ratio in (0.87, 1.0, 1.15):
        moved = vowel(150.0, tuple(ratio * formant for formant in VOWEL))
        assert formant_ratio_between(vowel(120.0), moved) == pytest.approx(ratio, abs=0.02)


@pytest.mark.parametrize("f0", [100.0, 210.0])
@pytest.mark.parametrize(
    ("pitch_ratio", "formant_ratio"), [(1.3, 1.0), (0.8, 1.0), (1.0, 1.15), (1.0, 0.87), (1.25, 0.9)]
)
def test_pitch_and_formants_move_as_asked_and_apart(f0, pitch_ratio, formant_ratio):
    wave = vowel(f0)
    shifted = shift_voice(wave, RATE, pitch_ratio=pitch_ratio, formant_ratio=formant_ratio)
    assert shifted.shape == wave.shape
    # WSOLA keeps periods whole: the pitch is the resampler's, to a percent.
    assert pitch(shifted) / f0 == pytest.approx(pitch_ratio, rel=0.01)
    # Harmonics sample the envelope only every f0, and the cepstrum smooths it over 500 Hz.
    assert formant_ratio_between(wave, shifted) == pytest.approx(formant_ratio, abs=0.05)


def test_a_shift_keeps_the_level_and_is_the_same_again():
    wave = vowel(150.0)
    first, second = (shift_voice(wave, RATE, pitch_ratio=1.2, formant_ratio=1.1) for _ in range(2))
    assert torch.equal(first, second)
    assert float(first.norm() / wave.norm()) == pytest.approx(1.0, abs=1e-4)  # float32 sums


def test_no_shift_is_no_change():
    wave = vowel(150.0)
    torch.testing.assert_close(shift_voice(wave, RATE, pitch_ratio=1.0, formant_ratio=1.0), wave)


def test_words_stay_where_they_are():
    """Two bursts, 0.3 and 0.7 s from the beginning: time is not moved by more than a window."""
    wave = torch.zeros(RATE)
    for start in (0.3, 0.7):
        wave[round(start * RATE) : round(start * RATE) + 1600] = vowel(150.0, seconds=0.1)
    shifted = shift_voice(wave, RATE, pitch_ratio=1.3, formant_ratio=1.1)
    loud = (shifted.unfold(0, 160, 160).square().mean(dim=1) > 1e-3).nonzero().flatten() * 160 / RATE
    for start in (0.3, 0.7):
        of_burst = loud[(loud - start).abs() < 0.2]
        assert abs(float(of_burst.min()) - start) < 0.04
        assert abs(float(of_burst.max()) - start - 0.1) < 0.04


@pytest.mark.parametrize("length", [1, 10, 300, 1000, 5000])
def test_short_and_silent_recordings_survive(length):
    for wave in (torch.zeros(length), torch.rand(length) - 0.5):
        shifted = shift_voice(wave, RATE, pitch_ratio=1.4, formant_ratio=0.8)
        assert shifted.shape == wave.shape
        assert torch.isfinite(shifted).all()
        assert shifted.abs().max() <= 1


@pytest.mark.parametrize("length", [3000, 16000, 40000])
def test_stretching_a_sine_keeps_it_one(length):
    times = np.arange(RATE, dtype=np.float32) / RATE
    result = stretch(np.sin(2 * np.pi * 200 * times).astype(np.float32), length, RATE)
    assert result.shape == (length,)
    inner = result[800:-800]
    peak = np.argmax(np.abs(np.fft.rfft(inner * np.hanning(len(inner))))) * RATE / len(inner)
    assert abs(peak - 200) <= RATE / len(inner)  # one bin
    # Windows are joined in phase to a sample (0.08 of a radian): the amplitude stays within a percent.
    assert np.abs(inner).max() == pytest.approx(1.0, abs=0.01)


def test_warping_by_one_changes_nothing():
    wave = vowel(150.0)
    torch.testing.assert_close(warp_envelope(wave, RATE, 1.0), wave, atol=1e-5, rtol=0)  # an STFT and back


def test_ratios_out_of_range_are_refused():
    with pytest.raises(ValueError, match="formant_ratio is 3"):
        shift_voice(torch.zeros(10), RATE, pitch_ratio=1.0, formant_ratio=3.0)


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    waveforms = torch.zeros(12, 4000)
    lengths = torch.arange(12) * 300 + 500
    for row, length in enumerate(lengths.tolist()):
        waveforms[row, :length] = vowel(100.0 + 10 * row)[:length]
    return waveforms, lengths, torch.arange(12) * 7


def test_changes_hang_on_the_key_alone(batch):
    waveforms, lengths, keys = batch
    whole = augment_waveforms(waveforms, lengths, keys, ALL, sample_rate=RATE)
    order = torch.tensor([5, 3, 8])
    part = augment_waveforms(waveforms[order], lengths[order], keys[order], ALL, sample_rate=RATE)
    torch.testing.assert_close(part, whole[order], atol=1e-6, rtol=0)  # sums over rows of another batch
    other = augment_waveforms(waveforms, lengths, keys + 1, ALL, sample_rate=RATE)
    assert not torch.allclose(other, whole)


def test_padding_stays_zero_and_nothing_leaves_the_range(batch):
    waveforms, lengths, keys = batch
    loud = replace(ALL, gain_db=40.0, noise_ratio=1.0)
    augmented = augment_waveforms(waveforms, lengths, keys, loud, sample_rate=RATE)
    assert augmented.abs().max() <= 1.0
    for row, length in enumerate(lengths.tolist()):
        assert not augmented[row, length:].any()
        assert augmented[row, :length].any()


def test_noise_has_the_level_that_was_asked_for():
    wave = vowel(150.0)[None]
    config = AugmentationConfig(noise_ratio=1.0, min_snr_db=20.0, max_snr_db=20.0)
    noisy = augment_waveforms(wave, torch.tensor([RATE]), torch.tensor([1]), config, sample_rate=RATE)
    ratio = wave.square().sum() / (noisy - wave).square().sum()
    assert 10 * float(ratio.log10()) == pytest.approx(20.0, abs=0.2)  # 16,000 draws: half a percent of power


def test_a_low_pass_takes_what_is_above_and_leaves_what_is_below():
    times = torch.arange(RATE).double() / RATE
    low, high = torch.sin(2 * torch.pi * 500 * times), torch.sin(2 * torch.pi * 7000 * times)
    filtered = low_pass((low + high).float()[None], 3000.0, torch.tensor([0.0]), RATE)[0]
    torch.testing.assert_close(filtered, low.float(), atol=1e-5, rtol=0)  # whole periods: nothing leaks


def test_an_equaliser_lifts_each_frequency_by_its_decibels_and_keeps_the_level():
    times = torch.arange(RATE).double() / RATE
    # Points equally far apart in mel, log1p(f / 700): the second of three lies between 0 and 8000 Hz so.
    middle = round(700 * math.expm1(math.log1p(8000 / 700) / 2))
    low, high = (torch.sin(2 * torch.pi * f * times).float() for f in (1, middle))
    before, gains = (low + high)[None], torch.tensor([[0.0, -12.0, 5.0]])
    after = equalize(before, gains, RATE)
    amplitudes = torch.fft.rfft(after[0]).abs()
    # 1 Hz is a hair above the first point, and the middle rounded to a Hz.
    assert 20 * float((amplitudes[middle] / amplitudes[1]).log10()) == pytest.approx(-12.0, abs=0.02)
    assert float(after.norm() / before.norm()) == pytest.approx(1.0, abs=1e-5)
    torch.testing.assert_close(equalize(before, torch.full((1, 8), 7.0), RATE), before, atol=1e-5, rtol=0)
    silence = torch.zeros(2, 100)
    assert torch.equal(equalize(silence, torch.ones(2, 8), RATE), silence)


def test_about_the_share_that_was_asked_for_is_changed():
    waveforms = vowel(150.0)[:800].repeat(400, 1)
    lengths = torch.full((400,), 800)
    for field in ("noise_ratio", "band_limit_ratio", "equalizer_ratio"):
        config = AugmentationConfig(**{field: 0.3})
        changed = augment_waveforms(waveforms, lengths, torch.arange(400), config, sample_rate=RATE) != waveforms
        # Three standard deviations of 400 draws.
        assert changed.any(dim=1).float().mean() == pytest.approx(0.3, abs=0.07)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("noise_ratio", 1.5),
        ("gain_db", -1.0),
        ("max_equalizer_db", -1.0),
        ("equalizer_ratio", -0.1),
        ("min_snr_db", 50.0),
        ("min_cutoff_hz", 0.0),
        ("max_pitch_semitones", 13.0),
    ],
)
def test_impossible_settings_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        AugmentationConfig(**{field: value})
