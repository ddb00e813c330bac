"""Laws of every model of documents: answers do not depend on their batch, and can be put into further prompts."""

import copy
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_models import randomise, tiny_image_tokenizer, tiny_mixed_config, tiny_pictures, tiny_vq_image_tokenizer
from torch import Tensor

from latentlm.baselines.transfusion import Transfusion, TransfusionConfig, TransfusionPipeline
from latentlm.baselines.vq_ar import CodeSamplingConfig
from latentlm.baselines.vq_mllm import VQMLLM, VQMLLMConfig, VQMLLMPipeline
from latentlm.config import from_mapping
from latentlm.diffusion.solvers import SolverConfig
from latentlm.generation import rows
from latentlm.generation.document_pipeline import DocumentPipeline
from latentlm.generation.pipeline import LatentLMPipeline
from latentlm.generation.prompts import BrokenPicture, DrawnPicture
from latentlm.generation.requests import DoneEvent, GenerationRequest, LatentSamplingConfig
from latentlm.models.latentlm import LatentLM, LatentLMConfig, ModalityConfig
from latentlm.models.transformer import TransformerConfig
from latentlm.sequence import CodePart, Document, LatentPart, TextPart, VocabularyConfig
from latentlm.tokenizers.text import ByteTokenizer

TRANSFORMER = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 24}
VOCABULARY = {"num_text_ids": 257, "switch_tokens": True}
FAST = LatentSamplingConfig(cfg_scale=1.5, solver=SolverConfig(num_inference_steps=2))


def latentlm(*, says_size: bool = False) -> LatentLMPipeline:
    image = ModalityConfig(latent_dim=6, head=tiny_mixed_config().modalities["image"].head, says_size=says_size)
    config = LatentLMConfig(
        vocabulary=VocabularyConfig(**VOCABULARY, max_grid_side=3 if says_size else 0),
        transformer=TransformerConfig(**TRANSFORMER),
        modalities={"image": image},
    )
    return LatentLMPipeline(randomise(LatentLM(config)), {"image": tiny_image_tokenizer()}, {"image": FAST})


def transfusion() -> TransfusionPipeline:
    image = {"latent_dim": 6, "num_head_layers": 1}
    sizes = {"vocabulary": VOCABULARY, "transformer": TRANSFORMER, "image": image}
    model = randomise(Transfusion(from_mapping(TransfusionConfig, sizes)))
    return TransfusionPipeline(model, {"image": tiny_image_tokenizer(), "text": ByteTokenizer()}, {"image": FAST})


def vq_mllm(*, says_size: bool = False) -> VQMLLMPipeline:
    vocabulary = {**VOCABULARY, "num_codes": 16, "max_grid_side": 3 if says_size else 0}
    model = randomise(VQMLLM(from_mapping(VQMLLMConfig, {"vocabulary": vocabulary, "transformer": TRANSFORMER})))
    tokenizers = {"image": tiny_vq_image_tokenizer(), "text": ByteTokenizer()}
    return VQMLLMPipeline(model, tokenizers, {"image": CodeSamplingConfig(cfg_scale=1.5)})


KINDS: dict[str, Callable[[], DocumentPipeline]] = {
    "latentlm": latentlm,
    "latentlm, pictures of any size": lambda: latentlm(says_size=True),
    "transfusion": transfusion,
    "vq_mllm": vq_mllm,
    "vq_mllm, pictures of any size": lambda: vq_mllm(says_size=True),
}


@pytest.fixture(params=KINDS)
def pipeline(request: pytest.FixtureRequest) -> DocumentPipeline:
    """Begins a picture about as often as it says a letter."""
    pipeline = KINDS[request.param]()
    vocabulary, logits = pipeline.model.config.vocabulary, pipeline.model.logits
    bias = torch.zeros(vocabulary.size)
    bias[vocabulary.begin_id("image")] = 5.0  # e^5 = 148, among 257 ids of text
    pipeline.model.logits = lambda hidden_states: logits(hidden_states) + bias
    return pipeline


def answers(pipeline: DocumentPipeline, requests: Sequence[GenerationRequest]) -> list[Document]:
    done = {event.request: event.document for event in pipeline.events(requests) if isinstance(event, DoneEvent)}
    return [done[number] for number in range(len(requests))]


def pictures_of(document: Document) -> list[LatentPart | CodePart]:
    return [part for part in document.parts if isinstance(part, LatentPart | CodePart)]


def tokens_of(part: LatentPart | CodePart) -> Tensor:
    return part.codes if isinstance(part, CodePart) else part.latents


def assert_same(document: Document, other: Document) -> None:
    """Texts, codes and sizes are equal; latents up to the rounding of another batch, which later latents inherit."""
    assert [type(part) for part in document.parts] == [type(part) for part in other.parts]
    for part, same in zip(document.parts, other.parts, strict=True):
        if isinstance(part, LatentPart) and isinstance(same, LatentPart):
            assert part.grid == same.grid
            assert torch.allclose(part.latents, same.latents, atol=1e-4, rtol=1e-4)
        elif isinstance(part, CodePart) and isinstance(same, CodePart):
            assert (part.grid, part.codes.tolist()) == (same.grid, same.codes.tolist())
        else:
            assert part == same


def mixed_requests(pipeline: DocumentPipeline) -> list[GenerationRequest]:
    """Forced and free pictures, pictures in prompts, more and less guidance, long and short."""
    picture, other = tiny_pictures(2)
    asked: list[tuple[Any, dict[str, Any]]] = [
        ("draw", {"images": 1, "max_new_tokens": 0}),
        (["a much longer prompt, with ", picture, " in it"], {"images": 2, "max_new_tokens": 9, "max_images": 0}),
        (picture, {"max_new_tokens": 40, "max_images": 2, "cfg_scale": 1.0}),
        ("free", {"images": 1, "max_new_tokens": 30, "cfg_scale": 3.0, "negative_prompt": ["not ", other]}),
        (["", other, "free"], {"max_new_tokens": 25, "temperature": 0.8}),
    ]
    return [pipeline.requests([prompt], seed=seed, **options)[0] for seed, (prompt, options) in enumerate(asked)]


def test_answers_with_pictures_are_the_same_whatever_is_answered_beside_them(pipeline: DocumentPipeline) -> None:
    requests = mixed_requests(pipeline)
    together = answers(pipeline, requests)
    assert [len(pictures_of(document)) for document in together[:2]] == [1, 2]
    num_free = sum(len(pictures_of(document)) for document in together) - sum(len(one.spans) for one in requests)
    assert num_free > 1, "the model begins pictures, too"
    assert any(isinstance(part, TextPart) for document in together for part in document.parts)
    for request, document in zip(requests, together, strict=True):
        (alone,) = answers(pipeline, [request])
        assert_same(alone, document)
    for document, other in zip(answers(pipeline, requests[::-1])[::-1], together, strict=True):
        assert_same(document, other)


def test_a_bound_that_no_memory_could_hold_costs_nothing(pipeline: DocumentPipeline) -> None:
    """A cache for it would take 100 terabytes."""
    logits = pipeline.model.logits

    def ends_soon(hidden_states: Tensor) -> Tensor:
        result = logits(hidden_states)
        result[..., ByteTokenizer.eos_id] += 4.0
        return result

    pipeline.model.logits = ends_soon
    options = {"max_images": 1, "seeds": [3, 4]}
    expected = pipeline.generate(["a", "b"], max_new_tokens=200, **options)
    assert pipeline.generate(["a", "b"], max_new_tokens=10**12, **options) == expected


def test_a_cache_that_grows_changes_no_answer(pipeline: DocumentPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = mixed_requests(pipeline)
    whole = answers(pipeline, requests)
    monkeypatch.setattr(rows, "_FIRST_POSITIONS", 2)
    for document, expected in zip(answers(pipeline, requests), whole, strict=True):
        assert_same(document, expected)


def test_what_was_answered_is_read_in_the_next_prompt_as_it_was_drawn(pipeline: DocumentPipeline) -> None:
    first = pipeline.requests(["draw"], images=2, max_new_tokens=30, seed=1)
    (document,) = answers(pipeline, first)
    (answer,) = pipeline.generate(["draw"], images=2, max_new_tokens=30, seed=1)
    (turn,) = pipeline.requests([["draw", *answer, "once more"]], images=1, seed=9)
    assert_same(turn.prompt, Document((TextPart("draw"), *document.parts, TextPart("once more"))))
    drawn, read = pictures_of(document), pictures_of(turn.prompt)
    assert len(drawn) >= 2
    assert all(torch.equal(tokens_of(one), tokens_of(other)) for one, other in zip(drawn, read, strict=True))
    assert len(pictures_of(answers(pipeline, [turn])[0])) >= 1


def test_a_copied_a_changed_and_a_foreign_picture_is_read_by_its_pixels(pipeline: DocumentPipeline) -> None:
    (picture,) = pipeline.generate(["draw"], images=1, max_new_tokens=0)[0]
    assert isinstance(picture, DrawnPicture)
    assert picture.drawn is not None

    def read(given: Any) -> Tensor:
        (part,) = pipeline.prompts.document(given, sample=False).parts
        assert isinstance(part, LatentPart | CodePart)
        return tokens_of(part)

    pixels = Image.frombytes(picture.mode, picture.size, picture.tobytes())
    assert pixels.tobytes() == picture.tobytes()
    encoded = read(pixels)
    for ordinary in (picture.copy(), copy.copy(picture), pickle.loads(pickle.dumps(picture)), picture.convert("RGB")):  # noqa: S301
        assert torch.equal(read(ordinary), encoded)
    assert torch.equal(read(picture), tokens_of(picture.drawn.part))
    foreign = DrawnPicture(pixels, type(picture.drawn)(picture.drawn.part, "another tokenizer"))
    assert torch.equal(read(foreign), encoded)
    picture.paste(255 - picture.getpixel((0, 0)), (0, 0, 1, 1))
    assert picture.drawn is None
    assert torch.equal(read(picture), read(picture.copy()))


@pytest.mark.parametrize("pipeline", ["latentlm", "vq_mllm"], indirect=True)  # those of the others are always whole
def test_a_broken_picture_is_read_as_it_was_drawn_or_refused(pipeline: DocumentPipeline) -> None:
    vocabulary = pipeline.model.config.vocabulary

    def opens_and_closes(hidden_states: Tensor) -> Tensor:
        logits = torch.zeros(*hidden_states.shape[:-1], vocabulary.size)
        logits[..., vocabulary.begin_id("image")] = 50.0
        logits[..., vocabulary.end_id("image")] = 100.0
        return logits

    pipeline.model.logits = opens_and_closes
    ((broken, *_),) = pipeline.generate(["x"], max_new_tokens=4, whole_pictures=False, do_sample=False)
    assert broken == BrokenPicture(1)
    assert isinstance(broken, BrokenPicture)
    assert broken.drawn is not None
    (part,) = pipeline.prompts.document(broken).parts
    assert isinstance(part, LatentPart | CodePart)
    assert torch.equal(tokens_of(part), tokens_of(broken.drawn.part))
    with pytest.raises(ValueError, match="a broken picture of 3 tokens that this model cannot read"):
        pipeline.prompts.document(BrokenPicture(3))
