"""Measures of reconstructed speech: what they say of known changes, and what they refuse to say."""

import math

import pytest
import torch

from latentlm.evaluation.speech.interfaces import SpeechScorer, Unscorable
from latentlm.evaluation.speech.reconstruction import (
    Intelligibility,
    MelDistance,
    PerceptualQuality,
    SignalToDistortion,
    cut_alike,
    reconstructions_table,
    remove_delay,
    score_reconstructions,
)

pytest.importorskip("soxr")

RATE = 16000


def noise(num_samples: int = RATE, *, seed: int = 0, level: float = 0.1) -> torch.Tensor:
    return level * torch.randn(num_samples, generator=torch.Generator().manual_seed(seed))


def babble(seconds: float = 1.5, *, seed: int = 0) -> torch.Tensor:
    """Noise with the ups and downs of syllables: enough like speech for measures that look for it."""
    clip = noise(int(RATE * seconds), seed=seed, level=0.3)
    return clip * torch.sin(torch.arange(len(clip)) * (2 * torch.pi * 4 / RATE)).clamp_min(0.01)


def test_sdr_of_orthogonal_noise_is_the_ratio_of_energies_at_any_level():
    reference = torch.sin(2 * torch.pi * 100 * torch.arange(RATE) / RATE)
    other = torch.sin(2 * torch.pi * 300 * torch.arange(RATE) / RATE)  # whole periods: orthogonal
    for level in (1.0, 0.1):
        value = SignalToDistortion().score(reference, level * (reference + 0.1 * other), RATE)["SI-SDR, dB ↑"]
        # float32 sines in float64 sums.
        assert value == pytest.approx(20.0, abs=1e-3)


def test_a_constant_is_no_distortion_and_a_scaled_copy_has_none():
    reference = noise()
    moved = SignalToDistortion().score(reference, reference + 0.5, RATE)["SI-SDR, dB ↑"]
    assert moved > 90  # the rounding of float32 sums
    assert SignalToDistortion().score(reference, reference, RATE)["SI-SDR, dB ↑"] == math.inf


def test_mel_distance_of_a_tenth_of_the_level_is_one_decade_at_every_scale():
    reference = noise(level=10.0)  # far above the floor
    value = MelDistance().score(reference, 0.1 * reference, RATE)["mel distance ↓"]
    # Seven scales; bands too narrow to hold a frequency are at the floor in both.
    assert 6.5 < value <= 7.0 + 1e-4
    assert MelDistance().score(reference, reference, RATE)["mel distance ↓"] == 0


def test_what_lies_above_the_corpus_bandwidth_counts_for_nothing():
    reference = noise()
    spectrum = torch.fft.rfft(reference)
    spectrum[len(spectrum) // 4 :] = 0  # nothing above 2 kHz
    narrow = torch.fft.irfft(spectrum, len(reference))
    scorers = [MelDistance(1900.0)]
    limited = score_reconstructions([reference], [narrow], RATE, max_frequency=1900.0, scorers=scorers)
    full = score_reconstructions([reference], [narrow], RATE, scorers=[MelDistance()])
    distances = [scores.measures["mel distance ↓"].mean for scores in (limited, full)]
    assert distances[0] is not None
    assert distances[1] is not None
    # The resampler's slope touches the last bands a little.
    assert distances[0] < 0.15
    assert distances[1] > 2.0
    assert limited.max_frequency == 1900.0


@pytest.mark.parametrize("length", [0, 10, 2047])
def test_clips_shorter_than_the_longest_window_have_no_mel_distance(length):
    with pytest.raises(Unscorable):
        MelDistance().score(noise(length), noise(length), RATE)


def test_pesq_is_highest_for_the_clip_itself_and_falls_with_noise():
    pytest.importorskip("pesq")
    clip = babble()
    values = [PerceptualQuality().score(clip, clip + noise(len(clip), seed=1, level=x), RATE) for x in (0.0, 0.02, 0.2)]
    first, second, third = (value["PESQ-WB ↑"] for value in values)
    assert first == pytest.approx(4.644, abs=1e-3)  # the top of P.862.2's mapping
    assert first > second > third


def test_pesq_of_a_narrow_corpus_is_called_so():
    pytest.importorskip("pesq")
    clip = babble()
    values = PerceptualQuality(wideband=False).score(clip, clip, RATE)
    assert values["PESQ-NB ↑"] == pytest.approx(4.549, abs=1e-3)  # the top of P.862.1's


def test_stoi_is_one_for_the_clip_itself_and_falls_with_noise():
    pytest.importorskip("pystoi")
    clip = babble()
    clean, noisy = (Intelligibility().score(clip, clip + noise(len(clip), seed=1, level=x), RATE) for x in (0.0, 0.3))
    for name in ("STOI ↑", "ESTOI ↑"):
        assert clean[name] == pytest.approx(1.0, abs=1e-6)  # float64
        assert noisy[name] < 0.9


@pytest.mark.parametrize("seconds", [0.1, 0.39])
def test_too_little_speech_for_pesq_and_stoi_is_said_so(seconds):
    pytest.importorskip("pystoi")
    pytest.importorskip("pesq")
    short = babble(seconds)
    with pytest.raises(Unscorable, match="30 frames"):
        Intelligibility().score(short, short, RATE)
    if seconds < 0.25:
        with pytest.raises(Unscorable, match="1/4 s"):
            PerceptualQuality().score(short, short, RATE)


def test_stoi_counts_speech_and_not_pauses():
    pytest.importorskip("pystoi")
    clip = torch.cat([babble(0.2), torch.zeros(RATE)])  # long, but hardly any speech
    with pytest.raises(Unscorable, match="30 frames"):
        Intelligibility().score(clip, clip, RATE)


def test_clips_without_a_score_are_counted_by_reason_and_the_others_averaged():
    good, silent, short = noise(), torch.zeros(RATE), noise(100)
    scores = score_reconstructions(
        [good, silent, short, good], [good * 0.5, good, short, torch.zeros(RATE)], RATE,
        scorers=[MelDistance(), SignalToDistortion()],
    )  # fmt: skip
    mel, sdr = scores.measures["mel distance ↓"], scores.measures["SI-SDR, dB ↑"]
    assert (mel.num_scored, mel.failures) == (2, {"silence": 1, "shorter than the longest window of 2048 samples": 1})
    assert (sdr.num_scored, sdr.failures) == (2, {"silence": 1, "the copy is silent": 1})
    assert "(N 2)" in reconstructions_table({"half": scores})
    assert scores.as_json()["measures"]["SI-SDR, dB ↑"]["mean"] is None  # infinite: exact copies


def test_a_measure_that_scored_nothing_has_no_mean():
    scores = score_reconstructions([torch.zeros(RATE)], [noise()], RATE, scorers=[SignalToDistortion()])
    measure = scores.measures["SI-SDR, dB ↑"]
    assert measure.mean is None
    assert "–" in reconstructions_table({"one": scores})


def test_lengths_may_differ_by_a_frame_and_no_more():
    reference, longer = noise(RATE), noise(RATE + 1500)
    assert [len(clip) for clip in cut_alike(reference, longer, RATE)] == [RATE, RATE]
    with pytest.raises(ValueError, match="do not belong together"):
        cut_alike(reference, noise(RATE + 1700), RATE)


@pytest.mark.parametrize("delay", [-37, 0, 120])
def test_a_known_delay_is_found_and_removed(delay):
    reference = noise(4000)
    late = torch.roll(reference, delay) * 0.7
    found = remove_delay(reference, late, max_delay=200)
    inside = slice(200, 3800)
    assert torch.equal(found[inside], 0.7 * reference[inside])


def test_values_that_are_not_finite_are_refused_and_not_scored():
    broken = noise()
    broken[5] = math.nan
    with pytest.raises(ValueError, match="diverge"):
        score_reconstructions([noise()], [broken], RATE, scorers=[SignalToDistortion()])
    with pytest.raises(ValueError, match="clip by clip"):
        score_reconstructions([noise()], [], RATE)


def test_scorers_of_the_copy_alone_are_counted_alike():
    class Loudness:
        names: tuple[str, ...] = ("loudness",)

        def score(self, waveform: torch.Tensor, sample_rate: int) -> dict[str, float]:
            if not waveform.any():
                raise Unscorable("silence")
            return {"loudness": waveform.abs().max().item()}

    loudness = Loudness()
    assert isinstance(loudness, SpeechScorer)
    clips = [noise(), noise(seed=1)]
    scores = score_reconstructions(clips, [torch.zeros(RATE), clips[1]], RATE, scorers=[], speech_scorers=[loudness])
    measure = scores.measures["loudness"]
    assert (measure.num_scored, measure.failures) == (1, {"silence": 1})
