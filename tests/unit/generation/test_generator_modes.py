"""What a request may ask of free decoding and of guidance: sizes, numbers of spans, stop strings, conditions."""

import dataclasses

import pytest
import torch
from tiny_models import randomise, tiny_mixed_config
from torch import Tensor

from latentlm.diffusion.solvers import SolverConfig
from latentlm.generation.generator import Generator
from latentlm.generation.requests import (
    GenerationRequest,
    LatentSamplingConfig,
    LatentSpan,
    TextSamplingConfig,
    TokenEvent,
)
from latentlm.models.latentlm import LatentLM
from latentlm.sequence import Document, LatentPart, SequenceBuilder, TextPart
from latentlm.tokenizers.text import ByteTokenizer

FAST = LatentSamplingConfig(solver=SolverConfig(num_inference_steps=3))
MAX_SIDE = 5


@pytest.fixture
def sized() -> Generator:
    """A model whose pictures say their size; its speech does not."""
    config = tiny_mixed_config()
    config = dataclasses.replace(
        config,
        vocabulary=dataclasses.replace(config.vocabulary, max_grid_side=MAX_SIDE),
        modalities=config.modalities | {"image": dataclasses.replace(config.modalities["image"], says_size=True)},
    )
    return generator_of(randomise(LatentLM(config)).eval())


def generator_of(model: LatentLM) -> Generator:
    builder = SequenceBuilder(model.config.vocabulary, list(model.config.modalities), ByteTokenizer())
    return Generator(model, builder, {"image": FAST, "speech": FAST})


def say_only(model: LatentLM, *ids: int) -> None:
    """Make some ids far likelier than all others, the first most."""
    size = model.config.vocabulary.size

    def logits(hidden_states: Tensor) -> Tensor:
        result = torch.zeros(*hidden_states.shape[:-1], size)
        for rank, token in enumerate(ids):
            result[..., token] = 100.0 - rank
        return result

    model.logits = logits  # pyright: ignore[reportAttributeAccessIssue]


GREEDY = TextSamplingConfig(temperature=0.0)


def free(max_new_tokens: int, **options: object) -> GenerationRequest:
    return GenerationRequest(
        prompt=Document((TextPart("draw"),)),
        max_new_tokens=max_new_tokens,
        **{"text": GREEDY, **options},  # pyright: ignore[reportArgumentType]
    )


def test_a_model_says_the_size_of_a_picture_and_draws_so_many_latents(sized: Generator) -> None:
    vocabulary = sized.builder.vocabulary
    say_only(sized.model, vocabulary.begin_id("image"), vocabulary.size_id(3))
    events = list(sized.stream([free(60, max_spans=1)]))
    tokens = [event.token_id for event in events if isinstance(event, TokenEvent)]
    assert tokens[:4] == [
        vocabulary.begin_id("image"),
        vocabulary.size_id(3),
        vocabulary.size_id(3),
        vocabulary.end_id("image"),
    ]
    (picture, *_) = sized.generate([free(60, max_spans=1)])[0].parts
    assert isinstance(picture, LatentPart)
    assert picture.grid == (3, 3)
    assert picture.latents.shape == (9, 6)


def test_what_was_drawn_with_its_size_is_read_back_as_it_was_generated(sized: Generator) -> None:
    request = GenerationRequest(
        prompt=Document((TextPart("a"),)), spans=(LatentSpan("image", grid=(2, 3)), LatentSpan("speech", 2))
    )
    (document,) = sized.generate([request])
    picture, speech = document.parts
    assert isinstance(picture, LatentPart)
    assert isinstance(speech, LatentPart)
    assert (picture.grid, picture.latents.shape[0], speech.grid) == ((2, 3), 6, None)
    sequence = sized.builder.build(Document((TextPart("a"), *document.parts)))
    restored = sized.builder.restore(sequence)
    assert [part.grid for part in restored.parts if isinstance(part, LatentPart)] == [(2, 3), None]


def test_a_said_size_stays_within_the_bound_on_new_tokens(sized: Generator) -> None:
    vocabulary = sized.builder.vocabulary
    say_only(sized.model, vocabulary.begin_id("image"), vocabulary.size_id(MAX_SIDE), vocabulary.size_id(2))
    for bound in range(5, 16):
        (document,) = sized.generate([free(bound)])
        used = 0
        for part in document.parts:  # text is what is left when no span fits any more
            used += part.latents.shape[0] + 4 if isinstance(part, LatentPart) else len(part.text)
        assert used == bound
        assert isinstance(document.parts[0], LatentPart)


@pytest.mark.parametrize("max_spans", [0, 1, 2])
def test_no_more_spans_are_opened_than_were_allowed(sized: Generator, max_spans: int) -> None:
    vocabulary = sized.builder.vocabulary
    say_only(sized.model, vocabulary.begin_id("speech"), vocabulary.end_id("speech"), ord("x"))
    (document,) = sized.generate([free(12, max_spans=max_spans)])
    spans = [part for part in document.parts if isinstance(part, LatentPart)]
    # The model would only ever open spans: "another latent" is the begin id too, so that the first takes all room.
    assert len(spans) == min(max_spans, 1)
    if max_spans == 0:
        assert document.parts == (TextPart("x" * 12),)


def test_sizes_and_lengths_that_do_not_fit_the_model_are_refused(sized: Generator, mixed_model: LatentLM) -> None:
    prompt = Document((TextPart("a"),))
    with pytest.raises(ValueError, match="say their size: give the span a grid"):
        sized.generate([GenerationRequest(prompt=prompt, spans=(LatentSpan("image", 4),))])
    with pytest.raises(ValueError, match="do not say their size"):
        generator_of(mixed_model).generate(
            [GenerationRequest(prompt=prompt, spans=(LatentSpan("image", grid=(2, 2)),))]
        )
    with pytest.raises(ValueError, match="max_grid_side is 5"):
        sized.generate([GenerationRequest(prompt=prompt, spans=(LatentSpan("image", grid=(1, 6)),))])


def test_text_ends_with_its_stop_string_even_inside_a_character(mixed_model: LatentLM) -> None:
    generator = generator_of(mixed_model)
    say_only(mixed_model, ord("x"))
    (event,) = [event for event in generator.stream([free(9, stop_strings=("xxx", "y"))]) if hasattr(event, "document")]
    assert event.finish_reason == "stop"
    assert event.document.parts == (TextPart("xxx"),)
    (document,) = generator.generate([free(9, stop_strings=("y",))])
    assert document.parts == (TextPart("x" * 9),)


def test_a_repetition_penalty_moves_greedy_text_on(mixed_model: LatentLM) -> None:
    say_only(mixed_model, ord("x"), ord("y"), ord("z"))
    text = TextSamplingConfig(temperature=0.0, repetition_penalty=2.0)  # 100 / 2 < 99
    (document,) = generator_of(mixed_model).generate([free(3, text=text, max_spans=0)])
    assert document.parts == (TextPart("xyz"),)


def guided(prompt: str, negative: str, *between: str, scales: tuple[float, ...] | float) -> GenerationRequest:
    return GenerationRequest(
        prompt=Document((TextPart(prompt),)),
        negative_prompt=Document((TextPart(negative),)),
        intermediate_prompts=tuple(Document((TextPart(text),)) for text in between),
        spans=(LatentSpan("image", 4),),
        cfg_scale=scales,
        seed=3,
    )


def drawn(model: LatentLM, *requests: GenerationRequest) -> list[Tensor]:
    documents = generator_of(model).generate(requests)
    return [part.latents for document in documents for part in document.parts if isinstance(part, LatentPart)]


def test_guidance_by_one_condition_is_a_chain_of_one_link(mixed_model: LatentLM) -> None:
    one, chain, all_at_once, half = drawn(
        mixed_model,
        guided("ab", "", scales=2.0),
        guided("ab", "", scales=(2.0,)),
        # With equal scales the intermediate prediction cancels: s(e_1 - e_0) + s(e_2 - e_1) = s(e_2 - e_0).
        guided("ab", "", "zzz", scales=(2.0, 2.0)),
        guided("ab", "", "zzz", scales=(2.0, 1.0)),
    )
    close = {"atol": 1e-4, "rtol": 1e-4}  # a random model amplifies rounding from latent to latent
    torch.testing.assert_close(chain, one, **close)
    torch.testing.assert_close(all_at_once, one, **close)
    assert not torch.allclose(half, one, atol=1e-2)


def test_rows_with_chains_of_different_lengths_equal_solo_runs(mixed_model: LatentLM) -> None:
    requests = [
        guided("ab", "", "q", scales=(3.0, 0.5)),
        guided("abcd", "x", scales=1.0),
        guided("a", "x", "yy", "zzz", scales=(0.0, 2.0, 1.5)),
        guided("abc", "x", scales=4.0),
    ]
    for request, together in zip(requests, drawn(mixed_model, *requests), strict=True):
        # Batches of other sizes sum in another order; a random model amplifies rounding over four latents.
        torch.testing.assert_close(drawn(mixed_model, request)[0], together, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_spans": -1}, "max_spans is -1"),
        ({"stop_strings": ("",)}, "a stop string is empty"),
        ({"cfg_scale": (1.0, 2.0)}, "0 intermediate prompts need 1 values of cfg_scale, but 2 were given"),
        ({"cfg_scale": (float("nan"),)}, "cfg_scale is nan"),
        ({"intermediate_prompts": (Document((TextPart("a"),)),)}, "1 intermediate prompts need 2 values"),
    ],
)
def test_requests_that_make_no_sense_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        free(3, **options)


@pytest.mark.parametrize("options", [{"min_p": 1.5}, {"min_p": -0.1}, {"repetition_penalty": 0.0}])
def test_sampling_that_makes_no_sense_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        TextSamplingConfig(**options)
