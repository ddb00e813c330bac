"""Protocol text_to_speech: settings are chosen elsewhere than they are judged, and rows say what was said."""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from experiment_paths import shown_paths
from PIL import Image
from spoken_tones import TONE_JUDGES, WORDS, ToneSpeaker, write_spoken_tones

from latentlm.data.audio import AudioDataConfig, WordStringConfig
from latentlm.evaluation.speech.digit_classifier import DigitStringReader
from latentlm.evaluation.speech.interfaces import Clips
from latentlm.evaluation.speech.recordings import Recordings
from latentlm.experiments.protocol import MeasureContext
from latentlm.experiments.results import look_up
from latentlm.experiments.speech_data import SpeechData, as_recordings
from latentlm.experiments.speech_judges import SpeechJudges
from latentlm.experiments.speech_synthesis import TextToSpeechOptions, text_to_speech
from latentlm.training.objectives.documents import DocumentSourceConfig
from latentlm.training.speech_documents import SpeechSourceConfig

pytest.importorskip("jiwer")
pytest.importorskip("soxr")

OPTIONS: dict[str, Any] = {
    "num_trials": 8,
    "shape": {"num_words": 3, "num_prompt_words": 2, "num_continued_words": 14},
    "trials": [{"cfg_scale": 1.0}, {"cfg_scale": 2.0}],
    "num_validation_trials": 5,
    "batch_size": 5,
    "num_timed": 2,
    "voice_seconds": 0.5,
    "min_voice_trials": 1,
    "origin": "synthesised",
    "judges": TONE_JUDGES,
    "seed": 30,
}

MakeContext = Callable[..., MeasureContext]


@pytest.fixture(scope="module", autouse=True)
def chosen_by_the_classifier() -> Iterator[None]:
    """The recogniser that chooses learns too slowly for a test: here the classifier does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SpeechJudges, "selector", property(lambda self: DigitStringReader(self.classifier)))
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> AudioDataConfig:
    return write_spoken_tones(tmp_path_factory.mktemp("tones"))


@pytest.fixture(scope="module")
def make_context(tmp_path_factory: pytest.TempPathFactory, corpus: AudioDataConfig) -> MakeContext:
    folder = tmp_path_factory.mktemp("experiment")

    def make(
        name: str,
        speaker: ToneSpeaker,
        options: Mapping[str, Any] = OPTIONS,
        *,
        words: WordStringConfig | None = WORDS,
        **data: Any,
    ) -> MeasureContext:
        source = SpeechSourceConfig(recordings=replace(corpus, **data), words=words)
        return MeasureContext(
            cell=name,
            axes={},
            run_dir=folder / "run",
            recipe=SimpleNamespace(
                kind="tones",
                sources={"spoken": DocumentSourceConfig(speech=source)},
                trainer=SimpleNamespace(num_steps=50, num_accumulation_steps=2),
            ),
            options=options,
            scratch_dir=folder / "scratch" / name,
            cache_dir=folder / "cache",  # judges are trained once
            assets_dir=folder / "assets",
            load=lambda folder: speaker,
            progress=False,
        )

    return make


class Linear:
    """An objective of one product of 3 by 2, for each row of a batch."""

    def prepare(self, raw_batch: Mapping[str, Any], *, step: int, seed: int) -> torch.Tensor:
        return raw_batch["rows"]

    def counts(self, batch: torch.Tensor) -> dict[str, float]:
        return {"rows": float(len(batch))}

    def losses(self, batch: torch.Tensor, *, step: int, totals: Mapping[str, float]) -> torch.Tensor:
        return batch @ torch.ones(3, 2)


def build(recipe: Any) -> tuple[Any, Any, Any]:
    """Batches of one to four rows, and so on."""
    return Linear(), lambda start: ({"rows": torch.ones(1 + i % 4, 3)} for i in itertools.count(start)), recipe


def speak(context: MeasureContext) -> dict[str, Any]:
    return text_to_speech(context, build=build)


@pytest.fixture(scope="module")
def measured(make_context: MakeContext) -> tuple[dict[str, Any], ToneSpeaker, MeasureContext]:
    speaker = ToneSpeaker()
    context = make_context("whole", speaker)
    return speak(context), speaker, context


Measured = tuple[dict[str, Any], ToneSpeaker, MeasureContext]


def test_the_setting_with_the_fewest_errors_on_heard_voices_is_chosen(measured: Measured) -> None:
    result, speaker, _ = measured
    first, second = result["trials"]
    assert result["chosen"] == {"cfg_scale": 2.0}
    # At 1 the model says "a" whatever it is asked: two letters of three are wrong.
    assert second["word_error_rate"] < 0.2 < 0.4 < first["word_error_rate"]
    assert first["num_trials"] == 5
    assert (result["heard"], result["speakers"]) == (["high", "low"], ["new"])
    assert speaker.model is not None


def test_rows_hold_ends_lengths_and_voices_beside_the_real_recordings(measured: Measured) -> None:
    result, _, _ = measured
    for protocol in ("reference", "continuation"):
        rows = result[protocol]["rows"]
        assert list(rows) == ["ground_truth", "reconstruction", "free", "guarded"]
        assert (result[protocol]["num_trials"], result[protocol]["num_speakers"]) == (8, 1)
        assert (result[protocol]["origin"], result[protocol]["seed"]) == ("synthesised", 30)
        # Seeds 30 to 37, of which 30, 33 and 36 do not end without a further draw.
        assert rows["free"]["ended"]["estimate"] == 5 / 8
        assert rows["guarded"]["ended"]["estimate"] == 1.0
        for row in ("ground_truth", "reconstruction"):
            assert rows[row]["length_ratio"]["estimate"] == 1.0
        # Words of 0.25 s with pauses of 0.2 s, as in the recordings, but none at the end.
        assert rows["free"]["length_ratio"]["estimate"] == pytest.approx(0.9, abs=0.1)
        for row in rows.values():
            assert row["ctc"]["num_texts"] == 8
            assert "passes" in row["classifier"]
            assert row["similarity"]["num"] <= 8
        assert rows["ground_truth"]["ctc"]["judge_is_fit"] is False, "it learned for two steps"
        # Tones that a classifier of three tones has learned: it errs in none or one of a dozen words.
        assert rows["free"]["classifier"]["accuracy"] > 0.8
    assert result["voices"]["num_same"] == 1
    assert result["judges"]["ctc"]["num_texts"] == 8
    assert set(result["judges"]["ctc"]["accuracy"]) > {"clean", "noise"}
    assert result["parameters"] == 6
    # 50 steps of 2 batches of 2.5 rows on average, 2 * 3 * 2 FLOPs a row, three passes.
    assert result["trained"] == {"steps": 50, "flops": 50 * 2 * 2.5 * 12 * 3}
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize("name", ["speech_table4", "speech_table6", "speech_figure10"])
def test_experiments_show_what_there_is(measured: Measured, name: str) -> None:
    paths = shown_paths(name, "text_to_speech")
    assert len(paths) > 10
    for path in paths:
        # pocketsphinx has the same numbers as the first recogniser, and is not at work here.
        section, _, number = f"result.{path}".replace("pocketsphinx", "ctc").rpartition(".")
        assert number in look_up({"result": measured[0]}, section), path


def test_costs_count_draws_that_were_thrown_away(measured: Measured) -> None:
    result, _, _ = measured
    free, guarded = (result["reference"]["rows"][row]["costs"] for row in ("free", "guarded"))
    # Steps of a tenth of a second, lengths rounded to them.
    assert free["steps_per_second"] == pytest.approx(10, rel=0.05)
    # Three of eight texts are drawn four times.
    assert guarded["steps_per_second"] == pytest.approx(10 * (5 + 3 * 4) / 8, rel=0.1)
    assert free["evaluations_per_second"] == free["steps_per_second"]
    assert free["num_counted"] == 8
    assert free["seconds_per_second"] > 0
    assert result["one_by_one"]["num_trials"] == 2


def test_what_is_heard_can_be_seen(measured: Measured) -> None:
    _, _, context = measured
    with Image.open(context.picture_path("reference")) as picture:
        assert picture.height > 3 * 64, "real, free, guarded"


def test_the_models_own_sampling_is_a_setting_too_and_is_given_back(make_context: MakeContext) -> None:
    speaker = ToneSpeaker()
    options = {
        **OPTIONS,
        "protocols": ["reference"],
        "trials": [{"sampling.cfg_scale": 3.0, "cfg_scale": 2.0}],
        "rows": {"free": {"length_guard": False, "max_seconds": 5.0}},
        "num_timed": 0,
    }
    result = speak(make_context("sampling", speaker, options))
    assert {scales for _, *scales in map(tuple, speaker.said) for scales in [tuple(scales)]} == {(2.0, 3.0)}
    assert speaker.sampling["speech"].cfg_scale == 1.0
    row = result["reference"]["rows"]["free"]
    assert (row["settings"]["sampling"]["cfg_scale"], row["settings"]["speaking"]["max_seconds"]) == (3.0, 5.0)
    assert row["costs"]["evaluations_per_second"] == pytest.approx(3 * row["costs"]["steps_per_second"])
    assert result["one_by_one"] is None
    assert "continuation" not in result


def test_after_a_kill_only_the_missing_batches_are_said(make_context: MakeContext, measured: Measured) -> None:
    expected, whole, _ = measured

    class PowerCutError(Exception):
        pass

    class Dying(ToneSpeaker):
        def speak(self, *args: Any, **kwargs: Any) -> Any:
            if len(self.said) >= 12:
                raise PowerCutError
            return super().speak(*args, **kwargs)

    dying, after = Dying(), ToneSpeaker()
    with pytest.raises(PowerCutError):
        speak(make_context("cut", dying))
    result = speak(make_context("cut", after))
    assert [*dying.said, *after.said] == whole.said
    assert without_times(result) == without_times(expected)


def without_times(result: Any) -> Any:
    """Everything but wall time."""
    if isinstance(result, dict):
        return {name: without_times(value) for name, value in result.items() if name != "seconds_per_second"}
    return [without_times(value) for value in result] if isinstance(result, list) else result


def test_a_voice_that_the_run_has_heard_is_refused(make_context: MakeContext) -> None:
    with pytest.raises(ValueError, match="trained on recordings of 'low'"):
        speak(make_context("heard", ToneSpeaker(), {**OPTIONS, "speakers": ["low"]}))


def test_a_left_out_speaker_is_judged_on_recordings_that_no_judge_has_learned_from(make_context: MakeContext) -> None:
    options = {**OPTIONS, "speakers": ["low"], "protocols": ["reference"], "num_timed": 0}
    result = speak(make_context("left_out", ToneSpeaker(), options, exclude_speakers=["low"]))
    assert (result["heard"], result["speakers"]) == (["high"], ["low"])


def test_recorded_utterances_are_judged_without_a_classifier_of_words(make_context: MakeContext) -> None:
    options = {**OPTIONS, "protocols": ["reference"], "trials": [{"cfg_scale": 2.0}], "num_timed": 0}
    result = speak(make_context("utterances", ToneSpeaker(), options, words=None))
    assert result["chosen"] == {"cfg_scale": 2.0}
    assert set(result["judges"]) == {"ctc"}
    assert result["reference"]["num_trials"] == 8
    with pytest.raises(ValueError, match="nobody knows where theirs end"):
        speak(make_context("sentences", ToneSpeaker(), {**options, "protocols": ["continuation"]}, words=None))


def test_voices_whose_real_clips_the_judge_misreads_are_left_out_and_named(
    make_context: MakeContext, corpus: AudioDataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, _ = SpeechData(replace(corpus, exclude_speakers=["low"])).of_speaker("new")
    reader = Remembers(as_recordings(known))
    monkeypatch.setattr(SpeechJudges, "recognisers", property(lambda self: {"ctc": reader}))
    monkeypatch.setattr(SpeechJudges, "report_recognisers", lambda self, real: {})
    options = {
        **OPTIONS,
        "speakers": ["low", "new"],
        "protocols": ["reference"],
        "trials": [{"cfg_scale": 2.0}],
        "num_timed": 0,
        "max_real_word_error_rate": 0.2,
    }
    context = make_context("misread", ToneSpeaker(), options, words=None, exclude_speakers=["low"])
    result = speak(context)
    assert (result["speakers"], result["misread"]) == (["new"], {"low": 1.0})
    assert result["reference"]["num_speakers"] == 1
    reader.texts.clear()
    with pytest.raises(ValueError, match="misreads every voice's real clips: 100%"):
        speak(make_context("deaf", ToneSpeaker(), options, words=None, exclude_speakers=["low"]))


class Remembers:
    """A recogniser of recordings that it has seen; hears nothing in others."""

    label = "memory WER"

    def __init__(self, known: Recordings) -> None:
        self.texts = {clip.numpy().tobytes(): text for clip, text in zip(known.waveforms, known.texts, strict=True)}

    def transcribe(self, clips: Clips, sample_rate: int) -> list[str]:
        del sample_rate
        return [self.texts.get(clip.numpy().tobytes(), "") for clip in clips]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocols": ["echo"]}, "protocols names echo"),
        ({"rows": {}}, "need one entry at least"),
        ({"rows": {"reconstruction": {}}}, "are there anyway"),
        ({"num_trials": 0}, "must be at least 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextToSpeechOptions(**changes)
