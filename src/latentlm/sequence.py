"""Documents become one causal sequence of discrete and continuous tokens (paper Section 2), sequences become batches.

    Document (parts in order)  ->  Sequence (ids, with placeholders where latents stand)  ->  PackedBatch

The id space, from 0: text ids | permanent ids (padding, one begin/end pair per modality) | class labels | null class.

A latent span reads `begin latent … latent end`. The begin token is <BOD> of the paper, the end token <EOD>. At the
begin token and at every latent the language-model head also has a target: `begin` again means "another latent follows",
`end` means "the span is over". One pair of ids per modality is all that switching needs, and a latent's placeholder in
`input_ids` is its begin id. Without switch tokens (the paper's class-conditional image models) a sequence is
`label latent … latent` and has no discrete target at all.

Shapes: B rows, T positions, n latents of one modality in the whole batch in reading order, C its latent_dim.
"""

import bisect
import dataclasses
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentlm.nn.keyed_noise import combine_keys

IGNORE_LABEL = -100
"""Label of positions without a discrete target (the value that cross-entropy ignores)."""

PADDING_DOCUMENT = -1
"""`document_ids` of right padding."""

SWITCH_MODALITIES = ("image", "speech", "video", "action", "reserved")
"""Owners of the permanent begin/end pairs. The order is part of the file format: append only."""

NUM_PERMANENT_IDS = 1 + 2 * len(SWITCH_MODALITIES)
"""Padding and the pairs: 11, exactly the free ids that cl100k_base leaves below 100,288 (Table 8's vocabulary)."""


@runtime_checkable
class TextTokenizer(Protocol):
    """What sequences need of a text tokenizer; special ids lie out of reach of `encode`."""

    num_ids: int
    eos_id: int

    def encode(self, text: str) -> list[int]:
        """Ids of a text, special ids never among them."""
        ...

    def decode(self, ids: SequenceOf[int]) -> str:
        """The text of some ids."""
        ...


@dataclass(frozen=True, kw_only=True)
class VocabularyConfig:
    """Which discrete tokens the model knows."""

    num_text_ids: int = 0
    """Ids of the text tokenizer, its end-of-text included (bytes: 257; cl100k_base: 100,277)."""
    switch_tokens: bool = False
    """Reserve the permanent ids: padding and the begin/end pairs of every modality."""
    num_classes: int = 0
    """Class labels; one more id, the null class, is added for classifier-free guidance."""

    def __post_init__(self) -> None:
        if min(self.num_text_ids, self.num_classes) < 0:
            raise ValueError("num_text_ids and num_classes cannot be negative")
        if self.num_text_ids and not self.switch_tokens:
            raise ValueError("a vocabulary with text needs switch_tokens: true, to tell text from latents")

    @property
    def num_permanent_ids(self) -> int:
        """Ids between text and classes."""
        return NUM_PERMANENT_IDS if self.switch_tokens else 0

    @property
    def size(self) -> int:
        """Rows of the embedding table."""
        return self.num_text_ids + self.num_permanent_ids + (self.num_classes + 1 if self.num_classes else 0)

    @property
    def pad_id(self) -> int:
        """Padding; any id does when there is no permanent one, for padding is never looked at."""
        return self.num_text_ids if self.switch_tokens else 0

    def _pair(self, modality: str) -> int:
        if not self.switch_tokens:
            raise ValueError("this vocabulary has no switch tokens (switch_tokens: false)")
        if modality not in SWITCH_MODALITIES:
            raise ValueError(f"no switch tokens are reserved for '{modality}'; known: {', '.join(SWITCH_MODALITIES)}")
        return self.num_text_ids + 1 + 2 * SWITCH_MODALITIES.index(modality)

    def begin_id(self, modality: str) -> int:
        """<BOD>: a span of this modality's latents begins, or goes on."""
        return self._pair(modality)

    def end_id(self, modality: str) -> int:
        """<EOD>: the span is over, back to the language-model head."""
        return self._pair(modality) + 1

    def class_id(self, label: int | None) -> int:
        """Id of a class label; None is the null class.

        Raises:
            ValueError: If the label does not exist.
        """
        if not self.num_classes:
            raise ValueError("this vocabulary has no class labels (num_classes: 0)")
        if label is None:
            label = self.num_classes
        elif not 0 <= label < self.num_classes:
            raise ValueError(f"label {label} is outside 0..{self.num_classes - 1}")
        return self.num_text_ids + self.num_permanent_ids + label

    def label_of(self, token_id: int) -> int | None:
        """The class label of an id of the label range; None for the null class.

        Raises:
            ValueError: If the id is not in that range.
        """
        label = token_id - self.num_text_ids - self.num_permanent_ids
        if not (self.num_classes and 0 <= label <= self.num_classes):
            raise ValueError(f"id {token_id} is not a class label")
        return None if label == self.num_classes else label


@dataclass(frozen=True)
class TextPart:
    """A stretch of text."""

    text: str


@dataclass(frozen=True)
class LabelPart:
    """A class label; None is the null class (no condition)."""

    label: int | None


@dataclass(frozen=True, eq=False)
class LatentPart:
    """A picture, a sound, …, as latents of unit scale: Float[n, C]."""

    modality: str
    latents: Float[Tensor, "n C"]


Part = TextPart | LabelPart | LatentPart


@dataclass(frozen=True)
class Document:
    """An ordered list of parts.

    Attributes:
        parts: What the document says.
        key: 64-bit identity; training noise is drawn from it, so that it does not depend on packing order.
    """

    parts: tuple[Part, ...]
    key: int = 0


@dataclass(frozen=True, eq=False)
class Sequence:
    """One document as tokens; T positions.

    Attributes:
        input_ids: Discrete ids; a latent's position holds a placeholder.
        modality_ids: 0 where the token is discrete, 1 + index into `SequenceBuilder.modalities` where it is a latent.
        labels: Discrete target of each position (the id of the next token), or IGNORE_LABEL.
        latents: By modality, in reading order.
        key: The document's.
    """

    input_ids: Int[Tensor, "T"]
    modality_ids: Int[Tensor, "T"]
    labels: Int[Tensor, "T"]
    latents: Mapping[str, Float[Tensor, "_n _C"]]
    key: int = 0

    def __len__(self) -> int:
        return self.input_ids.shape[0]


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

    def to(self, device: torch.device | str) -> "PackedBatch":
        """The same batch on another device."""

        def move(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(device, non_blocking=True)
            return {name: move(item) for name, item in value.items()} if isinstance(value, Mapping) else value

        return PackedBatch(**{f.name: move(getattr(self, f.name)) for f in dataclasses.fields(self)})

    def attention_mask(self) -> Bool[Tensor, "B 1 T T"] | None:
        """Causal and within one document; None where plain causal attention says the same."""
        return None if self.plain_causal else document_causal_mask(self.document_ids)


def document_causal_mask(document_ids: Int[Tensor, "B T"]) -> Bool[Tensor, "B 1 T T"]:
    """True where query i may look at key j: j <= i and both in one document. Padding looks at padding only."""
    length = document_ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=document_ids.device).tril()
    same = document_ids[:, :, None] == document_ids[:, None, :]
    return (same & causal)[:, None]


class _Draft:
    """A sequence while it grows; shifts the targets by one, since position i predicts token i + 1."""

    def __init__(self, *, with_targets: bool) -> None:
        self.ids: list[int] = []
        self._with_targets = with_targets
        self._kinds: list[int] = []
        self._labels: list[int] = []
        self._latents: dict[str, list[Tensor]] = {}

    def append_ids(self, new: SequenceOf[int]) -> None:
        for token in new:
            self._append(token, kind=0, target=token)

    def append_latents(self, part: LatentPart, kind: int, *, placeholder: int) -> None:
        for _ in range(part.latents.shape[0]):
            self._append(placeholder, kind=kind, target=placeholder)
        self._latents.setdefault(part.modality, []).append(part.latents)

    def _append(self, token: int, *, kind: int, target: int) -> None:
        if self.ids and self._with_targets:
            self._labels[-1] = target
        self.ids.append(token)
        self._kinds.append(kind)
        self._labels.append(IGNORE_LABEL)

    def finish(self, key: int) -> Sequence:
        return Sequence(
            input_ids=torch.tensor(self.ids),
            modality_ids=torch.tensor(self._kinds),
            labels=torch.tensor(self._labels),
            latents={name: torch.cat(items) for name, items in self._latents.items()},
            key=key,
        )


class SequenceBuilder:
    """Turns documents into sequences and back, exactly.

    Args:
        vocabulary: The id space.
        modalities: Names of the continuous modalities, in the model's order.
        text_tokenizer: Needed for documents with text; its ids must fill `num_text_ids`.

    Raises:
        ValueError: If tokenizer and vocabulary disagree.
    """

    def __init__(
        self,
        vocabulary: VocabularyConfig,
        modalities: SequenceOf[str],
        text_tokenizer: TextTokenizer | None = None,
    ) -> None:
        if text_tokenizer is not None and text_tokenizer.num_ids != vocabulary.num_text_ids:
            raise ValueError(
                f"the text tokenizer has {text_tokenizer.num_ids} ids but the vocabulary was built for "
                f"num_text_ids={vocabulary.num_text_ids}; was this model trained with another tokenizer?"
            )
        self.vocabulary = vocabulary
        self.modalities = tuple(modalities)
        self.text_tokenizer = text_tokenizer

    def build(self, document: Document, *, open_ended: bool = False) -> Sequence:
        """A document as one sequence.

        With text in the vocabulary a sequence starts and ends with end-of-text, so that its first token is predicted
        from something and its end is a target.

        Args:
            document: The parts.
            open_ended: A prompt: no end-of-text at the end.

        Raises:
            ValueError: If a part does not fit this vocabulary, latents would come first, or latents are not finite.
        """
        draft = _Draft(with_targets=self.vocabulary.switch_tokens)
        text = self.text_tokenizer
        if text is not None:
            draft.append_ids([text.eos_id])
        for part in document.parts:
            if isinstance(part, TextPart):
                if text is None:
                    raise ValueError("the document holds text but no text tokenizer was given")
                draft.append_ids(text.encode(part.text))
            elif isinstance(part, LabelPart):
                draft.append_ids([self.vocabulary.class_id(part.label)])
            else:
                self._append_span(draft, part)
        if text is not None and not open_ended:
            draft.append_ids([text.eos_id])
        if not draft.ids:
            raise ValueError("the document is empty")
        return draft.finish(document.key)

    def _append_span(self, draft: _Draft, part: LatentPart) -> None:
        if part.modality not in self.modalities:
            raise ValueError(
                f"the document holds '{part.modality}' latents but the model knows {', '.join(self.modalities)}"
            )
        if not part.latents.isfinite().all():
            raise ValueError(
                f"the document's {part.modality} latents hold NaN or infinity; look at the tokenizer that made them"
            )
        vocabulary, kind = self.vocabulary, 1 + self.modalities.index(part.modality)
        if vocabulary.switch_tokens:
            begin = vocabulary.begin_id(part.modality)
            draft.append_ids([begin])
            draft.append_latents(part, kind, placeholder=begin)
            draft.append_ids([vocabulary.end_id(part.modality)])
        elif draft.ids:
            draft.append_latents(part, kind, placeholder=vocabulary.pad_id)
        else:
            raise ValueError("latents come first, so nothing predicts the first one; start with a label")

    def restore(self, sequence: Sequence) -> Document:
        """The document of a sequence; the inverse of `build` up to joining neighbouring and dropping empty texts."""
        parts: list[Part] = []
        text: list[int] = []
        used = dict.fromkeys(sequence.latents, 0)
        ids, kinds = sequence.input_ids.tolist(), sequence.modality_ids.tolist()
        vocabulary = self.vocabulary
        first_label = vocabulary.num_text_ids + vocabulary.num_permanent_ids

        def flush_text() -> None:
            if text:
                assert self.text_tokenizer is not None
                parts.append(TextPart(self.text_tokenizer.decode(text)))
                text.clear()

        def latent_part(modality: str, count: int) -> LatentPart:
            start = used.get(modality, 0)
            used[modality] = start + count
            stored = sequence.latents.get(modality)
            return LatentPart(modality, torch.empty(0, 0) if stored is None else stored[start : start + count])

        begins = {vocabulary.begin_id(name): name for name in self.modalities} if vocabulary.switch_tokens else {}
        ends = {vocabulary.end_id(name) for name in self.modalities} if vocabulary.switch_tokens else set()
        index = 0
        while index < len(ids):
            token, kind = ids[index], kinds[index]
            if kind or token in begins:
                flush_text()
                modality = self.modalities[kind - 1] if kind else begins[token]
                start = index if kind else index + 1
                index = start
                kind = 1 + self.modalities.index(modality)
                while index < len(ids) and kinds[index] == kind:
                    index += 1
                parts.append(latent_part(modality, index - start))
                continue
            if token < vocabulary.num_text_ids:
                if self.text_tokenizer is None or token != self.text_tokenizer.eos_id:
                    text.append(token)
            elif token >= first_label:
                flush_text()
                parts.append(LabelPart(vocabulary.label_of(token)))
            elif token not in ends:
                raise ValueError(f"id {token} has no place in a sequence (padding, or an unknown switch token)")
            index += 1
        flush_text()
        return Document(tuple(parts), key=sequence.key)

    def collate(self, rows: SequenceOf[SequenceOf[Sequence]]) -> PackedBatch:
        """Lay documents side by side in rows, right-padded to the longest row.

        Args:
            rows: The documents of every row, in order (see `pack`).

        Raises:
            ValueError: If there is no document, or a row without one.
        """
        if not rows or not all(rows):
            raise ValueError("a batch needs at least one row, and every row at least one document")
        length = max(sum(len(sequence) for sequence in row) for row in rows)
        shape = (len(rows), length)
        input_ids = torch.full(shape, self.vocabulary.pad_id)
        labels = torch.full(shape, IGNORE_LABEL)
        modality_ids = torch.zeros(shape, dtype=torch.long)
        positions = torch.zeros(shape, dtype=torch.long)
        document_ids = torch.full(shape, PADDING_DOCUMENT)
        latents: dict[str, list[Tensor]] = {name: [] for name in self.modalities}
        keys: dict[str, list[Tensor]] = {name: [] for name in self.modalities}
        for b, row in enumerate(rows):
            start = 0
            for index, sequence in enumerate(row):
                span = slice(start, start + len(sequence))
                input_ids[b, span] = sequence.input_ids
                labels[b, span] = sequence.labels
                modality_ids[b, span] = sequence.modality_ids
                positions[b, span] = torch.arange(len(sequence))
                document_ids[b, span] = index
                start += len(sequence)
                for name, values in sequence.latents.items():
                    modality = self.modalities.index(name)
                    latents[name].append(values)
                    keys[name].append(combine_keys(sequence.key, modality, torch.arange(values.shape[0])))
        return self._finish(
            input_ids,
            labels,
            modality_ids,
            positions,
            document_ids,
            latents={name: torch.cat(items) for name, items in latents.items() if items},
            latent_keys={name: torch.cat(items) for name, items in keys.items() if items},
        )

    def _finish(
        self,
        input_ids: Tensor,
        labels: Tensor,
        modality_ids: Tensor,
        positions: Tensor,
        document_ids: Tensor,
        latents: dict[str, Tensor],
        latent_keys: dict[str, Tensor],
    ) -> PackedBatch:
        kinds, targets = modality_ids.flatten(), labels.flatten()
        has_label = targets != IGNORE_LABEL
        next_kind = torch.cat([kinds[1:], kinds.new_zeros(1)])
        return PackedBatch(
            input_ids=input_ids,
            labels=labels,
            modality_ids=modality_ids,
            positions=positions,
            document_ids=document_ids,
            latents=latents,
            latent_positions={
                name: (kinds == 1 + self.modalities.index(name)).nonzero().squeeze(1) for name in latents
            },
            latent_keys=latent_keys,
            text_positions=(has_label & (next_kind == 0)).nonzero().squeeze(1),
            continue_positions={
                name: (has_label & (next_kind == 1 + self.modalities.index(name))).nonzero().squeeze(1)
                for name in latents
                if self.vocabulary.switch_tokens
            },
            plain_causal=bool((document_ids == 0).all()),
        )

    def collate_labelled(
        self,
        class_ids: Int[Tensor, "B"],
        modality: str,
        latents: Float[Tensor, "B N C"],
        keys: Int[Tensor, "B"],
    ) -> PackedBatch:
        """What `collate` gives for one `[label, latents]` document per row, without a Python loop over documents.

        Only for vocabularies without switch tokens, the paper's class-conditional layout.
        """
        rows, count, latent_dim = latents.shape
        kind = 1 + self.modalities.index(modality)
        placeholders = torch.full((rows, count), self.vocabulary.pad_id, device=class_ids.device)
        input_ids = torch.cat([class_ids[:, None], placeholders], dim=1)
        columns = torch.arange(count + 1, device=class_ids.device)
        latent_columns = torch.arange(count, device=class_ids.device)
        row_starts = torch.arange(rows, device=class_ids.device)[:, None] * (count + 1)
        return PackedBatch(
            input_ids=input_ids,
            labels=torch.full_like(input_ids, IGNORE_LABEL),
            modality_ids=(columns > 0).long().expand(rows, -1) * kind,
            positions=columns.expand(rows, -1),
            document_ids=torch.zeros_like(input_ids),
            latents={modality: latents.reshape(rows * count, latent_dim)},
            latent_positions={modality: (row_starts + 1 + latent_columns).flatten()},
            latent_keys={modality: combine_keys(keys[:, None], kind - 1, latent_columns).flatten()},
            text_positions=input_ids.new_zeros(0),
            continue_positions={},
            plain_causal=True,
        )


def pack(lengths: SequenceOf[int], max_length: int) -> list[list[int]]:
    """Best-fit decreasing: indices of the documents of every row, no row longer than `max_length`.

    Raises:
        ValueError: If a document is longer than a row.
    """
    open_rows: list[tuple[int, int]] = []  # (free space, row), sorted: the best fit is found by bisection
    rows: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        if length > max_length:
            raise ValueError(f"document {index} has {length} tokens but a row holds {max_length}; split it first")
        place = bisect.bisect_left(open_rows, (length, 0))
        if place < len(open_rows):
            space, best = open_rows.pop(place)
        else:
            space, best = max_length, len(rows)
            rows.append([])
        rows[best].append(index)
        bisect.insort(open_rows, (space - length, best))
    return rows
