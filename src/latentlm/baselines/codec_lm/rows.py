"""Utterances as the two networks of the codec language model read them, packed side by side in rows.

    autoregressive       text, begin, group_1 … group_m             ─▶ group_1 … group_m with the end in it
    non-autoregressive   text, begin, frame_1 … frame_n, of each    ─▶ the next code of every frame after the prompt
                         the codes that are known

A group is the first codes of G frames. A frame of the prompt shows all its Q codes, the others show the first q.

Shapes: t positions of an utterance, T of a row, B rows, n frames, c codes that a position shows (G or Q), k targets of
a position (G or 1), N positions with a target in a batch.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional as F

from latentlm.sequence import IGNORE_LABEL, PADDING_DOCUMENT

UNKNOWN = -1
"""In the place of a code that a position does not show, or of a text id where codes stand."""

_LENGTH_STEP = 64
"""Rows of a batch are as long as its longest, rounded up to a multiple of this: compiled layers meet few lengths."""


@dataclass(frozen=True, eq=False)
class CodecUtterance:
    """A text and its sound.

    Attributes:
        text_ids: Of the text tokenizer, its begin of text first; that alone for a sound without its text.
        codes: Of all frames, all codes.
        key: Identity in this epoch; noise hangs on it.
        group: Number of its source.
    """

    text_ids: Sequence[int]
    codes: Int[Tensor, "n Q"]
    key: int = 0
    group: int = 0


@dataclass(frozen=True, eq=False)
class Tokens:
    """One utterance as one network reads it.

    Attributes:
        text_ids: Of the text, then the begin of sound; UNKNOWN where codes stand.
        codes: That a position shows; UNKNOWN elsewhere.
        labels: Targets, or IGNORE_LABEL.
        level: Which code of a frame is predicted, from 0.
        group: The utterance's.
    """

    text_ids: Int[Tensor, "t"]
    codes: Int[Tensor, "t c"]
    labels: Int[Tensor, "t k"]
    level: int
    group: int


@dataclass(frozen=True, eq=False)
class PackedRows:
    """Rows of utterances for one network; fields as in `Tokens`.

    Attributes:
        positions: Place in the utterance, from 0.
        document_ids: Which utterance of its row a position belongs to; PADDING_DOCUMENT for padding.
        target_positions: Flat positions, b · T + t, that have a target. Found once, on the CPU.
    """

    text_ids: Int[Tensor, "B T"]
    codes: Int[Tensor, "B T c"]
    labels: Int[Tensor, "B T k"]
    levels: Int[Tensor, "B T"]
    group_ids: Int[Tensor, "B T"]
    positions: Int[Tensor, "B T"]
    document_ids: Int[Tensor, "B T"]
    target_positions: Int[Tensor, "N"]

    def to(self, device: torch.device | str) -> "PackedRows":
        """The same rows on another device."""
        fields = (field.name for field in dataclasses.fields(self))
        return PackedRows(**{name: getattr(self, name).to(device, non_blocking=True) for name in fields})

    def same_document(self) -> Bool[Tensor, "B 1 T T"]:
        """True where two positions belong to one utterance; padding goes with padding."""
        return (self.document_ids[:, :, None] == self.document_ids[:, None, :])[:, None]


def text_and_begin(text_ids: Sequence[int], begin_id: int, num_codes: int) -> tuple[Tensor, Tensor]:
    """Text ids [t] and codes [t, c] of what stands before the sound."""
    ids = torch.tensor([*text_ids, begin_id])
    return ids, torch.full((len(ids), num_codes), UNKNOWN)


def groups_of(first_codes: Int[Tensor, "n"], group_size: int) -> Int[Tensor, "m G"]:
    """Whole groups; frames that fill none at the end are left out."""
    return first_codes[: len(first_codes) // group_size * group_size].view(-1, group_size)


def autoregressive_tokens(utterance: CodecUtterance, *, begin_id: int, end_code: int, group_size: int) -> Tokens:
    """What the autoregressive network reads of an utterance, and predicts.

    The end stands behind the last code: in its group where that has a place left, else in a group of its own. What
    stands behind the end is no target, so that any number of frames can be said.

    Args:
        utterance: With its codes.
        begin_id: Text id of the begin of sound.
        end_code: The code that ends an utterance.
        group_size: G.
    """
    first_codes = utterance.codes[:, 0].long()
    num_groups = len(first_codes) // group_size + 1
    targets = torch.full((num_groups * group_size,), IGNORE_LABEL)
    targets[: len(first_codes)] = first_codes
    targets[len(first_codes)] = end_code
    text, no_codes = text_and_begin(utterance.text_ids, begin_id, group_size)
    groups = groups_of(first_codes, group_size)  # but for the last one, which nothing follows
    no_targets = torch.full((len(text) - 1, group_size), IGNORE_LABEL)
    return Tokens(
        text_ids=F.pad(text, (0, len(groups)), value=UNKNOWN),
        codes=torch.cat([no_codes, groups]),
        labels=torch.cat([no_targets, targets.view(num_groups, group_size)]),  # from the begin of sound on
        level=0,
        group=utterance.group,
    )


def non_autoregressive_tokens(
    utterance: CodecUtterance, *, num_prompt_frames: int, level: int, begin_id: int
) -> Tokens:
    """What the non-autoregressive network reads of an utterance, and predicts.

    Args:
        utterance: With its codes; those of the frames after the prompt are looked at below `level`, and at it as
            targets.
        num_prompt_frames: Frames that show all their codes.
        level: The code that is predicted, 1 for the second.
        begin_id: Text id of the begin of sound.
    """
    codes = utterance.codes.long()
    shown, labels = codes.clone(), codes[:, level].clone()
    shown[num_prompt_frames:, level:] = UNKNOWN
    labels[:num_prompt_frames] = IGNORE_LABEL
    text, no_codes = text_and_begin(utterance.text_ids, begin_id, codes.shape[1])
    return Tokens(
        text_ids=F.pad(text, (0, len(codes)), value=UNKNOWN),
        codes=torch.cat([no_codes, shown]),
        labels=F.pad(labels, (len(text), 0), value=IGNORE_LABEL)[:, None],
        level=level,
        group=utterance.group,
    )


def pack(
    rows: Sequence[Sequence[Tokens]], *, num_codes: int, num_targets: int, length: int | None = None
) -> PackedRows:
    """Utterances side by side; a row may be empty.

    Args:
        rows: Of one network.
        num_codes: c.
        num_targets: k.
        length: T; None takes that of the longest row, rounded up.
    """
    if length is None:
        longest = max([1, *(sum(len(tokens.text_ids) for tokens in row) for row in rows)])
        length = -(-longest // _LENGTH_STEP) * _LENGTH_STEP
    shape = len(rows), length
    text_ids, levels, groups, positions = (torch.full(shape, fill) for fill in (UNKNOWN, 0, 0, 0))
    document_ids = torch.full(shape, PADDING_DOCUMENT)
    codes = torch.full((*shape, num_codes), UNKNOWN)
    labels = torch.full((*shape, num_targets), IGNORE_LABEL)
    for b, row in enumerate(rows):
        start = 0
        for number, tokens in enumerate(row):
            place = b, slice(start, start + len(tokens.text_ids))
            text_ids[place], codes[place], labels[place] = tokens.text_ids, tokens.codes, tokens.labels
            levels[place], groups[place], document_ids[place] = tokens.level, tokens.group, number
            positions[place] = torch.arange(len(tokens.text_ids))
            start += len(tokens.text_ids)
    targets = (labels != IGNORE_LABEL).any(dim=-1).flatten().nonzero()[:, 0]
    return PackedRows(text_ids, codes, labels, levels, groups, positions, document_ids, targets)
