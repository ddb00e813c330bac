"""Documents before their media are encoded, cut into pieces that fit a row.

What a document will be as tokens is known before any picture is encoded: text is ids, and a picture is a slot of so
many latents. Lengths, and with them the whole plan of packing, need no tokenizer of pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from latentlm.sequence.document import IdsPart

_SHORTEST_PIECE = 2
"""A token alone predicts nothing."""


@dataclass(frozen=True)
class LatentSlot:
    """The place of a picture (a sound, …) in a document.

    Attributes:
        modality: Its name.
        num_latents: That it will have.
        raw: Which of the document's media it is, from 0.
        grid: Rows and columns, if the sequence says them.
    """

    modality: str
    num_latents: int
    raw: int
    grid: tuple[int, int] | None = None

    @property
    def num_tokens(self) -> int:
        """Positions of its span: begin token, sizes if they are said, latents, end token."""
        return self.num_latents + 2 + (0 if self.grid is None else 2)


Segment = IdsPart | LatentSlot


def num_tokens(segments: Sequence[Segment]) -> int:
    """Positions that some segments take."""
    return sum(len(part.ids) if isinstance(part, IdsPart) else part.num_tokens for part in segments)


def cut(segments: Sequence[Segment], max_length: int) -> list[tuple[Segment, ...]]:
    """Cut a document into pieces of at most `max_length` tokens, never inside a span.

    Text fills a piece to its end; a span that does not fit opens the next piece. Nothing is lost but a last token that
    would stand alone.

    Args:
        segments: The whole document, end-of-text ids included.
        max_length: Of a row.

    Raises:
        ValueError: If a span alone is longer.
    """
    pieces: list[tuple[Segment, ...]] = []
    current: list[Segment] = []
    room = max_length

    def close() -> None:
        nonlocal room
        if num_tokens(current) >= _SHORTEST_PIECE:
            pieces.append(tuple(current))
        current.clear()
        room = max_length

    for segment in segments:
        if isinstance(segment, LatentSlot):
            if segment.num_tokens > max_length:
                raise ValueError(
                    f"a span of {segment.num_tokens} tokens does not fit into rows of {max_length}; raise max_length, "
                    "or make pictures smaller"
                )
            if segment.num_tokens > room:
                close()
            current.append(segment)
            room -= segment.num_tokens
            continue
        start = 0  # an index: copying the rest for every piece would make long texts quadratic
        while start < len(segment.ids):
            if room == 0:
                close()
            ids = segment.ids[start : start + room]
            current.append(IdsPart(ids))
            start, room = start + len(ids), room - len(ids)
    close()
    return pieces
