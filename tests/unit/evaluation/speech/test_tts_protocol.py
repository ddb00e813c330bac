"""Zero-shot protocols: what is asked, and what is said of systems whose mistakes are known."""

import json

import pytest
import torch
from toy_speech import RATE, string

from latentlm.evaluation.speech.codecs import CodecRate
from latentlm.evaluation.speech.recordings import Recordings
from latentlm.evaluation.speech.speakers import SpeakerJudge
from latentlm.evaluation.speech.tts_protocol import (
    GROUND_TRUTH,
    Spoken,
    TtsJudges,
    evaluate_tts,
    ground_truth,
    reconstructed,
    speak_all,
)
from latentlm.evaluation.speech.tts_trials import TrialSet, Utterance, continuation_trials, reference_trials

pytest.importorskip("jiwer")

WORDS = ("zero", "one", "two")


def utterances(count: int, *, num_words: int = 4) -> list[Utterance]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for index in range(count):
        texts = [WORDS[(index // 3**place) % 3] for place in range(num_words)]
        waveform, ends = string(texts, generator=generator)
        made.append(Utterance(waveform=waveform, text=" ".join(texts), speaker="ab"[index % 2], word_ends=tuple(ends)))
    return made


class Oracle:
    """A recogniser that knows what each clip says by its length; what it does not know is silence."""

    def __init__(self, texts: dict[int, str], label: str = "oracle WER") -> None:
        self._texts, self.label = texts, label

    def transcribe(self, clips, sample_rate: int) -> list[str]:
        return [self._texts.get(len(clip), "") for clip in clips]


def trials(count: int = 6) -> TrialSet:
    return reference_trials(utterances(12), RATE, origin="synthesised", num_trials=count)


def oracle_of(some: TrialSet, **others: str) -> Oracle:
    return Oracle({len(trial.target): trial.text for trial in some.trials} | {int(k): v for k, v in others.items()})


def test_reference_prompts_are_other_utterances_of_the_speaker():
    some = trials(8)
    assert len({trial.seed for trial in some.trials}) == len(some) == 8
    for trial in some.trials:
        assert trial.prompt_text != trial.text
        assert not torch.equal(trial.prompt, trial.target)
    by_text = {utterance.text: utterance for utterance in utterances(12)}
    assert all(by_text[trial.text].speaker == by_text[trial.prompt_text].speaker for trial in some.trials)
    with pytest.raises(ValueError, match="13 trials"):
        trials(13)


def test_continuations_begin_after_the_word_that_is_said_at_three_seconds():
    long = utterances(4, num_words=16)
    some = continuation_trials(long, RATE, origin="recorded", num_trials=4)
    originals = {utterance.text: utterance for utterance in long}
    for trial in some.trials:
        whole = originals[f"{trial.prompt_text} {trial.text}"]
        assert torch.equal(torch.cat([trial.prompt, trial.target]), whole.waveform)
        assert whole.word_ends is not None
        assert len(trial.prompt) / RATE >= 3.0
        ends = [end for end in whole.word_ends if end >= 3.0]
        # To a sample.
        assert len(trial.prompt) / RATE == pytest.approx(ends[0], abs=1 / RATE)


def test_recordings_that_are_short_or_have_no_ends_of_words_cannot_be_continued():
    with pytest.raises(ValueError, match="0 fit"):
        continuation_trials(utterances(4), RATE, origin="recorded", num_trials=1)
    unknown = Utterance(waveform=torch.zeros(7 * RATE), text="one two", speaker="a")
    with pytest.raises(ValueError, match="ends of words"):
        continuation_trials([unknown], RATE, origin="recorded", num_trials=1)


def test_ground_truth_passes_its_own_judge_and_errors_stand_beside_its_own():
    some = trials()
    first = some.trials[0]
    # A system that drops the last word of the first text, and a judge that misreads the real recording of the second.
    wrong = Spoken(waveform=first.target[:-100])
    oracle = oracle_of(some, **{str(len(wrong.waveform)): " ".join(first.text.split()[:-1])})
    oracle._texts[len(some.trials[1].target)] = "seven " + " ".join(some.trials[1].text.split()[1:])
    report = evaluate_tts(some, {"system": [wrong, *ground_truth(some)[1:]]}, TtsJudges(recognisers=[oracle]))
    truth, system = (report.systems[name].recognition["oracle WER"] for name in (GROUND_TRUTH, "system"))
    assert truth.errors.rate == pytest.approx(1 / 24)
    assert system.errors.rate == pytest.approx(2 / 24)
    assert system.own == truth.errors
    assert system.relative_accuracy == pytest.approx(22 / 23)
    assert system.is_fit
    assert system.passes
    assert system.errors.last_word_lost_share == pytest.approx(1 / 6)
    assert truth.errors.last_word_lost_share == 0


def test_a_judge_that_reads_little_of_real_speech_passes_nobody():
    some = trials()
    report = evaluate_tts(some, {}, TtsJudges(recognisers=[Oracle({})]))
    heard = report.systems[GROUND_TRUTH].recognition["oracle WER"]
    assert not heard.is_fit
    assert heard.passes is None
    assert heard.relative_accuracy is None
    assert "judge unfit" in report.as_markdown()


def test_ends_lengths_and_costs_are_those_of_the_clips():
    some = trials(4)
    lengths = [0.4, 1.0, 2.1, 1.0]
    spoken = [
        Spoken(
            waveform=torch.zeros(round(ratio * len(trial.target))),
            ended=place != 3,
            num_steps=10,
            num_evaluations=100,
            wall_seconds=0.5,
        )
        for place, (ratio, trial) in enumerate(zip(lengths, some.trials, strict=True))
    ]
    report = evaluate_tts(some, {"system": spoken}, TtsJudges(recognisers=[oracle_of(some)]))
    scores = report.systems["system"]
    assert scores.ended.estimate == pytest.approx(0.75)
    assert scores.ended_in_time.estimate == pytest.approx(0.25)  # one is short, one long, one was cut off
    seconds = sum(len(one.waveform) for one in spoken) / RATE
    assert scores.costs.steps_per_second == pytest.approx(40 / seconds)
    assert scores.costs.evaluations_per_second == pytest.approx(400 / seconds)
    assert scores.costs.seconds_per_second == pytest.approx(2 / seconds)
    assert scores.costs.flops_per_second is None
    expected = sum(len(trial.target) for trial in some.trials)
    assert scores.length_ratio.estimate == pytest.approx(seconds * RATE / expected)


def test_a_system_that_says_nothing_at_all_has_scores_too():
    some = trials(4)
    silent = [Spoken(waveform=torch.zeros(0), ended=True)] * 4
    scores = evaluate_tts(some, {"mute": silent}, TtsJudges(recognisers=[oracle_of(some)])).systems["mute"]
    assert scores.recognition["oracle WER"].errors.accuracy == 0
    assert scores.recognition["oracle WER"].errors.last_word_lost_share == 1
    assert scores.costs.steps_per_second is None
    assert scores.ended_in_time.estimate == 0


def test_systems_are_asked_with_text_prompt_and_seed_and_timed():
    some = trials(3)
    asked = []

    def speak(text, prompt_waveform, prompt_text, seed):
        asked.append((text, prompt_text, seed))
        return Spoken(waveform=0.5 * prompt_waveform)

    spoken = speak_all(speak, some)
    assert asked == [(trial.text, trial.prompt_text, trial.seed) for trial in some.trials]
    assert torch.equal(spoken[1].waveform, 0.5 * some.trials[1].prompt)
    assert all(one.wall_seconds is not None and one.wall_seconds >= 0 for one in spoken)
    own_time = speak_all(lambda *_: Spoken(waveform=torch.zeros(1), wall_seconds=9.0), some)
    assert own_time[0].wall_seconds == 9.0


def test_the_tokenizers_row_is_the_real_recordings_through_it():
    class Halving:
        label = "half"

        def rate(self, num_quantizers=None) -> CodecRate:
            return CodecRate(sample_rate=RATE, frame_rate=10.0, tokens_per_frame=1)

        def reconstruct(self, waveforms, sample_rate, num_quantizers=None):
            return 0.5 * waveforms

    some = trials(2)
    assert torch.equal(reconstructed(some, Halving())[0].waveform, 0.5 * some.trials[0].target)


def test_voices_are_scored_by_every_encoder_and_reports_say_what_they_are():
    class Pitch:
        label = "pitch"

        def embed(self, waveform, sample_rate: int):
            return torch.tensor([1.0, 0.0])

    some = trials(6)
    voice = SpeakerJudge(Pitch(), max_frequency=4000.0, min_seconds=1.0, min_trials=2)
    made = utterances(12)
    real = Recordings(
        waveforms=[one.waveform for one in made],
        texts=[one.text for one in made],
        speakers=[one.speaker for one in made],
        sample_rate=RATE,
    )
    judges = TtsJudges(recognisers=[oracle_of(some)], voices=[(voice, voice.calibrate(real))])
    report = evaluate_tts(some, {"copy": ground_truth(some)}, judges)
    scores = report.systems["copy"].similarity
    assert [one.label for one in scores] == ["pitch"]
    assert scores[0].similarity.estimate == 1.0
    markdown, content = report.as_markdown(), json.loads(json.dumps(report.as_json()))
    assert "synthesised" in markdown
    assert "N = 6" in markdown
    assert "pitch ↑ (midpoint 1.000)" in markdown
    assert content["origin"] == "synthesised"
    assert content["systems"]["copy"]["recognition"]["oracle WER"]["passes"] is True


def test_wrong_numbers_of_clips_and_names_that_are_taken_are_refused():
    some = trials(3)
    judges = TtsJudges(recognisers=[oracle_of(some)])
    with pytest.raises(ValueError, match="said 2 clips"):
        evaluate_tts(some, {"system": ground_truth(some)[:2]}, judges)
    with pytest.raises(ValueError, match="otherwise"):
        evaluate_tts(some, {GROUND_TRUTH: ground_truth(some)}, judges)
    for recognisers in ([], [oracle_of(some), oracle_of(some)]):
        with pytest.raises(ValueError, match="labels"):
            TtsJudges(recognisers=recognisers)
