"""Packed documents as Transfusion reads them: which positions are one picture, and how far each position sees.

Text sees what stands before it. A latent also sees the rest of its own picture: its *reach* is the last latent of the
picture, where that of any other token is the token itself. One number per position thus says all of Transfusion's
attention, in training (`PictureBatch.attention_mask`) and in the cache (`reader.PictureView`) alike.

Shapes: B rows, T positions, n latents in the whole batch in reading order, P pictures in the same order, C latent_dim.
"""

import dataclasses
from collections.abc import Container
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentlm.sequence import Document, IdsPart, LatentPart, PackedBatch, Part, TextPart

MODALITY = "image"
"""The one modality that Transfusion diffuses."""


@dataclass(frozen=True, eq=False)
class PictureBatch:
    """A packed batch, and what one diffusion per picture needs beside it.

    Attributes:
        packed: The documents.
        text_positions: Flat positions with a discrete target that counts: all but those inside pictures.
        reach: Column of the last position that each position sees.
        latents: Clean, unit variance.
        latent_positions: Flat position of every latent.
        latent_keys: Identity of every latent, for its noise.
        picture_of_latent: Number of the picture that a latent belongs to.
        place_in_picture: Number of a latent in its picture.
        picture_keys: Identity of every picture, for its timestep.
        is_before_caption: Pictures that may be noised less; see `before_caption`.
        max_latents: Of the largest picture; 1 at least.
        noise_seed: Another one for every training step.
    """

    packed: PackedBatch
    text_positions: Int[Tensor, "k"]
    reach: Int[Tensor, "B T"]
    latents: Float[Tensor, "n C"]
    latent_positions: Int[Tensor, "n"]
    latent_keys: Int[Tensor, "n"]
    picture_of_latent: Int[Tensor, "n"]
    place_in_picture: Int[Tensor, "n"]
    picture_keys: Int[Tensor, "P"]
    is_before_caption: Bool[Tensor, "P"]
    max_latents: int
    noise_seed: int

    @classmethod
    def of(
        cls, packed: PackedBatch, *, latent_dim: int, is_before_caption: SequenceOf[bool], noise_seed: int
    ) -> "PictureBatch":
        """Find the pictures of a batch on the CPU.

        Args:
            packed: The documents; may hold no picture at all.
            latent_dim: C.
            is_before_caption: One per picture, in reading order.
            noise_seed: Of the step.

        Raises:
            ValueError: If `is_before_caption` has another length than there are pictures.
        """
        nowhere = packed.input_ids.new_zeros(0)
        positions = packed.latent_positions.get(MODALITY, nowhere)
        keys = packed.latent_keys.get(MODALITY, nowhere)
        begins = torch.ones_like(positions, dtype=torch.bool)
        begins[1:] = positions[1:] != positions[:-1] + 1  # two pictures never touch: end and begin token lie between
        picture = begins.long().cumsum(0) - 1
        starts, counts = positions[begins], torch.bincount(picture)
        if len(starts) != len(is_before_caption):
            raise ValueError(
                f"is_before_caption says something about {len(is_before_caption)} pictures, but the batch holds "
                f"{len(starts)}"
            )
        length = packed.input_ids.shape[1]
        reach = torch.arange(length).repeat(packed.input_ids.shape[0])
        reach[positions] = ((starts + counts - 1) % length)[picture]
        is_discrete = packed.modality_ids.flatten()[packed.text_positions] == 0
        return cls(
            packed=packed,
            text_positions=packed.text_positions[is_discrete],
            reach=reach.view_as(packed.input_ids),
            latents=packed.latents.get(MODALITY, torch.zeros(0, latent_dim)),
            latent_positions=positions,
            latent_keys=keys,
            picture_of_latent=picture,
            place_in_picture=positions - starts[picture],
            picture_keys=keys[begins],
            is_before_caption=torch.tensor(is_before_caption, dtype=torch.bool),
            max_latents=max(1, int(counts.max())) if len(counts) else 1,
            noise_seed=noise_seed,
        )

    def to(self, device: torch.device | str) -> "PictureBatch":
        """The same batch on another device."""

        def move(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(device, non_blocking=True)
            return value.to(device) if isinstance(value, PackedBatch) else value

        return PictureBatch(**{f.name: move(getattr(self, f.name)) for f in dataclasses.fields(self)})

    def attention_mask(self) -> Bool[Tensor, "B 1 T T"]:
        """True where a query may look: up to its reach, and within its document. Padding looks at padding only."""
        document_ids = self.packed.document_ids
        columns = torch.arange(self.reach.shape[1], device=self.reach.device)
        same = document_ids[:, :, None] == document_ids[:, None, :]
        return (same & (columns <= self.reach[..., None]))[:, None]


def before_caption(document: Document, marks: Container[int]) -> list[bool]:
    """For every picture whether it comes first and is then spoken of: no text before it, but some behind.

    Transfusion limits the noise of image-first pairs (its Section 4, image noising): their captions would else be
    learned from pictures that can hardly be seen. A picture that text precedes is to be drawn from pure noise and keeps
    the whole range, even if more text follows; in interleaved documents that is all but the opening picture. So does a
    picture alone, which is what guidance's unconditional stream learns from.

    Args:
        document: Text as text or ids.
        marks: Ids that are no text, such as end-of-text.
    """
    says = [_is_text(part, marks) for part in document.parts]
    return [
        not any(says[:index]) and any(says[index:])
        for index, part in enumerate(document.parts)
        if isinstance(part, LatentPart)
    ]


def _is_text(part: Part, marks: Container[int]) -> bool:
    if isinstance(part, TextPart):
        return part.text != ""
    return isinstance(part, IdsPart) and any(token not in marks for token in part.ids)
