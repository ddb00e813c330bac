"""What a VQ-MLLM answers: the loop over ids against passes without a cache, modes, bounds, and the pipeline."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import randomise, tiny_image_tokenizer, tiny_pictures, tiny_vq_image_tokenizer
from torch import Tensor

from latentlm.baselines.vq_ar import CodeSamplingConfig
from latentlm.baselines.vq_mllm import VQMLLM, CodeGenerator, VQMLLMConfig, VQMLLMPipeline
from latentlm.baselines.vq_mllm.generator import ID_STREAM
from latentlm.config import from_mapping
from latentlm.generation.document_pipeline import AnswerEvent, PictureEvent, TextDelta
from latentlm.generation.prompts import BrokenPicture
from latentlm.generation.requests import (
    DoneEvent,
    GenerationRequest,
    LatentSpan,
    PartEvent,
    TextSamplingConfig,
    TokenEvent,
)
from latentlm.generation.text_sampling import penalise_repetition, sample_ids
from latentlm.nn.keyed_noise import keyed_uniform
from latentlm.sequence import CodePart, Document, LatentPart, SequenceBuilder, TextPart
from latentlm.tokenizers.text import ByteTokenizer

TRANSFORMER = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 64}
EOS = ByteTokenizer.eos_id
BEGIN, END = 258, 259
FIRST_CODE, NUM_CODES = 268, 16
GREEDY = TextSamplingConfig(temperature=0.0)


def tiny_model(**vocabulary: int) -> VQMLLM:
    sizes = {"switch_tokens": True, "num_text_ids": 257, "num_codes": NUM_CODES, **vocabulary}
    return randomise(VQMLLM(from_mapping(VQMLLMConfig, {"vocabulary": sizes, "transformer": TRANSFORMER}))).eval()


def generator_of(model: VQMLLM, **sampling: Any) -> CodeGenerator:
    builder = SequenceBuilder(model.config.vocabulary, (), ByteTokenizer())
    return CodeGenerator(model, builder, CodeSamplingConfig(**sampling))


@pytest.fixture
def model() -> VQMLLM:
    return tiny_model()


@pytest.fixture
def sized() -> VQMLLM:
    """Its pictures say their size, at most 5 x 5."""
    return tiny_model(max_grid_side=5)


def text(words: str) -> Document:
    return Document((TextPart(words),))


def picture(*codes: int) -> CodePart:
    return CodePart("image", torch.tensor(codes))


def said(document: Document) -> list[str | list[int]]:
    """The parts of a document as plain values."""
    parts: list[str | list[int]] = []
    for part in document.parts:
        if isinstance(part, CodePart):
            parts.append(part.codes.tolist())
        elif isinstance(part, TextPart):
            parts.append(part.text)
    return parts


def free(max_new_tokens: int, **options: Any) -> GenerationRequest:
    return GenerationRequest(prompt=text("draw"), max_new_tokens=max_new_tokens, **{"text": GREEDY, **options})


def say_only(model: VQMLLM, *ids: int) -> None:
    """Make some ids far likelier than all others, the first most."""

    def logits(hidden_states: Tensor) -> Tensor:
        result = torch.zeros(*hidden_states.shape[:-1], model.config.vocabulary.size)
        for rank, token in enumerate(ids):
            result[..., token] = 100.0 - rank
        return result

    model.logits = logits  # pyright: ignore[reportAttributeAccessIssue]


def favour(model: VQMLLM, token: int) -> None:
    """Make an id about as likely as all text together."""
    bias = torch.zeros(model.config.vocabulary.size)
    bias[token] = 5.0
    logits = model.logits
    model.logits = lambda hidden_states: logits(hidden_states) + bias  # pyright: ignore[reportAttributeAccessIssue]


# -- the loop against full passes --------------------------------------------------------------------------------------


def next_logits(model: VQMLLM, ids: list[int]) -> Tensor:
    """Of the id after `ids`, without a cache."""
    hidden_states = model.transformer(model.embed_tokens(torch.tensor([ids])), torch.arange(len(ids))[None])
    return model.logits(hidden_states[0, -1])


def among(*ids: int) -> Tensor:
    mask = torch.zeros(FIRST_CODE + NUM_CODES, dtype=torch.bool)
    mask[list(ids)] = True
    return mask


@torch.no_grad()
def reference_answer(
    model: VQMLLM, request: GenerationRequest, sampling: CodeSamplingConfig, *, chain: list[list[int]]
) -> tuple[list[int], list[int]]:
    """Codes of a forced picture and the text behind it; `chain` are the ids that weaker streams read before it."""
    ids = [EOS, *b"draw"]

    def choose(logits: Tensor, config: TextSamplingConfig, allowed: Tensor) -> int:
        number = keyed_uniform(torch.tensor(request.seed), torch.tensor(len(ids)), stream=ID_STREAM)
        return int(sample_ids(logits, config, number, allowed=allowed))

    scales = request.cfg_scale if isinstance(request.cfg_scale, tuple) else (request.cfg_scale,)
    start = len(ids)
    ids.append(BEGIN)
    for _ in range(request.spans[0].length or 0):
        streams = [next_logits(model, [*prompt, *ids[start:]]) for prompt in chain] + [next_logits(model, ids)]
        logits = streams[0]
        for scale, weaker, stronger in zip(scales, streams, streams[1:], strict=False):
            assert scale is not None
            logits = logits + scale * (stronger - weaker)
        ids.append(choose(logits, sampling, among(*range(FIRST_CODE, FIRST_CODE + NUM_CODES))))
    codes = [token - FIRST_CODE for token in ids[start + 1 :]]
    ids.append(END)
    seen, written = {EOS, *b"draw"}, []
    while len(written) < request.max_new_tokens:
        logits = penalise_repetition(
            next_logits(model, ids), torch.tensor(sorted(seen)), request.text.repetition_penalty
        )
        written.append(choose(logits, request.text, among(*range(257))))
        ids.append(written[-1])
        seen.add(written[-1])
        if written[-1] == EOS:
            break
    return codes, written


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("options", "chain"),
    [
        ({"cfg_scale": 1.0}, []),
        ({"cfg_scale": 2.5}, [[EOS]]),
        ({"cfg_scale": 2.5, "negative_prompt": text("no")}, [[EOS, *b"no"]]),
        ({"cfg_scale": (2.0, 0.5), "intermediate_prompts": (text("dr"),)}, [[EOS], [EOS, *b"dr"]]),
    ],
)
def test_cached_generation_equals_full_passes_over_growing_sequences(
    model: VQMLLM, temperature: float, options: dict[str, Any], chain: list[list[int]]
) -> None:
    sampling = CodeSamplingConfig(temperature=temperature, top_k=8)
    request = GenerationRequest(
        prompt=text("draw"),
        spans=(LatentSpan("image", 6),),
        max_new_tokens=6,
        max_spans=0,
        text=TextSamplingConfig(temperature=temperature, repetition_penalty=1.3),
        seed=11,
        **options,
    )
    codes, written = reference_answer(model, request, sampling, chain=chain)
    events = list(generator_of(model, temperature=temperature, top_k=8).stream([request]))
    ids = [event.token_id for event in events if isinstance(event, TokenEvent)]
    assert ids == [*(FIRST_CODE + code for code in codes), END, *written]
    assert len(set(codes)) > 1  # or the test would not tell positions apart


def test_greedy_text_equals_a_loop_without_a_cache(model: VQMLLM) -> None:
    ids = [EOS, *b"draw"]
    for _ in range(8):
        ids.append(int(next_logits(model, ids)[:257].argmax()))
    (document,) = generator_of(model).generate([free(8, max_spans=0)])
    assert said(document) == [ByteTokenizer().decode(ids[5:])]


def test_a_prompt_with_a_picture_is_read_as_its_codes(model: VQMLLM) -> None:
    prompt = Document((TextPart("a"), picture(3, 1, 4, 1), TextPart("?")))
    ids = [EOS, ord("a"), BEGIN, *(FIRST_CODE + code for code in (3, 1, 4, 1)), END, ord("?")]
    expected = int(next_logits(model, ids)[:257].argmax())
    request = GenerationRequest(prompt=prompt, max_new_tokens=1, max_spans=0, text=GREEDY)
    (event, *_) = generator_of(model).stream([request])
    assert event == TokenEvent(0, expected)


def test_rows_with_different_prompts_modes_and_lengths_equal_solo_runs(model: VQMLLM) -> None:
    favour(model, BEGIN)  # some rows open pictures by themselves
    warm = TextSamplingConfig(top_p=0.9)
    requests = [
        GenerationRequest(prompt=text("a longer prompt than the others"), max_new_tokens=7, text=GREEDY),
        GenerationRequest(prompt=text("a"), spans=(LatentSpan("image", 4),) * 2, cfg_scale=2.0, seed=5),
        GenerationRequest(
            prompt=text("x"), spans=(LatentSpan("image"),), max_new_tokens=20, free_lengths={"image": 3}, text=warm
        ),
        GenerationRequest(prompt=Document((picture(1, 2), TextPart("?"))), max_new_tokens=30, seed=7, text=warm),
        GenerationRequest(
            prompt=text("b"),
            spans=(LatentSpan("image", 3),),
            negative_prompt=text("long negative prompt"),
            intermediate_prompts=(text("c"),),
            cfg_scale=(3.0, 0.5),
            max_new_tokens=4,
            seed=9,
        ),
    ]
    # A short bound on the pictures of free length, lest they fill the cache.
    requests[2] = dataclasses.replace(requests[2], spans=(LatentSpan("image", max_latents=6),))
    generator = generator_of(model, cfg_scale=1.5)
    together = [said(document) for document in generator.generate(requests)]
    assert together == [said(generator.generate([request])[0]) for request in requests]
    assert any(isinstance(part, list) for part in together[3])


def test_the_seed_decides(model: VQMLLM) -> None:
    generator = generator_of(model)
    requests = [
        GenerationRequest(prompt=text("x"), spans=(LatentSpan("image", 8),), seed=seed) for seed in (3, 3, 4, -(2**80))
    ]
    one, same, other, _ = map(said, generator.generate(requests))
    assert one == same
    assert one != other


def test_the_first_code_follows_the_softmax_over_codes(model: VQMLLM) -> None:
    requests = [GenerationRequest(prompt=text("x"), spans=(LatentSpan("image", 1),), seed=seed) for seed in range(1500)]
    codes = [said(document)[0][0] for document in generator_of(model).generate(requests)]
    expected = next_logits(model, [EOS, ord("x"), BEGIN])[FIRST_CODE:].softmax(-1)
    # Standard error of a share is at most 0.5 / sqrt(1500) = 0.013; four of them.
    torch.testing.assert_close(torch.tensor(codes).bincount(minlength=NUM_CODES) / 1500, expected, atol=0.052, rtol=0)


def test_guidance_of_one_is_no_guidance_and_takes_no_rows(model: VQMLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    num_rows: list[int] = []
    allocate = model.transformer.allocate_cache
    monkeypatch.setattr(
        model.transformer, "allocate_cache", lambda rows, length: num_rows.append(rows) or allocate(rows, length)
    )
    request = GenerationRequest(prompt=text("x"), spans=(LatentSpan("image", 8),), cfg_scale=1.0)
    default = dataclasses.replace(request, cfg_scale=None)
    # With equal conditions guidance of any strength changes nothing.
    same = dataclasses.replace(request, cfg_scale=3.0, negative_prompt=text("x"))
    generator = generator_of(model)
    assert said(generator.generate([request])[0]) == said(generator.generate([default])[0])
    assert said(generator.generate([request])[0]) == said(generator.generate([same])[0])
    assert num_rows == [1, 1, 1, 2]


# -- modes and bounds --------------------------------------------------------------------------------------------------


def test_events_tell_the_story_in_order(model: VQMLLM) -> None:
    say_only(model, ord("y"), EOS, FIRST_CODE + 7)
    request = GenerationRequest(
        prompt=text("x"), spans=(LatentSpan("image", 2), LatentSpan("image", 1)), max_new_tokens=2, text=GREEDY
    )
    events = list(generator_of(model, temperature=0.0, cfg_scale=2.0).stream([request]))
    assert [type(event) for event in events] == [
        *(TokenEvent, TokenEvent, PartEvent, TokenEvent),
        *(TokenEvent, PartEvent, TokenEvent),
        *(TokenEvent, TokenEvent, PartEvent, DoneEvent),
    ]
    ids = [event.token_id for event in events if isinstance(event, TokenEvent)]
    # Inside a picture nothing but codes may come, however likely text is.
    assert ids == [FIRST_CODE + 7, FIRST_CODE + 7, END, FIRST_CODE + 7, END, ord("y"), ord("y")]
    done = events[-1]
    assert isinstance(done, DoneEvent)
    assert (done.finish_reason, said(done.document)) == ("length", [[7, 7], [7], "yy"])


def test_forced_pictures_alone_end_with_the_last(model: VQMLLM) -> None:
    request = GenerationRequest(prompt=text("x"), spans=(LatentSpan("image", 3),) * 2)
    *_, done = generator_of(model).stream([request])
    assert isinstance(done, DoneEvent)
    assert done.finish_reason == "spans"
    assert [len(codes) for codes in said(done.document)] == [3, 3]


@pytest.mark.parametrize("max_spans", [0, 1, 2, None])
def test_no_more_pictures_are_opened_than_were_allowed(model: VQMLLM, max_spans: int | None) -> None:
    say_only(model, BEGIN, ord("x"), FIRST_CODE)
    (document,) = generator_of(model).generate([free(14, max_spans=max_spans, free_lengths={"image": 2})])
    # A picture takes four positions; what is left when no more is allowed, or fits, is text.
    num_pictures = 3 if max_spans is None else max_spans
    assert said(document) == [[0, 0]] * num_pictures + ["x" * (14 - 4 * num_pictures)]


def test_a_picture_of_free_length_ends_at_the_models_end_token(model: VQMLLM) -> None:
    say_only(model, END, BEGIN, ord("x"), FIRST_CODE + 3)
    generator = generator_of(model, temperature=0.0, cfg_scale=2.0)
    # One code at least; begin, code and end are three positions.
    assert said(generator.generate([free(7)])[0]) == [[3], [3], "x"]
    forced = GenerationRequest(prompt=text("x"), spans=(LatentSpan("image", max_latents=9),))
    assert said(generator.generate([forced])[0]) == [[3]]


def test_pictures_of_free_length_stop_at_their_bounds(model: VQMLLM) -> None:
    say_only(model, BEGIN, FIRST_CODE)
    generator = generator_of(model)
    assert said(generator.generate([free(7)])[0]) == [[0] * 5]
    forced = GenerationRequest(prompt=text("x"), spans=(LatentSpan("image", max_latents=9),))
    assert said(generator.generate([forced])[0]) == [[0] * 9]


def test_free_decoding_stays_within_its_bound(model: VQMLLM) -> None:
    favour(model, BEGIN)
    options: tuple[dict[str, Any], ...] = ({}, {"free_lengths": {"image": 4}})
    requests = [
        free(bound, seed=seed, text=TextSamplingConfig(), **option)
        for bound, seed, option in itertools.product((1, 2, 3, 5, 9, 16), range(3), options)
    ]
    events = list(generator_of(model).stream(requests))
    for index, request in enumerate(requests):
        num_ids = sum(isinstance(event, TokenEvent) and event.request == index for event in events)
        (done,) = [event for event in events if isinstance(event, DoneEvent) and event.request == index]
        assert num_ids <= request.max_new_tokens
        assert done.finish_reason == "eos" or num_ids == request.max_new_tokens
    assert any(isinstance(event, PartEvent) and isinstance(event.part, CodePart) for event in events)


def test_text_ends_at_end_of_text_and_at_stop_strings(model: VQMLLM) -> None:
    generator = generator_of(model)
    say_only(model, ord("x"))
    *_, done = generator.stream([free(9, stop_strings=("xxx", "y"))])
    assert isinstance(done, DoneEvent)
    assert (done.finish_reason, said(done.document)) == ("stop", ["xxx"])
    say_only(model, EOS)
    *_, done = generator.stream([free(9)])
    assert isinstance(done, DoneEvent)
    assert (done.finish_reason, said(done.document)) == ("eos", [])


def test_a_repetition_penalty_is_about_text_alone(model: VQMLLM) -> None:
    say_only(model, ord("x"), ord("y"), ord("z"), FIRST_CODE)
    request = free(
        3, spans=(LatentSpan("image", 3),), max_spans=0, text=dataclasses.replace(GREEDY, repetition_penalty=2.0)
    )
    assert said(generator_of(model).generate([request])[0]) == [[0, 0, 0], "xyz"]  # 100 / 2 < 98
    with pytest.raises(ValueError, match="repetition_penalty of codes must be 1"):
        generator_of(model, repetition_penalty=2.0)


def test_a_model_says_the_size_of_a_picture_and_draws_so_many_codes(sized: VQMLLM) -> None:
    vocabulary = sized.config.vocabulary
    say_only(sized, BEGIN, vocabulary.size_id(5), vocabulary.size_id(2), vocabulary.first_code_id)
    generator = generator_of(sized, cfg_scale=2.0)
    for bound in range(5, 16):
        events = list(generator.stream([free(bound)]))
        parts = [event.part for event in events if isinstance(event, PartEvent) and isinstance(event.part, CodePart)]
        assert sum(isinstance(event, TokenEvent) for event in events) == bound
        assert all(part.grid is not None and part.grid[0] * part.grid[1] == len(part.codes) for part in parts)
        assert parts, "five positions are enough for a picture of one code"
    assert [part.grid for part in parts] == [(5, 2)]  # 5 x 5 does not fit into 15 positions
    sequence = generator.builder.build(Document((TextPart("a"), *parts)))
    (_, restored) = generator.builder.restore(sequence).parts
    assert isinstance(restored, CodePart)
    assert restored.grid == (5, 2)


@torch.no_grad()
def test_a_forced_grid_is_read_by_every_stream(sized: VQMLLM) -> None:
    vocabulary = sized.config.vocabulary
    span = [BEGIN, vocabulary.size_id(2), vocabulary.size_id(3)]
    for _ in range(6):
        cond, uncond = next_logits(sized, [EOS, ord("x"), *span]), next_logits(sized, [EOS, *span])
        guided = uncond + 4.0 * (cond - uncond)
        span.append(vocabulary.first_code_id + int(guided[vocabulary.first_code_id :].argmax()))
    request = GenerationRequest(prompt=text("x"), spans=(LatentSpan("image", grid=(2, 3)),), cfg_scale=4.0)
    (document,) = generator_of(sized, temperature=0.0).generate([request])
    (part,) = document.parts
    assert isinstance(part, CodePart)
    assert part.grid == (2, 3)
    assert [vocabulary.first_code_id + code for code in part.codes.tolist()] == span[3:]


def test_requests_that_the_model_cannot_answer_are_refused(model: VQMLLM, sized: VQMLLM) -> None:
    def ask(of: VQMLLM, span: LatentSpan) -> list[Document]:
        return generator_of(of).generate([GenerationRequest(prompt=text("x"), spans=(span,))])

    with pytest.raises(ValueError, match="asks for 'speech'"):
        ask(model, LatentSpan("speech", 3))
    with pytest.raises(ValueError, match="do not say their size"):
        ask(model, LatentSpan("image", grid=(2, 2)))
    with pytest.raises(ValueError, match="say their size: give the span a grid"):
        ask(sized, LatentSpan("image", 4))
    with pytest.raises(ValueError, match="max_grid_side is 5"):
        ask(sized, LatentSpan("image", grid=(1, 6)))
    with pytest.raises(ValueError, match="another vocabulary"):
        CodeGenerator(model, SequenceBuilder(sized.config.vocabulary, (), ByteTokenizer()), CodeSamplingConfig())


def test_damaged_weights_are_a_sentence_not_a_picture(model: VQMLLM) -> None:
    torch.nn.init.constant_(model.embed_tokens.weight, torch.nan)
    with pytest.raises(ValueError, match="NaN"):
        generator_of(model).generate([free(3)])


def test_no_requests_get_no_answers(model: VQMLLM) -> None:
    assert list(generator_of(model).stream([])) == []


def test_gradients_are_off_inside_and_untouched_outside(model: VQMLLM) -> None:
    for event in generator_of(model).stream([free(3, spans=(LatentSpan("image", 2),), cfg_scale=2.0)]):
        assert torch.is_grad_enabled(), event


# -- the pipeline ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipeline() -> VQMLLMPipeline:
    tokenizer = tiny_vq_image_tokenizer()
    model = tiny_model()
    config = dataclasses.replace(model.config, tokenizer_fingerprint=tokenizer.fingerprint())
    return VQMLLMPipeline(
        randomise(VQMLLM(config)),
        {"image": tokenizer, "text": ByteTokenizer()},
        {"image": CodeSamplingConfig(cfg_scale=1.5, top_k=8), "text": TextSamplingConfig(top_p=0.9)},
    )


def test_a_loaded_pipeline_answers_like_the_saved_one(pipeline: VQMLLMPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "model")
    loaded = VQMLLMPipeline.from_pretrained(tmp_path / "model")
    assert loaded.sampling == pipeline.sampling
    prompts = ["draw", [tiny_pictures(1)[0], "what is this?"]]
    answers = [
        [
            (event.parts[1:], event.parts[0].tobytes())  # type: ignore[union-attr]
            for event in one.stream(prompts, images=1, max_new_tokens=5, max_images=0, seed=1)
            if isinstance(event, AnswerEvent)
        ]
        for one in (pipeline, loaded)
    ]
    assert answers[0] == answers[1]
    assert len(answers[0]) == 2


def test_pictures_of_prompts_go_in_as_codes(pipeline: VQMLLMPipeline) -> None:
    pixels = tiny_pictures(1)[0]
    (request,) = pipeline.requests([["a", pixels]])
    words, part = request.prompt.parts
    assert words == TextPart("a")
    assert isinstance(part, CodePart)
    assert torch.equal(part.codes, pipeline.tokenizers["image"].encode(pixels[None])[0])
    assert (part.grid, request.free_lengths) == (None, {"image": 4})


def test_text_and_pictures_stream_out_and_unfinished_pictures_are_called_broken(pipeline: VQMLLMPipeline) -> None:
    events = list(pipeline.stream(["x"], images=1, max_new_tokens=4, max_images=0, seed=2))
    assert isinstance(events[0], PictureEvent)
    answer = events[-1]
    assert isinstance(answer, AnswerEvent)
    streamed = "".join(event.text for event in events if isinstance(event, TextDelta))
    assert streamed == "".join(part for part in answer.parts if isinstance(part, str))
    request = GenerationRequest(prompt=text("x"), spans=(LatentSpan("image", 3),))
    (part,) = [event.part for event in pipeline.events([request]) if isinstance(event, PartEvent)]
    (shown,) = [
        event.picture for event in pipeline._raw_events(PartEvent(0, part), [None]) if isinstance(event, PictureEvent)
    ]
    assert shown == BrokenPicture(3)


def test_a_seed_may_be_given_per_prompt_and_precision_reduced(pipeline: VQMLLMPipeline) -> None:
    options: dict[str, Any] = {"max_new_tokens": 5, "max_images": 0}
    both = pipeline.generate(["x", "x"], seeds=[4, 9], **options)
    assert both[0] == pipeline.generate(["x"], seed=4, **options)[0]
    assert both[1] == pipeline.generate(["x"], seed=9, **options)[0]
    assert pipeline.generate(["x"], images=1, precision="bfloat16", **options)


def test_what_does_not_belong_together_is_refused(pipeline: VQMLLMPipeline) -> None:
    (request,) = pipeline.requests(["x"])
    for options in ({"num_inference_steps": 5}, {"solver": "ddim"}):
        with pytest.raises(ValueError, match="denoises nothing"):
            pipeline.events([request], **options)
    model = pipeline.model
    with pytest.raises(ValueError, match="is a 'image_tokenizer', which gives latents"):
        VQMLLMPipeline(model, {"image": tiny_image_tokenizer(), "text": ByteTokenizer()})
    with pytest.raises(ValueError, match="trained with another image tokenizer"):
        VQMLLMPipeline(model, {"image": tiny_vq_image_tokenizer(seed=1), "text": ByteTokenizer()})
    with pytest.raises(ValueError, match="16 codes but the model was built for num_codes=17"):
        VQMLLMPipeline(tiny_model(num_codes=17), pipeline.tokenizers)
    with pytest.raises(ValueError, match="num_text_ids=258"):
        VQMLLMPipeline(tiny_model(num_text_ids=258), pipeline.tokenizers)
    with pytest.raises(ValueError, match="latents"):
        pipeline._generator().generate(
            [GenerationRequest(prompt=Document((LatentPart("image", torch.zeros(4, 6)),)), max_new_tokens=1)]
        )


def test_a_folder_without_its_text_tokenizer_is_refused(pipeline: VQMLLMPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "model")
    for path in (tmp_path / "model" / "tokenizers" / "text").iterdir():
        path.unlink()
    with pytest.raises(ValueError):
        VQMLLMPipeline.from_pretrained(tmp_path / "model")
