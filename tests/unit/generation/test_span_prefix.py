"""Spans that go on from latents that the request gives: a voice, the beginning of a recording."""

import dataclasses

import pytest
import torch
from torch import Tensor

from latentlm.diffusion.solvers import SolverConfig
from latentlm.generation.generator import Generator
from latentlm.generation.requests import GenerationRequest, LatentSamplingConfig, LatentSpan, TextSamplingConfig
from latentlm.models.latentlm import LatentLM
from latentlm.sequence import Document, LatentPart, SequenceBuilder, TextPart

FAST = LatentSamplingConfig(solver=SolverConfig(num_inference_steps=3))


def speak(model: LatentLM, builder: SequenceBuilder, *spans: LatentSpan, cfg_scale: float = 2.0) -> list[Tensor]:
    generator = Generator(model, builder, {"image": FAST, "speech": FAST})
    request = GenerationRequest(
        prompt=Document((TextPart("one two"),)),
        spans=spans,
        cfg_scale=cfg_scale,
        seed=5,
        text=TextSamplingConfig(temperature=0.0),
    )
    (document,) = generator.generate([request])
    return [part.latents for part in document.parts if isinstance(part, LatentPart)]


@pytest.mark.parametrize(("cfg_scale", "guide_prefix"), [(1.0, True), (1.0, False), (2.0, False)])
def test_going_on_from_a_spans_own_beginning_gives_its_own_continuation(
    cfg_scale: float, guide_prefix: bool, mixed_model: LatentLM, mixed_builder: SequenceBuilder
) -> None:
    (whole,) = speak(mixed_model, mixed_builder, LatentSpan("speech", 6), cfg_scale=cfg_scale)
    span = LatentSpan("speech", 4, prefix=whole[:2], guide_prefix=guide_prefix)
    (rest,) = speak(mixed_model, mixed_builder, span, cfg_scale=cfg_scale)
    # Read at once or one by one, attention sums in another order.
    torch.testing.assert_close(rest, whole[2:], rtol=1e-4, atol=1e-4)


def test_guidance_can_lead_away_from_what_lacks_the_prefix(
    mixed_model: LatentLM, mixed_builder: SequenceBuilder
) -> None:
    latent_dim = mixed_model.config.modalities["speech"].latent_dim
    prefix = torch.randn(3, latent_dim, generator=torch.Generator().manual_seed(0))
    span = LatentSpan("speech", 2, prefix=prefix)
    (away,) = speak(mixed_model, mixed_builder, span)
    (along,) = speak(mixed_model, mixed_builder, dataclasses.replace(span, guide_prefix=False))
    assert (away - along).abs().max() > 1e-3


def test_a_span_may_not_end_before_its_least_length(
    mixed_model: LatentLM, mixed_builder: SequenceBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary = mixed_builder.vocabulary

    def always_end(hidden_states: Tensor) -> Tensor:
        logits = torch.zeros(*hidden_states.shape[:-1], vocabulary.size)
        logits[..., vocabulary.end_id("speech")] = 100.0
        return logits

    monkeypatch.setattr(mixed_model, "logits", always_end)
    lengths = [len(speak(mixed_model, mixed_builder, LatentSpan("speech", min_latents=n))[0]) for n in (1, 3)]
    assert lengths == [1, 3]


def test_a_prefix_that_does_not_fit_is_refused(mixed_model: LatentLM, mixed_builder: SequenceBuilder) -> None:
    latent_dim = mixed_model.config.modalities["speech"].latent_dim
    with pytest.raises(ValueError, match="made by another tokenizer"):
        speak(mixed_model, mixed_builder, LatentSpan("speech", 1, prefix=torch.zeros(2, latent_dim + 1)))
    with pytest.raises(ValueError, match="made by another tokenizer"):
        speak(mixed_model, mixed_builder, LatentSpan("speech", 1, prefix=torch.full((2, latent_dim), torch.nan)))
    with pytest.raises(ValueError, match="min_latents"):
        speak(mixed_model, mixed_builder, LatentSpan("speech", max_latents=2, min_latents=3))
