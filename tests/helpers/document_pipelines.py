"""Pipelines whose answers are known, and the digits that they are asked about."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor

from latentlm.data.documents import RawImage
from latentlm.data.documents.composed import ComposedDataConfig, PoolConfig
from latentlm.evaluation.document_protocol import Asked, open_pictures, task_documents
from latentlm.generation.document_pipeline import AnswerEvent, DocumentPipeline
from latentlm.generation.requests import LatentSamplingConfig

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
# A fifth of 1258 digits is held out: some 25 of each class.
DIGIT_POOL = PoolConfig(source="digits", names=NAMES, validation_ratio=0.2)
DIGITS = ComposedDataConfig(pools={"digit": DIGIT_POOL}, image_size=8, num_channels=1)

Reply = Callable[[Any, dict[str, Any]], tuple[tuple[Any, ...], str]]
"""Prompt and options to parts and finish reason."""


class Scripted(DocumentPipeline):
    """Answers what a function says; `asked` lists the prompts."""

    kind = "scripted"

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.asked: list[Any] = []
        self.sampling = {"image": LatentSamplingConfig(cfg_scale=1.5)}

    def events(self, requests: Any, **options: Any) -> Iterator[Any]:
        raise AssertionError("measures ask for raw answers")

    def stream(self, prompts: Any, **options: Any) -> Iterator[Any]:
        self.asked += prompts
        # Backwards: a batch is not answered in the order of its prompts.
        for number in reversed(range(len(prompts))):
            parts, reason = self.reply(prompts[number], {**options, "seed": options["seeds"][number]})
            yield AnswerEvent(number, parts, reason)


def read_digit(picture: RawImage) -> Tensor:
    """Pixels of an embedded digit, uint8 [1, 8, 8]."""
    assert not isinstance(picture.data, bytes)
    return torch.from_numpy(picture.data.copy()).reshape(1, 8, 8)


@cache
def digits_asked(task: str, count: int) -> list[Asked]:
    """Test documents of one task."""
    return [open_pictures(one, read_digit) for one in task_documents(DIGITS, task, part="test", count=count)]


def digit_reader(*tasks: str, count: int = 120) -> Callable[[Tensor], str]:
    """Reads the class of every picture that test documents of these tasks show."""
    known: dict[bytes, str] = {}
    for task in tasks:
        for one in digits_asked(task, count):
            shown = [part for part in (*one.prompt, *one.answer) if isinstance(part, Tensor)]
            known |= {p.numpy().tobytes(): n for p, n in zip(shown, one.fields["label_names"], strict=True)}
    return lambda picture: known[picture.numpy().tobytes()]
