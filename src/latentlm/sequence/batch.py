"""Packed batches: rows of documents side by side, with everything that the model would otherwise have to search for.

Shapes: B rows, T positions, n latents of one modality in the whole batch in reading order, C its latent_dim.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

PADDING_DOCUMENT = -1
"""`document_ids` of right padding."""


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """Rows of documents, ready for `LatentLM.forward`.

    Flat positions count row by row, b * T + t. They are worked out here, once, on the CPU, so that the model never has
    to search a mask on the device.

    Attributes:
        input_ids: Ids and placeholders.
        labels: Discrete targets; position i predicts token i + 1 of its document.
        modality_ids: As in `Sequence`.
        positions: Place in the document, from 0; restarts at every document.
        document_ids: Which document of its row a position belongs to; PADDING_DOCUMENT for padding.
        latents: By modality, of all rows, in reading order.
        latent_positions: Flat position of every latent. The position before it predicts it.
        latent_keys: Identity of every latent: a hash of its document's key, its modality and its place in it.
        text_positions: Flat positions whose discrete target counts for perplexity.
        continue_positions: By modality, flat positions inside spans whose target is "another latent follows".
        plain_causal: Every row is one document without padding, so that no attention mask is needed.
        group_ids: Group of every position's document.
        group_names: Of the groups; empty where losses are not told apart by them.
    """

    input_ids: Int[Tensor, "B T"]
    labels: Int[Tensor, "B T"]
    modality_ids: Int[Tensor, "B T"]
    positions: Int[Tensor, "B T"]
    document_ids: Int[Tensor, "B T"]
    latents: Mapping[str, Float[Tensor, "_n _C"]]
    latent_positions: Mapping[str, Int[Tensor, "_n"]]
    latent_keys: Mapping[str, Int[Tensor, "_n"]]
    text_positions: Int[Tensor, "k"]
    continue_positions: Mapping[str, Int[Tensor, "_n"]]
    plain_causal: bool
    group_ids: Int[Tensor, "B T"]
    group_names: tuple[str, ...] = ()

    def to(self, device: torch.device | str) -> "PackedBatch":
        """The same batch on another device."""

        def move(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(device, non_blocking=True)
            return {name: move(item) for name, item in value.items()} if isinstance(value, Mapping) else value

        return PackedBatch(**{f.name: move(getattr(self, f.name)) for f in dataclasses.fields(self)})

    def attention_mask(self) -> Bool[Tensor, "B 1 T T"] | BlockMask | None:
        """Causal and within one document; None where plain causal attention says the same.

        On a GPU it is a block mask for flex attention: a tensor would take T² numbers a row.
        """
        if self.plain_causal:
            return None
        if self.document_ids.device.type == "cuda":
            return document_block_mask(self.document_ids)
        return document_causal_mask(self.document_ids)


def document_block_mask(document_ids: Int[Tensor, "B T"]) -> BlockMask:
    """`document_causal_mask` by blocks, for `nn.attention.attend`."""

    rows, length = document_ids.shape
    return create_block_mask(
        lambda b, h, query, key: (key <= query) & (document_ids[b, query] == document_ids[b, key]),
        rows,
        None,
        length,
        length,
        device=str(document_ids.device),
    )


def document_causal_mask(document_ids: Int[Tensor, "B T"]) -> Bool[Tensor, "B 1 T T"]:
    """True where query i may look at key j: j <= i and both in one document. Padding looks at padding only."""
    length = document_ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=document_ids.device).tril()
    same = document_ids[:, :, None] == document_ids[:, None, :]
    return (same & causal)[:, None]
