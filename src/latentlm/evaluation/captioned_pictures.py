"""Models of documents on pictures with one caption each, where classes are many and pictures of each few.

    caption ─▶ picture   kernel distance (KID's formula) to the real pictures of the same captions, in two spaces
    picture ─▶ caption   is it, word for word, the one reference? Does it name the right fact (style, group)?

A Fréchet distance of a few hundred pictures is mostly its own inflation; the kernel distance is unbiased at any count.
All is reported for all test captions and for each kind of them (`novel`, `composition`), of which one is far easier.

Shapes: N pictures, M references, C channels, H height, W width.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from latentlm.data.documents import RawDocument
from latentlm.data.images import to_unit_range
from latentlm.evaluation.captions import exact_match
from latentlm.evaluation.document_protocol import Asked, ReadPicture
from latentlm.evaluation.document_scores import Share
from latentlm.evaluation.image_scores import ImageScores, LabelledImages, Panel

ALL = "all"
"""Name of the row over all kinds."""

Facts = Mapping[str, Any]


def ask_for_last(document: RawDocument, read: ReadPicture) -> Asked:
    """A document as models are asked: all but its last part is given.

    Args:
        document: Of two parts at least.
        read: A picture to pixels as the model's tokenizer takes them.

    Raises:
        ValueError: If nothing stands before the last part.
    """
    if len(document.parts) < 2:
        raise ValueError(f"{document.name} has one part alone: there is nothing to ask with")
    parts = [
        part if isinstance(part, str) else to_unit_range(read(part).movedim(0, -1))  # pyright: ignore[reportArgumentType]
        for part in document.parts
    ]
    return Asked(tuple(parts[:-1]), (parts[-1],), document.fields)


def answer_picture(asked: Asked) -> Tensor:
    """The real picture with which a document ends, [C, H, W]."""
    (picture,) = asked.answer
    assert isinstance(picture, Tensor), "the document ends in a picture"
    return picture


def kinds_of(fields: Sequence[Facts], by: str | None) -> dict[str, list[int]]:
    """Places of all documents under `all`, and of those of each kind.

    Args:
        fields: Of the documents.
        by: The field that names kinds, such as split_kind; None for no kinds.

    Raises:
        ValueError: If a document has no such field.
    """
    kinds: dict[str, list[int]] = {ALL: list(range(len(fields)))}
    if by is not None:
        for place, one in enumerate(fields):
            if by not in one:
                raise ValueError(f"a document has no {by}, by which kinds are told; it has {', '.join(sorted(one))}")
            kinds.setdefault(str(one[by]), []).append(place)
    return kinds


# -- caption to picture ------------------------------------------------------------------------------------------------


def score_drawn(panel: Panel, pictures: LabelledImages, real: LabelledImages) -> ImageScores:
    """Scores against real pictures of the same captions, which no judge saw.

    Args:
        panel: Judge, second space and training pictures; its own references play no part.
        pictures: To be judged, under the classes that their captions have.
        real: The pictures of those captions.
    """
    return replace(panel, reference=real).score(pictures)


def others_of_class(reference: LabelledImages, labels: Int[Tensor, " N"], *, seed: int = 0) -> LabelledImages:
    """Real pictures of the same classes that show something else: what a model reaches that knows no captions.

    Args:
        reference: Real pictures.
        labels: One picture of each is taken; none twice while its class has others.
        seed: Of the order in which they are taken.

    Raises:
        ValueError: If there is no picture of a class.
    """
    order = torch.randperm(len(reference), generator=torch.Generator().manual_seed(seed))
    members: dict[int, list[int]] = {}
    for place in order.tolist():
        members.setdefault(int(reference.labels[place]), []).append(place)
    taken: Counter[int] = Counter()
    chosen = []
    for label in labels.tolist():
        if label not in members:
            raise ValueError(f"there is no reference of class {label}; are these the judges of the same data?")
        chosen.append(members[label][taken[label] % len(members[label])])
        taken[label] += 1
    return reference.subset(torch.tensor(chosen))


# -- picture to caption ------------------------------------------------------------------------------------------------


def caption_facts(
    texts: Sequence[str], asked: Sequence[Asked], known: Mapping[str, Facts], facts: Sequence[str]
) -> dict[str, Share]:
    """Score captions with one reference each.

    Args:
        texts: The model's, one per document.
        asked: Documents that end in their caption.
        known: Every caption there is to what is true of it, by `caption_key`.
        facts: Names of fields to compare; a text that is no known caption has none of them right.

    Returns:
        `exact`: share with the very words of the reference; and the share of each fact.
    """
    references = [[str(one.answer[0])] for one in asked]
    said = [known.get(caption_key(text), {}) for text in texts]
    shares = {"exact": Share.of(exact_match(texts, references))}
    for name in facts:
        right = [name in true and true[name] == one.fields[name] for true, one in zip(said, asked, strict=True)]
        shares[name] = Share.of(right)
    return shares


def caption_key(text: str) -> str:
    """A caption as captions are compared: case and blanks around it do not count."""
    return text.strip().lower()


def majority_facts(train: Sequence[Facts], asked: Sequence[Asked], facts: Sequence[str]) -> dict[str, Share]:
    """What always naming the most frequent training value of each fact reaches."""
    shares = {}
    for name in facts:
        ((likeliest, _),) = Counter(fields[name] for fields in train).most_common(1)
        shares[name] = Share.of([one.fields[name] == likeliest for one in asked])
    return shares
