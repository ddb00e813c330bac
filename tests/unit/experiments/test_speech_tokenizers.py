"""Protocol speech_tokenizer: what is measured of sigma-VAEs, codecs and frames, by speakers heard and not."""

import json
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from experiment_paths import shown_paths
from spoken_tones import TONE_JUDGES, WORDS, write_spoken_tones
from tiny_speech import tiny_speech_codec, tiny_speech_tokenizer
from torch import Tensor, nn
from toy_speech import RATE

from latentlm.data.audio import AudioDataConfig, AudioMixtureConfig
from latentlm.experiments.protocol import MeasureContext
from latentlm.experiments.results import look_up
from latentlm.experiments.speech_codecs import FrameCodec, codec_for_models, codecs_of
from latentlm.experiments.speech_data import SpeechData
from latentlm.experiments.speech_tokenizers import (
    MEASURES,
    SpeechTokenizerOptions,
    recordings_by_group,
    speech_tokenizer,
    utterances_by_group,
)
from latentlm.tokenizers.base import Posterior
from latentlm.tokenizers.bottleneck import BottleneckConfig, make_bottleneck

for library in ("pesq", "pystoi", "jiwer", "soxr"):
    pytest.importorskip(library)

OPTIONS: dict[str, Any] = {"num_utterances": 3, "dnsmos": False, "judges": TONE_JUDGES, "seed": 1}
HOP = 40

MakeContext = Callable[..., MeasureContext]


class Samples(nn.Module):
    """Frames of 40 samples as they are: nothing is lost, nothing is learned."""

    kind = "samples"
    latent_dim = HOP
    config = SimpleNamespace(sample_rate=RATE, frame_rate=RATE / HOP)
    bottleneck = make_bottleneck(BottleneckConfig(kind="ae"))

    def encode(self, waveforms: Tensor) -> Tensor:
        return nn.functional.pad(waveforms, (0, -waveforms.shape[1] % HOP)).unflatten(1, (-1, HOP))

    def decode(self, frames: Tensor, *, num_samples: int) -> Tensor:
        return frames.flatten(1)[:, :num_samples]

    def posterior(self, waveforms: Tensor) -> Posterior:
        return Posterior(self.encode(waveforms), None)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> AudioDataConfig:
    return write_spoken_tones(tmp_path_factory.mktemp("tones"))


@pytest.fixture(scope="module")
def make_context(tmp_path_factory: pytest.TempPathFactory, corpus: AudioDataConfig) -> MakeContext:
    folder = tmp_path_factory.mktemp("experiment")

    def make(name: str, tokenizer: Any, **options: Any) -> MeasureContext:
        data = replace(corpus, crop_seconds=0.5)
        groups = AudioMixtureConfig(groups={"data": data}, words={"data": WORDS})
        losses = SimpleNamespace(beta=0.25)
        return MeasureContext(
            cell=name,
            axes={},
            run_dir=None if tokenizer is None else folder / "run",
            recipe=None if tokenizer is None else SimpleNamespace(kind="some", groups=groups, losses=losses),
            options={**OPTIONS, **options},
            scratch_dir=folder / "scratch" / name,
            cache_dir=folder / "cache",
            assets_dir=folder / "assets",
            load=lambda folder: tokenizer,
            progress=False,
        )

    return make


def test_what_loses_nothing_is_perfect_by_every_measure_and_reads_as_the_recordings_do(
    make_context: MakeContext,
) -> None:
    result = speech_tokenizer(make_context("samples", Samples()))
    assert list(result["rows"]) == ["frames"]
    assert result["as_models_see"] == result["rows"]["frames"]
    assert result["speakers"] == {"seen": ["high", "low"], "unseen": ["new"]}
    for group, row in result["as_models_see"].items():
        assert row["num_clips"] == 3
        # The clips are the same numbers, low-passed alike; spectra of zeros are equal too.
        assert row["mel_distance"]["mean"] == pytest.approx(0.0, abs=1e-6)
        assert row["si_sdr"]["mean"] is None, "infinite"
        # Tones are no speech to STOI, but equal to themselves; its third-octave correlations round.
        assert row["stoi"]["mean"] == pytest.approx(1.0, abs=1e-3)
        assert row["pesq_nb"]["num_scored"] + sum(row["pesq_nb"]["failures"].values()) == 3
        assert row["voice"]["num_scored"] + sum(row["voice"]["failures"].values()) == 3
        assert row["words"] == result["real"][group]["words"]
        # A judge of three tones that learned anything errs in none or one of a few words.
        assert row["words"]["estimate"] > 0.8
        assert result["judge"][group]["accuracy"]["clean"] > 0.8
    assert result["rate"]["floats_per_second"] == RATE
    assert result["tokens"]["bits_per_second"] is None, "without noise there is no end of bits"
    json.dumps(result, allow_nan=False)


def test_a_sigma_vae_has_rows_of_mean_and_sample_and_a_table_of_sigmas(make_context: MakeContext) -> None:
    result = speech_tokenizer(make_context("sigma_vae", tiny_speech_tokenizer(sample_rate=RATE)))
    assert list(result["rows"]) == ["mean", "sample"]
    assert result["as_models_see"] == result["rows"]["sample"]
    mean, sample = (result["rows"][row]["unseen"]["mel_distance"]["mean"] for row in ("mean", "sample"))
    assert mean != sample
    assert result["tokens"]["beta"] == 0.25
    assert len(result["tokens"]["channels"]) == 3
    assert result["rate"]["bits_per_second"] == pytest.approx(result["tokens"]["bits_per_second"])
    assert result["rate"]["floats_per_second"] == pytest.approx(3 * RATE / 30)
    assert result["parameters"] > 0
    assert result["seconds_per_second"] > 0


@pytest.mark.parametrize("name", ["speech_table4", "speech_table5", "speech_table6", "speech_sigma"])
def test_experiments_show_what_there_is(make_context: MakeContext, name: str) -> None:
    result = speech_tokenizer(make_context("sigma_vae", tiny_speech_tokenizer(sample_rate=RATE)))
    paths = shown_paths(name, "speech_tokenizer")
    assert len(paths) > 10
    for path in paths:
        section, _, measure = path.rpartition(".")
        assert "dnsmos" in path or measure in look_up(result, section), path


def test_a_codec_is_measured_at_as_many_codes_as_are_asked_for(make_context: MakeContext) -> None:
    codec = tiny_speech_codec(sample_rate=RATE)
    one, all_three = (
        speech_tokenizer(make_context(f"codec{count}", codec, num_quantizers=count)) for count in (1, None)
    )
    assert (one["rate"]["tokens_per_frame"], all_three["rate"]["tokens_per_frame"]) == (1, 3)
    assert all_three["rate"]["bits_per_second"] == pytest.approx(3 * one["rate"]["bits_per_second"])
    quality = [result["rows"]["codes"]["unseen"]["mel_distance"]["mean"] for result in (one, all_three)]
    assert quality[0] != quality[1]
    assert all_three["tokens"]["num_quantizers"] == 3


def test_everybody_may_be_one_group(make_context: MakeContext) -> None:
    result = speech_tokenizer(make_context("together", Samples(), by_speaker=False))
    assert list(result["as_models_see"]) == list(result["real"]) == list(result["judge"]) == ["all"]
    assert set(result["speakers"]["all"]) <= {"high", "low", "new"}


def test_copies_are_made_once(make_context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    context = make_context("again", Samples())
    first = speech_tokenizer(context)
    monkeypatch.setattr(Samples, "decode", lambda *_, **__: 1 / 0)
    again = speech_tokenizer(context)
    assert words_of(again) == words_of(first)
    # What is read from a file lies elsewhere in memory, and sums over it round otherwise.
    assert numbers_of(again) == pytest.approx(numbers_of(first), rel=1e-4, abs=1e-6)


def numbers_of(result: Any) -> list[float]:
    """All numbers of a result, in order."""
    if isinstance(result, dict | list):
        values = result.values() if isinstance(result, dict) else result
        return [number for value in values for number in numbers_of(value)]
    return [float(result)] if isinstance(result, int | float) else []


def words_of(result: Any) -> Any:
    """A result with all numbers alike."""
    if isinstance(result, dict):
        return {name: words_of(value) for name, value in result.items()}
    if isinstance(result, list):
        return [words_of(value) for value in result]
    return 0 if isinstance(result, float) else result


def test_without_speakers_that_were_heard_there_is_one_group(corpus: AudioDataConfig) -> None:
    assert list(recordings_by_group(SpeechData(corpus))) == ["seen", "unseen"]
    only_new = SpeechData(replace(corpus, test_filters={"speaker": "new"}))
    assert list(recordings_by_group(only_new)) == ["unseen"]


def test_utterances_know_where_their_words_are(corpus: AudioDataConfig) -> None:
    groups = utterances_by_group(recordings_by_group(SpeechData(corpus)), WORDS, 4, seed=0)
    assert [len(one.clips) for one in groups.values()] == [4, 4]
    for clip, words in zip(groups["unseen"].clips, groups["unseen"].words, strict=True):
        assert 2 <= len(words) <= 3
        for start, end, _ in words:
            outside = torch.cat([clip[:start][-100:], clip[end:][:100]])
            assert outside.abs().max() == 0, "pauses are digital silence"
            assert clip[start:end].abs().max() > 0
    plain = utterances_by_group(recordings_by_group(SpeechData(corpus)), None, 4, seed=0)
    assert plain["seen"].words == [[]] * 4
    assert set(plain["seen"].speakers) <= {"high", "low"}


def test_frames_come_back_at_the_rate_and_length_that_went_in() -> None:
    codec = FrameCodec(Samples())
    clip = 0.5 * torch.sin(2 * torch.pi * 300 * torch.arange(3001) / 16000)[None]
    copy = codec.reconstruct(clip, 16000)
    assert copy.shape == clip.shape
    # Away from the edges, where the resampler's filter has no past.
    torch.testing.assert_close(copy[:, 500:-500], clip[:, 500:-500], atol=2e-3, rtol=0)
    with pytest.raises(ValueError, match="a frame has none"):
        codec.reconstruct(clip, 16000, num_quantizers=3)


def test_the_last_way_of_giving_back_is_the_one_that_models_see() -> None:
    names = {
        kind: list(codecs_of(one)) for kind, one in (("vae", tiny_speech_tokenizer()), ("rvq", tiny_speech_codec()))
    }
    assert names == {"vae": ["mean", "sample"], "rvq": ["codes"]}
    assert codec_for_models(tiny_speech_codec()).rate().tokens_per_frame == 3


def test_a_cell_without_run_and_folder_is_refused(make_context: MakeContext, corpus: AudioDataConfig) -> None:
    data = {"path": corpus.path, "sample_rate": RATE, "format": "audio_folder"}
    with pytest.raises(ValueError, match="neither a run nor weights"):
        speech_tokenizer(make_context("nothing", None, data=data))
    with pytest.raises(ValueError, match="needs two at least"):
        SpeechTokenizerOptions(num_utterances=1)


def test_tables_can_reach_every_measure() -> None:
    assert not any("." in name or " " in name for name in MEASURES.values())
