"""Documents to sequences and back, and sequences to packed batches.

Shapes: B rows, T positions, N latents per document, n latents of one modality in the whole batch, C its latent_dim.
"""

from collections.abc import Sequence as SequenceOf
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentlm.nn.keyed_noise import combine_keys
from latentlm.sequence.batch import PADDING_DOCUMENT, PackedBatch
from latentlm.sequence.document import (
    IGNORE_LABEL,
    CodePart,
    Document,
    IdsPart,
    LabelPart,
    LatentPart,
    Part,
    Sequence,
    TextPart,
)
from latentlm.sequence.vocabulary import SWITCH_MODALITIES, VocabularyConfig


@runtime_checkable
class TextTokenizer(Protocol):
    """What sequences need of a text tokenizer; special ids lie out of reach of `encode`."""

    num_ids: int
    bos_id: int
    eos_id: int

    def encode(self, text: str) -> list[int]:
        """Ids of a text, special ids never among them."""
        ...

    def decode(self, ids: SequenceOf[int]) -> str:
        """The text of some ids."""
        ...


class _Draft:
    """A sequence while it grows."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self._kinds: list[int] = []
        self._latents: dict[str, list[Tensor]] = {}

    def append_ids(self, new: SequenceOf[int]) -> None:
        self.ids.extend(new)
        self._kinds.extend([0] * len(new))

    def append_latents(self, part: LatentPart, kind: int, *, placeholder: int) -> None:
        count = part.latents.shape[0]
        self.ids.extend([placeholder] * count)
        self._kinds.extend([kind] * count)
        self._latents.setdefault(part.modality, []).append(part.latents)

    def finish(self, document: Document, *, with_targets: bool) -> Sequence:
        """The sequence, with the document's key and group."""
        input_ids = torch.tensor(self.ids)
        labels = torch.full_like(input_ids, IGNORE_LABEL)
        if with_targets:
            labels[:-1] = input_ids[1:]  # position i predicts token i + 1
        return Sequence(
            input_ids=input_ids,
            modality_ids=torch.tensor(self._kinds),
            labels=labels,
            latents={name: torch.cat(items) for name, items in self._latents.items()},
            key=document.key,
            group=document.group,
        )


class SequenceBuilder:
    """Turns documents into sequences and back, exactly but for what `Document.normal_form` says.

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

        With text in the vocabulary a sequence ends with end-of-text, and starts with what begins a text (end-of-text
        again, unless the vocabulary has another mark): its first token is predicted from something, its end a target.

        Args:
            document: The parts.
            open_ended: A prompt: no end-of-text at the end.

        Raises:
            ValueError: If a part does not fit this vocabulary, latents would come first, or latents are not finite.
        """
        draft = _Draft()
        text = self.text_tokenizer
        if text is not None and document.begins:
            draft.append_ids([text.bos_id])
        for part in document.parts:
            if isinstance(part, TextPart):
                if text is None:
                    raise ValueError("the document holds text but no text tokenizer was given")
                draft.append_ids(text.encode(part.text))
            elif isinstance(part, IdsPart):
                self._check_text_ids(part.ids)
                draft.append_ids(part.ids)
            elif isinstance(part, LabelPart):
                draft.append_ids([self.vocabulary.class_id(part.label)])
            elif isinstance(part, CodePart):
                draft.append_ids(self._code_span(part))
            else:
                self._append_span(draft, part)
        if text is not None and document.ends and not open_ended:
            draft.append_ids([text.eos_id])
        if not draft.ids:
            raise ValueError("the document is empty")
        return draft.finish(document, with_targets=self.vocabulary.switch_tokens)

    def _code_span(self, part: CodePart) -> list[int]:
        vocabulary, codes = self.vocabulary, part.codes.tolist()
        if not codes or not (min(codes) >= 0 and max(codes) < vocabulary.num_codes):
            raise ValueError(f"a span of codes needs some, in 0..{vocabulary.num_codes - 1}, but holds others or none")
        begin, end = vocabulary.begin_id(part.modality), vocabulary.end_id(part.modality)
        ids = [vocabulary.first_code_id + code for code in codes]
        return [begin, *self.size_ids(part.grid, len(codes)), *ids, end]

    def _check_text_ids(self, ids: SequenceOf[int]) -> None:
        if ids and not (min(ids) >= 0 and max(ids) < self.vocabulary.num_text_ids):
            raise ValueError(f"ids of text lie in 0..{self.vocabulary.num_text_ids - 1}, but others were given")

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
            draft.append_ids([begin, *self.size_ids(part.grid, part.latents.shape[0])])
            draft.append_latents(part, kind, placeholder=begin)
            draft.append_ids([vocabulary.end_id(part.modality)])
        elif draft.ids:
            draft.append_latents(part, kind, placeholder=vocabulary.pad_id)
        else:
            raise ValueError("latents come first, so nothing predicts the first one; start with a label")

    def size_ids(self, grid: tuple[int, int] | None, count: int) -> list[int]:
        """What stands between a begin token and the picture: rows and columns, if the picture has a variable size.

        Args:
            grid: Rows and columns, or None.
            count: Of its latents or codes.

        Raises:
            ValueError: If the grid holds another number, or is too large to be said.
        """
        if grid is None:
            return []
        rows, columns = grid
        if rows * columns != count:
            raise ValueError(f"a grid of {rows} x {columns} does not hold {count} tokens")
        return [self.vocabulary.size_id(rows), self.vocabulary.size_id(columns)]

    def restore(self, sequence: Sequence) -> Document:
        """The document of a sequence, in `Document.normal_form`, ids of text as text; the inverse of `build`."""
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

        def latent_part(modality: str, count: int, grid: tuple[int, int] | None) -> LatentPart:
            start = used.get(modality, 0)
            used[modality] = start + count
            stored = sequence.latents.get(modality)
            return LatentPart(modality, torch.empty(0, 0) if stored is None else stored[start : start + count], grid)

        names = SWITCH_MODALITIES if vocabulary.num_codes else self.modalities
        begins = {vocabulary.begin_id(name): name for name in names} if vocabulary.switch_tokens else {}
        ends = {vocabulary.end_id(name) for name in names} if vocabulary.switch_tokens else set()
        index = 0
        while index < len(ids):
            token, kind = ids[index], kinds[index]
            if kind or token in begins:
                flush_text()
                modality = self.modalities[kind - 1] if kind else begins[token]
                index += 0 if kind else 1
                sides = [side for token in ids[index : index + 2] if (side := vocabulary.side_of(token)) is not None]
                grid = (sides[0], sides[1]) if not kind and len(sides) == 2 else None
                index += 0 if grid is None else 2
                start = index
                while index < len(ids) and not kinds[index] and ids[index] >= vocabulary.first_code_id:
                    index += 1
                if index > start:
                    parts.append(CodePart(modality, sequence.input_ids[start:index] - vocabulary.first_code_id, grid))
                    continue
                kind = 1 + self.modalities.index(modality)
                while index < len(ids) and kinds[index] == kind:
                    index += 1
                parts.append(latent_part(modality, index - start, grid))
                continue
            if token < vocabulary.num_text_ids:
                if self.text_tokenizer is None or token not in (self.text_tokenizer.bos_id, self.text_tokenizer.eos_id):
                    text.append(token)
            elif token >= first_label:
                flush_text()
                parts.append(LabelPart(vocabulary.label_of(token)))
            elif token not in ends:
                raise ValueError(f"id {token} has no place in a sequence (padding, or an unknown switch token)")
            index += 1
        flush_text()
        return Document(tuple(parts), key=sequence.key, group=sequence.group)

    def collate(
        self,
        rows: SequenceOf[SequenceOf[Sequence]],
        *,
        length: int | None = None,
        group_names: SequenceOf[str] = (),
    ) -> PackedBatch:
        """Lay documents side by side in rows, right-padded.

        Args:
            rows: The documents of every row, in order (see `pack`).
            length: Of a row; None is that of the longest.
            group_names: Names of the documents' groups, where losses are to be told apart by them.

        Raises:
            ValueError: If there is no document, a row without one, or a row that is too long.
        """
        if not rows or not all(rows):
            raise ValueError("a batch needs at least one row, and every row at least one document")
        longest = max(sum(len(sequence) for sequence in row) for row in rows)
        length = longest if length is None else length
        if longest > length:
            raise ValueError(f"a row of {longest} tokens does not fit into {length}")
        shape = (len(rows), length)
        input_ids = torch.full(shape, self.vocabulary.pad_id)
        labels = torch.full(shape, IGNORE_LABEL)
        modality_ids = torch.zeros(shape, dtype=torch.long)
        positions = torch.zeros(shape, dtype=torch.long)
        document_ids = torch.full(shape, PADDING_DOCUMENT)
        group_ids = torch.zeros(shape, dtype=torch.long)
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
                group_ids[b, span] = sequence.group
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
            group_ids=group_ids,
            group_names=tuple(group_names),
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
        group_ids: Tensor,
        group_names: tuple[str, ...],
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
            group_ids=group_ids,
            group_names=group_names,
        )

    def collate_labelled(
        self,
        class_ids: Int[Tensor, "B"],
        modality: str,
        latents: Float[Tensor, "B N C"],
        keys: Int[Tensor, "B"],
        *,
        num_spans: int = 1,
    ) -> PackedBatch:
        """What `collate` gives for one `[label, latents]` document per row, without a Python loop over documents.

        Only for vocabularies without switch tokens, the paper's class-conditional layout.

        Args:
            class_ids: Of the labels.
            modality: Of the latents.
            latents: Of all spans of a document, one after the other.
            keys: Of the documents.
            num_spans: Of equal length; the label stands before each.
        """
        rows, count, latent_dim = latents.shape
        kind = 1 + self.modalities.index(modality)
        columns = torch.arange(num_spans + count, device=class_ids.device)
        is_label = columns % (1 + count // num_spans) == 0
        input_ids = torch.where(is_label, class_ids[:, None], self.vocabulary.pad_id)
        latent_columns = columns[~is_label]
        row_starts = torch.arange(rows, device=class_ids.device)[:, None] * len(columns)
        numbers = torch.arange(count, device=class_ids.device)
        return PackedBatch(
            input_ids=input_ids,
            labels=torch.full_like(input_ids, IGNORE_LABEL),
            modality_ids=(~is_label).long().expand(rows, -1) * kind,
            positions=columns.expand(rows, -1),
            document_ids=torch.zeros_like(input_ids),
            latents={modality: latents.reshape(rows * count, latent_dim)},
            latent_positions={modality: (row_starts + latent_columns).flatten()},
            latent_keys={modality: combine_keys(keys[:, None], kind - 1, numbers).flatten()},
            text_positions=input_ids.new_zeros(0),
            continue_positions={},
            plain_causal=True,
            group_ids=torch.zeros_like(input_ids),
        )
