"""Perplexity and bits per byte of a text, each token scored once and with as much context as fits.

    ids ─windows▶ overlapping windows ─nll_of (the model)▶ nats per target ─▶ TextCounts ─+▶ perplexity, bits per byte

Perplexity per token compares only models of one text tokenizer; bits per byte compares any. Where pictures or sounds
stand between the words, the targets inside their spans ("another latent follows") are no text and nearly free to
predict: they are left out of the count, or a model with longer spans would look like the better reader.

Shapes: T ids, S positions of one window.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentlm.evaluation.scores_table import Columns

NllOf = Callable[[Int[Tensor, " S"], Int[Tensor, " S"]], Float[Tensor, " S"]]
"""(input ids, target ids) -> negative log-likelihood of each target given the inputs up to its place, in nats."""


@dataclass(frozen=True, kw_only=True)
class TextCounts:
    """What perplexity is made of; counts of several texts, batches or processes are added with `+`."""

    nll_nats: float = 0.0
    """Sum over the targets."""
    num_targets: int = 0
    num_bytes: int = 0
    """UTF-8 bytes of the text that the targets spell."""

    columns: ClassVar[Columns] = {
        "num_targets": ("tokens", "d"),
        "num_bytes": ("bytes", "d"),
        "perplexity": ("perplexity ↓", ".3f"),
        "bits_per_byte": ("bits per byte ↓", ".4f"),
    }

    def __add__(self, other: "TextCounts") -> "TextCounts":
        return TextCounts(
            nll_nats=self.nll_nats + other.nll_nats,
            num_targets=self.num_targets + other.num_targets,
            num_bytes=self.num_bytes + other.num_bytes,
        )

    @property
    def perplexity(self) -> float:
        """exp(nats per target); infinite where that overflows.

        Raises:
            ValueError: If nothing was scored.
        """
        if self.num_targets == 0:
            raise ValueError("no token was scored, so there is no perplexity")
        try:
            return math.exp(self.nll_nats / self.num_targets)
        except OverflowError:  # above 709 nats per token: a model that rules the text out
            return math.inf

    @property
    def bits_per_byte(self) -> float:
        """Bits to store the text with this model, over its bytes.

        Raises:
            ValueError: If the text has no bytes.
        """
        if self.num_bytes == 0:
            raise ValueError("the text has no bytes, so there are no bits per byte")
        return self.nll_nats / math.log(2) / self.num_bytes

    def as_json(self) -> dict[str, Any]:
        """Counts and scores by name, infinite ones as None; the counts alone merge again."""
        content = {**asdict(self), "perplexity": self.perplexity, "bits_per_byte": self.bits_per_byte}
        return {name: value if math.isfinite(value) else None for name, value in content.items()}


@dataclass(frozen=True)
class Window:
    """Positions `start` to `stop` of some ids; the targets from `first_target` on are scored here."""

    start: int
    stop: int
    first_target: int


def windows(num_ids: int, max_length: int, stride: int) -> Iterator[Window]:
    """Windows over ids in which every id but the first is a scored target exactly once.

    A window feeds its ids but the last and predicts its ids but the first. After the first window each one scores the
    next `stride` targets and reaches back as far as it may: each target sees at least max_length - stride + 1 ids
    (or all there are). A stride of 1 gives every target the longest context, at a forward pass each; a stride of
    `max_length` is the cheapest, and the first target of each window then sees one id.

    Args:
        num_ids: T; the first id is context only, so start with a mark that begins texts.
        max_length: Ids that the model takes at most.
        stride: In [1, max_length].

    Raises:
        ValueError: If `stride` lies outside its range.
    """
    if not 1 <= stride <= max_length:
        raise ValueError(f"stride must lie in [1, max_length = {max_length}], but is {stride}")
    scored = 1  # ids before this place are scored, or are the first one
    while scored < num_ids:
        stop = min(scored + (max_length if scored == 1 else stride), num_ids)
        yield Window(start=max(stop - max_length - 1, 0), stop=stop, first_target=scored)
        scored = stop


def score_ids(
    ids: Int[Tensor, " T"],
    nll_of: NllOf,
    *,
    num_bytes: int,
    max_length: int,
    stride: int,
    counted: Bool[Tensor, " T"] | None = None,
) -> TextCounts:
    """Score a text in strided windows.

    Args:
        ids: The text, a beginning mark first.
        nll_of: The model: input and target ids of a window to nats per target.
        num_bytes: UTF-8 bytes of the text that the counted ids spell.
        max_length: Ids that the model takes at most.
        stride: New targets per window after the first; see `windows`.
        counted: True where an id counts as target; None counts all. False belongs on what is no text, such as the
            targets inside the span of a picture.

    Raises:
        ValueError: If `stride` lies outside [1, max_length], or the model gives NaN or another number of values than
            targets.
    """
    total, num_targets = 0.0, 0
    for window in windows(len(ids), max_length, stride):
        inputs, targets = ids[window.start : window.stop - 1], ids[window.start + 1 : window.stop]
        nll = nll_of(inputs, targets)
        if nll.shape != targets.shape or nll.isnan().any():
            raise ValueError(
                f"the model gave values of shape {tuple(nll.shape)} for {len(targets)} targets, "
                f"{int(nll.isnan().sum())} of them NaN"
            )
        # Targets before `first_target` were scored by an earlier window; here they are context.
        new = torch.arange(window.start + 1, window.stop, device=ids.device) >= window.first_target
        if counted is not None:
            new &= counted[window.start + 1 : window.stop]
        new = new.to(nll.device)
        total += nll[new].double().sum().item()
        num_targets += int(new.sum())
    return TextCounts(nll_nats=total, num_targets=num_targets, num_bytes=num_bytes)
