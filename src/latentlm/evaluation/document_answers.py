"""Asking a model of documents: prompts in batches, answers as text and pictures."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from latentlm.config import with_changes
from latentlm.data.images import to_unit_range
from latentlm.generation.document_pipeline import AnswerEvent, DocumentPipeline
from latentlm.generation.prompts import BrokenPicture, PromptPart, RawPart
from latentlm.nn.precision import Precision

IMAGE = "image"


@dataclass(frozen=True, kw_only=True)
class AskOptions:
    """How prompts are put to a model; the same for all measures."""

    batch_size: int = 100
    first_seed: int = 0
    """Prompt i has this plus i."""
    precision: Precision = "float32"
    progress: bool = False


def ask(
    pipeline: DocumentPipeline, prompts: Sequence[Sequence[PromptPart]], options: AskOptions, **generation: Any
) -> list[AnswerEvent]:
    """Answer prompts, in their order.

    Args:
        pipeline: The model.
        prompts: Text, and pictures as float [C, H, W] in [-1, 1].
        options: Batches, seeds, precision.
        **generation: Of `DocumentPipeline.requests`.
    """
    answers: list[AnswerEvent] = []
    with tqdm(total=len(prompts), desc="asking", unit="prompt", disable=not options.progress) as bar:
        for start in range(0, len(prompts), options.batch_size):
            batch = prompts[start : start + options.batch_size]
            seeds = list(range(options.first_seed + start, options.first_seed + start + len(batch)))
            stream = pipeline.stream(batch, seeds=seeds, precision=options.precision, **generation)
            events = [event for event in stream if isinstance(event, AnswerEvent)]
            answers += sorted(events, key=lambda event: event.request)
            bar.update(len(batch))
    return answers


def ask_for_text(
    pipeline: DocumentPipeline, prompts: Sequence[Sequence[PromptPart]], options: AskOptions, *, max_new_tokens: int
) -> list[str]:
    """The likeliest text after each prompt, token by token, up to its end of text."""
    answers = ask(pipeline, prompts, options, max_images=0, do_sample=False, max_new_tokens=max_new_tokens)
    return ["".join(part for part in answer.parts if isinstance(part, str)) for answer in answers]


def ask_for_pictures(
    pipeline: DocumentPipeline, prompts: Sequence[Sequence[PromptPart]], options: AskOptions
) -> Float[Tensor, "N C H W"]:
    """One picture right after each prompt, in [-1, 1]."""
    answers = ask(pipeline, prompts, options, images=1, max_new_tokens=0)
    return torch.stack([_pixels(answer) for answer in answers])


def _pixels(answer: AnswerEvent) -> Float[Tensor, "C H W"]:
    (picture,) = answer.parts
    assert isinstance(picture, Image.Image), "a picture that was asked for has its full length"
    array = np.asarray(picture)
    return to_unit_range(torch.from_numpy(array.copy().reshape(*array.shape[:2], -1)))


def is_picture(part: RawPart) -> bool:
    """Whether a part of an answer is a picture, also one that was closed too early or too late."""
    return isinstance(part, Image.Image | BrokenPicture)


@contextmanager
def sampling_changed(pipeline: DocumentPipeline, changes: Mapping[str, Any]) -> Iterator[None]:
    """Draw pictures with other options meanwhile.

    Args:
        pipeline: Whatever sampling it has: of latents, of codes.
        changes: Options by dotted name, such as {"cfg_scale": 2.0, "solver.num_inference_steps": 10}.

    Raises:
        ValueError: If there is no such option, or its value is refused.
    """
    default = pipeline.sampling[IMAGE]
    pipeline.sampling[IMAGE] = with_changes(default, changes, where=f"sampling of a '{pipeline.kind}'")
    try:
        yield
    finally:
        pipeline.sampling[IMAGE] = default
