"""Text to speech with a LatentLM (paper Section 3.3): a text, and a voice to go on in, become sound.

    voice's text + text ─▶ prompt; voice's latents ─▶ beginning of the speech span ─generator▶ the rest of the span
      ─speech tokenizer, latent by latent▶ waveform chunks

The model ends the span by itself, unless a guard does (`speaker.py`).

Shapes: S samples, n latents, C latent_dim.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from latentlm.diffusion.solvers import make_solver
from latentlm.generation.pipeline import LatentLMPipeline
from latentlm.generation.requests import (
    Event,
    GenerationRequest,
    LatentEvent,
    LatentSpan,
    PartEvent,
    TextSamplingConfig,
)
from latentlm.generation.speaker import (
    Speaker,
    SpeakingConfig,
    SpeakingCost,
    Utterance,
    draw_utterances,
    length_bounds,
    said_with,
)
from latentlm.generation.voices import Voice, make_voice, read_voice
from latentlm.models.cost import latentlm_flops
from latentlm.nn.precision import autocast
from latentlm.sequence import Document, LatentPart, TextPart
from latentlm.tokenizers.speech import SpeechTokenizer

SPEECH = "speech"


def speak(
    pipeline: LatentLMPipeline,
    texts: Sequence[str],
    voices: Sequence[Voice | None],
    *,
    config: SpeakingConfig | None = None,
    seeds: Sequence[int] | None = None,
) -> list[Utterance]:
    """Speak texts, as one batch.

    Args:
        pipeline: Has speech.
        texts: What to say.
        voices: Whose voice each goes on in; None leaves it to the model.
        config: Guidance, steps, guards.
        seeds: One per text; None counts from 0.

    Raises:
        ValueError: If the model does not speak, a text is empty, or a voice is another tokenizer's.
    """
    config = config or SpeakingConfig()
    tokenizer = speech_tokenizer(pipeline)

    def draw(numbers: list[int], own_seeds: list[int]) -> list[Utterance]:
        requests = [
            request_of(pipeline, texts[number], voices[number], config, seed)
            for number, seed in zip(numbers, own_seeds, strict=True)
        ]
        return [
            Utterance(
                waveform=decode_after(tokenizer, latents, request.spans[0].prefix),
                sample_rate=tokenizer.config.sample_rate,
                tokens=latents,
                ended_by_itself=ended,
                seeds=(request.seed,),
            )
            for request, (latents, ended) in zip(requests, _draw(pipeline, requests, config), strict=True)
        ]

    return draw_utterances(draw, texts, voices, seeds, num_retries=config.num_retries)


def stream_speech(
    pipeline: LatentLMPipeline,
    text: str,
    voice: Voice | None = None,
    *,
    config: SpeakingConfig | None = None,
    seed: int = 0,
) -> Iterator[Float[Tensor, "_samples"]]:
    """Speak a text, chunk by chunk: `hop_length` samples as soon as their latent is drawn.

    Joined, the chunks are what `speak` gives without retries, which a stream cannot take back.

    Args:
        pipeline: Has speech.
        text: What to say.
        voice: Whose voice to go on in.
        config: Guidance, steps, guards.
        seed: Of all draws.

    Raises:
        ValueError: As in `speak`.
    """
    config = config or SpeakingConfig()
    tokenizer = speech_tokenizer(pipeline)
    request = request_of(pipeline, text, voice, config, seed)
    state = _primed(tokenizer, request.spans[0].prefix)
    for event in _events(pipeline, [request], config):
        if isinstance(event, LatentEvent):
            with torch.no_grad():
                chunk, state = tokenizer.decode_step(event.latent[None, None].to(_device(tokenizer)), state)
            yield chunk[0].cpu()


def request_of(
    pipeline: LatentLMPipeline, text: str, voice: Voice | None, config: SpeakingConfig, seed: int
) -> GenerationRequest:
    """The request that speaks a text: the voice's text before it, the voice's latents at the head of the span.

    Raises:
        ValueError: As in `speak`.
    """
    said = said_with(text, voice)
    tokenizer = speech_tokenizer(pipeline)
    prefix = None if voice is None else voice.latents(tokenizer, seed=seed, sample=config.sample_voice)
    least, most = length_bounds(text, voice, config, tokenizer.config.frame_rate)
    return GenerationRequest(
        prompt=Document((TextPart(said),)),
        spans=(
            LatentSpan(SPEECH, min_latents=least, max_latents=most, prefix=prefix, guide_prefix=config.guide_voice),
        ),
        cfg_scale=config.cfg_scale,
        seed=seed,
        text=TextSamplingConfig(temperature=config.end_temperature),
    )


def speech_tokenizer(pipeline: LatentLMPipeline) -> SpeechTokenizer:
    """The pipeline's tokenizer of speech.

    Raises:
        ValueError: If it has none, or no text.
    """
    tokenizer = pipeline.tokenizers.get(SPEECH)
    if not isinstance(tokenizer, SpeechTokenizer) or pipeline.text_tokenizer is None:
        raise ValueError("this model does not speak: it was trained without speech, or without text")
    return tokenizer


@torch.no_grad()
def decode_after(
    tokenizer: SpeechTokenizer, latents: Float[Tensor, "n C"], prefix: Float[Tensor, "m C"] | None
) -> Float[Tensor, "S"]:
    """Sound of latents that follow others, without the sound of those, on the CPU."""
    waveform, _ = tokenizer.decode_step(latents[None].to(_device(tokenizer)), _primed(tokenizer, prefix))
    return waveform[0].cpu()


@torch.no_grad()
def _primed(tokenizer: SpeechTokenizer, prefix: Float[Tensor, "m C"] | None) -> tuple:
    """The decoder's state after the voice, so that the sound goes on where it stops."""
    state = tokenizer.decoder_state(1)
    if prefix is not None:
        _, state = tokenizer.decode_step(prefix[None].to(_device(tokenizer)), state)
    return state


def _draw(
    pipeline: LatentLMPipeline, requests: Sequence[GenerationRequest], config: SpeakingConfig
) -> list[tuple[Float[Tensor, "_n C"], bool]]:
    """Latents of every request, and whether the model ended them."""
    latents: dict[int, Tensor] = {}
    for event in _events(pipeline, requests, config):
        if isinstance(event, PartEvent) and isinstance(event.part, LatentPart):
            latents[event.request] = event.part.latents
    return [
        (latents[number], len(latents[number]) < request.spans[0].max_latents)
        for number, request in enumerate(requests)
    ]


def _events(
    pipeline: LatentLMPipeline, requests: Sequence[GenerationRequest], config: SpeakingConfig
) -> Iterator[Event]:
    events = pipeline.events(requests, num_inference_steps=config.num_inference_steps)
    while True:
        with autocast(pipeline.model.device, config.precision):  # left before the caller's code runs
            event = next(events, None)
        if event is None:
            return
        yield event


def _device(tokenizer: SpeechTokenizer) -> torch.device:
    return next(tokenizer.parameters()).device


class LatentLMSpeaker:
    """A LatentLM as a `Speaker`.

    Args:
        pipeline: Has speech.

    Raises:
        ValueError: If it does not speak.
    """

    kind = LatentLMPipeline.kind

    def __init__(self, pipeline: LatentLMPipeline) -> None:
        self.pipeline = pipeline
        self._tokenizer = speech_tokenizer(pipeline)

    @property
    def sample_rate(self) -> int:
        """See `Speaker`."""
        return self._tokenizer.config.sample_rate

    def make_voice(self, waveform: Float[Tensor, "S"], *, text: str | None = None) -> Voice:
        """See `Speaker`."""
        return make_voice(self._tokenizer, waveform, text=text)

    def read_voice(self, path: Path, *, text: str | None = None) -> Voice:
        """See `Speaker`."""
        return read_voice(path, self._tokenizer, text=text)

    def speak(
        self,
        texts: Sequence[str],
        voices: Sequence[Voice | None],
        *,
        config: SpeakingConfig | None = None,
        seeds: Sequence[int] | None = None,
    ) -> list[Utterance]:
        """See `speak`."""
        return speak(self.pipeline, texts, voices, config=config, seeds=seeds)

    def stream(
        self, text: str, voice: Voice | None = None, *, config: SpeakingConfig | None = None, seed: int = 0
    ) -> Iterator[Float[Tensor, "_samples"]]:
        """See `stream_speech`."""
        return stream_speech(self.pipeline, text, voice, config=config, seed=seed)

    def speaking_cost(
        self, seconds: float, *, text: str = "", voice_seconds: float = 0.0, config: SpeakingConfig | None = None
    ) -> SpeakingCost:
        """One step per latent, and solver steps of the head at each; see `Speaker`."""
        model, sampling = self.pipeline.model, self.pipeline.sampling[SPEECH]
        config = config or SpeakingConfig()
        cfg_scale = sampling.cfg_scale if config.cfg_scale is None else config.cfg_scale
        changes = {} if config.num_inference_steps is None else {"num_inference_steps": config.num_inference_steps}
        solver = make_solver(model.processes[SPEECH], replace(sampling.solver, **changes))
        frame_rate = self._tokenizer.config.frame_rate
        num_latents, of_voice = (math.ceil(time * frame_rate) for time in (seconds, voice_seconds))
        assert self.pipeline.text_tokenizer is not None, "checked when it was made"
        num_read = 2 + len(self.pipeline.text_tokenizer.encode(text)) + of_voice  # with begin of text and of speech
        # The unconditional stream reads the begin of text and of speech alone.
        streams = [num_read] if cfg_scale == 1 else [num_read, 2]
        drawing = sum(
            latentlm_flops(
                model,
                num_latents=num_latents,
                num_evaluations=solver.num_evaluations,
                guided=False,
                modality=SPEECH,
                num_read=length,
            ).generation
            for length in streams
        )
        ending = 2 * num_latents * model.config.transformer.hidden_size * model.config.vocabulary.size
        return SpeakingCost(
            num_steps=num_latents,
            num_evaluations=len(streams) * num_latents * (1 + solver.num_evaluations),
            flops=drawing + ending,
        )


def as_speaker(model: Any, *, name: str) -> Speaker:
    """What was loaded, as a speaker.

    Args:
        model: From `latentlm.load`.
        name: For the message.

    Raises:
        ValueError: If it does not speak.
    """
    if isinstance(model, LatentLMPipeline):
        return LatentLMSpeaker(model)
    if not isinstance(model, Speaker):
        raise ValueError(f"{name} holds a {type(model).__name__}, which does not speak")
    return model
