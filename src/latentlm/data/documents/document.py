"""Multimodal documents before any tokenizer has seen them (paper Section 3.2): text and encoded pictures in order.

A `RawDocument` is what a person would read from top to bottom. Text stays text whatever it spells, so a caption that
reads like a switch token is a caption; pictures stay as their file holds them until `opening.open_image` decodes them.
Sounds are encoded beforehand (their encoders cost too much to run at every reading): a document holds their latents, or
codes.

Shapes: n latents, or frames of codes, of a sound, C latent_dim, Q codes of a frame.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from latentlm.data.records import BadRecord


@dataclass(frozen=True, eq=False)
class RawImage:
    """One picture, not yet decoded.

    Attributes:
        data: An encoded file, or pixels: uint8 [H, W] or [H, W, C] with C in (1, 3, 4).
        name: Where it comes from, for people.
    """

    data: bytes | np.ndarray
    name: str


@dataclass(frozen=True, eq=False)
class StoredLatents:
    """A medium that was encoded beforehand: what the tokenizer's posterior says of it, before noise and normalisation.

    Attributes:
        modality: Its name, such as "speech".
        mean: float32.
        log_std: Log of the learned standard deviation; None where the tokenizer itself sets it.
        name: Where it comes from, for people.
    """

    modality: str
    mean: Float[Tensor, "n C"]
    log_std: Float[Tensor, "n C"] | None
    name: str

    @property
    def num_tokens(self) -> int:
        """n."""
        return len(self.mean)


@dataclass(frozen=True, eq=False)
class StoredCodes:
    """A medium that was encoded beforehand by a codec.

    Attributes:
        modality: Its name, such as "speech".
        codes: Of any integer type.
        name: Where it comes from, for people.
    """

    modality: str
    codes: Int[Tensor, "n Q"]
    name: str

    @property
    def num_tokens(self) -> int:
        """n."""
        return len(self.codes)


StoredMedium = StoredLatents | StoredCodes
"""What was encoded beforehand."""

RawMedium = RawImage | StoredMedium
"""What a document holds beside text."""

RawPart = str | RawMedium
"""A stretch of text (any, also none: the empty text is a text) or a medium."""


@dataclass(frozen=True, eq=False)
class RawDocument:
    """An ordered list of parts.

    Attributes:
        parts: What the document says; at least one.
        key: Identity within its source: the same in every epoch, part and batch. Training noise hangs on it.
        name: The file and the place inside it, as a person would look for it.
        fields: What else the record holds (caption, label, label_name, split_kind, ...), for evaluation.
    """

    parts: tuple[RawPart, ...]
    key: int
    name: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError(f"the document {self.name} has no parts; an empty text would be one")


class DocumentSource(ABC):
    """Random access to the documents of one part of a data set. Picklable, so that data workers can hold a copy.

    Attributes:
        rejected: What was found unusable while indexing (a line above the limit, a broken shard): not among the
            documents any more, but it counts towards the limit of bad records.
    """

    rejected: tuple[BadRecord, ...] = ()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> RawDocument:
        """The document at `index` in [0, len).

        Raises:
            BadRecord: If it cannot be read or made; the message names file and reason.
            IndexError: If `index` is outside [0, len).
        """

    def record(self, index: int) -> int:
        """Number, below len, of the record that the document at `index` is made of.

        Documents that several templates make of one record share it: it is one bad record if they cannot be read.
        """
        return index

    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256, as hex, over everything that decides which documents these are, without reading them.

        It covers path, size and modification time of the indexed files, and the settings: good for caches of derived
        figures such as lengths. Picture files that a document names are not looked at.
        """
