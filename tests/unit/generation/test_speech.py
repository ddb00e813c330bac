"""Text to speech: prompts, voices, guards, streams."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import randomise, tiny_image_tokenizer, tiny_mixed_config
from tiny_speech import RECORDED_RATE, sound, tiny_speech_tokenizer
from torch import Tensor

from latentlm.data.audio import write_wav
from latentlm.diffusion.solvers import SolverConfig
from latentlm.generation.document_pipeline import SoundEvent
from latentlm.generation.pipeline import LatentLMPipeline
from latentlm.generation.prompts import Sound
from latentlm.generation.requests import LatentSamplingConfig
from latentlm.generation.speaker import SpeakingConfig, Utterance, length_bounds
from latentlm.generation.speech import speak, stream_speech
from latentlm.generation.voices import Voice, make_voice, read_voice
from latentlm.models.latentlm import LatentLM

FAST = LatentSamplingConfig(cfg_scale=2.0, solver=SolverConfig(num_inference_steps=2))


@pytest.fixture(scope="module")
def pipeline() -> LatentLMPipeline:
    config = tiny_mixed_config()
    config = dataclasses.replace(config, modalities={"speech": config.modalities["speech"]})
    model = randomise(LatentLM(config)).eval()
    return LatentLMPipeline(model, {"speech": tiny_speech_tokenizer(sample_rate=RECORDED_RATE)}, {"speech": FAST})


@pytest.fixture(scope="module")
def voice(pipeline: LatentLMPipeline) -> Voice:
    return make_voice(pipeline.tokenizers["speech"], 0.5 * sound(200, seed=3), text="one two")


def free(max_latents: int = 6, **changes: object) -> SpeakingConfig:
    """No guard but a bound."""
    settings = {"length_guard": False, "max_seconds": max_latents * 30 / RECORDED_RATE}
    return SpeakingConfig(**{**settings, **changes})  # pyright: ignore[reportArgumentType]


def ends_after(pipeline: LatentLMPipeline, monkeypatch: pytest.MonkeyPatch, *lengths: int) -> None:
    """Make the model end its spans after so many latents; one length per draw, the last for all further ones."""
    vocabulary = pipeline.builder.vocabulary
    calls = {"asked": 0, "draw": 0}

    def logits(hidden_states: Tensor) -> Tensor:
        calls["asked"] += 1
        ends = calls["asked"] >= lengths[min(calls["draw"], len(lengths) - 1)]
        if ends:
            calls["asked"], calls["draw"] = 0, calls["draw"] + 1
        result = torch.zeros(*hidden_states.shape[:-1], vocabulary.size)
        result[..., vocabulary.end_id("speech") if ends else vocabulary.begin_id("speech")] = 100.0
        return result

    monkeypatch.setattr(pipeline.model, "logits", logits)


def test_an_utterance_ends_where_the_model_ends_it(
    pipeline: LatentLMPipeline, voice: Voice, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends_after(pipeline, monkeypatch, 3)
    (said,) = speak(pipeline, ["three"], [voice], config=free())
    assert said.ended_by_itself
    assert (len(said.tokens), len(said.waveform), said.sample_rate) == (3, 90, RECORDED_RATE)
    assert said.waveform.abs().max() <= 1


def test_a_bound_is_told_from_an_end(pipeline: LatentLMPipeline, voice: Voice, monkeypatch: pytest.MonkeyPatch) -> None:
    ends_after(pipeline, monkeypatch, 100)
    (said,) = speak(pipeline, ["three"], [voice], config=free(5))
    assert not said.ended_by_itself
    assert len(said.tokens) == 5


def test_what_did_not_end_is_drawn_again_with_recorded_seeds(
    pipeline: LatentLMPipeline, voice: Voice, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A draw at the bound of four latents asks three times and never ends; the second draw ends after two.
    ends_after(pipeline, monkeypatch, 4, 2)
    (said,) = speak(pipeline, ["three"], [voice], config=free(4, num_retries=3), seeds=[7])
    assert len(said.seeds) == 2
    assert said.seeds[0] == 7 != said.seeds[1]
    monkeypatch.undo()
    ends_after(pipeline, monkeypatch, 100)
    (never,) = speak(pipeline, ["three"], [voice], config=free(4, num_retries=2), seeds=[7])
    assert not never.ended_by_itself
    assert len(set(never.seeds)) == 3
    assert never.seeds[1] == said.seeds[1]


def test_the_last_seed_alone_gives_what_a_retry_gave(
    pipeline: LatentLMPipeline, voice: Voice, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends_after(pipeline, monkeypatch, 100)
    (never,) = speak(pipeline, ["three"], [None], config=free(4, num_retries=1), seeds=[7])
    (alone,) = speak(pipeline, ["three"], [None], config=free(4), seeds=[never.seeds[-1]])
    torch.testing.assert_close(alone.waveform, never.waveform)


def test_a_stream_gives_what_the_whole_gives(pipeline: LatentLMPipeline, voice: Voice) -> None:
    for who in (voice, None):
        (said,) = speak(pipeline, ["three"], [who], config=free(5), seeds=[2])
        chunks = list(stream_speech(pipeline, "three", who, config=free(5), seed=2))
        assert [len(chunk) for chunk in chunks] == [30] * len(said.tokens)
        # One latent at a time instead of all at once: convolutions sum in another order.
        torch.testing.assert_close(torch.cat(chunks), said.waveform, rtol=0, atol=1e-5)


def test_rows_of_a_batch_equal_solo_runs(pipeline: LatentLMPipeline, voice: Voice) -> None:
    texts, voices, seeds = ["three", "four five six", "x"], [voice, None, voice], [1, 2, 3]
    together = speak(pipeline, texts, voices, config=free(), seeds=seeds)
    for number, said in enumerate(together):
        (alone,) = speak(pipeline, [texts[number]], [voices[number]], config=free(), seeds=[seeds[number]])
        assert len(alone.tokens) == len(said.tokens)
        # Batches of other sizes multiply matrices in another order.
        torch.testing.assert_close(alone.tokens, said.tokens, rtol=1e-3, atol=1e-3)


def test_the_voice_changes_what_is_said_and_is_not_heard_again(pipeline: LatentLMPipeline, voice: Voice) -> None:
    def said(who: Voice | None) -> Utterance:
        return speak(pipeline, ["three"], [who], config=free(4))[0]

    other = make_voice(pipeline.tokenizers["speech"], 0.5 * sound(200, seed=4), text="one two")
    lengths = {len(said(who).waveform) for who in (voice, other, None)}
    assert max(lengths) <= 4 * 30
    assert not torch.equal(said(voice).tokens, said(other).tokens)


def test_guards_follow_the_text_and_the_pace_of_the_voice(voice: Voice) -> None:
    config = SpeakingConfig(min_ratio=0.5, max_ratio=2.0, seconds_per_character=0.1)
    assert length_bounds("ten chars!", None, config, 80.0) == (40, 161)
    assert length_bounds("ten chars!", None, dataclasses.replace(config, max_seconds=0.25), 80.0) == (20, 20)
    off = dataclasses.replace(config, length_guard=False)
    assert length_bounds("ten chars!", None, off, 80.0) == (1, 2400)
    own_pace = dataclasses.replace(config, seconds_per_character=None)
    expected = 10 * (200 / RECORDED_RATE) / len("one two")
    assert length_bounds("ten chars!", voice, own_pace, 80.0)[0] == int(0.5 * expected * 80)


@pytest.mark.parametrize("text", ["one two", None])
def test_a_voice_file_holds_the_voice(pipeline: LatentLMPipeline, text: str | None, tmp_path: Path) -> None:
    tokenizer = pipeline.tokenizers["speech"]
    write_wav(tmp_path / "anna.wav", 0.5 * sound(200, seed=3), RECORDED_RATE)
    made = read_voice(tmp_path / "anna.wav", tokenizer, text=text)
    made.save(tmp_path / "anna.safetensors")
    read = read_voice(tmp_path / "anna.safetensors", tokenizer)
    assert (read.text, read.seconds) == (text, made.seconds)
    assert torch.equal(read.latents(tokenizer, seed=5), made.latents(tokenizer, seed=5))
    assert not torch.equal(read.latents(tokenizer, seed=5), read.latents(tokenizer, seed=6))
    mean = read.latents(tokenizer, seed=5, sample=False)
    assert torch.equal(mean, read.latents(tokenizer, seed=6, sample=False))
    assert read_voice(tmp_path / "anna.safetensors", tokenizer, text="other words").text == "other words"


def test_a_voice_without_its_text_is_refused(pipeline: LatentLMPipeline, voice: Voice) -> None:
    for text in (None, "  "):
        with pytest.raises(ValueError, match="the voice goes without its text"):
            speak(pipeline, ["three"], [dataclasses.replace(voice, text=text)], config=free())


def test_guidance_leaves_the_voice_alone_if_told_so(pipeline: LatentLMPipeline, voice: Voice) -> None:
    def said(scale: float, **changes: object) -> Tensor:
        config = free(cfg_scale=scale, **changes)
        return speak(pipeline, ["three"], [voice], config=config, seeds=[1])[0].tokens

    assert not torch.equal(said(3.0, guide_voice=False), said(3.0))
    assert torch.equal(said(1.0, guide_voice=False), said(1.0)), "without guidance there is nothing to leave alone"


def test_recordings_are_brought_to_one_level(pipeline: LatentLMPipeline, tmp_path: Path) -> None:
    tokenizer = pipeline.tokenizers["speech"]
    voices = []
    for number, gain in enumerate((0.5, 0.05)):
        write_wav(tmp_path / f"{number}.wav", gain * sound(200, seed=3), RECORDED_RATE)
        voices.append(
            read_voice(tmp_path / f"{number}.wav", tokenizer, text="one").latents(tokenizer, seed=0, sample=False)
        )
    torch.testing.assert_close(*voices, atol=0.02, rtol=0)


def test_voices_of_another_tokenizer_are_refused(pipeline: LatentLMPipeline, voice: Voice) -> None:
    other = dataclasses.replace(voice, tokenizer_fingerprint="0" * 64)
    with pytest.raises(ValueError, match="another speech tokenizer"):
        speak(pipeline, ["three"], [other], config=free())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"noise", "no voice"),
        ({"mean": torch.zeros(3, 3)}, "format is None"),
        ({"mean": torch.zeros(3, 4), "ok": True}, "expected finite"),
        ({"mean": torch.full((3, 3), torch.nan), "ok": True}, "expected finite"),
        ({"mean": torch.zeros(0, 3), "ok": True}, "expected finite"),
        ({"other": torch.zeros(3, 3), "ok": True}, "mean"),
    ],
)
def test_hostile_voice_files_are_refused(
    pipeline: LatentLMPipeline, content: bytes | dict[str, object], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "voice.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        metadata = {"format": "latentlm-voice-1", "tokenizer_fingerprint": "x", "seconds": "1"}
        tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
        save_file(tensors, path, metadata if "ok" in content else None)
    with pytest.raises(ValueError, match=message):
        read_voice(path, pipeline.tokenizers["speech"])


@pytest.mark.parametrize(
    ("waveform", "message"),
    [
        (torch.zeros(0), "empty"),
        (torch.zeros(100), "silent"),
        (torch.full((100,), torch.nan), "NaN"),
        (torch.ones(61 * RECORDED_RATE), "at most 60 s"),
    ],
)
def test_recordings_that_are_no_voice_are_refused(pipeline: LatentLMPipeline, waveform: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_voice(pipeline.tokenizers["speech"], waveform)


def test_requests_that_make_no_sense_are_refused(pipeline: LatentLMPipeline, voice: Voice) -> None:
    with pytest.raises(ValueError, match="nothing to say"):
        speak(pipeline, ["  "], [voice])
    with pytest.raises(ValueError, match="one of each"):
        speak(pipeline, ["one"], [])
    with pytest.raises(ValueError, match="min < max"):
        SpeakingConfig(min_ratio=2.0, max_ratio=1.0)
    config = tiny_mixed_config()
    config = dataclasses.replace(config, modalities={"image": config.modalities["image"]})
    mute = LatentLMPipeline(LatentLM(config), {"image": tiny_image_tokenizer()})
    with pytest.raises(ValueError, match="does not speak"):
        speak(mute, ["one"], [None])


def test_sounds_stand_in_prompts_and_answers(pipeline: LatentLMPipeline, tmp_path: Path) -> None:
    waveform = 0.5 * sound(120, seed=1)
    write_wav(tmp_path / "in.wav", waveform, RECORDED_RATE)
    from_file, from_memory = (
        pipeline.prompts.document([what, " says"]).parts[0].latents
        for what in (tmp_path / "in.wav", Sound(waveform, RECORDED_RATE))
    )
    # 16 bits of the file, through three random layers.
    torch.testing.assert_close(from_file, from_memory, rtol=0, atol=1e-2)
    with pytest.raises(ValueError, match="takes 2400 Hz"):
        pipeline.prompts.document(Sound(waveform, 8000))
    answers = list(pipeline.stream([[Sound(waveform, RECORDED_RATE), "say"]], max_new_tokens=40, temperature=1.0))
    sounds = [event.sound for event in answers if isinstance(event, SoundEvent)]
    assert all(one.sample_rate == RECORDED_RATE and len(one.waveform) % 30 == 0 for one in sounds)


def test_a_pipeline_that_speaks_is_saved_and_loaded(pipeline: LatentLMPipeline, voice: Voice, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "model")
    loaded = LatentLMPipeline.from_pretrained(tmp_path / "model")
    (said,), (again,) = (speak(one, ["three"], [voice], config=free(4)) for one in (pipeline, loaded))
    torch.testing.assert_close(said.waveform, again.waveform)
