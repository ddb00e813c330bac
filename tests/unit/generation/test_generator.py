"""Laws of the reference generator."""

import dataclasses

import pytest
import torch
from torch import Tensor

from latentlm.diffusion.solvers import SolverConfig
from latentlm.generation.generator import STARTING_NOISE_STREAM, Generator
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
from latentlm.models.kv_cache import KVCache
from latentlm.models.latentlm import LatentLM
from latentlm.nn.keyed_noise import keyed_normal
from latentlm.sequence import Document, LabelPart, LatentPart, Part, SequenceBuilder, TextPart

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
    # 1 + 2e-7 takes the guided path with a scale one bit above one.
    plain, nearly = (latents_of(doc) for doc in generator.generate([draw(3, 1, 1.0), draw(3, 1, 1.0 + 2e-7)]))
    guided = latents_of(generator.generate([draw(3, 1, 3.0)])[0])
    assert torch.allclose(plain, nearly, atol=1e-4)
    assert not torch.allclose(plain, guided, atol=1e-2)


def test_guidance_towards_the_same_condition_changes_nothing(class_model: LatentLM) -> None:
    request = dataclasses.replace(draw(3, 1, 5.0), negative_prompt=Document((LabelPart(3),)))
    generator = class_generator(class_model)
    plain, guided = (latents_of(doc) for doc in generator.generate([draw(3, 1), request]))
    assert torch.allclose(plain, guided, atol=1e-4)  # cond - uncond is rounding, times 4


def reference_latents(
    model: LatentLM, request: GenerationRequest, label: int, *, before: tuple[Part, ...] = (), num_before: int = 0
) -> Tensor:
    """The same generation without cache, streams or batches: full passes over growing sequences.

    Args:
        before: What stands before the label.
        num_before: Latents that were drawn of it.
    """
    generator = class_generator(model)
    builder, head, solver = generator.builder, model.diffusion_heads["image"], generator._solvers["image"]
    latents = torch.zeros(0, 6)
    for k in range(request.spans[0].limit):
        hidden = []
        for condition in (label, None):
            document = Document((*before, LabelPart(condition), LatentPart("image", latents)))
            batch = builder.collate([[builder.build(document)]])
            hidden.append(model.hidden_states(batch)[0, -1])
        noise = keyed_normal(request.seed, torch.tensor(num_before + k), (6,), stream=STARTING_NOISE_STREAM)
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
        prompt=Document((TextPart("draw and say"),)),
        spans=(LatentSpan("image", 3), LatentSpan("speech", 2)),
        cfg_scale=2.0,
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


@torch.no_grad()
def test_a_label_may_stand_before_each_span(class_model: LatentLM) -> None:
    spans = (LatentSpan("image", 2), LatentSpan("image", 2, label=5))
    request = GenerationRequest(prompt=Document((LabelPart(3),)), spans=spans, seed=4)
    (document,) = class_generator(class_model).generate([request])
    first, second = (part.latents for part in document.parts if isinstance(part, LatentPart))
    before = (LabelPart(3), LatentPart("image", first))
    expected = reference_latents(class_model, request, 5, before=before, num_before=2)
    assert torch.allclose(second, expected, atol=1e-3, rtol=1e-3)  # a random model amplifies rounding


def documents_of(events: list[Event]) -> dict[int, DoneEvent]:
    return {event.request: event for event in events if isinstance(event, DoneEvent)}


def test_rows_with_different_prompts_modes_and_lengths_equal_solo_runs(
    mixed_model: LatentLM, mixed_builder: SequenceBuilder
) -> None:
    generator = mixed_generator(mixed_model, mixed_builder)
    greedy = TextSamplingConfig(temperature=0.0)
    requests = [
        GenerationRequest(
            prompt=Document((TextPart("a longer prompt than the others"),)), max_new_tokens=6, text=greedy
        ),
        GenerationRequest(prompt=Document((LabelPart(1),)), spans=(LatentSpan("image", 4),), cfg_scale=2.0, seed=5),
        GenerationRequest(
            prompt=Document((TextPart("x"),)), spans=(LatentSpan("speech", 2),), max_new_tokens=3, text=greedy
        ),
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
        logits = torch.zeros(*hidden_states.shape[:-1], 274)
        for rank, token in enumerate(self.preferred):
            logits[..., token] = 100.0 - rank
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
    # Begin and end token count, too: five positions are three latents.
    assert [part.latents.shape[0] for part in document.parts if isinstance(part, LatentPart)] == [3]


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


@torch.no_grad()
def test_guided_spans_in_a_mixed_document_equal_full_passes(
    mixed_model: LatentLM, mixed_builder: SequenceBuilder
) -> None:
    """Text, two pictures, then sound: the streams see what training shows a document with and without its condition.

    The unconditional stream begins anew at the second span.
    """
    picture = LatentPart("image", torch.randn(3, 6, generator=torch.Generator().manual_seed(0)))
    prompt = (TextPart("say it: "), picture)
    request = GenerationRequest(
        prompt=Document(prompt), spans=(LatentSpan("image", 2), LatentSpan("speech", 3)), seed=6, cfg_scale=1.5
    )
    generator = mixed_generator(mixed_model, mixed_builder)
    first, second = generator.generate([request])[0].parts
    assert isinstance(second, LatentPart)
    head, solver, latents = mixed_model.diffusion_heads["speech"], generator._solvers["speech"], torch.zeros(0, 3)
    for k in range(3):
        hidden = []
        for before in ((*prompt, first), ()):
            sequence = mixed_builder.build(Document((*before, LatentPart("speech", latents))), open_ended=True)
            # The last token is the end token; the one before it predicts the next latent.
            hidden.append(mixed_model.hidden_states(mixed_builder.collate([[sequence]]))[0, -2])

        def denoise(x: Tensor, t: Tensor, hidden: list[Tensor] = hidden) -> Tensor:
            cond, uncond = (head(x[None], t, state[None])[0] for state in hidden)
            return uncond + 1.5 * (cond - uncond)

        noise = keyed_normal(6, torch.tensor(2 + k), (3,), stream=STARTING_NOISE_STREAM)  # latents count on
        latents = torch.cat([latents, solver.sample(denoise, noise)[None]])
    assert torch.allclose(second.latents, latents, atol=1e-3, rtol=1e-3)  # a random model amplifies rounding


SOLVERS = ["ddpm", "ddim", "dpm_multistep", "dpm_singlestep", "dpm_sde", "euler", "heun"]


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("num_steps", [1, 7])
def test_any_solver_and_step_count_draws_and_is_decided_by_the_seed(
    class_model: LatentLM, name: str, num_steps: int
) -> None:
    solver = SolverConfig(name=name, num_inference_steps=num_steps, spacing="logsnr")  # pyright: ignore
    generator = class_generator(class_model, LatentSamplingConfig(solver=solver))
    requests = [draw(3, 1, 1.2, count=2), draw(3, 2, count=2)]
    first, other = (latents_of(document) for document in generator.generate(requests))
    assert first.isfinite().all()
    assert not torch.allclose(first, other, atol=1e-2)
    again = latents_of(generator.generate(requests[:1])[0])
    assert torch.allclose(first, again, atol=1e-3, rtol=1e-3)  # another batch size rounds differently


def test_no_requests_get_no_answers(class_model: LatentLM) -> None:
    assert class_generator(class_model).generate([]) == []


def test_gradients_are_off_inside_and_untouched_outside(class_model: LatentLM) -> None:
    for event in class_generator(class_model).stream([draw(1, 0, 2.0, count=2)]):
        assert torch.is_grad_enabled()
        if isinstance(event, LatentEvent):
            assert not event.latent.requires_grad
            (event.latent * torch.ones(6, requires_grad=True)).sum().backward()  # may be trained on


def test_only_rows_that_may_be_guided_take_cache_rows_for_a_second_stream(
    class_model: LatentLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, allocate = [], class_model.transformer.allocate_cache

    def spy(num_rows: int, max_length: int) -> KVCache:
        rows.append(num_rows)
        return allocate(num_rows, max_length)

    monkeypatch.setattr(class_model.transformer, "allocate_cache", spy)
    class_generator(class_model).generate([draw(1, 0), draw(1, 0, 2.0), draw(2, 0)])
    assert rows == [4]


def test_a_bound_too_short_for_a_span_leaves_text_only(
    mixed_model: LatentLM, mixed_builder: SequenceBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixed_model, "logits", ScriptedHead(mixed_builder.vocabulary.begin_id("image"), 97))
    request = GenerationRequest(
        prompt=Document((TextPart("x"),)), max_new_tokens=2, text=TextSamplingConfig(temperature=0.0)
    )
    (document,) = mixed_generator(mixed_model, mixed_builder).generate([request])
    assert document.parts == (TextPart("aa"),)


def test_free_decoding_stays_within_its_bound(mixed_model: LatentLM, mixed_builder: SequenceBuilder) -> None:
    requests = [
        GenerationRequest(prompt=Document((LabelPart(seed % 5),)), max_new_tokens=bound, seed=seed, cfg_scale=2.0)
        for seed, bound in enumerate([1, 2, 3, 5, 8, 13, 21])
    ]
    used = [0] * len(requests)
    for event in mixed_generator(mixed_model, mixed_builder).stream(requests):
        if isinstance(event, TokenEvent | LatentEvent):
            used[event.request] += 1
    assert all(count <= request.max_new_tokens for count, request in zip(used, requests, strict=True))
    assert max(used) > 3


def test_a_seed_may_be_any_integer(class_model: LatentLM) -> None:
    (document,) = class_generator(class_model).generate([draw(1, 2**70 + 1, count=1)])
    assert latents_of(document).isfinite().all()


def test_damaged_weights_are_a_sentence_not_a_picture(
    class_model: LatentLM, mixed_model: LatentLM, mixed_builder: SequenceBuilder
) -> None:
    with torch.no_grad():
        class_model.diffusion_heads["image"].latent_proj.weight.fill_(torch.nan)  # pyright: ignore
        mixed_model.embed_tokens.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="latents drawn for request 0 hold NaN"):
        class_generator(class_model).generate([draw(1, 0)])
    with pytest.raises(ValueError, match="logits hold NaN"):
        mixed_generator(mixed_model, mixed_builder).generate(
            [GenerationRequest(prompt=Document((TextPart("x"),)), max_new_tokens=2)]
        )


def test_prompts_with_broken_latents_are_refused(mixed_model: LatentLM, mixed_builder: SequenceBuilder) -> None:
    generator = mixed_generator(mixed_model, mixed_builder)
    for latents, message in ((torch.full((2, 6), torch.nan), "hold NaN"), (torch.zeros(2, 3), "3 channels")):
        request = GenerationRequest(prompt=Document((LatentPart("image", latents),)), max_new_tokens=1)
        with pytest.raises(ValueError, match=message):
            generator.generate([request])


def test_parts_of_another_model_are_refused(class_model: LatentLM, mixed_builder: SequenceBuilder) -> None:
    with pytest.raises(ValueError, match="another vocabulary"):
        Generator(class_model, mixed_builder)
    with pytest.raises(ValueError, match="sampling names imgae"):
        Generator(class_model, SequenceBuilder(class_model.config.vocabulary, ["image"]), {"imgae": FAST})


def test_numbers_that_make_no_sense_are_refused() -> None:
    prompt, span = Document((LabelPart(0),)), (LatentSpan("image", 1),)
    with pytest.raises(ValueError, match="cfg_scale is nan"):
        GenerationRequest(prompt=prompt, spans=span, cfg_scale=float("nan"))
    with pytest.raises(ValueError, match="cfg_scale is inf"):
        LatentSamplingConfig(cfg_scale=float("inf"))
    with pytest.raises(ValueError, match="max_new_tokens is -1"):
        GenerationRequest(prompt=prompt, spans=span, max_new_tokens=-1)
