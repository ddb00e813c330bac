"""The loop over frames: cached against uncached, rows against solo runs, ends, and a tiny set learned by heart."""

import dataclasses
from pathlib import Path

import pytest
import torch
from tiny_mel_ar import FRAME_LENGTH, NUM_MELS, tiny_config, tiny_model, tiny_pipeline, tiny_vocoder
from tiny_speech import RECORDED_RATE, sound
from torch import Tensor

from latentlm.baselines.mel_ar import MelAR, MelARPipeline, MelSamplingConfig
from latentlm.baselines.mel_ar.features import group_frames, newest_groups, ungroup_frames
from latentlm.baselines.mel_ar.generator import MelRequest, draw_groups
from latentlm.baselines.mel_ar.model import NOISE_STREAM
from latentlm.generation.speaker import Speaker, SpeakingConfig
from latentlm.generation.speech import decode_after
from latentlm.generation.voices import Voice
from latentlm.nn.keyed_noise import keyed_normal
from latentlm.sequence import Document, LatentPart, SequenceBuilder, TextPart
from latentlm.tokenizers.text import ByteTokenizer


@pytest.fixture(scope="module")
def pipeline() -> MelARPipeline:
    return tiny_pipeline()


@pytest.fixture(scope="module")
def voice(pipeline: MelARPipeline) -> Voice:
    return pipeline.make_voice(0.5 * sound(200, seed=3), text="one two")


def free(max_groups: int = 6, **changes: object) -> SpeakingConfig:
    """No guard but a bound."""
    settings = {"length_guard": False, "max_seconds": max_groups * 2 * FRAME_LENGTH / RECORDED_RATE}
    return SpeakingConfig(**{**settings, **changes})  # pyright: ignore[reportArgumentType]


def request_of(model: MelAR, text: str, *, prefix: int = 0, most: int = 5, least: int = 1, seed: int = 0) -> MelRequest:
    ids = [256, *text.encode(), model.config.vocabulary.begin_id("speech")]
    groups = torch.randn(prefix, model.config.group_dim, generator=torch.Generator().manual_seed(7))
    return MelRequest(torch.tensor(ids), groups, least, most, seed)


def with_stop_logits(model: MelAR, monkeypatch: pytest.MonkeyPatch, *, ends_at: int) -> None:
    """Every row of a batch that began together says at its `ends_at`-th step that it is the last."""
    asked = 0

    def stop_logits(hidden_states: Tensor) -> Tensor:
        nonlocal asked
        asked += 1
        return torch.full(hidden_states.shape[:1], 5.0 if asked >= ends_at else -5.0)

    monkeypatch.setattr(model, "stop_logits", stop_logits)


# -- the loop ----------------------------------------------------------------------------------------------------------


def drawn_without_cache(model: MelAR, request: MelRequest) -> Tensor:
    """Every group from a pass over all that stands before it."""
    builder = SequenceBuilder(model.config.vocabulary, ("speech",))
    groups = request.prefix
    while len(groups) < len(request.prefix) + request.max_groups:
        keys = torch.arange(len(groups))
        embeds = torch.cat([model.embed_tokens(request.ids), model.embed_groups(groups, request.seed, keys)])[None]
        state = model.transformer(embeds, torch.arange(embeds.shape[1])[None])[0, -1:]
        key = torch.tensor([len(groups)])
        noise = keyed_normal(request.seed, key, (model.config.group_dim,), stream=NOISE_STREAM)
        groups = torch.cat([groups, model.sampler(state, noise).coarse])
    assert builder.vocabulary.begin_id("speech") == int(request.ids[-1])
    return groups[len(request.prefix) :]


@pytest.mark.parametrize("reduction_factor", [1, 2])
@pytest.mark.parametrize("prefix", [0, 3])
def test_the_cache_changes_nothing(reduction_factor: int, prefix: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(reduction_factor=reduction_factor)
    with_stop_logits(model, monkeypatch, ends_at=100)
    request = request_of(model, "three", prefix=prefix, seed=11)
    (answer,) = draw_groups(model, [request], MelSamplingConfig())
    with torch.no_grad():
        expected = drawn_without_cache(model, request)
    # Passes over one position and over all of them multiply matrices in another order, five steps in a row.
    torch.testing.assert_close(answer.coarse, expected, rtol=1e-4, atol=1e-4)
    assert not answer.ended


def test_rows_of_a_batch_equal_solo_runs() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.stop.bias.zero_()  # so that some rows end before others
    requests = [
        request_of(model, text, prefix=prefix, seed=seed, most=9)
        for seed, (text, prefix) in enumerate([("three", 2), ("a longer text", 0), ("x", 4), ("one two", 0)])
    ]
    together = draw_groups(model, requests, MelSamplingConfig())
    assert len({len(answer.coarse) for answer in together}) > 1
    for request, answer in zip(requests, together, strict=True):
        (alone,) = draw_groups(model, [request], MelSamplingConfig())
        assert alone.ended == answer.ended
        # Batches of other sizes multiply matrices in another order.
        torch.testing.assert_close(alone.coarse, answer.coarse, rtol=1e-3, atol=1e-3)


def test_without_noise_only_the_pre_net_chooses() -> None:
    model = tiny_model(pre_net={"dropout": 0.0})
    with torch.no_grad():
        model.stop.bias.fill_(-100.0)
    requests = [request_of(model, "three", seed=seed) for seed in (0, 1)]
    (one, _), (other, _) = draw_groups(model, requests, MelSamplingConfig(noise_scale=0.0))
    torch.testing.assert_close(one, other)
    (one, _), (other, _) = draw_groups(model, requests, MelSamplingConfig())
    assert not torch.allclose(one, other)


def test_the_stop_layer_ends_an_utterance_but_not_before_its_least_length(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    for least, expected in ((1, 3), (4, 4)):
        with_stop_logits(model, monkeypatch, ends_at=3)
        (answer,) = draw_groups(model, [request_of(model, "three", least=least)], MelSamplingConfig())
        assert (len(answer.coarse), answer.ended) == (expected, True)
    with_stop_logits(model, monkeypatch, ends_at=100)
    (answer,) = draw_groups(model, [request_of(model, "three")], MelSamplingConfig())
    assert (len(answer.coarse), answer.ended) == (5, False)
    assert draw_groups(model, [], MelSamplingConfig()) == []


def test_a_tiny_set_is_learned_by_heart_and_ends_by_itself() -> None:
    lengths = {"a": 5, "bc": 8, "d": 6}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MelAR(tiny_config(pre_net={"dropout": 0.1}))
    builder = SequenceBuilder(model.config.vocabulary, ("speech",), ByteTokenizer())
    frames = {
        text: torch.randn(2 * length, NUM_MELS, generator=torch.Generator().manual_seed(length))
        for text, length in lengths.items()
    }
    rows = [
        [builder.build(Document((TextPart(text), LatentPart("speech", group_frames(frames[text], 2))), key=key))]
        for key, text in enumerate(lengths)
    ]
    batch = builder.collate(rows)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for step in range(280):
        losses = model(batch, noise_seed=step)
        total = losses["coarse"] + losses["refined"] + 0.01 * losses["divergence"] + losses["stop"]
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    requests = [request_of(model, text, most=20) for text in lengths]
    answers = draw_groups(model, requests, MelSamplingConfig(noise_scale=0.0))
    for text, answer in zip(lengths, answers, strict=True):
        assert answer.ended
        assert len(answer.coarse) == lengths[text]
        # Frames are of unit variance: an error of 1 would be no better than the mean, sqrt(2) another text's.
        error = (ungroup_frames(answer.coarse, 2) - frames[text]).square().mean().sqrt()
        assert error < 0.5


# -- the pipeline ------------------------------------------------------------------------------------------------------


def test_it_is_a_speaker(pipeline: MelARPipeline) -> None:
    assert isinstance(pipeline, Speaker)
    assert pipeline.sample_rate == RECORDED_RATE
    assert pipeline.step_rate == 40


def test_an_utterance_is_the_vocoders_sound_of_refined_frames(
    pipeline: MelARPipeline, voice: Voice, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_stop_logits(pipeline.model, monkeypatch, ends_at=3)
    (said,) = pipeline.speak(["three"], [voice], config=free())
    assert said.ended_by_itself
    assert said.tokens.shape == (6, NUM_MELS)
    assert len(said.waveform) == 6 * FRAME_LENGTH
    prefix = ungroup_frames(newest_groups(voice.latents(pipeline.vocoder, seed=0, sample=False), 2), 2)
    torch.testing.assert_close(said.waveform, decode_after(pipeline.vocoder, said.tokens, prefix))
    with_stop_logits(pipeline.model, monkeypatch, ends_at=3)
    (chunk,) = pipeline.stream("three", voice, config=free(), seed=0)
    assert torch.equal(chunk, said.waveform)


def test_frames_are_refined_with_the_voice_before_them(pipeline: MelARPipeline, voice: Voice) -> None:
    request = pipeline._request("three", voice, free(), 0)
    assert request.ids.tolist()[1:-1] == list(b"one two three")
    assert len(request.prefix) == 3  # of 7 frames the oldest is left out
    (answer,) = draw_groups(pipeline.model, [request], MelSamplingConfig())
    said = pipeline._utterance(request, answer)
    frames = torch.cat([ungroup_frames(request.prefix, 2), ungroup_frames(answer.coarse, 2)])[None]
    refined = pipeline.model.post_net(frames, torch.ones(frames.shape[:2], dtype=torch.bool))[0]
    torch.testing.assert_close(said.tokens, refined[6:])


def test_utterances_do_not_hang_on_those_beside_them(pipeline: MelARPipeline, voice: Voice) -> None:
    texts, voices, seeds = ["three", "four five six", "x"], [voice, None, voice], [1, 2, 3]
    together = pipeline.speak(texts, voices, config=free(), seeds=seeds)
    for number, said in enumerate(together):
        (alone,) = pipeline.speak([texts[number]], [voices[number]], config=free(), seeds=[seeds[number]])
        # Batches of other sizes multiply matrices in another order.
        torch.testing.assert_close(alone.tokens, said.tokens, rtol=1e-3, atol=1e-3)


def test_what_a_bound_ended_is_drawn_again(
    pipeline: MelARPipeline, voice: Voice, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_stop_logits(pipeline.model, monkeypatch, ends_at=5)  # three steps, then the second of the next draw
    (said,) = pipeline.speak(["three"], [voice], config=free(3, num_retries=2), seeds=[4])
    assert (said.ended_by_itself, len(said.seeds), said.seeds[0]) == (True, 2, 4)


def test_options_of_other_speakers_are_refused(pipeline: MelARPipeline, voice: Voice) -> None:
    for change in ({"cfg_scale": 2.0}, {"num_inference_steps": 3}, {"end_temperature": 1.0}):
        with pytest.raises(ValueError, match=f"leave {next(iter(change))} out"):
            pipeline.speak(["three"], [voice], config=free(**change))
    other = dataclasses.replace(voice, tokenizer_fingerprint="0" * 64)
    with pytest.raises(ValueError, match="another speech tokenizer"):
        pipeline.speak(["three"], [other], config=free())
    with pytest.raises(ValueError, match="noise_scale"):
        MelSamplingConfig(noise_scale=-1.0)


def test_bfloat16_reaches_the_model(pipeline: MelARPipeline, voice: Voice, monkeypatch: pytest.MonkeyPatch) -> None:
    said = []
    for precision in ("float32", "bfloat16"):
        with_stop_logits(pipeline.model, monkeypatch, ends_at=2)
        said += pipeline.speak(["three"], [voice], config=free(2, precision=precision))
    assert not torch.equal(said[0].tokens, said[1].tokens)
    assert said[1].tokens.dtype == torch.float32


def test_a_second_costs_as_many_steps_as_groups_of_frames() -> None:
    costs = [tiny_pipeline(reduction_factor=r).speaking_cost(1.0, text="one") for r in (1, 2, 4)]
    assert [cost.num_steps for cost in costs] == [80, 40, 20]
    assert [cost.num_evaluations for cost in costs] == [161, 81, 41]
    assert costs[0].flops > costs[1].flops > costs[2].flops
    pipeline = tiny_pipeline()
    assert pipeline.speaking_cost(1.0, text="one", voice_seconds=1.0).flops > pipeline.speaking_cost(1.0).flops


def test_a_pipeline_is_saved_and_loaded(pipeline: MelARPipeline, voice: Voice, tmp_path: Path) -> None:
    sampling = {"speech": MelSamplingConfig(noise_scale=0.5)}
    quiet = MelARPipeline(pipeline.model, pipeline.tokenizers, sampling)
    quiet.save_pretrained(tmp_path / "model")
    loaded = MelARPipeline.from_pretrained(tmp_path / "model")
    assert loaded.sampling == sampling
    voice.save(tmp_path / "anna.safetensors")
    read = loaded.read_voice(tmp_path / "anna.safetensors")
    (said,), (again,) = quiet.speak(["three"], [voice], config=free()), loaded.speak(["three"], [read], config=free())
    torch.testing.assert_close(said.waveform, again.waveform)


def test_a_vocoder_of_another_training_is_refused(pipeline: MelARPipeline) -> None:
    config = tiny_config(vocoder_fingerprint="0" * 64)
    with pytest.raises(ValueError, match="another speech tokenizer"):
        MelARPipeline(MelAR(config), pipeline.tokenizers)
    with pytest.raises(ValueError, match="num_mels=5"):
        MelARPipeline(MelAR(dataclasses.replace(config, num_mels=5)), {**pipeline.tokenizers, "speech": tiny_vocoder()})
