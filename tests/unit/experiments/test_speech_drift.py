"""Protocol speech_drift: what fades is seen to fade, and the control tells a long past from the model's own errors."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from experiment_paths import shown_paths
from spoken_tones import TONE_JUDGES, WORDS, write_spoken_tones
from tiny_models import randomise, tiny_mixed_config
from tiny_speech import tiny_speech_tokenizer
from toy_speech import RATE

from latentlm.data.audio import AudioDataConfig
from latentlm.experiments.protocol import MeasureContext
from latentlm.experiments.results import look_up
from latentlm.experiments.speech_drift import SpeechDriftOptions, speech_drift
from latentlm.generation.pipeline import LatentLMPipeline
from latentlm.generation.requests import GenerationRequest, LatentSamplingConfig, PartEvent
from latentlm.models.latentlm import LatentLM
from latentlm.sequence import LatentPart
from latentlm.training.objectives.documents import DocumentSourceConfig
from latentlm.training.speech_documents import SpeechSourceConfig

pytest.importorskip("soxr")

FADING = 0.9
OPTIONS: dict[str, Any] = {
    "speaker": "new",
    "num_streams": 3,
    "num_latents": 12,
    "latents_per_bin": 4,
    "num_prompt_latents": 5,
    "num_words": 9,
    "batch_size": 2,
    "judges": TONE_JUDGES,
    "seed": 7,
}

Journal = list[tuple[int, int, int]]
"""Seed, length of the past and number of latents of every request."""
MakeContext = Callable[..., MeasureContext]


class PowerCutError(Exception):
    """Ends a measurement without any goodbye."""


def make_pipeline() -> LatentLMPipeline:
    config = tiny_mixed_config()
    config = dataclasses.replace(config, modalities={"speech": config.modalities["speech"]})
    tokenizer = tiny_speech_tokenizer(sample_rate=RATE, strides=(40, 40))  # five latents a second
    return LatentLMPipeline(randomise(LatentLM(config)), {"speech": tokenizer}, {"speech": LatentSamplingConfig()})


def fade(pipeline: LatentLMPipeline, journal: Journal, cut_at: int | None) -> None:
    """Make it draw its last given latent again and again, each time a tenth fainter."""

    def events(requests: Sequence[GenerationRequest], **_: Any) -> Iterator[PartEvent]:
        for number, request in enumerate(requests):
            if len(journal) == cut_at:
                raise PowerCutError
            (span,) = request.spans
            assert span.prefix is not None
            assert span.num_latents is not None
            journal.append((request.seed, len(span.prefix), span.num_latents))
            levels = FADING ** torch.arange(1, span.num_latents + 1)
            yield PartEvent(number, LatentPart("speech", levels[:, None] * span.prefix[-1]))

    pipeline.events = events  # pyright: ignore[reportAttributeAccessIssue]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> AudioDataConfig:
    return write_spoken_tones(tmp_path_factory.mktemp("tones"))


@pytest.fixture(scope="module")
def make_context(tmp_path_factory: pytest.TempPathFactory, corpus: AudioDataConfig) -> MakeContext:
    folder = tmp_path_factory.mktemp("experiment")
    source = DocumentSourceConfig(
        speech=SpeechSourceConfig(recordings=corpus, words=replace(WORDS, min_gap_seconds=0.25))
    )

    def make(
        name: str,
        options: Mapping[str, Any] = OPTIONS,
        *,
        journal: Journal | None = None,
        cut_at: int | None = None,
        fading: bool = True,
    ) -> MeasureContext:
        pipeline = make_pipeline()
        if fading:
            fade(pipeline, [] if journal is None else journal, cut_at)
        return MeasureContext(
            cell=name,
            axes={},
            run_dir=folder / "run",
            recipe=SimpleNamespace(kind="multimodal", sources={"spoken": source}),
            options=options,
            scratch_dir=folder / "scratch" / name,
            cache_dir=folder / "cache",
            assets_dir=folder / "assets",
            load=lambda folder: pipeline,
            progress=False,
        )

    return make


def test_latents_that_fade_lose_their_variance_and_the_control_does_not(make_context: MakeContext) -> None:
    journal: Journal = []
    result = speech_drift(make_context("fading", journal=journal))
    # Streams freely, then the control of every bin but the first, which has no past.
    expected = [(7 + row, past, count) for past, count in ((5, 12), (9, 4), (13, 4)) for row in range(3)]
    assert journal == expected
    assert (result["first_latent"], len(result["positions"])) == ([0, 4, 8], 12)
    for place, variance in enumerate(result["variance"]):
        # Each latent is the one before it times 0.9.
        assert variance == pytest.approx(FADING ** (2 * place) * result["variance"][0], rel=1e-4)
    free, forced = result["free"], result["forced"]
    assert free["variance"][2] == pytest.approx(FADING**16 * free["variance"][0], rel=1e-4)
    assert {name: values[0] for name, values in free.items()} == {name: values[0] for name, values in forced.items()}
    for name, values in result["excess"].items():
        assert values == [a - b for a, b in zip(free[name], forced[name], strict=True)]
        assert result["drift"][name] == values[-1]
    assert result["drift"]["variance"] < 0
    assert set(free) == {"variance", "latent_frechet", "confidence", "words_per_second", "similarity"}
    json.dumps(result, allow_nan=False)


def test_real_streams_have_the_variance_of_data(make_context: MakeContext) -> None:
    result = speech_drift(make_context("real"))
    assert (result["speaker"], result["heard"], result["frame_rate"]) == ("new", ["high", "low"], 5.0)
    # An untrained tokenizer whose statistics are those of noise: of the same size, no more.
    assert all(0.01 < variance < 100 for variance in result["real"]["variance"])


def test_the_experiment_shows_what_there_is(make_context: MakeContext) -> None:
    result = speech_drift(make_context("real"))
    for path in shown_paths("speech_sigma", "speech_drift"):
        assert look_up(result, path) is not None, path


def test_a_model_draws_streams_after_real_ones(make_context: MakeContext) -> None:
    result = speech_drift(make_context("drawn", fading=False))
    assert len(result["variance"]) == 12
    assert all(value == value for value in result["variance"]), "no NaN"


@pytest.mark.parametrize("cut_at", [1, 4])
def test_after_a_kill_only_the_missing_streams_are_drawn(make_context: MakeContext, cut_at: int) -> None:
    whole: Journal = []
    expected = speech_drift(make_context(f"whole{cut_at}", journal=whole))
    first, second = [], []
    with pytest.raises(PowerCutError):
        speech_drift(make_context(f"cut{cut_at}", journal=first, cut_at=cut_at))
    assert speech_drift(make_context(f"cut{cut_at}", journal=second)) == expected
    # Of the batch that was cut, streams are drawn again.
    assert set(first) | set(second) == set(whole)
    assert len(first) + len(second) <= len(whole) + 1


def test_streams_must_last_for_all_bins(make_context: MakeContext) -> None:
    with pytest.raises(ValueError, match="12 latents do not make bins of 5"):
        SpeechDriftOptions(speaker="new", num_latents=12, latents_per_bin=5)
    with pytest.raises(ValueError, match="3 streams of 2 words are shorter than the 3 s"):
        speech_drift(make_context("short", {**OPTIONS, "num_words": 2}))
