"""How likely a model of documents finds their text: perplexity of plain text, captions given their pictures.

    documents ─▶ RawPiece each, rows packed as in training ─DocumentObjective▶ nats and targets of every document

It goes by way of the training objective, which every kind of model has, so that all are scored by what they minimised:
with no condition dropped, in evaluation mode, and each document a group of its own. Targets inside spans of pictures
("another latent follows", codes) are never among the counts of text.

Shapes: N documents.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from latentlm.data.documents import RawDocument, RawImage
from latentlm.evaluation.text_scores import TextCounts
from latentlm.nn.keyed_noise import combine_keys
from latentlm.sequence import IdsPart, LatentSlot, cut, num_tokens
from latentlm.tokenizers.text import StoredTextTokenizer
from latentlm.training.document_batches import PictureReader, RawPiece, segments_of
from latentlm.training.objectives.documents import DocumentObjective

_TEXT = "lm/"


@torch.no_grad()
def document_nlls(
    objective: DocumentObjective,
    pieces: Sequence[RawPiece],
    *,
    seed: int = 0,
    noise_level: float = 0.0,
    rows_per_batch: int = 16,
    progress: str | None = None,
) -> tuple[Float[Tensor, " N"], Int[Tensor, " N"]]:
    """Score the text of each piece.

    Args:
        objective: Of the model; its mode, groups and dropout are as they were when this returns.
        pieces: No longer than the objective's `max_length`. Their `group` plays no part.
        seed: Of the latents that are sampled for pictures; with the key of a piece it decides them.
        noise_level: Share of the schedule up to which those latents are noised; 0 reads them clean.
        rows_per_batch: Packed rows of one forward pass.
        progress: Name of a progress bar; None for none.

    Returns:
        Nats summed over the text targets of each piece (float64), and their number.
    """
    nll = torch.zeros(len(pieces), dtype=torch.float64)
    counts = torch.zeros(len(pieces), dtype=torch.long)
    was = (objective.group_names, objective.drop_cond_prob, objective.training)
    objective.eval()
    objective.drop_cond_prob = 0.0
    try:
        with tqdm(total=len(pieces), desc=progress, unit="document", disable=progress is None) as bar:
            for rows in _batches(pieces, objective.max_length, rows_per_batch):
                chosen = [number for row in rows for number in row]
                place = {number: group for group, number in enumerate(chosen)}
                objective.group_names = tuple(map(str, range(len(chosen))))
                raw_rows = [[replace(pieces[number], group=place[number]) for number in row] for row in rows]
                batch = objective.prepare({"rows": raw_rows}, step=0, seed=seed)
                of_batch = objective.loss_counts(batch)
                if noise_level:
                    losses = objective.noised_text_losses(batch, noise_level)
                else:
                    losses = objective.model_losses(batch, None)
                for number, group in place.items():
                    counts[number] = int(of_batch[f"{_TEXT}{group}"])
                    nll[number] = float(losses[f"{_TEXT}{group}"]) * counts[number]
                bar.update(len(chosen))
    finally:
        objective.group_names, objective.drop_cond_prob, training = was
        objective.train(training)
    return nll, counts


def _batches(pieces: Sequence[RawPiece], max_length: int, rows_per_batch: int) -> Iterator[list[list[int]]]:
    """Places of pieces, in order, in rows that hold as many as fit."""
    rows: list[list[int]] = []
    room = 0
    for number, piece in enumerate(pieces):
        length = num_tokens(piece.segments)
        if length > room or not rows:
            if len(rows) == rows_per_batch:
                yield rows
                rows = []
            rows.append([])
            room = max_length
        rows[-1].append(number)
        room -= length
    if rows:
        yield rows


def whole_piece(
    document: RawDocument, text_tokenizer: StoredTextTokenizer, reader: PictureReader, *, up_to_picture: bool = False
) -> RawPiece:
    """A document as one piece.

    Args:
        document: Text and pictures.
        text_tokenizer: The model's.
        reader: Opens its pictures.
        up_to_picture: Leave out what follows the last picture, the end of the document too.
    """
    segments = segments_of(document, text_tokenizer, reader)
    if up_to_picture:
        last = max(place for place, segment in enumerate(segments) if isinstance(segment, LatentSlot))
        segments = segments[: last + 1]
    pictures = tuple(reader.read(part) for part in document.parts if isinstance(part, RawImage))
    return RawPiece(tuple(segments), pictures, document.key, 0)


def text_after_picture(
    objective: DocumentObjective,
    documents: Sequence[RawDocument],
    text_tokenizer: StoredTextTokenizer,
    reader: PictureReader,
    *,
    seed: int = 0,
    noise_level: float = 0.0,
    progress: str | None = None,
) -> tuple[Float[Tensor, " N"], Int[Tensor, " N"]]:
    """Nats of what follows the last picture of each document, end of text included, given all before.

    By the chain rule it is what the whole document costs without what it costs up to its picture, under the same sample
    of the picture's latents.

    Args:
        objective: Of the model.
        documents: With a picture and text behind it, each short enough for a row.
        text_tokenizer: The model's.
        reader: Opens pictures.
        seed: Of the sampled latents.
        noise_level: As in `document_nlls`.
        progress: Likewise.

    Returns:
        As `document_nlls`.
    """
    whole = [whole_piece(document, text_tokenizer, reader) for document in documents]
    before = [whole_piece(document, text_tokenizer, reader, up_to_picture=True) for document in documents]
    options: dict[str, Any] = {"seed": seed, "noise_level": noise_level, "progress": progress}
    nll, counts = document_nlls(objective, whole, **options)
    nll_before, counts_before = document_nlls(objective, before, **options)
    return nll - nll_before, counts - counts_before


def choice_nlls(
    objective: DocumentObjective,
    choices: Sequence[Sequence[RawDocument]],
    text_tokenizer: StoredTextTokenizer,
    reader: PictureReader,
    *,
    noise_level: float = 0.0,
    progress: str | None = None,
) -> list[Float[Tensor, " _choices"]]:
    """Nats of documents that differ in what they say of the same pictures: classification by a generative model.

    Args:
        objective: Of the model.
        choices: The same pictures under one key, each time with another text.
        text_tokenizer: The model's.
        reader: Opens pictures.
        noise_level: As in `document_nlls`.
        progress: Likewise.

    Returns:
        Nats of each document of each list. What stands before the first difference costs the same in all of a list, so
        that it decides nothing: neither the choice of a phrasing nor that between a caption and a question.
    """
    pieces = [whole_piece(document, text_tokenizer, reader) for of_one in choices for document in of_one]
    nll, _ = document_nlls(objective, pieces, noise_level=noise_level, progress=progress)
    return list(nll.split([len(of_one) for of_one in choices]))


def score_text(
    objective: DocumentObjective,
    documents: Sequence[RawDocument],
    text_tokenizer: StoredTextTokenizer,
    *,
    progress: str | None = None,
) -> TextCounts:
    """Perplexity and bits per byte of documents of text alone.

    As in training, a document longer than a row is cut and each piece read without what stands before; the first token
    of a later piece is predicted from nothing and counted nowhere, its bytes neither. Ends of text are targets without
    bytes.

    Args:
        objective: Of the model.
        documents: Of text.
        text_tokenizer: The model's; it says how many bytes tokens stand for.
        progress: As in `document_nlls`.

    Raises:
        ValueError: If a document has a picture.
    """
    pieces: list[RawPiece] = []
    num_bytes = 0
    for document in documents:
        ids = [text_tokenizer.eos_id]
        for part in document.parts:
            if not isinstance(part, str):
                raise ValueError(f"{document.name} holds a picture; perplexity of text is measured on text alone")
            ids += text_tokenizer.encode(part)
        for number, segments in enumerate(cut([IdsPart((*ids, text_tokenizer.eos_id))], objective.max_length)):
            pieces.append(RawPiece(segments, (), int(combine_keys(document.key, number)), 0))
            targets = [token for part in segments if isinstance(part, IdsPart) for token in part.ids][1:]
            num_bytes += text_tokenizer.num_bytes(targets)
    nll, counts = document_nlls(objective, pieces, progress=progress)
    return TextCounts(nll_nats=nll.sum().item(), num_targets=int(counts.sum()), num_bytes=num_bytes)
