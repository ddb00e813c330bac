"""Transfusion's generation: cached passes equal full ones, rows equal solo runs, requests are kept to."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_models import randomise, tiny_image_tokenizer, tiny_vq_image_tokenizer
from torch import Tensor

from latentlm.baselines.transfusion import Transfusion, TransfusionConfig, TransfusionPipeline
from latentlm.baselines.transfusion.generator import TransfusionGenerator
from latentlm.baselines.transfusion.sequence import PictureBatch
from latentlm.config import from_mapping
from latentlm.diffusion.guidance import GuidanceConfig
from latentlm.diffusion.process import DiffusionConfig
from latentlm.diffusion.solvers import SolverConfig, make_solver
from latentlm.generation.generator import STARTING_NOISE_STREAM
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
from latentlm.nn.keyed_noise import keyed_normal
from latentlm.sequence import Document, IdsPart, LatentPart, SequenceBuilder, TextPart
from latentlm.tokenizers.text import ByteTokenizer

EOS = ByteTokenizer.eos_id
FAST = LatentSamplingConfig(solver=SolverConfig(num_inference_steps=3))
NOISY = LatentSamplingConfig(solver=SolverConfig(name="dpm_sde", num_inference_steps=3))
GREEDY = TextSamplingConfig(temperature=0.0)
FLOW = DiffusionConfig(process="flow_matching", prediction_type="velocity")


def tiny_config(**image: Any) -> TransfusionConfig:
    mapping = {
        "vocabulary": {"num_text_ids": 257, "switch_tokens": True},
        "transformer": {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 48},
        "image": {"latent_dim": 6, "num_head_layers": 1},
    }
    config = from_mapping(TransfusionConfig, mapping)
    return dataclasses.replace(config, image=dataclasses.replace(config.image, **image))


@pytest.fixture
def model() -> Transfusion:
    return randomise(Transfusion(tiny_config())).eval()


def builder_of(model: Transfusion) -> SequenceBuilder:
    return SequenceBuilder(model.config.vocabulary, ["image"], ByteTokenizer())


def generator_of(model: Transfusion, sampling: LatentSamplingConfig = FAST) -> TransfusionGenerator:
    return TransfusionGenerator(model, builder_of(model), sampling, num_latents=4)


def picture(count: int, seed: int) -> LatentPart:
    return LatentPart("image", torch.randn(count, 6, generator=torch.Generator().manual_seed(seed)))


def latents_of(document: Document) -> list[Tensor]:
    return [part.latents for part in document.parts if isinstance(part, LatentPart)]


def text_request(prompt: str = "x", **options: Any) -> GenerationRequest:
    return GenerationRequest(prompt=Document((TextPart(prompt),)), **{"text": GREEDY, **options})


def done_events(events: list[Event]) -> list[DoneEvent]:
    return [event for event in events if isinstance(event, DoneEvent)]


class Scripted:
    """Stands in for the softmax head: always prefers the ids it is given, in this order."""

    def __init__(self, *preferred: int) -> None:
        self.preferred = preferred

    def __call__(self, hidden_states: Tensor) -> Tensor:
        logits = torch.zeros(*hidden_states.shape[:-1], 268)
        for rank, token in enumerate(self.preferred):
            logits[..., token] = 100.0 - rank
        return logits


# -- full passes -------------------------------------------------------------------------------------------------------


def batch_of(model: Transfusion, document: Document) -> PictureBatch:
    builder = builder_of(model)
    packed = builder.collate([[builder.build(document, open_ended=True)]])
    num_pictures = sum(isinstance(part, LatentPart) for part in document.parts)
    return PictureBatch.of(packed, latent_dim=6, is_before_caption=[False] * num_pictures, noise_seed=0)


def full_prediction(model: Transfusion, before: Document, noisy: Tensor, timestep: Tensor) -> Tensor:
    """What the model answers for a noisy picture behind a document of clean ones, in one pass without a cache."""
    batch = batch_of(model, dataclasses.replace(before, parts=(*before.parts, LatentPart("image", noisy))))
    last = batch.picture_of_latent == batch.picture_of_latent[-1]
    timesteps = torch.where(last, timestep, float(model.clean_timestep))
    states = model.hidden_states(batch, batch.latents, timesteps)[0, batch.latent_positions[last]]
    return model.predict(states[None], timestep[None], torch.ones(1, len(noisy), dtype=torch.bool))[0]


def full_picture(model: Transfusion, before: Document, cfg_scale: float, seed: int, first: int) -> Tensor:
    """Four latents behind a document, guided away from nothing at all."""
    solver = make_solver(model.process, FAST.solver)
    noise = keyed_normal(seed, torch.arange(first, first + 4), (6,), stream=STARTING_NOISE_STREAM)

    def denoise(noisy: Tensor, timestep: Tensor) -> Tensor:
        cond, uncond = (full_prediction(model, document, noisy, timestep) for document in (before, Document(())))
        return uncond + cfg_scale * (cond - uncond)

    return solver.sample(denoise, noise)


def full_greedy_text(model: Transfusion, before: Document, count: int) -> list[int]:
    """The likeliest ids of text behind a document, one full pass each."""
    ids: tuple[int, ...] = ()
    for _ in range(count):
        batch = batch_of(model, dataclasses.replace(before, parts=(*before.parts, IdsPart(ids))))
        clean = torch.full_like(batch.latent_positions, model.clean_timestep)
        last = model.hidden_states(batch, batch.latents, clean)[0, -1]
        ids += (int(model.logits(last)[:256].argmax()),)  # end-of-text aside
    return list(ids)


@torch.no_grad()
@pytest.mark.parametrize("diffusion", [DiffusionConfig(), FLOW], ids=["ddpm", "flow_matching"])
def test_cached_generation_equals_full_passes(diffusion: DiffusionConfig) -> None:
    model = randomise(Transfusion(tiny_config(diffusion=diffusion))).eval()
    logits = model.logits

    def without_eos(hidden_states: Tensor) -> Tensor:
        return logits(hidden_states).index_fill(-1, torch.tensor([EOS]), -100.0)

    model.logits = without_eos  # pyright: ignore[reportAttributeAccessIssue]
    prompt = Document((TextPart("see "), picture(4, 1), TextPart(" and draw")))
    request = GenerationRequest(
        prompt=prompt,
        spans=(LatentSpan("image"), LatentSpan("image")),
        max_new_tokens=4,
        max_spans=0,
        cfg_scale=2.0,
        seed=3,
        text=GREEDY,
    )
    (document,) = generator_of(model).generate([request])
    before = prompt
    for number, latents in enumerate(latents_of(document)):
        expected = full_picture(model, before, 2.0, 3, 4 * number)
        # A random model amplifies the rounding of other orders of summation over three guided evaluations.
        torch.testing.assert_close(latents, expected, atol=1e-3, rtol=1e-3)
        before = dataclasses.replace(before, parts=(*before.parts, LatentPart("image", latents)))
    assert len(latents_of(document)) == 2
    assert document.parts[-1] == TextPart(ByteTokenizer().decode(full_greedy_text(model, before, 4)))


# -- rows --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [FAST, NOISY], ids=["deterministic", "with fresh noise"])
def test_rows_of_different_prompts_modes_and_lengths_equal_solo_runs(
    model: Transfusion, sampling: LatentSamplingConfig
) -> None:
    generator = generator_of(model, sampling)
    drawn = TextSamplingConfig(temperature=0.8, top_k=20, repetition_penalty=1.3)
    requests = [
        text_request("a longer prompt than the others", max_new_tokens=6, max_spans=0),
        text_request("b", spans=(LatentSpan("image"),), cfg_scale=2.0, seed=5),
        text_request(
            "cc", spans=(LatentSpan("image", 3), LatentSpan("image", 2)), max_new_tokens=3, text=drawn, seed=6
        ),
        GenerationRequest(
            prompt=Document((picture(4, 1), TextPart("?"))), max_new_tokens=9, cfg_scale=1.5, seed=7, text=drawn
        ),
        text_request(
            "b", spans=(LatentSpan("image"),), cfg_scale=3.0, seed=5, negative_prompt=Document((picture(4, 2),))
        ),
    ]
    together = generator.generate(requests)
    assert [len(latents) for latents in latents_of(together[2])] == [3, 2]
    for request, document in zip(requests, together, strict=True):
        (alone,) = generator.generate([request])
        assert len(alone.parts) == len(document.parts)
        for one, other in zip(alone.parts, document.parts, strict=True):
            if isinstance(one, LatentPart) and isinstance(other, LatentPart):
                # Batches of other sizes sum in another order, which a random model amplifies.
                torch.testing.assert_close(one.latents, other.latents, atol=1e-3, rtol=1e-3)
            else:
                assert one == other


def test_the_seed_and_the_prompt_decide(model: Transfusion) -> None:
    spans = (LatentSpan("image"),)
    requests = [
        text_request(prompt, spans=spans, seed=seed) for prompt, seed in (("a", 1), ("a", 1), ("a", 2), ("b", 1))
    ]
    first, again, other_seed, other_prompt = (latents_of(doc)[0] for doc in generator_of(model).generate(requests))
    torch.testing.assert_close(first, again, atol=1e-5, rtol=0)  # rows of one product may differ in the last bit
    assert not torch.allclose(first, other_seed, atol=0.1)
    assert not torch.allclose(first, other_prompt, atol=1e-2)


def test_two_pictures_of_one_request_have_their_own_noise(model: Transfusion) -> None:
    randomise(model, std=0.0)  # predicts zero whatever it reads: what is left is the noise
    (document,) = generator_of(model).generate([text_request(spans=(LatentSpan("image"), LatentSpan("image")))])
    first, second = latents_of(document)
    assert not torch.allclose(first, second, atol=0.1)


def test_guidance_of_one_or_towards_the_same_prompt_changes_nothing(model: Transfusion) -> None:
    request = text_request("ab", spans=(LatentSpan("image"),), cfg_scale=1.0)
    # 1 + 2e-7 takes the guided path with a scale one bit above one.
    variants = [
        request,
        dataclasses.replace(request, cfg_scale=1.0 + 2e-7),
        dataclasses.replace(request, cfg_scale=4.0, negative_prompt=request.prompt),
        dataclasses.replace(request, cfg_scale=4.0),
    ]
    plain, nearly, same, guided = (latents_of(document)[0] for document in generator_of(model).generate(variants))
    torch.testing.assert_close(plain, nearly, atol=1e-3, rtol=0)  # rounding, amplified by a random model
    torch.testing.assert_close(plain, same, atol=1e-3, rtol=0)  # likewise, times 3
    assert not torch.allclose(plain, guided, atol=1e-2)


# -- requests ----------------------------------------------------------------------------------------------------------


def test_events_tell_the_story_in_order(model: Transfusion) -> None:
    vocabulary = model.config.vocabulary
    request = text_request(spans=(LatentSpan("image"),), max_new_tokens=2, max_spans=0)
    events = list(generator_of(model).stream([request]))
    kinds = [*[LatentEvent] * 4, PartEvent, TokenEvent, TokenEvent, TokenEvent, PartEvent, DoneEvent]
    assert [type(event) for event in events] == kinds
    assert [(e.index, e.total) for e in events if isinstance(e, LatentEvent)] == [(0, 4), (1, 4), (2, 4), (3, 4)]
    tokens = [event.token_id for event in events if isinstance(event, TokenEvent)]
    assert tokens[0] == vocabulary.end_id("image")
    assert max(tokens[1:]) < 257
    (done,) = done_events(events)
    assert done.finish_reason == "length"
    assert [type(part) for part in done.document.parts] == [LatentPart, TextPart]


@pytest.mark.parametrize(
    ("options", "num_pictures"),
    [
        ({"max_new_tokens": 13}, 2),  # begin, four latents, end are six positions
        ({"max_new_tokens": 12, "max_spans": 1}, 1),
        ({"max_new_tokens": 12, "max_spans": 0}, 0),
        ({"max_new_tokens": 5}, 0),
        ({"max_new_tokens": 13, "free_lengths": {"image": 2}}, 3),
        ({"max_new_tokens": 13, "spans": (LatentSpan("image"),)}, 3),
    ],
)
def test_the_model_begins_pictures_within_the_requests_bounds(
    model: Transfusion, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], num_pictures: int
) -> None:
    monkeypatch.setattr(model, "logits", Scripted(model.config.vocabulary.begin_id("image"), 97))
    events = list(generator_of(model).stream([text_request(cfg_scale=2.0, **options)]))
    (done,) = done_events(events)
    assert len(latents_of(done.document)) == num_pictures
    assert done.finish_reason == "length"
    forced = 5 if "spans" in options else 0  # four latents, and the end token that no one had to choose
    positions = sum(isinstance(event, TokenEvent | LatentEvent) for event in events)
    assert positions == options["max_new_tokens"] + forced


def test_text_ends_at_end_of_text_and_behind_a_stop_string(model: Transfusion, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "logits", Scripted(EOS))
    (done,) = done_events(list(generator_of(model).stream([text_request(max_new_tokens=9)])))
    assert (done.finish_reason, done.document.parts) == ("eos", ())
    monkeypatch.setattr(model, "logits", Scripted(98))
    request = text_request(max_new_tokens=9, stop_strings=("bbb",))
    (done,) = done_events(list(generator_of(model).stream([request])))
    assert (done.finish_reason, done.document.parts) == ("stop", (TextPart("bbb"),))


def test_requests_and_sampling_that_do_not_fit_are_refused(model: Transfusion) -> None:
    generator = generator_of(model)
    span = (LatentSpan("image"),)
    prompt = Document((TextPart("a"),))
    refusals = [
        (text_request(spans=(LatentSpan("speech", 3),)), "asks for 'speech'"),
        (text_request(spans=(LatentSpan("image", grid=(2, 2)),)), "give num_latents, no grid"),
        (text_request(spans=span, intermediate_prompts=(prompt,), cfg_scale=(1.0, 2.0)), "guided by one condition"),
    ]
    for request, message in refusals:
        with pytest.raises(ValueError, match=message):
            generator.generate([request])
    with pytest.raises(ValueError, match="position_schedule is 'linear_increasing'"):
        generator_of(model, dataclasses.replace(FAST, guidance=GuidanceConfig(position_schedule="linear_increasing")))
    assert generator.generate([]) == []


def test_damaged_weights_are_named_and_not_drawn_with(model: Transfusion) -> None:
    with torch.no_grad():
        model.image_head.final_layer.linear.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="drawn for request 0 hold NaN"):
        generator_of(model).generate([text_request(spans=(LatentSpan("image"),))])


def test_gradients_are_left_as_the_caller_has_them(model: Transfusion) -> None:
    for _ in generator_of(model).stream([text_request(spans=(LatentSpan("image"),), max_new_tokens=2)]):
        assert torch.is_grad_enabled()


# -- pipeline ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pipeline() -> TransfusionPipeline:
    tokenizer = tiny_image_tokenizer()
    model = randomise(Transfusion(tiny_config(tokenizer_fingerprint=tokenizer.fingerprint())))
    sampling = {"image": dataclasses.replace(FAST, cfg_scale=1.5), "text": GREEDY}
    return TransfusionPipeline(model, {"image": tokenizer, "text": ByteTokenizer()}, sampling)


def test_a_loaded_pipeline_answers_as_the_saved_one(pipeline: TransfusionPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "model")
    loaded = TransfusionPipeline.from_pretrained(tmp_path / "model")
    assert loaded.model.config == pipeline.model.config
    assert loaded.sampling == pipeline.sampling
    prompts = ["ab", ("see ", Image.new("L", (8, 8), 90), " and draw")]
    answers, expected = (one.generate(prompts, images=1, max_new_tokens=3) for one in (loaded, pipeline))
    for answer, other in zip(answers, expected, strict=True):
        assert [part.tobytes() if isinstance(part, Image.Image) else part for part in answer] == [
            part.tobytes() if isinstance(part, Image.Image) else part for part in other
        ]


def test_steps_solver_and_precision_can_be_chosen(pipeline: TransfusionPipeline) -> None:
    requests = pipeline.requests(["a"], images=1, max_new_tokens=0)

    def drawn(events: Iterator[Event]) -> Tensor:
        (done,) = done_events(list(events))
        return latents_of(done.document)[0]

    default = drawn(pipeline.events(requests))
    assert torch.equal(default, drawn(pipeline.events(requests, num_inference_steps=3, solver="dpm_multistep")))
    assert not torch.allclose(default, drawn(pipeline.events(requests, num_inference_steps=5)), atol=1e-3)
    assert not torch.allclose(default, drawn(pipeline.events(requests, solver="euler")), atol=1e-3)
    ((image,),) = pipeline.generate(["a"], images=1, max_new_tokens=0, precision="bfloat16")
    assert isinstance(image, Image.Image)


def test_pictures_are_whole_even_if_a_request_leaves_their_length_open(
    pipeline: TransfusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.model, "logits", Scripted(pipeline.model.config.vocabulary.begin_id("image")))
    (answer,) = pipeline.generate(["a"], max_new_tokens=6, whole_pictures=False)
    (part,) = answer
    assert isinstance(part, Image.Image)


def test_parts_that_do_not_belong_together_are_refused(pipeline: TransfusionPipeline, tmp_path: Path) -> None:
    text, image = ByteTokenizer(), pipeline.tokenizers["image"]
    refusals: list[tuple[dict[str, Any], str]] = [
        ({"image": image}, "needs the tokenizers image, text; give text"),
        ({"text": text, "image": tiny_vq_image_tokenizer()}, "is a 'vq_image_tokenizer'"),
        ({"text": text, "image": tiny_image_tokenizer(seed=1)}, "trained with another image tokenizer"),
    ]
    for tokenizers, message in refusals:
        with pytest.raises(ValueError, match=message):
            TransfusionPipeline(pipeline.model, tokenizers)
    wider = randomise(Transfusion(tiny_config(latent_dim=7)))
    with pytest.raises(ValueError, match="latents of 6 dimensions but the model was built for latent_dim=7"):
        TransfusionPipeline(wider, pipeline.tokenizers)
    pipeline.model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="a model without its tokenizer: there is no tokenizers"):
        TransfusionPipeline.from_pretrained(tmp_path / "model")


# -- learning ----------------------------------------------------------------------------------------------------------


def test_a_document_learnt_by_heart_is_drawn_and_told_again() -> None:
    caption, drawn, comment = TextPart("cat: "), picture(4, 1), TextPart("purrs")
    document = Document((caption, drawn, comment), key=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Transfusion(tiny_config(loss_weight=5.0))
    builder = builder_of(model)
    # The same document eight times is eight timesteps and noises a step.
    rows = [[builder.build(dataclasses.replace(document, key=key))] for key in range(8)]
    packed = builder.collate(rows)
    batch = PictureBatch.of(packed, latent_dim=6, is_before_caption=[False] * 8, noise_seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    num_steps = 200
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for step in range(num_steps):
        optimizer.zero_grad()
        model(dataclasses.replace(batch, noise_seed=step))["total"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    sampling = LatentSamplingConfig(solver=SolverConfig(num_inference_steps=10))
    request = text_request("c", max_new_tokens=30, seed=2)
    (answer,) = generator_of(model.eval(), sampling).generate([request])
    assert [part.text if isinstance(part, TextPart) else type(part) for part in answer.parts] == [
        "at: ",
        LatentPart,
        "purrs",
    ]
    (latents,) = latents_of(answer)
    # Latents have unit variance; what is left is the error of 200 steps.
    assert (latents - drawn.latents).square().mean() < 0.05
