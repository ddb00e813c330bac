"""Laws of the reference generator."""

import dataclasses

import pytest
import torch
from torch import Tensor

from latentlm.diffusion.solvers import SolverConfig
from latentlm.generation.generator import Generator
from latentlm.generation.requests import (
    DoneEvent,
    Event,
    GenerationRequest,
    LatentEvent,
    LatentSamplingConfig,
    LatentSpan,
    PartEvent,
    TextSamplingConfig,
    TokenEvent,
)
from latentlm.models.latentlm import LatentLM
from latentlm.sequence import Document, LabelPart, LatentPart, SequenceBuilder, TextPart

FAST = LatentSamplingConfig(solver=SolverConfig(num_inference_steps=4))
NOISY = LatentSamplingConfig(solver=SolverConfig(name="dpm_sde", num_inference_steps=4))


def class_generator(model: LatentLM, sampling: LatentSamplingConfig = FAST) -> Generator:
    return Generator(model, SequenceBuilder(model.config.vocabulary, ["image"]), {"image": sampling})


def mixed_generator(model: LatentLM, builder: SequenceBuilder) -> Generator:
    return Generator(model, builder, {"image": FAST, "speech": FAST})


def draw(label: int, seed: int, cfg_scale: float = 1.0, count: int = 5) -> GenerationRequest:
    return GenerationRequest(
        prompt=Document((LabelPart(label),)), spans=(LatentSpan("image", count),), seed=seed, cfg_scale=cfg_scale
    )


def latents_of(document: Document) -> Tensor:
    (part,) = document.parts
    assert isinstance(part, LatentPart)
    return part.latents


@pytest.mark.parametrize("sampling", [FAST, NOISY])
def test_a_row_is_the_same_whatever_the_batch_around_it(class_model: LatentLM, sampling: LatentSamplingConfig) -> None:
    generator = class_generator(class_model, sampling)
    requests = [draw(3, 1, 2.0), draw(5, 2), draw(3, 1, 1.5, count=3), draw(0, 9, 4.0)]
    together = generator.generate(requests)
    for request, document in zip(requests, together, strict=True):
        (alone,) = generator.generate([request])
        # Batches of other sizes sum in another order; a random model amplifies rounding over five latents.
        assert torch.allclose(latents_of(alone), latents_of(document), atol=1e-4, rtol=1e-4)


def test_the_seed_decides(class_model: LatentLM) -> None:
    generator = class_generator(class_model)
    first, again, other = (latents_of(doc) for doc in generator.generate([draw(3, 1), draw(3, 1), draw(3, 2)]))
    assert torch.allclose(first, again, atol=1e-5)  # rows of one product may differ in the last bit
    assert not torch.allclose(first, other, atol=0.1)


def test_guidance_of_one_is_no_guidance(class_model: LatentLM) -> None:
    generator = class_generator(class_model)
    # 1 + 1e-7 takes the guided path with a scale that rounds to almost one.
    plain, nearly = (latents_of(doc) for doc in generator.generate([draw(3, 1, 1.0), draw(3, 1, 1.0 + 1e-7)]))
    guided = latents_of(generator.generate([draw(3, 1, 3.0)])[0])
    assert torch.allclose(plain, nearly, atol=1e-4)
    assert not torch.allclose(plain, guided, atol=1e-2)


def test_guidance_towards_the_same_condition_changes_nothing(class_model: LatentLM) -> None:
    request = dataclasses.replace(draw(3, 1, 5.0), negative_prompt=Document((LabelPart(3),)))
    generator = class_generator(class_model)
    plain, guided = (latents_of(doc) for doc in generator.generate([draw(3, 1), request]))
    assert torch.allclose(plain, guided, atol=1e-4)  # cond - uncond is rounding, times 4


def reference_latents(model: LatentLM, request: GenerationRequest, label: int) -> Tensor:
    """The same generation without cache, streams or batches: full passes over growing sequences."""
    generator = class_generator(model)
    builder, head, solver = generator.builder, model.diffusion_heads["image"], generator._solvers["image"]
    latents = torch.zeros(0, 6)
    for k in range(request.spans[0].limit):
        hidden = []
        for condition in (label, None):
            document = Document((LabelPart(condition), LatentPart("image", latents)))
            batch = builder.collate([[builder.build(document)]])
            hidden.append(model.hidden_states(batch)[0, -1])
        from latentlm.generation.generator import STARTING_NOISE_STREAM
        from latentlm.nn.keyed_noise import keyed_normal

        noise = keyed_normal(request.seed, torch.tensor(k), (6,), stream=STARTING_NOISE_STREAM)
        scale = request.cfg_scale or 1.0

        def denoise(x: Tensor, t: Tensor, hidden: list[Tensor] = hidden, scale: float = scale) -> Tensor:
            cond, uncond = (head(x[None], t, state[None])[0] for state in hidden)
            return uncond + scale * (cond - uncond)

        latents = torch.cat([latents, solver.sample(denoise, noise)[None]])
    return latents


@torch.no_grad()
def test_cached_generation_equals_full_passes_over_growing_sequences(class_model: LatentLM) -> None:
    request = draw(3, 4, 2.0)
    expected = reference_latents(class_model, request, 3)
    assert torch.allclose(
        latents_of(class_generator(class_model).generate([request])[0]), expected, atol=1e-3, rtol=1e-3
    )  # a random model amplifies rounding from latent to latent


def test_events_tell_the_story_in_order(mixed_model: LatentLM, mixed_builder: SequenceBuilder) -> None:
    request = GenerationRequest(
        prompt=Document((TextPart("draw and say"),)), spans=(LatentSpan("image", 3), LatentSpan("speech", 2)), cfg_scale=2.0
    )
    events = list(mixed_generator(mixed_model, mixed_builder).stream([request]))
    vocabulary = mixed_builder.vocabulary
    assert [type(event) for event in events] == [
        *[LatentEvent] * 3,
        PartEvent,
        TokenEvent,
        *[LatentEvent] * 2,
        PartEvent,
        TokenEvent,
        DoneEvent,
    ]
    assert [(e.modality, e.index, e.total) for e in events if isinstance(e, LatentEvent)] == [
        ("image", 0, 3),
        ("image", 1, 3),
        ("image", 2, 3),
        ("speech", 0, 2),
        ("speech", 1, 2),
    ]
    assert [e.token_id for e in events if isinstance(e, TokenEvent)] == [
        vocabulary.end_id("image"),
        vocabulary.end_id("speech"),
    ]
    done = events[-1]
    assert isinstance(done, DoneEvent)
    assert done.finish_reason == "spans"
    assert [part.latents.shape for part in done.document.parts if isinstance(part, LatentPart)] == [(3, 6), (2, 3)]


def documents_of(events: list[Event]) -> dict[int, DoneEvent]:
    return {event.request: event for event in events if isinstance(event, DoneEvent)}


def test_rows_with_different_prompts_modes_and_lengths_equal_solo_runs(
    mixed_model: LatentLM, mixed_builder: SequenceBuilder
) -> None:
    generator = mixed_generator(mixed_model, mixed_builder)
    greedy = TextSamplingConfig(temperature=0.0)
    requests = [
        GenerationRequest(prompt=Document((TextPart("a longer prompt than the others"),)), max_new_tokens=6, text=greedy),
        GenerationRequest(prompt=Document((LabelPart(1),)), spans=(LatentSpan("image", 4),), cfg_scale=2.0, seed=5),
        GenerationRequest(prompt=Document((TextPart("x"),)), spans=(LatentSpan("speech", 2),), max_new_tokens=3, text=greedy),
        GenerationRequest(
            prompt=Document((LatentPart("image", torch.ones(3, 6)), TextPart("?"))), max_new_tokens=2, seed=7
        ),
    ]
    together = generator.generate(requests)
    for request, document in zip(requests, together, strict=True):
        (alone,) = generator.generate([request])
        assert [type(part) for part in alone.parts] == [type(part) for part in document.parts]
        for one, other in zip(alone.parts, document.parts, strict=True):
            if isinstance(one, LatentPart) and isinstance(other, LatentPart):
                assert torch.allclose(one.latents, other.latents, atol=1e-3)
            else:
                assert one == other


class ScriptedHead:
    """Stands in for the softmax head: always prefers the ids it is given, in order of preference."""

    def __init__(self, *preferred: int) -> None:
        self.preferred = preferred

    def __call__(self, hidden_states: Tensor) -> Tensor:
        logits = torch.zeros(274)
        for rank, token in enumerate(self.preferred):
            logits[token] = 100.0 - rank
        return logits


def test_the_model_opens_and_closes_spans_by_itself(
    mixed_model: LatentLM, mixed_builder: SequenceBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary = mixed_builder.vocabulary
    # Opens a picture whenever it may; inside, "end" wins over "another latent".
    monkeypatch.setattr(mixed_model, "logits", ScriptedHead(vocabulary.end_id("image"), vocabulary.begin_id("image")))
    request = GenerationRequest(
        prompt=Document((TextPart("x"),)), max_new_tokens=6, text=TextSamplingConfig(temperature=0.0), cfg_scale=2.0
    )
    (done,) = documents_of(list(mixed_generator(mixed_model, mixed_builder).stream([request]))).values()
    # begin, latent, end is three positions, twice.
    assert [part.latents.shape[0] for part in done.document.parts if isinstance(part, LatentPart)] == [1, 1]
    assert done.finish_reason == "length"


def test_free_spans_stop_at_the_requests_bound(
    mixed_model: LatentLM, mixed_builder: SequenceBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixed_model, "logits", ScriptedHead(mixed_builder.vocabulary.begin_id("speech")))
    request = GenerationRequest(
        prompt=Document((TextPart("x"),)), max_new_tokens=5, text=TextSamplingConfig(temperature=0.0)
    )
    (document,) = mixed_generator(mixed_model, mixed_builder).generate([request])
    assert [part.latents.shape[0] for part in document.parts if isinstance(part, LatentPart)] == [4]


def test_a_span_of_free_length_ends_at_the_models_end_token(
    mixed_model: LatentLM, mixed_builder: SequenceBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixed_model, "logits", ScriptedHead(mixed_builder.vocabulary.end_id("speech")))
    request = GenerationRequest(
        prompt=Document((TextPart("x"),)), spans=(LatentSpan("speech"),), text=TextSamplingConfig(temperature=0.0)
    )
    (document,) = mixed_generator(mixed_model, mixed_builder).generate([request])
    assert [part.latents.shape[0] for part in document.parts if isinstance(part, LatentPart)] == [1]


def test_text_stops_at_end_of_text(
    mixed_model: LatentLM, mixed_builder: SequenceBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixed_model, "logits", ScriptedHead(256))
    request = GenerationRequest(prompt=Document((TextPart("x"),)), max_new_tokens=9)
    (done,) = documents_of(list(mixed_generator(mixed_model, mixed_builder).stream([request]))).values()
    assert done.finish_reason == "eos"
    assert done.document.parts == ()


def test_requests_that_the_model_cannot_answer_are_refused(
    class_model: LatentLM, mixed_model: LatentLM, mixed_builder: SequenceBuilder
) -> None:
    prompt = Document((LabelPart(0),))
    refusals = [
        (lambda: GenerationRequest(prompt=prompt), "asks for nothing"),
        (lambda: GenerationRequest(prompt=prompt, spans=(LatentSpan("image", 0),)), "at least one latent"),
        (
            lambda: class_generator(class_model).generate([GenerationRequest(prompt=prompt, max_new_tokens=1)]),
            "no softmax head",
        ),
        (
            lambda: class_generator(class_model).generate(
                [GenerationRequest(prompt=prompt, spans=(LatentSpan("image"),))]
            ),
            "no end token",
        ),
        (
            lambda: mixed_generator(mixed_model, mixed_builder).generate(
                [GenerationRequest(prompt=prompt, spans=(LatentSpan("video", 1),))]
            ),
            "asks for 'video'",
        ),
    ]
    for refuse, message in refusals:
        with pytest.raises(ValueError, match=message):
            refuse()
