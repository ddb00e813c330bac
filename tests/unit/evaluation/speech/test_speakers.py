"""Speaker similarity under its rules: long enough sides, enough trials, one bandwidth, a scale from real speech."""

import math

import pytest
import torch
from toy_speech import RATE, voice

from latentlm.evaluation.speech.interfaces import SpeakerEncoder, Unscorable
from latentlm.evaluation.speech.recordings import Recordings
from latentlm.evaluation.speech.speakers import (
    MfccStatistics,
    SpeakerJudge,
    VoiceLikeness,
    equal_error_rate,
    group_clips,
)

pytest.importorskip("soxr")


def buzzes(count: int, *, seconds: float = 0.8, seed: int = 0) -> Recordings:
    generator = torch.Generator().manual_seed(seed)
    speakers = [("low", "high")[index % 2] for index in range(count)]
    return Recordings(
        waveforms=[voice(speaker, seconds, generator=generator) for speaker in speakers],
        texts=["a"] * count,
        speakers=speakers,
        sample_rate=RATE,
    )


class Level:
    """An encoder that anyone can follow: the direction says how loud a clip is."""

    label = "level"

    def __init__(self) -> None:
        self.heard: list[int] = []

    def embed(self, waveform: torch.Tensor, sample_rate: int) -> torch.Tensor:
        if not waveform.any():
            raise Unscorable("silence")
        self.heard.append(len(waveform))
        angle = waveform.abs().mean() * math.pi / 2
        return torch.stack([angle.cos(), angle.sin()])


def constant(*levels: float, seconds: float = 1.0) -> list[torch.Tensor]:
    return [torch.full((int(seconds * RATE),), level) for level in levels]


def judge(**changes) -> tuple[SpeakerJudge, Level]:
    encoder = Level()
    return SpeakerJudge(encoder, **{"max_frequency": 4000.0, "min_trials": 1, **changes}), encoder


def test_clips_are_grouped_until_they_are_long_enough_and_the_rest_is_left_out():
    assert group_clips([1, 1, 1, 2, 1, 2], 3.0) == [[0, 1, 2], [3, 4]]
    assert group_clips([5.0, 1.0], 3.0) == [[0]]
    assert group_clips([], 3.0) == []


def test_the_equal_error_rate_is_that_of_the_crossing():
    assert equal_error_rate([0.9, 0.8, 0.7], [0.1, 0.2, 0.3]) == 0
    assert equal_error_rate([0.1, 0.2], [0.8, 0.9]) == 1
    # At 0.5 one of four is refused and one of four accepted.
    assert equal_error_rate([0.4, 0.6, 0.7, 0.8], [0.5, 0.3, 0.2, 0.1]) == pytest.approx(0.25)
    with pytest.raises(ValueError, match="needs pairs"):
        equal_error_rate([], [0.1])


def test_statistics_of_cepstra_tell_a_low_voice_from_a_high_one():
    encoder = MfccStatistics()
    assert isinstance(encoder, SpeakerEncoder)
    assert "no speaker verifier" in encoder.label
    one_judge = SpeakerJudge(encoder, max_frequency=3500.0, min_seconds=1.5, min_trials=50)
    calibration = one_judge.calibrate(buzzes(16))
    assert calibration.same_mean > calibration.midpoint > calibration.other_mean
    assert calibration.equal_error_rate < 0.1, "voices an octave apart"
    clip = buzzes(1).waveforms[0]
    assert encoder.embed(clip, RATE).norm() == pytest.approx(1.0, abs=1e-5)
    # Level is no voice: the frames are normalised.
    torch.testing.assert_close(encoder.embed(0.1 * clip, RATE), encoder.embed(clip, RATE), atol=1e-4, rtol=0)


def test_a_copy_is_as_like_its_clip_as_their_voices_are():
    generator = torch.Generator().manual_seed(0)
    low, again, high = (voice(name, 3.5, generator=generator) for name in ("low", "low", "high"))
    likeness = VoiceLikeness(MfccStatistics())
    same, other, other_voice = (likeness.score(low, copy, RATE)["voice ↑"] for copy in (low, again, high))
    assert same == pytest.approx(1.0, abs=1e-5)
    assert same > other > other_voice
    with pytest.raises(Unscorable, match="shorter than 3 s"):
        likeness.score(low[: 2 * RATE], low[: 2 * RATE], RATE)
    with pytest.raises(Unscorable, match="holds no voice"):
        likeness.score(low, torch.zeros_like(low), RATE)


def test_generated_speech_is_compared_with_its_own_prompts():
    one_judge, encoder = judge(min_seconds=2.0)
    calibration = one_judge.calibrate(
        Recordings(
            waveforms=constant(*[0.2] * 4, *[0.8] * 4), texts=["a"] * 8, speakers=[*"aaaabbbb"], sample_rate=RATE
        )
    )
    # Two pairs of directions: the same, and 0.6 of a right angle apart.
    assert calibration.same_mean == pytest.approx(1.0, abs=1e-3)  # the band limit's ripple at the ends
    assert calibration.other_mean == pytest.approx(math.cos(0.3 * math.pi), abs=1e-2)
    assert calibration.equal_error_rate == 0
    encoder.heard.clear()
    prompts = constant(0.2, 0.8, 0.2, 0.8, 0.2)
    good = one_judge.compare(prompts, prompts, [*"ababa"], RATE, calibration=calibration)
    # Two sides of two clips for each speaker; the fifth clip is too short a rest.
    assert encoder.heard == [2 * RATE] * 4
    assert good.similarity.num == 2
    assert good.is_above_midpoint
    bad = one_judge.compare(prompts[::-1], constant(*[0.2] * 5), [*"aaaaa"], RATE, calibration=calibration)
    assert bad.similarity.estimate < good.similarity.estimate


def test_a_silent_side_counts_as_no_similarity():
    one_judge, _ = judge(min_seconds=1.0)
    real = Recordings(waveforms=constant(0.2, 0.2, 0.8, 0.8), texts=[*"aaaa"], speakers=[*"aabb"], sample_rate=RATE)
    calibration = one_judge.calibrate(real)
    scores = one_judge.compare(constant(0.0, 0.2), constant(0.2, 0.2), ["a", "a"], RATE, calibration=calibration)
    assert scores.num_voiceless == 1
    assert scores.similarity.estimate == pytest.approx(0.5, abs=1e-3)
    assert scores.as_json()["num_voiceless"] == 1


def test_too_few_trials_speakers_or_seconds_are_refused():
    strict = SpeakerJudge(Level(), max_frequency=4000.0)
    with pytest.raises(ValueError, match="at least 200"):
        strict.calibrate(buzzes(8), num_trials=199)
    with pytest.raises(ValueError, match="two sides of 3 s"):
        strict.calibrate(buzzes(8))
    lenient, _ = judge(min_seconds=0.5)
    with pytest.raises(ValueError, match="two at least"):
        lenient.calibrate(buzzes(8).of_speakers(["low"]))
    calibration = lenient.calibrate(buzzes(8))
    clips = buzzes(4).waveforms
    with pytest.raises(ValueError, match="0 trials"):
        judge(min_seconds=30.0)[0].compare(clips, clips, [*"aabb"], RATE, calibration=calibration)
    with pytest.raises(ValueError, match="speakers"):
        lenient.compare(clips, clips, ["a"], RATE, calibration=calibration)


def test_resemblyzer_gives_unit_vectors_of_speech_and_refuses_silence():
    pytest.importorskip("resemblyzer")
    from latentlm.evaluation.speech.speakers import Resemblyzer

    encoder = Resemblyzer()
    clip = buzzes(1, seconds=2.0).waveforms[0]
    vector = encoder.embed(clip, RATE)
    assert vector.norm() == pytest.approx(1.0, abs=1e-5)  # float32
    assert torch.equal(vector, encoder.embed(clip, RATE))
    with pytest.raises(Unscorable):
        encoder.embed(torch.zeros(RATE), RATE)
