"""Documents, as people see them, and sequences, as the model reads them.

Shapes: T positions, n latents of one modality, C its latent_dim.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from jaxtyping import Float, Int
from torch import Tensor

IGNORE_LABEL = -100
"""Label of positions without a discrete target (the value that cross-entropy ignores)."""


@dataclass(frozen=True)
class TextPart:
    """A stretch of text."""

    text: str


@dataclass(frozen=True)
class IdsPart:
    """A stretch of text that is ids of the text tokenizer already, such as a piece of a document cut between tokens."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class LabelPart:
    """A class label; None is the null class (no condition)."""

    label: int | None


@dataclass(frozen=True, eq=False)
class LatentPart:
    """A picture, a sound, …, as latents of unit scale: Float[n, C].

    Attributes:
        modality: Its name.
        latents: In reading order.
        grid: Rows and columns of a picture of variable size, which the sequence then says; None says nothing.
    """

    modality: str
    latents: Float[Tensor, "n C"]
    grid: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class CodePart:
    """A picture, a sound, …, as codes of a vector-quantized tokenizer: Int[n]; `grid` as in `LatentPart`."""

    modality: str
    codes: Int[Tensor, "n"]
    grid: tuple[int, int] | None = None


Part = TextPart | IdsPart | LabelPart | LatentPart | CodePart


@dataclass(frozen=True)
class Document:
    """An ordered list of parts.

    A sequence knows no empty text, and not where one text ends and the next begins: of documents that differ in these
    alone, `normal_form` is the one that `SequenceBuilder.restore` gives back.

    Attributes:
        parts: What the document says.
        key: 64-bit identity; training noise is drawn from it, so that it does not depend on packing order.
        begins: Nothing was cut away before it. Such a document starts with end-of-text.
        ends: Nothing was cut away behind it. Such a document ends with end-of-text.
        group: Number of the source it comes from, by which losses may be told apart.
    """

    parts: tuple[Part, ...]
    key: int = 0
    begins: bool = True
    ends: bool = True
    group: int = 0

    def normal_form(self) -> "Document":
        """The same document without empty texts, and with neighbouring ones as one text."""
        parts: list[Part] = []
        for part in self.parts:
            last = parts[-1] if parts else None
            if not isinstance(part, TextPart):
                parts.append(part)
            elif isinstance(last, TextPart):
                parts[-1] = TextPart(last.text + part.text)
            elif part.text:
                parts.append(part)
        return replace(self, parts=tuple(parts))


@dataclass(frozen=True, eq=False)
class Sequence:
    """One document as tokens; T positions.

    Attributes:
        input_ids: Discrete ids; a latent's position holds a placeholder.
        modality_ids: 0 where the token is discrete, 1 + index into `SequenceBuilder.modalities` where it is a latent.
        labels: Discrete target of each position (the id of the next token), or IGNORE_LABEL.
        latents: By modality, in reading order.
        key: The document's.
        group: The document's.
    """

    input_ids: Int[Tensor, "T"]
    modality_ids: Int[Tensor, "T"]
    labels: Int[Tensor, "T"]
    latents: Mapping[str, Float[Tensor, "_n _C"]]
    key: int = 0
    group: int = 0

    def __len__(self) -> int:
        return self.input_ids.shape[0]
