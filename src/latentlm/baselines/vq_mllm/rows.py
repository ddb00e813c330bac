"""What the generator knows of requests under way: rows, and the pictures that they are drawing."""

from dataclasses import dataclass, field

from latentlm.generation.requests import GenerationRequest, LatentSpan
from latentlm.generation.rows import Stream
from latentlm.sequence import Part


@dataclass
class Picture:
    """The picture that a row is drawing."""

    length: int | None
    """Its number of codes, once that is settled; None lets the end token decide."""
    limit: int
    """Most codes that it can have."""
    is_free: bool
    """The model opened it by itself."""
    sides: list[int]
    """Rows and columns, as far as they were said."""
    codes: list[int] = field(default_factory=list)


@dataclass
class Row:
    """One request under way."""

    index: int
    request: GenerationRequest
    scales: tuple[float, ...]
    """Strengths of guidance, one per weaker stream; empty without guidance."""
    weaker_prompts: list[list[int]]
    """What the weaker streams read before a picture, begin token excluded; the unconditional one first."""
    cond: Stream
    weaker: list[Stream]
    """The streams that guidance leads away from."""
    spans: list[LatentSpan]
    seen_ids: list[int]
    """Text of prompt and answer."""
    picture: Picture | None = None
    text_ids: list[int] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    num_free: int = 0
    num_free_spans: int = 0
    finish_reason: str | None = None

    @property
    def streams(self) -> list[Stream]:
        """Those that read what is generated."""
        return [self.cond, *(self.weaker if self.picture is not None else ())]
