"""Whose voices are measured: never those that the run has heard, and no recording that a judge has learned from."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from spoken_tones import LETTERS, WORDS, write_spoken_tones

from latentlm.config import to_mapping
from latentlm.data.audio import AudioDataConfig, AudioMixtureConfig
from latentlm.experiments.speech_data import SpeechData, as_recordings, is_for_judges, joined
from latentlm.experiments.speech_trials import TrialShape, make_trials, real_speech
from latentlm.training.objectives.documents import DocumentSourceConfig
from latentlm.training.speech_documents import SpeechSourceConfig


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> AudioDataConfig:
    return write_spoken_tones(tmp_path_factory.mktemp("tones"))


def hashes(recordings: Any) -> set[bytes]:
    return {clip.numpy().tobytes() for clip in as_recordings(recordings).waveforms}


def test_recordings_are_measured_whole_and_unchanged_at_the_level_of_joined_words(corpus: AudioDataConfig) -> None:
    trained = replace(corpus, crop_seconds=0.1)
    plain = SpeechData(trained)
    assert {len(clip) for clip in as_recordings(plain.test()).waveforms} != {800}
    # -23 dB of a tone is another peak than the file's.
    assert hashes(SpeechData(trained, WORDS).test()) != hashes(plain.test())


def test_a_model_is_measured_on_the_recordings_that_it_reads_aloud(corpus: AudioDataConfig) -> None:
    written = SpeechSourceConfig(recordings=replace(corpus, sample_rate=4000), templates=["{speech}{text}"])
    spoken = SpeechSourceConfig(recordings=corpus, words=WORDS, templates=["{text}{speech}"])
    sources = {name: DocumentSourceConfig(speech=one) for name, one in (("written", written), ("spoken", spoken))}
    data = SpeechData.of(SimpleNamespace(kind="multimodal", sources=sources), {"max_seconds": 5.0}, None)
    assert (data.sample_rate, data.words) == (corpus.sample_rate, WORDS)
    assert data.test().config.max_seconds == 5.0
    with pytest.raises(ValueError, match="kind 'dit' names no recordings"):
        SpeechData.of(SimpleNamespace(kind="dit"), {}, None)


def test_a_speaker_that_training_left_out_is_measured_on_the_training_file(corpus: AudioDataConfig) -> None:
    data = SpeechData(replace(corpus, exclude_speakers=["low"]), WORDS)
    assert data.heard_speakers == {"high"}
    recordings, is_train_file = data.of_speaker("low")
    assert (len(recordings), set(recordings.speakers), is_train_file) == (24, {"low"}, True)
    of_test, is_train_file = data.of_speaker("new")
    assert (len(of_test), set(of_test.speakers), is_train_file) == (36, {"new"}, False)
    assert not hashes(recordings) & hashes(data.training())
    with pytest.raises(ValueError, match="was trained on recordings of 'high'"):
        data.of_speaker("high")
    with pytest.raises(ValueError, match="no recordings of a speaker called 'nobody'"):
        data.of_speaker("nobody")


def test_a_speaker_is_heard_by_any_source(corpus: AudioDataConfig) -> None:
    spoken = SpeechSourceConfig(recordings=replace(corpus, exclude_speakers=["low"]), words=WORDS)
    alone = SpeechSourceConfig(recordings=corpus, templates=["{speech}"])
    sources = {"spoken": DocumentSourceConfig(speech=spoken)}
    recipe = SimpleNamespace(kind="multimodal", sources=sources)
    assert SpeechData.of(recipe, {}, None).heard_speakers == {"high"}
    sources["alone"] = DocumentSourceConfig(speech=alone)
    assert SpeechData.of(recipe, {}, None).heard_speakers == {"high", "low"}


def test_a_speaker_is_heard_by_the_tokenizer_of_a_model_too(corpus: AudioDataConfig, tmp_path: Path) -> None:
    spoken = SpeechSourceConfig(recordings=replace(corpus, exclude_speakers=["low"]), words=WORDS)
    recipe = SimpleNamespace(
        kind="multimodal",
        sources={"spoken": DocumentSourceConfig(speech=spoken)},
        speech_tokenizer=str(tmp_path / "model"),
    )
    assert SpeechData.of(recipe, {}, None).heard_speakers == {"high"}, "nothing is known of the tokenizer"
    everybody = to_mapping(corpus)
    for content in ({"data": everybody, "mixture": None}, {"data": None, "mixture": {"groups": {"speech": everybody}}}):
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
        data = SpeechData.of(recipe, {}, None)
        assert data.heard_speakers == {"high", "low"}
        with pytest.raises(ValueError, match="or its tokenizer, was trained on recordings of 'low'"):
            data.of_speaker("low")


def test_a_run_has_heard_nobody_of_another_corpus(corpus: AudioDataConfig, tmp_path: Path) -> None:
    foreign = {name: value for name, value in to_mapping(corpus).items() if name in ("path", "test_path", "columns")}
    foreign = {**foreign, "sample_rate": corpus.sample_rate}
    assert SpeechData.of(None, foreign, WORDS).heard_speakers == frozenset()
    trained = replace(write_spoken_tones(tmp_path), exclude_speakers=["low"])
    recipe = SimpleNamespace(kind="speech_tokenizer", groups=AudioMixtureConfig(groups={"data": trained}))
    data = SpeechData.of(recipe, foreign, WORDS)
    assert data.heard_speakers == {"high"}, "of its own recordings"
    assert (data.test().config.path, data.words) == (corpus.path, WORDS)
    assert SpeechData.of(recipe, {"max_seconds": 5.0}, None).test().config.path == trained.path
    pairs = (("one", trained), ("two", corpus))
    recipe.mixture = AudioMixtureConfig(groups={name: replace(one, crop_seconds=0.1) for name, one in pairs})
    recipe.groups = recipe.mixture
    assert SpeechData.of(recipe, foreign, WORDS).heard_speakers == {"high", "low"}
    with pytest.raises(ValueError, match="say on which recordings to measure"):
        SpeechData.of(recipe, {}, None)


def test_judges_learn_from_one_share_of_the_training_file_whatever_a_run_left_out(corpus: AudioDataConfig) -> None:
    everyone, without_low = SpeechData(corpus, WORDS), SpeechData(replace(corpus, exclude_speakers=["low"]), WORDS)
    share = everyone.for_judges(0.5)
    assert hashes(share) == hashes(without_low.for_judges(0.5))
    # 48 draws at one half: 10 or fewer, or 38 or more, have a chance of 1 in 15,000, and this draw is fixed.
    assert 10 < len(share) < 38
    assert not hashes(share) & hashes(everyone.test())
    left_out, _ = without_low.of_speaker("low")
    heard = is_for_judges(left_out, 0.5)
    assert hashes(share) & hashes(left_out) == {
        clip.numpy().tobytes() for clip in as_recordings(left_out).take(heard.nonzero()[0].tolist()).waveforms
    }
    assert set(without_low.for_judges(0.5, without=["low"]).speakers) == {"high"}
    rest = without_low.for_selectors(0.5, without=["low"])
    assert set(rest.speakers) == {"high"}
    assert not hashes(rest) & hashes(share)


def test_reference_trials_share_no_recording_with_their_prompts(corpus: AudioDataConfig) -> None:
    as_they_are = replace(WORDS, level_db=None)  # to be found again, byte for byte
    recordings, _ = SpeechData(corpus, as_they_are).of_speaker("new")
    words = {clip.numpy().tobytes() for clip in as_recordings(recordings).waveforms}
    shape = TrialShape(num_words=3, num_prompt_words=2)
    trials = make_trials("reference", [recordings], as_they_are, shape, num_trials=7, origin="synthesised", seed=100)
    assert [trial.seed for trial in trials.trials] == list(range(100, 107))
    for trial in trials.trials:
        assert (len(trial.text.split()), len(trial.prompt_text.split())) == (3, 2)
        assert set(trial.text.split()) <= set(LETTERS)
        own, of_prompt = ({one for one in words if contains(clip, one)} for clip in (trial.target, trial.prompt))
        assert (len(own), len(of_prompt), own & of_prompt) == (3, 2, set())
    assert real_speech(trials).texts == [trial.text for trial in trials.trials]


def contains(clip: torch.Tensor, samples: bytes) -> bool:
    return clip.numpy().tobytes().find(samples) >= 0


def test_trials_are_shared_out_among_speakers(corpus: AudioDataConfig) -> None:
    data = SpeechData(replace(corpus, exclude_speakers=["low"]), WORDS)
    speakers = [data.of_speaker(name)[0] for name in ("low", "new")]
    trials = make_trials("reference", speakers, WORDS, TrialShape(), num_trials=5, origin="synthesised", seed=0)
    assert [trial.speaker for trial in trials.trials] == ["low"] * 3 + ["new"] * 2
    assert len({trial.seed for trial in trials.trials}) == 5


def test_continuations_are_cut_out_of_long_strings(corpus: AudioDataConfig) -> None:
    recordings, _ = SpeechData(corpus, WORDS).of_speaker("new")
    shape = TrialShape(num_continued_words=14)  # of 0.25 s, with pauses of 0.2: six and a half seconds
    trials = make_trials("continuation", [recordings], WORDS, shape, num_trials=4, origin="synthesised", seed=0)
    assert trials.protocol == "continuation"
    for trial in trials.trials:
        assert len(f"{trial.prompt_text} {trial.text}".split()) == 14
        assert len(trial.prompt) / trials.sample_rate >= 3.0


def test_utterances_are_prompted_by_others_of_their_speaker_and_not_continued(corpus: AudioDataConfig) -> None:
    recordings, _ = SpeechData(corpus).of_speaker("new")
    trials = make_trials("reference", [recordings], None, TrialShape(), num_trials=4, origin="recorded", seed=0)
    assert all(trial.text != trial.prompt_text for trial in trials.trials)
    with pytest.raises(ValueError, match="nobody knows where theirs end"):
        make_trials("continuation", [recordings], None, TrialShape(), num_trials=4, origin="recorded", seed=0)


def test_recordings_are_joined_in_order(corpus: AudioDataConfig) -> None:
    data = SpeechData(corpus)
    both = joined([as_recordings(data.test()), as_recordings(data.validation())])
    assert len(both) == len(data.test()) + len(data.validation())
    assert list(both.speakers) == data.test().speakers + data.validation().speakers
