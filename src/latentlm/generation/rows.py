"""What generators know of requests under way: rows, their streams through the backbone, their text, guidance."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from latentlm.generation.requests import GenerationRequest, LatentSpan, PartEvent
from latentlm.models.kv_cache import KVCache
from latentlm.models.transformer import Transformer
from latentlm.sequence import Part, TextPart, TextTokenizer

Token = int | tuple[str, Tensor]
"""A discrete id, or (modality, latent)."""

_FIRST_POSITIONS = 4096
"""That a cache has room for before it grows."""


def allocate_cache(transformer: Transformer, *, num_streams: int, longest: int) -> KVCache:
    """An empty cache that begins no longer than most answers are: bounds may be large, and are seldom reached.

    Whoever reads calls its `reserve` first, for one slot more than there are positions: right padding is written to the
    last slot, which no row reaches.

    Args:
        transformer: Whose keys and values it keeps.
        num_streams: Its rows.
        longest: Most positions that a stream can fill.
    """
    return transformer.allocate_cache(num_streams, 1 + min(longest, _FIRST_POSITIONS))


@dataclass
class Stream:
    """One row of the cache: what it has read, what it reads next, and the hidden state of its newest token."""

    cache_row: int
    pending: list[Token] = field(default_factory=list)
    length: int = 0
    hidden_state: Tensor = field(default_factory=lambda: torch.empty(0))

    def restart(self, tokens: list[Token]) -> None:
        """Forget what was read; slots are overwritten from position 0."""
        self.pending, self.length = tokens, 0


@dataclass
class Row:
    """One request under way."""

    index: int
    request: GenerationRequest
    weaker_prompts: list[list[Token]]
    """What the weaker streams read before a span, begin token excluded; the unconditional one first."""
    cond: Stream
    weaker: list[Stream]
    """The streams that guidance leads away from."""
    spans: list[LatentSpan]
    seen_ids: list[int]
    """Text of prompt and answer."""
    span: LatentSpan | None = None
    span_latents: list[Tensor] = field(default_factory=list)
    num_sizes_left: int = 0
    """Of the open span, that the model has yet to say."""
    sides: list[int] = field(default_factory=list)
    """Of the open span, that the model has said."""
    text_ids: list[int] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    num_latents: int = 0
    num_free: int = 0
    num_free_spans: int = 0
    span_is_free: bool = False
    guided: bool = False
    finish_reason: str | None = None

    @property
    def open_span(self) -> LatentSpan:
        """The span that is being filled."""
        assert self.span is not None
        return self.span

    @property
    def streams(self) -> list[Stream]:
        """Those that read what is generated."""
        return [self.cond, *(self.weaker if self.guided else ())]


class Links(NamedTuple):
    """The links of guidance of some rows: each leads from a weaker stream's prediction to the next stronger one's."""

    places: list[tuple[int, int]]
    """Row, and number of the weaker stream in it."""
    stronger: list[int]
    """Where the stronger prediction stands: conditional ones of all rows first, then one for each of `places`."""
    scales: list[float]

    @classmethod
    def of(cls, rows: Sequence[Row], scales: Sequence[tuple[float, ...]]) -> "Links":
        """The links of these rows; `scales` has one scale for each weaker stream of a row, weakest first."""
        links = cls([], [], [])
        for row, of_row in enumerate(scales):
            for number, scale in enumerate(of_row):
                is_last = number == len(of_row) - 1
                links.stronger.append(row if is_last else len(rows) + len(links.places) + 1)
                links.places.append((row, number))
                links.scales.append(scale)
        return links


@runtime_checkable
class TextRow(Protocol):
    """What writing text needs of a row of any generator."""

    index: int
    request: GenerationRequest
    cond: Stream
    seen_ids: list[int]
    text_ids: list[int]
    parts: list[Part]
    finish_reason: str | None


def take_text(row: TextRow, token: int, tokenizer: TextTokenizer) -> Iterator[PartEvent]:
    """Take a text id, or one that ends the text; the row ends at the latter, and behind a stop string."""
    if token == tokenizer.eos_id or token in row.request.text.eos_ids:
        yield from flush_text(row, tokenizer)
        row.finish_reason = "eos"
        return
    row.text_ids.append(token)
    row.seen_ids.append(token)
    row.cond.pending = [token]
    if _holds_stop_string(row, tokenizer):
        yield from flush_text(row, tokenizer)
        row.finish_reason = "stop"


def flush_text(row: TextRow, tokenizer: TextTokenizer | None) -> Iterator[PartEvent]:
    """Close the stretch of text that a row is writing, if it has begun one."""
    if row.text_ids:
        assert tokenizer is not None, "there are no ids of text without it"
        part = TextPart(tokenizer.decode(row.text_ids))
        row.parts.append(part)
        row.text_ids = []
        yield PartEvent(row.index, part)


def _holds_stop_string(row: TextRow, tokenizer: TextTokenizer) -> bool:
    """Whether the newest id completed a stop string; only ids that can be part of one are decoded again."""
    if not row.request.stop_strings:
        return False
    # An id stands for a byte at least, so that no more ids than bytes can belong to the string.
    window = max(len(text.encode()) for text in row.request.stop_strings) + 1
    text = tokenizer.decode(row.text_ids[-window:])
    return any(stop in text for stop in row.request.stop_strings)
