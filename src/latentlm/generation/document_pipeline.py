"""Text and pictures in, text and pictures out: what every model of documents is to its users and to the metrics.

prompts ─PromptEncoder▶ requests ─events (each model's own loop)▶ tokens, latents, parts ─▶ text deltas, pictures
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, ClassVar

from PIL import Image

from latentlm.generation.pipeline_folder import TEXT
from latentlm.generation.prompts import BrokenPicture, Prompt, PromptEncoder, RawPart, Sound, decoded, raw_parts
from latentlm.generation.requests import (
    DoneEvent,
    Event,
    GenerationRequest,
    LatentEvent,
    LatentSpan,
    PartEvent,
    TextSamplingConfig,
    TokenEvent,
)
from latentlm.nn.precision import Precision, autocast
from latentlm.sequence import CodePart, Document, LatentPart
from latentlm.tokenizers.text import StoredTextTokenizer, StreamDecoder


@dataclass(frozen=True)
class TextDelta:
    """More text of the answer to prompt number `request`."""

    request: int
    text: str


@dataclass(frozen=True, eq=False)
class PictureEvent:
    """A picture of the answer to prompt number `request` is finished."""

    request: int
    picture: Image.Image | BrokenPicture


@dataclass(frozen=True, eq=False)
class SoundEvent:
    """A sound of the answer to prompt number `request` is finished."""

    request: int
    sound: Sound


@dataclass(frozen=True, eq=False)
class AnswerEvent:
    """The answer to prompt number `request` is complete; `finish_reason` as in `DoneEvent`."""

    request: int
    parts: tuple[RawPart, ...]
    finish_reason: str


RawEvent = TextDelta | LatentEvent | PictureEvent | SoundEvent | AnswerEvent


class DocumentPipeline(ABC):
    """A trained model of documents together with its tokenizers.

    Attributes:
        kind: Of its model, in config.json.
        model: Has a `device`.
        tokenizers: By name; the one of text is called "text".
        sampling: Defaults; `TextSamplingConfig` under "text".
        text_tokenizer: None for a model without text.
        prompts: Turns prompts into documents.
        ends_pictures_itself: Whether the model decides where a picture ends, or all have one length by construction.
    """

    ends_pictures_itself: ClassVar[bool] = True
    kind: str
    model: Any
    tokenizers: dict[str, Any]
    sampling: dict[str, Any]
    text_tokenizer: StoredTextTokenizer | None
    prompts: PromptEncoder

    @abstractmethod
    def events(
        self,
        requests: SequenceOf[GenerationRequest],
        *,
        num_inference_steps: int | None = None,
        solver: str | None = None,
    ) -> Iterator[Event]:
        """Answer requests as one batch; None takes the model's own steps and solver."""

    def generate(self, prompts: SequenceOf[Prompt], **options: Any) -> list[list[RawPart]]:
        """Answer prompts of text and pictures with text and pictures, as one batch.

        Args:
            prompts: Each a text, a picture, or a sequence of both; parts of answers among them.
            **options: See `requests`, and `num_inference_steps` and `solver` in `stream`.

        Returns:
            The parts of every answer, in the order of the prompts. Put into a further prompt, a picture is read as the
            latents or codes that it was drawn as (see `DrawnPicture`).
        """
        answers: dict[int, list[RawPart]] = {}
        for event in self.stream(prompts, **options):
            if isinstance(event, AnswerEvent):
                answers[event.request] = list(event.parts)
        return [answers[number] for number in range(len(prompts))]

    def stream(
        self,
        prompts: SequenceOf[Prompt],
        *,
        num_inference_steps: int | None = None,
        solver: str | None = None,
        precision: Precision = "float32",
        **options: Any,
    ) -> Iterator[RawEvent]:
        """The same as events: text as soon as whole characters stand, latents, pictures as they are finished.

        Args:
            prompts: As in `generate`.
            num_inference_steps: Solver steps per latent; None takes the model's default.
            solver: Name of the solver; None takes the model's default.
            precision: Of the model's matrix products.
            **options: See `requests`.
        """
        requests = self.requests(prompts, **options)
        decoders = [None if self.text_tokenizer is None else StreamDecoder(self.text_tokenizer) for _ in requests]
        events = self.events(requests, num_inference_steps=num_inference_steps, solver=solver)
        while True:
            with autocast(self.model.device, precision):  # left before the caller's code runs between two events
                event = next(events, None)
            if event is None:
                return
            yield from self._raw_events(event, decoders)

    def _raw_events(self, event: Event, decoders: SequenceOf[StreamDecoder | None]) -> Iterator[RawEvent]:
        decoder = decoders[event.request]
        if isinstance(event, TokenEvent):
            text = ""
            if decoder is not None:
                is_text = self.text_tokenizer is not None and event.token_id < self.text_tokenizer.num_ids
                text = decoder.push(event.token_id) if is_text else decoder.flush()
            if text:
                yield TextDelta(event.request, text)
        elif isinstance(event, LatentEvent):
            yield event
        elif isinstance(event, PartEvent) and isinstance(event.part, LatentPart | CodePart):
            medium = decoded(event.part, self.tokenizers[event.part.modality])
            is_sound = isinstance(medium, Sound)
            yield SoundEvent(event.request, medium) if is_sound else PictureEvent(event.request, medium)
        elif isinstance(event, DoneEvent):
            if decoder is not None and (text := decoder.flush()):
                yield TextDelta(event.request, text)
            parts = tuple(raw_parts(event.document, self.tokenizers))
            yield AnswerEvent(event.request, parts, event.finish_reason)

    def requests(
        self,
        prompts: SequenceOf[Prompt],
        *,
        images: int = 0,
        image_size: int | tuple[int, int] | None = None,
        max_new_tokens: int = 256,
        max_images: int | None = None,
        whole_pictures: bool = True,
        do_sample: bool | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        stop_strings: str | SequenceOf[str] = (),
        negative_prompt: Prompt | None = None,
        intermediate_prompts: SequenceOf[Prompt] = (),
        cfg_scale: float | SequenceOf[float] | None = None,
        seed: int = 0,
        seeds: SequenceOf[int] | None = None,
        sample_prompts: bool = True,
    ) -> list[GenerationRequest]:
        """Prompts and options, by the names that transformers gives them, as requests of the generator.

        Args:
            prompts: As in `generate`.
            images: Pictures that follow every prompt at once ("now an image").
            image_size: Height and width of those, pixels, or the side of a square; None is the tokenizer's training
                size.
            max_new_tokens: Free decoding after them; 0 for none.
            max_images: Pictures that the model may begin by itself; 0 is text only, None any number.
            whole_pictures: Pictures that the model begins get their full length; False leaves the end to the model too.
            do_sample: False takes the likeliest token always.
            temperature: Of text. This and the next five: None takes the model's default.
            top_k: See `TextSamplingConfig`.
            top_p: Likewise.
            min_p: Likewise.
            repetition_penalty: Likewise.
            stop_strings: Text ends behind the first of them, or the only one.
            negative_prompt: What guidance leads away from; None is nothing at all.
            intermediate_prompts: For guidance by several conditions; see `GenerationRequest`.
            cfg_scale: Guidance of pictures, with intermediate prompts one for each condition; None takes the model's
                default.
            seed: Of the first prompt; prompt i has seed + i.
            seeds: One per prompt instead.
            sample_prompts: Pictures of prompts are samples of the posterior, as in training, or else its mean.

        Raises:
            ValueError: If a prompt or an option does not fit the model.
        """
        _check_list(prompts, "prompts")
        _check_list(intermediate_prompts, "intermediate_prompts")
        _check_count(images, "images")
        _check_count(max_new_tokens, "max_new_tokens")
        if max_images is not None:
            _check_count(max_images, "max_images")
        if image_size is not None and not images:
            raise ValueError("image_size is that of the pictures that are asked for; give their number: images=1")
        seeds = [seed + number for number in range(len(prompts))] if seeds is None else seeds
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(seeds)} seeds were given for {len(prompts)} prompts; give one per prompt")
        if images and self.prompts.tokenizer is None:
            raise ValueError("this model draws no pictures")
        span = self._image_span(image_size) if images else None
        changes = {
            "temperature": 0.0 if do_sample is False else temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "repetition_penalty": repetition_penalty,
        }
        default: TextSamplingConfig = self.sampling.get(TEXT, TextSamplingConfig())
        text = replace(default, **{name: value for name, value in changes.items() if value is not None})

        def encoded(prompt: Prompt, own_seed: int) -> Document:
            return self.prompts.document(prompt, seed=own_seed, sample=sample_prompts)

        return [
            GenerationRequest(
                prompt=encoded(prompt, own_seed),
                spans=(span,) * images if span is not None else (),
                max_new_tokens=max_new_tokens,
                max_spans=max_images,
                free_lengths=self._free_lengths() if whole_pictures else {},
                stop_strings=(stop_strings,) if isinstance(stop_strings, str) else tuple(stop_strings),
                negative_prompt=None if negative_prompt is None else encoded(negative_prompt, own_seed),
                intermediate_prompts=tuple(encoded(between, own_seed) for between in intermediate_prompts),
                cfg_scale=tuple(cfg_scale) if isinstance(cfg_scale, SequenceOf) else cfg_scale,
                seed=own_seed,
                text=text,
            )
            for prompt, own_seed in zip(prompts, seeds, strict=True)
        ]

    def _free_lengths(self) -> dict[str, int]:
        tokenizer = self.prompts.tokenizer
        if tokenizer is None or self.prompts.says_size:
            return {}
        rows, columns = tokenizer.grid(tokenizer.config.image_size, tokenizer.config.image_size)
        return {"image": rows * columns}

    def _image_span(self, image_size: int | tuple[int, int] | None) -> LatentSpan:
        tokenizer = self.prompts.tokenizer
        assert tokenizer is not None
        side = tokenizer.config.image_size
        size = side if image_size is None else image_size
        grid = tokenizer.grid(*((size, size) if isinstance(size, int) else size))
        if self.prompts.says_size:
            return LatentSpan("image", grid=grid)
        if image_size is not None and grid != tokenizer.grid(side, side):
            raise ValueError(
                f"the pictures of this model do not say their size: all are {side} x {side}; leave image_size out"
            )
        return LatentSpan("image", grid[0] * grid[1])


def _check_list(prompts: Any, name: str) -> None:
    # A string would be taken letter by letter, a picture row by row.
    if isinstance(prompts, str) or not isinstance(prompts, SequenceOf):
        raise ValueError(f"{name} is one {type(prompts).__name__}; give a list of prompts, if only of one: [prompt]")


def _check_count(count: Any, name: str) -> None:
    if not isinstance(count, Integral) or count < 0:
        raise ValueError(f"{name} is {count!r}; it must be a whole number, 0 or above")
