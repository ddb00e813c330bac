"""Prompts of text and pictures in, text and pictures out."""

from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from PIL import ExifTags, Image
from tiny_models import randomise, tiny_image_tokenizer, tiny_mixed_config

from latentlm.data.images import load_image, to_unit_range
from latentlm.diffusion.solvers import SolverConfig
from latentlm.generation.document_pipeline import AnswerEvent, PictureEvent, TextDelta
from latentlm.generation.pipeline import LatentLMPipeline
from latentlm.generation.pipeline_folder import TEXT
from latentlm.generation.prompts import BrokenPicture
from latentlm.generation.requests import LatentEvent, LatentSamplingConfig, TextSamplingConfig
from latentlm.models.latentlm import LatentLM, LatentLMConfig, ModalityConfig
from latentlm.models.transformer import TransformerConfig
from latentlm.sequence import LatentPart, TextPart, VocabularyConfig

FAST = LatentSamplingConfig(cfg_scale=1.5, solver=SolverConfig(num_inference_steps=2))
GREY = np.arange(64, dtype=np.uint8).reshape(8, 8)


@pytest.fixture(scope="module")
def pipeline() -> LatentLMPipeline:
    config = LatentLMConfig(
        vocabulary=VocabularyConfig(num_text_ids=257, switch_tokens=True),
        transformer=TransformerConfig(hidden_size=16, num_layers=1, num_heads=2, intermediate_size=24),
        modalities={"image": ModalityConfig(latent_dim=6, head=tiny_mixed_config().modalities["image"].head)},
    )
    return LatentLMPipeline(
        randomise(LatentLM(config)), {"image": tiny_image_tokenizer()}, {"image": FAST, TEXT: TextSamplingConfig()}
    )


def test_a_forced_picture_comes_first_and_text_after_it(pipeline: LatentLMPipeline) -> None:
    (answer,) = pipeline.generate(["draw"], images=2, max_new_tokens=5, max_images=0, seed=1)
    first, second, *texts = answer
    assert isinstance(first, Image.Image)
    assert isinstance(second, Image.Image)
    assert (first.size, first.mode) == ((8, 8), "L")
    assert all(isinstance(text, str) for text in texts)


def test_the_events_of_an_answer_join_to_it(pipeline: LatentLMPipeline) -> None:
    prompts = [["a ", GREY, " b"], "c"]
    events = list(pipeline.stream(prompts, images=1, max_new_tokens=30, seed=3))
    for request in range(2):
        of_one = [event for event in events if event.request == request]
        answer = of_one[-1]
        assert isinstance(answer, AnswerEvent)
        text = "".join(event.text for event in of_one if isinstance(event, TextDelta))
        assert text == "".join(part for part in answer.parts if isinstance(part, str))
        pictures = [event.picture for event in of_one if isinstance(event, PictureEvent)]
        assert len(pictures) == sum(not isinstance(part, str) for part in answer.parts)
        assert sum(isinstance(event, LatentEvent) for event in of_one) == 4 * len(pictures)


def test_an_answer_is_the_same_whatever_is_answered_beside_it(pipeline: LatentLMPipeline) -> None:
    prompts = ["one", ["two", GREY], "a much longer third prompt"]
    together = pipeline.generate(prompts, max_new_tokens=12, max_images=0, seed=5)
    for number, prompt in enumerate(prompts):
        assert pipeline.generate([prompt], max_new_tokens=12, max_images=0, seed=5 + number) == [together[number]]


def test_pictures_of_a_prompt_may_be_given_in_any_form(pipeline: LatentLMPipeline, tmp_path: Path) -> None:
    picture = Image.fromarray(GREY)
    picture.save(tmp_path / "picture.png")
    tensor = torch.from_numpy(GREY.copy())[None].float() / 127.5 - 1
    latents = []
    for form in (GREY, picture, picture.convert("RGB"), tmp_path / "picture.png", tensor):
        (part,) = pipeline.prompts.document(form, seed=2).parts
        assert isinstance(part, LatentPart)
        latents.append(part.latents)
    assert all(torch.equal(latents[0], other) for other in latents[1:])


def png(path: Path, picture: Image.Image, **options: object) -> Path:
    picture.save(path, **options)  # pyright: ignore[reportArgumentType]
    return path


def test_an_opened_picture_is_read_as_training_reads_its_file(pipeline: LatentLMPipeline, tmp_path: Path) -> None:
    wide = Image.fromarray((GREY.astype(np.int64) * 257).astype(np.uint16))  # 16 bits: 255 * 257 is white
    lies = Image.Exif()
    lies[ExifTags.Base.Orientation] = 6  # a quarter to the right makes it upright
    see_through = Image.fromarray(np.stack([GREY, GREY, GREY, GREY], -1))
    files = [
        png(tmp_path / "wide.png", wide),
        png(tmp_path / "lying.png", Image.fromarray(GREY), exif=lies),
        png(tmp_path / "see_through.png", see_through),
    ]
    for file in files:
        expected = to_unit_range(
            torch.from_numpy(
                load_image(file.read_bytes(), file.name, image_size=8, num_channels=1, resize="center_crop").copy()
            )
        )
        with Image.open(file) as opened:
            assert torch.equal(pipeline.prompts.pixels(opened, name="opened"), expected), file.name
        assert torch.equal(pipeline.prompts.pixels(file, name="path"), expected), file.name
    ordinary = torch.from_numpy(GREY.copy())[None].float() / 127.5 - 1
    assert torch.equal(pipeline.prompts.pixels(wide, name="wide"), ordinary)
    with Image.open(files[1]) as lying:
        assert torch.equal(pipeline.prompts.pixels(lying, name="lying"), ordinary.rot90(-1, (1, 2)))


def test_a_prompts_picture_is_a_sample_by_seed_and_place_or_the_mean(pipeline: LatentLMPipeline) -> None:
    def latents(*, seed: int = 0, sample: bool = True) -> list[torch.Tensor]:
        document = pipeline.prompts.document([GREY, "and", GREY], seed=seed, sample=sample)
        return [part.latents for part in document.parts if isinstance(part, LatentPart)]

    first, second = latents()
    assert not torch.equal(first, second), "two places of one prompt"
    assert torch.equal(first, latents()[0])
    assert not torch.equal(first, latents(seed=1)[0])
    means = latents(sample=False)
    assert torch.equal(means[0], means[1])


def test_a_span_that_fills_no_grid_is_a_broken_picture_and_not_an_error(
    pipeline: LatentLMPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary = pipeline.model.config.vocabulary

    def opens_and_closes(hidden_states: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(*hidden_states.shape[:-1], vocabulary.size)
        logits[..., vocabulary.begin_id("image")] = 50.0
        logits[..., vocabulary.end_id("image")] = 100.0
        return logits

    monkeypatch.setattr(pipeline.model, "logits", opens_and_closes)
    (answer,) = pipeline.generate(["x"], max_new_tokens=20, max_images=2, whole_pictures=False, do_sample=False)
    assert answer[:2] == [BrokenPicture(1), BrokenPicture(1)]
    (answer,) = pipeline.generate(["x"], max_new_tokens=20, max_images=2, do_sample=False)
    assert all(isinstance(part, Image.Image) for part in answer[:2])


def test_options_reach_the_requests_by_the_names_of_transformers(pipeline: LatentLMPipeline) -> None:
    (request,) = pipeline.requests(
        ["a"],
        temperature=0.5,
        top_k=3,
        top_p=0.9,
        min_p=0.1,
        repetition_penalty=1.2,
        stop_strings=["."],
        max_images=2,
        negative_prompt="b",
        cfg_scale=3.0,
        seed=9,
    )
    assert request.text == TextSamplingConfig(temperature=0.5, top_k=3, top_p=0.9, min_p=0.1, repetition_penalty=1.2)
    assert (request.stop_strings, request.max_spans, request.seed, request.cfg_scale) == ((".",), 2, 9, 3.0)
    assert request.negative_prompt is not None
    assert request.negative_prompt.parts == (TextPart("b"),)
    assert pipeline.requests(["a"], do_sample=False, temperature=0.7)[0].text.temperature == 0.0


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("a", {"seeds": [1, 2]}, "2 seeds were given for 1 prompts"),
        ("a", {"images": 1, "image_size": (4, 8)}, "do not say their size"),
        (torch.zeros(1, 9, 9), {}, r"shape \(1, 9, 9\); expected float \[1, 8, 8\]"),
        (torch.full((1, 8, 8), 200, dtype=torch.uint8), {}, r"torch.uint8 that holds other values than pixels in"),
        (torch.full((1, 8, 8), 200.0), {}, r"torch.float32 that holds other values than pixels in \[-1, 1\]"),
        (torch.full((1, 8, 8), torch.nan), {}, r"other values than pixels in \[-1, 1\]"),
        (Path("nowhere.png"), {}, "nowhere.png: not a regular file"),
        ("a", {"images": -1}, "images is -1; it must be a whole number, 0 or above"),
        ("a", {"max_new_tokens": -2}, "max_new_tokens is -2"),
        ("a", {"max_images": -3}, "max_images is -3"),
        ("a", {"image_size": 8}, "give their number: images=1"),
        ("a", {"images": 1, "image_size": 4}, "do not say their size"),
        ("a", {"cfg_scale": [1.5, 2.0]}, "0 intermediate prompts need 1 values of cfg_scale, but 2 were given"),
        (
            "a",
            {"intermediate_prompts": "keep", "cfg_scale": (1.0,) * 5},
            "intermediate_prompts is one str; give a list",
        ),
    ],
)
def test_prompts_and_options_that_do_not_fit_are_refused(
    pipeline: LatentLMPipeline, prompt: object, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline.requests([[prompt]], **options)  # pyright: ignore[reportArgumentType]


def test_a_prompt_that_is_no_list_of_prompts_is_refused(pipeline: LatentLMPipeline) -> None:
    for ask in (pipeline.requests, pipeline.generate):
        with pytest.raises(ValueError, match=r"prompts is one str; give a list of prompts, if only of one: \[prompt\]"):
            ask("hello")
        # Where the tests check types, the annotation refuses it first.
        with pytest.raises((ValueError, TypeCheckError), match=r"(?s)prompts.*Image"):
            ask(Image.fromarray(GREY))  # pyright: ignore[reportArgumentType]


def test_a_single_stop_string_scale_or_side_need_not_be_a_list(pipeline: LatentLMPipeline) -> None:
    (request,) = pipeline.requests(["a"], images=1, image_size=8, stop_strings="The end", cfg_scale=[1.5])
    assert (request.stop_strings, request.cfg_scale) == (("The end",), (1.5,))
    assert [span.length for span in request.spans] == [4]


def test_a_model_keeps_its_tokenizers_and_text_options(pipeline: LatentLMPipeline, tmp_path: Path) -> None:
    pipeline.sampling[TEXT] = TextSamplingConfig(temperature=0.3)
    pipeline.save_pretrained(tmp_path / "model")
    loaded = LatentLMPipeline.from_pretrained(tmp_path / "model")
    assert loaded.sampling == pipeline.sampling
    assert loaded.text_tokenizer is not None
    assert pipeline.text_tokenizer is not None
    assert loaded.text_tokenizer.fingerprint() == pipeline.text_tokenizer.fingerprint()
    assert loaded.generate(["a"], max_new_tokens=6, seed=1) == pipeline.generate(["a"], max_new_tokens=6, seed=1)
