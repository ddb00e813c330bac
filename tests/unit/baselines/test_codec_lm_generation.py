"""The codec language model speaks: caches, batches, ends, voices, costs."""

import dataclasses
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import save_file
from tiny_codec_lm import tiny_codec_lm_config
from tiny_models import randomise, tiny_mixed_config
from tiny_speech import RECORDED_RATE, sound, tiny_speech_codec, tiny_speech_tokenizer
from torch import Tensor

from latentlm.baselines.codec_lm import CodecLM, CodecLMPipeline, CodecSamplingConfig
from latentlm.baselines.codec_lm.generator import CodeRequest, draw_codes
from latentlm.baselines.codec_lm.rows import CodecUtterance, autoregressive_tokens, non_autoregressive_tokens, pack
from latentlm.cli.main import main
from latentlm.data.audio import write_wav
from latentlm.generation.pipeline import LatentLMPipeline
from latentlm.generation.speaker import Speaker, SpeakingConfig
from latentlm.generation.speech import LatentLMSpeaker, as_speaker
from latentlm.generation.voices import CodeVoice, make_voice
from latentlm.models.latentlm import LatentLM
from latentlm.tokenizers.text import ByteTokenizer

GREEDY = CodecSamplingConfig(temperature=0.0, repetition_window=0)
HOP = 30


def pipeline_of(**changes: object) -> CodecLMPipeline:
    codec = tiny_speech_codec(sample_rate=RECORDED_RATE)
    model = randomise(CodecLM(tiny_codec_lm_config(**changes)), std=0.3)
    return CodecLMPipeline(model, {"speech": codec, "text": ByteTokenizer()})


@pytest.fixture(scope="module", params=[1, 2, 3], ids=["single", "pairs", "threes"])
def pipeline(request: pytest.FixtureRequest) -> CodecLMPipeline:
    return pipeline_of(group_size=request.param)


@pytest.fixture(scope="module")
def voice(pipeline: CodecLMPipeline) -> CodeVoice:
    return pipeline.make_voice(0.5 * sound(200, seed=3), text="one two")  # seven frames


def free(max_frames: int = 8, **changes: object) -> SpeakingConfig:
    """No guard but a bound."""
    settings = {"length_guard": False, "max_seconds": max_frames * HOP / RECORDED_RATE}
    return SpeakingConfig(**{**settings, **changes})  # pyright: ignore[reportArgumentType]


def ends_after(pipeline: CodecLMPipeline, monkeypatch: pytest.MonkeyPatch, *lengths: int) -> None:
    """Make the model end its utterances after so many frames; one length per draw, the last for all further ones."""
    network = pipeline.model.autoregressive
    state = {"asked": 0, "draw": 0}

    def logits(hidden_states: Tensor) -> Tensor:
        result = torch.zeros(*hidden_states.shape[:-1], network.group_size, 17)
        result[..., 5] = 50.0
        for place in range(network.group_size):
            if state["asked"] == lengths[min(state["draw"], len(lengths) - 1)]:
                result[..., place, 16] = 100.0
                state["asked"], state["draw"] = 0, state["draw"] + 1
                return result
            state["asked"] += 1
        return result

    monkeypatch.setattr(network, "logits", logits)


def test_drawing_with_a_cache_equals_reading_everything_anew(pipeline: CodecLMPipeline, voice: CodeVoice) -> None:
    model, group_size = pipeline.model, pipeline.model.config.group_size
    text_ids = [256, *b"one two three"]
    request = CodeRequest(text_ids, voice.frames, [256], min_frames=9, max_frames=9, seed=0)
    (drawn,) = draw_codes(model, [request], GREEDY)
    prompt = voice.frames[len(voice.frames) % group_size :]
    whole = CodecUtterance(text_ids, torch.cat([prompt, drawn.codes]))
    tokens = autoregressive_tokens(whole, begin_id=257, end_code=16, group_size=group_size)
    rows = pack([[tokens]], num_codes=group_size, num_targets=group_size)
    logits = model.autoregressive.logits(model.autoregressive.hidden_states(rows)[0])  # (T, G, V)
    logits[..., 16] = -torch.inf  # nine frames are asked for
    expected = logits[len(text_ids) :].argmax(-1).flatten()
    assert drawn.codes[:, 0].tolist() == expected[len(prompt) :][:9].tolist()
    for level in (1, 2):
        said = CodecUtterance(text_ids, torch.cat([voice.frames, drawn.codes]))
        tokens = non_autoregressive_tokens(said, num_prompt_frames=len(voice.frames), level=level, begin_id=257)
        rows = pack([[tokens]], num_codes=3, num_targets=1)
        hidden_states = model.non_autoregressive.hidden_states(rows)[0, rows.target_positions]
        of_level = model.non_autoregressive.logits(hidden_states, torch.full((9,), level)).argmax(-1)
        assert drawn.codes[:, level].tolist() == of_level.tolist()


@pytest.mark.parametrize("cfg_scale", [1.0, 2.5])
def test_rows_of_a_batch_equal_solo_runs(pipeline: CodecLMPipeline, voice: CodeVoice, cfg_scale: float) -> None:
    texts, voices, seeds = ["three", "four five six", "x"], [voice, None, voice], [1, 2, 3]
    config = free(cfg_scale=cfg_scale)
    together = pipeline.speak(texts, voices, config=config, seeds=seeds)
    assert len({len(said.tokens) for said in together} | {said.ended_by_itself for said in together}) > 1
    for number, said in enumerate(together):
        (alone,) = pipeline.speak([texts[number]], [voices[number]], config=config, seeds=[seeds[number]])
        assert torch.equal(alone.tokens, said.tokens)
        assert alone.ended_by_itself == said.ended_by_itself
        torch.testing.assert_close(alone.waveform, said.waveform)


def test_guidance_of_one_is_none_and_another_scale_says_something_else(pipeline: CodecLMPipeline) -> None:
    request = CodeRequest([256, *b"three"], torch.zeros(0, 3, dtype=torch.long), [256], 12, 12, seed=4)
    by_scale = {
        scale: draw_codes(pipeline.model, [request], dataclasses.replace(GREEDY, cfg_scale=scale))[0].codes
        for scale in (1.0, 1.0 + 1e-6, 6.0)
    }
    assert torch.equal(by_scale[1.0], by_scale[1.0 + 1e-6])  # two streams of which one weighs nothing
    assert not torch.equal(by_scale[1.0], by_scale[6.0])


def test_an_utterance_ends_where_the_model_ends_it(
    pipeline: CodecLMPipeline, voice: CodeVoice, monkeypatch: pytest.MonkeyPatch
) -> None:
    for length in (4, 5):
        monkeypatch.undo()
        ends_after(pipeline, monkeypatch, length)
        (said,) = pipeline.speak(["three"], [voice], config=free())
        assert said.ended_by_itself
        assert (said.tokens.shape, len(said.waveform)) == ((length, 3), HOP * length)
        assert said.waveform.abs().max() <= 1


def test_a_bound_is_told_from_an_end_and_what_did_not_end_is_drawn_again(
    pipeline: CodecLMPipeline, voice: CodeVoice, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends_after(pipeline, monkeypatch, 100)
    (never,) = pipeline.speak(["three"], [voice], config=free(5, num_retries=2), seeds=[7])
    assert not never.ended_by_itself
    assert len(never.tokens) == 5
    assert never.seeds[0] == 7
    assert len(set(never.seeds)) == 3


def test_the_guard_keeps_an_utterance_from_ending_too_early(
    pipeline: CodecLMPipeline, voice: CodeVoice, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SpeakingConfig(seconds_per_character=4 * HOP / RECORDED_RATE, min_ratio=0.75, max_ratio=1.25)
    ends_after(pipeline, monkeypatch, 1)
    (early,) = pipeline.speak(["ab"], [voice], config=config)
    assert len(early.tokens) >= 6  # three quarters of two characters of four frames
    monkeypatch.undo()
    ends_after(pipeline, monkeypatch, 100)
    (late,) = pipeline.speak(["ab"], [voice], config=config)
    assert len(late.tokens) == 11  # five quarters, and one


def test_the_voice_changes_what_is_said_and_is_not_heard_again(pipeline: CodecLMPipeline, voice: CodeVoice) -> None:
    other = pipeline.make_voice(0.5 * sound(200, seed=4), text="one two")
    one, two, nobody = pipeline.speak(["three"] * 3, [voice, other, None], config=free(), seeds=[1, 1, 1])
    assert max(len(said.tokens) for said in (one, two, nobody)) <= 8
    assert not torch.equal(one.tokens, two.tokens)
    whole = pipeline.codec.decode(torch.cat([voice.frames, one.tokens])[None])[0, len(voice.frames) * HOP :]
    # The decoder goes on where the voice stops; convolutions sum in another order.
    torch.testing.assert_close(one.waveform, whole, rtol=0, atol=1e-5)


def test_a_stream_is_what_the_whole_is(pipeline: CodecLMPipeline, voice: CodeVoice) -> None:
    (said,) = pipeline.speak(["three"], [voice], config=free(), seeds=[2])
    assert torch.equal(torch.cat(list(pipeline.stream("three", voice, config=free(), seed=2))), said.waveform)


def test_other_codes_are_drawn_where_they_are_given_a_temperature(pipeline: CodecLMPipeline) -> None:
    request = CodeRequest([256, *b"three"], torch.zeros(0, 3, dtype=torch.long), [256], 12, 12, seed=4)
    warm = dataclasses.replace(GREEDY, other_temperature=1.5)
    first, again = (draw_codes(pipeline.model, [request], warm)[0].codes for _ in range(2))
    greedy = draw_codes(pipeline.model, [request], GREEDY)[0].codes
    assert torch.equal(first, again)
    assert torch.equal(first[:, 0], greedy[:, 0])
    assert not torch.equal(first[:, 1:], greedy[:, 1:])


@pytest.mark.parametrize("group_size", [1, 2])
def test_a_tiny_set_is_learned_and_spoken_back_to_its_end(group_size: int) -> None:
    config = tiny_codec_lm_config(group_size=group_size)
    wider = dataclasses.replace(config.autoregressive, hidden_size=32, intermediate_size=64)
    config = dataclasses.replace(config, autoregressive=wider, non_autoregressive=wider)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CodecLM(config)
    generator = torch.Generator().manual_seed(1)
    said = [
        CodecUtterance([256, *text.encode()], torch.randint(16, (length, 3), generator=generator), key=number)
        for number, (text, length) in enumerate([("one", 6), ("two", 9), ("three", 7)])
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    for step in range(120):
        loss = model(model.batch([said], noise_seed=step))["total"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    no_voice = torch.zeros(0, 3, dtype=torch.long)
    requests = [CodeRequest(one.text_ids, no_voice, [256], 1, 30, seed=0) for one in said]
    for one, drawn in zip(said, draw_codes(model.eval(), requests, GREEDY), strict=True):
        assert drawn.ended
        assert torch.equal(drawn.codes, one.codes)
    # From its first frames, as a voice, it goes on to the same end.
    rest = [CodeRequest(one.text_ids, one.codes[:2], [256], 1, 30, seed=0) for one in said]
    for one, drawn in zip(said, draw_codes(model, rest, GREEDY), strict=True):
        assert torch.equal(drawn.codes, one.codes[2:])


def test_costs_are_counted(voice: CodeVoice) -> None:
    frame_rate = RECORDED_RATE / HOP
    single, pairs = (pipeline_of(group_size=size) for size in (1, 2))
    costs = [one.speaking_cost(10 / frame_rate, text="three") for one in (single, pairs)]
    assert [cost.num_steps for cost in costs] == [10, 5]
    assert [cost.num_evaluations for cost in costs] == [10 + 2, 5 + 2]
    guided = single.speaking_cost(10 / frame_rate, text="three", config=SpeakingConfig(cfg_scale=2.0))
    assert (guided.num_steps, guided.num_evaluations) == (10, 20 + 2)
    voiced = single.speaking_cost(10 / frame_rate, text="three", voice_seconds=10 / frame_rate)
    assert costs[1].flops < costs[0].flops < guided.flops
    assert costs[0].flops < voiced.flops
    # Per position and layer: 8 D² of attention's and 6 D · I of the feed-forward's matrices; T² D 4 of attention.
    length, num_read, hidden, layers = 17, 7, 16, 2
    backbone = layers * (length * (8 * hidden**2 + 6 * hidden * 24) + 4 * length**2 * hidden)
    others = 2 * (backbone + 2 * 10 * hidden * 16)
    assert costs[0].flops == backbone + 2 * 10 * hidden * 17 + others
    assert num_read + 10 == length


def test_latentlm_counts_a_step_a_latent_and_the_evaluations_of_its_head() -> None:
    config = tiny_mixed_config()
    config = dataclasses.replace(config, modalities={"speech": config.modalities["speech"]})
    speaker = LatentLMSpeaker(
        LatentLMPipeline(LatentLM(config), {"speech": tiny_speech_tokenizer(sample_rate=RECORDED_RATE)})
    )
    seconds = 10 * HOP / RECORDED_RATE
    plain = speaker.speaking_cost(seconds, config=SpeakingConfig(cfg_scale=1.0, num_inference_steps=5))
    assert (plain.num_steps, plain.num_evaluations) == (10, 10 * (1 + 5))
    guided = speaker.speaking_cost(seconds, config=SpeakingConfig(cfg_scale=4.0, num_inference_steps=5))
    assert (guided.num_steps, guided.num_evaluations) == (10, 2 * 10 * (1 + 5))
    assert plain.flops < guided.flops < 2 * plain.flops + 1
    config = SpeakingConfig(cfg_scale=1.0, num_inference_steps=5)
    assert speaker.speaking_cost(seconds, text="a long text", config=config).flops > plain.flops


def test_both_models_are_speakers(pipeline: CodecLMPipeline) -> None:
    assert as_speaker(pipeline, name="it") is pipeline
    assert isinstance(pipeline, Speaker)
    config = tiny_mixed_config()
    config = dataclasses.replace(config, modalities={"speech": config.modalities["speech"]})
    latentlm = LatentLMPipeline(LatentLM(config), {"speech": tiny_speech_tokenizer(sample_rate=RECORDED_RATE)})
    assert isinstance(as_speaker(latentlm, name="it"), Speaker)
    with pytest.raises(ValueError, match="which does not speak"):
        as_speaker(pipeline.codec, name="it")


def test_a_pipeline_is_saved_and_loaded(pipeline: CodecLMPipeline, voice: CodeVoice, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "model")
    loaded = CodecLMPipeline.from_pretrained(tmp_path / "model")
    (said,), (again,) = (one.speak(["three"], [voice], config=free(), seeds=[3]) for one in (pipeline, loaded))
    assert torch.equal(said.waveform, again.waveform)


def test_parts_that_do_not_belong_together_are_refused(pipeline: CodecLMPipeline, voice: CodeVoice) -> None:
    tokenizers = pipeline.tokenizers
    with pytest.raises(ValueError, match="models codes"):
        CodecLMPipeline(pipeline.model, {**tokenizers, "speech": tiny_speech_tokenizer()})
    other = CodecLM(tiny_codec_lm_config(num_codes=17))
    with pytest.raises(ValueError, match="codebooks of 16"):
        CodecLMPipeline(other, tokenizers)
    strange = CodecLM(tiny_codec_lm_config(tokenizer_fingerprint="0" * 64))
    with pytest.raises(ValueError, match="another speech tokenizer"):
        CodecLMPipeline(strange, tokenizers)
    with pytest.raises(ValueError, match="another speech tokenizer"):
        pipeline.speak(["three"], [dataclasses.replace(voice, tokenizer_fingerprint="0" * 64)])
    with pytest.raises(ValueError, match="nothing to say"):
        pipeline.speak([" "], [voice])
    with pytest.raises(ValueError, match="denoises nothing"):
        pipeline.speak(["three"], [voice], config=SpeakingConfig(num_inference_steps=5))


@pytest.mark.parametrize("text", ["one two", None])
def test_a_voice_file_holds_the_voice(text: str | None, tmp_path: Path) -> None:
    pipeline = pipeline_of()
    write_wav(tmp_path / "anna.wav", 0.5 * sound(200, seed=3), RECORDED_RATE)
    made = pipeline.read_voice(tmp_path / "anna.wav", text=text)
    made.save(tmp_path / "anna.safetensors")
    read = pipeline.read_voice(tmp_path / "anna.safetensors")
    assert (read.text, read.seconds, read.tokenizer_fingerprint) == (text, made.seconds, pipeline.codec.fingerprint())
    assert torch.equal(read.frames, made.frames)
    assert pipeline.read_voice(tmp_path / "anna.safetensors", text="other words").text == "other words"
    of_latents = make_voice(tiny_speech_tokenizer(sample_rate=RECORDED_RATE), 0.5 * sound(200))
    of_latents.save(tmp_path / "latents.safetensors")
    with pytest.raises(ValueError, match="no voice of codes"):
        pipeline.read_voice(tmp_path / "latents.safetensors")


@pytest.mark.parametrize(
    "codes",
    [
        torch.full((3, 3), 16),
        torch.full((3, 3), -1),
        torch.zeros(3, 2).long(),
        torch.zeros(0, 3).long(),
        torch.zeros(3, 3),
    ],
)
def test_hostile_voice_files_are_refused(codes: Tensor, tmp_path: Path) -> None:
    metadata = {"format": "latentlm-voice-1", "tokenizer_fingerprint": "x", "seconds": "1"}
    save_file({"codes": codes}, tmp_path / "voice.safetensors", metadata)
    with pytest.raises(ValueError, match="expected int64"):
        pipeline_of().read_voice(tmp_path / "voice.safetensors")


def test_the_say_command_takes_a_codec_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline_of(group_size=2).save_pretrained(tmp_path / "model")
    write_wav(tmp_path / "anna.wav", 0.5 * sound(300), RECORDED_RATE)
    model = ["--model", str(tmp_path / "model")]
    assert main(["voice", str(tmp_path / "anna.wav"), *model, "--text", "one"]) == 0
    flags = ["--voice", str(tmp_path / "anna.safetensors"), "--no-guard", "--max-seconds", "0.1"]
    assert main(["say", "three", *model, *flags, "-o", str(tmp_path / "said.wav")]) == 0
    waveform, rate = soundfile.read(tmp_path / "said.wav")
    assert rate == RECORDED_RATE
    assert 0 < len(waveform) <= 240
    assert "s of sound" in capsys.readouterr().err
    assert main(["say", "three", *model, *flags, "--steps", "2"]) == 2
    assert "denoises nothing" in capsys.readouterr().err
