"""The judges that are trained here, on tones for words: they learn, generalise, and are the same from the cache."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_speech import RATE, TONES, string, word, words

from latentlm.evaluation.speech import ctc_recogniser as ctc_module
from latentlm.evaluation.speech import digit_classifier as classifier_module
from latentlm.evaluation.speech.ctc_recogniser import (
    CtcRecogniser,
    CtcRecogniserConfig,
    CtcWordReader,
    load_ctc_recogniser,
    train_ctc_recogniser,
)
from latentlm.evaluation.speech.digit_classifier import (
    DigitClassifier,
    DigitClassifierConfig,
    DigitStringReader,
    load_digit_classifier,
    place,
    train_digit_classifier,
)
from latentlm.evaluation.speech.interfaces import Recogniser
from latentlm.evaluation.speech.judge_report import report_judge
from latentlm.evaluation.speech.recordings import Recordings
from latentlm.storage import StorageError

pytest.importorskip("soxr")
pytest.importorskip("jiwer")

TRAIN, TEST = words(36, seed=0), words(24, seed=1)
LETTERS = {"zero": "a", "one": "b", "two": "c"}
"""Words of one letter are learned in seconds, at the price of not seeing letters put together."""
CLASSIFIER = DigitClassifierConfig(
    seconds=0.5, num_mels=16, width=8, num_steps=40, batch_size=24, max_speed_change=0.03, lr=1e-2
)
CTC = CtcRecogniserConfig(
    num_mels=16,
    hidden_size=64,
    dilations=(1, 2, 4),
    dropout=0.0,
    num_steps=500,
    batch_size=4,
    lr=1e-2,
    max_joined=2,
    max_gap_seconds=0.2,
    max_speed_change=0.03,
    clean_ratio=0.8,
)


@pytest.fixture(scope="module")
def classifier() -> DigitClassifier:
    return train_digit_classifier(CLASSIFIER, TRAIN)


@pytest.fixture(scope="module")
def ctc() -> CtcRecogniser:
    return train_ctc_recogniser(CTC, replace(TRAIN, texts=[LETTERS[text] for text in TRAIN.texts]))


def a_string(texts: list[str], *, seed: int = 5) -> torch.Tensor:
    return string(texts, generator=torch.Generator().manual_seed(seed))[0]


def test_the_classifier_reads_words_that_it_never_heard(classifier):
    assert isinstance(classifier, Recogniser)
    said = classifier.transcribe(TEST.waveforms, RATE)
    # Tones an octave apart: a judge that learned anything errs in none or one of 24.
    assert sum(heard == text for heard, text in zip(said, TEST.texts, strict=True)) >= 23


def test_probabilities_do_not_hang_on_the_other_clips_and_there_may_be_none(classifier):
    together = classifier.probabilities(TEST.waveforms[:4], RATE)
    alone = torch.cat([classifier.probabilities([clip], RATE) for clip in TEST.waveforms[:4]])
    # Convolutions of another batch size round otherwise.
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert classifier.probabilities([], RATE).shape == (0, 3)


def test_clips_of_another_rate_are_heard_alike(classifier):
    from latentlm.evaluation.speech.interfaces import resample

    clips = [resample(clip, RATE, 24000) for clip in TEST.waveforms]
    assert classifier.transcribe(clips, 24000) == classifier.transcribe(TEST.waveforms, RATE)


@pytest.mark.parametrize("num_samples", [0, 3, 50_000])
def test_clips_of_any_length_are_classified(classifier, num_samples):
    assert classifier.transcribe([0.1 * torch.ones(num_samples)], RATE)[0] in TONES


def test_placing_keeps_the_middle_of_what_is_too_long():
    assert place(torch.arange(1.0, 4.0), 5, 1).tolist() == [0, 1, 2, 3, 0]
    assert place(torch.arange(1.0, 8.0), 3, -2).tolist() == [3, 4, 5]


def test_strings_are_read_word_by_word(classifier):
    reader = DigitStringReader(classifier)
    assert isinstance(reader, Recogniser)
    texts = ["two", "zero", "one", "two"]
    said = reader.transcribe([a_string(texts), torch.zeros(4000)], RATE)
    assert said == [" ".join(texts), ""]


def test_a_stop_inside_a_word_does_not_make_two_of_it(classifier):
    """A word with a gap of 60 ms in its middle, as "six" has, between words that follow after 80 ms."""
    generator = torch.Generator().manual_seed(2)
    stopped, other = word("two", generator=generator), word("zero", generator=generator)
    stopped[len(stopped) // 2 :][: round(0.06 * RATE)] = 0
    pause = torch.zeros(round(0.08 * RATE))
    clip = torch.cat([other, pause, stopped, pause, other])
    assert DigitStringReader(classifier).transcribe([clip], RATE) == ["zero two zero"]


def test_training_is_the_same_every_time_and_leaves_the_callers_random_state_alone():
    config = DigitClassifierConfig(seconds=0.5, num_mels=16, width=8, num_steps=2, batch_size=4)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, second = (train_digit_classifier(config, TRAIN).state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_ctc_learns_strings_from_single_words(ctc):
    assert isinstance(ctc, Recogniser)
    strings = [["one", "two"], ["zero", "one"], ["two"], ["one", "zero"], ["two", "two"]]
    clips = [a_string(texts, seed=seed) for seed, texts in enumerate(strings)]
    said = ctc.transcribe(clips, RATE)
    expected = [" ".join(LETTERS[text] for text in texts) for texts in strings]
    right = sum(heard == text for heard, text in zip(said, expected, strict=True))
    assert right >= 4, said


def test_a_reader_of_known_words_writes_nothing_else(ctc):
    reader = CtcWordReader(ctc, list(LETTERS.values()))
    assert isinstance(reader, Recogniser)
    clips = [a_string(["one", "two"], seed=0), TEST.waveforms[0], torch.zeros(0)]
    said = reader.transcribe(clips, RATE)
    assert said[0] == "b c"
    assert set(said[1].split()) <= set(LETTERS.values())
    assert said[2] == ""


def test_ctc_scores_do_not_hang_on_what_pads_a_clip(ctc):
    clip = TEST.waveforms[0]
    alone, count = ctc(clip[None], torch.tensor([len(clip)]))
    padded = torch.stack([torch.cat([clip, torch.full((3000,), torch.nan)]), torch.randn(len(clip) + 3000)])
    together, counts = ctc(padded, torch.tensor([len(clip), len(clip) + 3000]))
    assert counts[0] == count[0] < counts[1]
    # Matrix products of another batch size round otherwise.
    torch.testing.assert_close(together[0, : count[0]], alone[0], atol=1e-4, rtol=0)


def test_nothing_is_heard_in_an_empty_clip(ctc):
    assert ctc.transcribe([torch.zeros(0)], RATE) == [""]


def test_texts_that_letters_cannot_write_are_refused():
    for text in ("3 1", "", "naïve"):
        recordings = Recordings(waveforms=[torch.zeros(800)], texts=[text], speakers=["a"], sample_rate=RATE)
        with pytest.raises(ValueError, match="cannot learn"):
            train_ctc_recogniser(CTC, recordings)
    with pytest.raises(ValueError, match="two"):
        train_digit_classifier(CLASSIFIER, TRAIN.take([0, 3]))


def test_cached_judges_are_found_again_and_any_other_data_is_another_judge(tmp_path: Path, monkeypatch):
    small = DigitClassifierConfig(seconds=0.5, num_mels=16, width=8, num_steps=2, batch_size=4)
    first, fingerprint = load_digit_classifier(TRAIN, cache_dir=tmp_path, config=small)
    monkeypatch.setattr(classifier_module, "train_digit_classifier", None)
    again, same = load_digit_classifier(TRAIN, cache_dir=tmp_path, config=small)
    assert same == fingerprint
    assert torch.equal(again.probabilities(TEST.waveforms, RATE), first.probabilities(TEST.waveforms, RATE))
    with pytest.raises(TypeError):  # it would train
        load_digit_classifier(TRAIN.without_speakers(["a"]), cache_dir=tmp_path, config=small)
    next(tmp_path.glob("*/digit_classifier.safetensors")).write_bytes(b"")
    with pytest.raises(StorageError):
        load_digit_classifier(TRAIN, cache_dir=tmp_path, config=small)


def test_a_cached_recogniser_is_found_again(tmp_path: Path, monkeypatch):
    small = CtcRecogniserConfig(num_mels=16, hidden_size=8, dilations=(1,), num_steps=1, batch_size=2)
    first, fingerprint = load_ctc_recogniser(TRAIN, cache_dir=tmp_path, config=small)
    monkeypatch.setattr(ctc_module, "train_ctc_recogniser", None)
    again, same = load_ctc_recogniser(TRAIN, cache_dir=tmp_path, config=small)
    assert same == fingerprint
    assert torch.equal(first.out_proj.weight, again.out_proj.weight)


def test_a_report_states_accuracy_clean_and_degraded(classifier):
    report = report_judge(classifier, TEST, train=TRAIN, seed=0)
    content = report.as_json()
    assert content["num_texts"] == 24
    assert content["accuracy"]["clean"] == classifier_accuracy(classifier)
    assert set(content["accuracy"]) == {"clean", "noise", "equalizer", "band", "clipping", "coarse codec", "few bits"}
    assert report.accuracy["equalizer"] > 0.6, "a filter of 12 dB does not turn one tone into another"
    assert "coarse codec" in report.as_markdown()


def test_a_judge_is_not_tried_on_what_it_was_trained_on(classifier):
    mixed = Recordings(
        waveforms=[*TEST.waveforms, TRAIN.waveforms[0]],
        texts=[*TEST.texts, TRAIN.texts[0]],
        speakers=[*TEST.speakers, "a"],
        sample_rate=RATE,
    )
    with pytest.raises(ValueError, match="1 clips"):
        report_judge(classifier, mixed, train=TRAIN)


def test_recordings_are_chosen_by_speaker_and_read_from_examples():
    assert set(TRAIN.of_speakers(["a"]).speakers) == {"a"}
    assert len(TRAIN.of_speakers(["a"])) + len(TRAIN.without_speakers(["a"])) == len(TRAIN)
    example = {"audio": torch.ones(10), "num_samples": 4, "key": 0, "text": "one", "speaker": "a"}
    read = Recordings.from_examples([example], RATE)
    assert (len(read.waveforms[0]), read.texts, read.speakers) == (4, ["one"], ["a"])
    with pytest.raises(ValueError, match="as many"):
        Recordings(waveforms=[], texts=["one"], speakers=[], sample_rate=RATE)


def classifier_accuracy(classifier: DigitClassifier) -> float:
    said = classifier.transcribe(TEST.waveforms, RATE)
    return sum(heard == text for heard, text in zip(said, TEST.texts, strict=True)) / len(said)
