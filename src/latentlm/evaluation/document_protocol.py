"""What models of documents are asked, and how their answers are scored (paper Section 3.2, Table 3, in small).

    composed documents of one task ─open_pictures▶ Asked: prompt, what should follow
      captions:  a picture          ─greedy text▶ CIDEr against every phrasing; is the class named?
      questions: pictures, question ─greedy text▶ accuracy, beside blind and majority
      switching: caption, the beginning of a story, or a picture
                                    ─free▶ is the right kind of span opened at once, closed in time, and left?

Blind means: the same text, but the pictures of another document of the same kind (as many pictures of the same pools).
So the model sees pictures such as it was trained on, and they say nothing about the answer beyond what the question and
the number of pictures say already. That is a fairer control than no picture at all, which no training document shows.
"""

import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from latentlm.data.datasets import Part
from latentlm.data.documents import RawDocument, RawImage, RawPart
from latentlm.data.documents.composed import TASKS, ComposedDataConfig, open_composed, split_prompt
from latentlm.data.documents.composed.pools import with_article
from latentlm.data.documents.composed.tasks import CAPTIONS, NUM_SHOTS
from latentlm.data.images import to_unit_range
from latentlm.evaluation.captions import caption_words, exact_match, score_cider
from latentlm.evaluation.document_answers import AskOptions, ask, ask_for_text, is_picture
from latentlm.evaluation.document_scores import AnswerScores, CaptioningScores, Share, SwitchingScores
from latentlm.evaluation.vqa import majority_baseline, vqa_accuracy
from latentlm.generation.document_pipeline import AnswerEvent, DocumentPipeline

QUESTIONS = ("which", "how_many", "is_there")
"""Tasks whose documents end in a short answer that training asks for in the same words."""

_ENDLESS = 2**62
"""Number of documents of a data set that is read until enough of them are found."""

ReadPicture = Callable[[RawImage], UInt8[Tensor, "C H W"]]


@dataclass(frozen=True, eq=False)
class Asked:
    """A composed document as models are asked: pictures are float [C, H, W] in [-1, 1].

    Attributes:
        prompt: What is given.
        answer: What follows in the document.
        fields: What is true of it; see `tasks.Composition.document`.
    """

    prompt: tuple[str | Tensor, ...]
    answer: tuple[str | Tensor, ...]
    fields: Mapping[str, Any]

    @property
    def pictures(self) -> list[Tensor]:
        """Those of the prompt, in order."""
        return [part for part in self.prompt if isinstance(part, Tensor)]

    @property
    def kind(self) -> tuple[str, ...]:
        """The pool of each of its pictures: all that a blind reader may know of them."""
        return tuple(self.fields["pools"])


# -- documents ---------------------------------------------------------------------------------------------------------


def task_documents(data: ComposedDataConfig, task: str, *, part: Part, count: int, seed: int = 0) -> list[RawDocument]:
    """Documents of one task, as the recipe's sources compose them.

    Args:
        data: Pools, sizes; its own tasks and numbers of documents play no part.
        task: A row of `tasks.TASKS`.
        part: Whose pictures they show.
        count: How many.
        seed: Another one, other documents.
    """
    assert task in TASKS
    one_task = replace(data, tasks={task: 1.0}, num_documents=count, num_held_out_documents=count, seed=seed)
    documents = open_composed(one_task, part=part)
    return [documents[index] for index in range(count)]


def picture_documents(data: ComposedDataConfig, *, part: Part, count: int, seed: int = 0) -> list[RawDocument]:
    """Documents of the task `caption_to_image` that end in different pictures.

    Pictures of documents are drawn with replacement, and a set of real ones with repetitions is farther from the
    references than one without. What `task_documents` composes is taken in its order, but for pictures that came
    before.

    Args:
        data: As in `task_documents`.
        part: Likewise.
        count: Likewise; fewer documents are the first of more.
        seed: Likewise.

    Raises:
        ValueError: If the pools have fewer pictures.
    """
    endless = replace(data, tasks={"caption_to_image": 1.0}, num_documents=_ENDLESS, num_held_out_documents=_ENDLESS)
    documents = open_composed(replace(endless, seed=seed), part=part)
    keys = [pool.source.keys(np.concatenate(pool.records)) for pool in documents.pools]
    if count > (available := sum(len(np.unique(of_pool)) for of_pool in keys)):
        raise ValueError(
            f"{count} different pictures were asked for, but the pools {', '.join(data.pools)} have {available} in the "
            f"part {part!r}"
        )
    found: dict[tuple[str, int], RawDocument] = {}
    for index in itertools.count():
        if len(found) == count:
            break
        document = documents[index]
        (noun,), (key,) = document.fields["pools"], document.fields["picture_keys"]
        found.setdefault((noun, key), document)
    return list(found.values())


def few_shot_documents(
    data: ComposedDataConfig, *, part: Part, count: int, seed: int = 0
) -> dict[int, list[RawDocument]]:
    """Documents of the task `few_shot`, `count` of each number of examples.

    Raises:
        ValueError: If chance made too few of one number.
    """
    # Numbers of examples are drawn alike: twice the mean, and some, is enough but for the rarest of chances.
    drawn = task_documents(data, "few_shot", part=part, count=2 * len(NUM_SHOTS) * count + 64, seed=seed)
    by_shots = {shots: [d for d in drawn if d.fields["num_shots"] == shots][:count] for shots in NUM_SHOTS}
    if scarce := [str(shots) for shots, documents in by_shots.items() if len(documents) < count]:
        raise ValueError(f"fewer than {count} documents have {', '.join(scarce)} examples; take another seed")
    return by_shots


def open_pictures(document: RawDocument, read: ReadPicture) -> Asked:
    """Divide a composed document into prompt and answer, and decode its pictures.

    Args:
        document: Composed.
        read: A picture to pixels as the model's tokenizer takes them.
    """

    def opened(part: RawPart) -> str | Tensor:
        if isinstance(part, str):
            return part
        assert isinstance(part, RawImage), "composed documents hold text and pictures"
        return to_unit_range(read(part).movedim(0, -1))

    prompt, answer = split_prompt(document)
    return Asked(tuple(map(opened, prompt)), tuple(map(opened, answer)), document.fields)


def others_of_kind(kinds: Sequence[Hashable]) -> list[int | None]:
    """For each place the next one of the same kind, the first following the last; None for what is alone.

    Composed documents are drawn independently, so that the next one is as good as any.
    """
    places: dict[Hashable, list[int]] = {}
    for place, kind in enumerate(kinds):
        places.setdefault(kind, []).append(place)
    following: list[int | None] = [None] * len(kinds)
    for of_kind in places.values():
        if len(of_kind) > 1:
            for place, other in zip(of_kind, [*of_kind[1:], of_kind[0]], strict=True):
                following[place] = other
    return following


def blinded(asked: Sequence[Asked]) -> list[tuple[Asked, Asked]]:
    """Pairs of a document and what a blind reader sees of it; documents that are alone of their kind are left out."""
    pairs = []
    for one, other in zip(asked, others_of_kind([one.kind for one in asked]), strict=True):
        if other is not None:
            pictures = iter(asked[other].pictures)
            prompt = tuple(next(pictures) if isinstance(part, Tensor) else part for part in one.prompt)
            pairs.append((one, replace(one, prompt=prompt)))
    return pairs


def blind_captions(documents: Sequence[RawDocument]) -> list[RawDocument]:
    """The same captions behind the picture of the next document, of whatever class and pool that is."""
    pictures = [[part for part in document.parts if isinstance(part, RawImage)] for document in documents]
    blind = []
    for document, others in zip(documents, [*pictures[1:], pictures[0]], strict=True):
        strange = iter(others)
        parts = tuple(part if isinstance(part, str) else next(strange) for part in document.parts)
        blind.append(replace(document, parts=parts))
    return blind


def blind_documents(documents: Sequence[RawDocument]) -> list[RawDocument]:
    """The same texts around the pictures of another document of the same kind; what is alone of its kind is left out.

    See `blinded`, which does so with opened documents.
    """
    pictures = [[part for part in document.parts if isinstance(part, RawImage)] for document in documents]
    blind = []
    for document, other in zip(documents, others_of_kind([tuple(d.fields["pools"]) for d in documents]), strict=True):
        if other is not None:
            strange = iter(pictures[other])
            parts = tuple(part if isinstance(part, str) else next(strange) for part in document.parts)
            blind.append(replace(document, parts=parts))
    return blind


def captions_of(noun: str, name: str) -> list[str]:
    """Every phrasing of the caption of a picture of a class; `tasks.CAPTIONS` in its order."""
    words = {"noun": noun, "a_noun": with_article(noun), "name": name, "a_name": with_article(name)}
    return [phrasing.format(**words) for phrasing in CAPTIONS]


def plain_caption(fields: Mapping[str, Any]) -> str:
    """The first phrasing of a document's caption: captions that say the same in other words become one."""
    return captions_of(fields["pools"][0], fields["label_names"][0])[0]


def caption_choices(document: RawDocument, names: Sequence[str]) -> list[RawDocument]:
    """A picture under the caption of every class of its pool, all in the phrasing that it has.

    Args:
        document: Of the task `image_to_caption`.
        names: Of the classes of its pool.
    """
    picture, caption = document.parts
    (noun,), (own,) = document.fields["pools"], document.fields["label_names"]
    phrasing = captions_of(noun, own).index(str(caption))
    return [replace(document, parts=(picture, captions_of(noun, name)[phrasing])) for name in names]


def name_choices(document: RawDocument) -> list[RawDocument]:
    """A document of the task `few_shot` with each of its two names as the answer, in the order of its `choices`."""
    *before, answer = document.parts
    assert isinstance(answer, str), "the task ends in a name"
    names = document.fields["choices"]
    said = [answer.replace(document.fields["answer"], name) for name in names]
    return [replace(document, parts=(*before, text)) for text in said]


# -- captions ----------------------------------------------------------------------------------------------------------


def classes_named(text: str, names: Sequence[str]) -> set[str]:
    """The class names that a text mentions; of names inside each other the longer one ("ankle boot", not "boot")."""
    spelled = {tuple(caption_words(name)): name for name in names}
    longest = max(map(len, spelled))
    words, found, place = caption_words(text), set(), 0
    while place < len(words):
        lengths = range(min(longest, len(words) - place), 0, -1)
        length = next((n for n in lengths if tuple(words[place : place + n]) in spelled), 0)
        if length:
            found.add(spelled[tuple(words[place : place + length])])
        place += max(length, 1)
    return found


def captioning_scores(texts: Sequence[str], asked: Sequence[Asked], names: Sequence[str]) -> CaptioningScores:
    """Score captions of pictures.

    Args:
        texts: The model's, one per picture.
        asked: Documents of the task `image_to_caption`.
        names: Of all classes of all pools.
    """
    references = [one.fields["references"] for one in asked]
    cider = score_cider(texts, references)
    own = [one.fields["label_names"][0] for one in asked]
    return CaptioningScores(
        num_captions=cider.num_captions,
        references_per_caption=cider.references_per_caption,
        cider=cider.cider,
        exact_match=Share.of(exact_match(texts, references)),
        class_named=Share.of([classes_named(t, names) == {name} for t, name in zip(texts, own, strict=True)]),
    )


def score_captions(
    pipeline: DocumentPipeline,
    asked: Sequence[Asked],
    names: Sequence[str],
    options: AskOptions,
    *,
    max_new_tokens: int,
    prefix: str = "",
) -> dict[str, CaptioningScores]:
    """Let a model caption pictures.

    Args:
        pipeline: The model.
        asked: Documents of the task `image_to_caption`.
        names: Of all classes of all pools.
        options: Of asking.
        max_new_tokens: Bound on a caption.
        prefix: Text behind each picture with which the caption begins; say so beside the scores.

    Returns:
        `model`, and `blind`: the caption that it wrote for the next document's picture, of whatever class.
    """
    prompts = [(*one.prompt, prefix) if prefix else one.prompt for one in asked]
    texts = [prefix + text for text in ask_for_text(pipeline, prompts, options, max_new_tokens=max_new_tokens)]
    blind = [*texts[1:], texts[0]]
    return {
        "model": captioning_scores(texts, asked, names),
        "blind": captioning_scores(blind, asked, names),
    }


# -- questions ---------------------------------------------------------------------------------------------------------


def score_questions(
    pipeline: DocumentPipeline,
    asked: Sequence[Asked],
    options: AskOptions,
    *,
    max_new_tokens: int,
    train_fields: Sequence[Mapping[str, Any]] = (),
) -> AnswerScores:
    """Ask questions about pictures; answers match exactly after VQA's normalisation.

    Args:
        pipeline: The model.
        asked: Test documents with the field `answer`.
        options: Of asking.
        max_new_tokens: Bound on an answer.
        train_fields: Fields of training documents of the same task, for the majority: the most frequent answer to
            questions about as many pictures of the same pools. None where answers are new in every document.
    """

    def accuracy(pairs: Sequence[tuple[Asked, Asked]]) -> Share:
        texts = ask_for_text(pipeline, [shown.prompt for _, shown in pairs], options, max_new_tokens=max_new_tokens)
        answers = [one.fields["answer"] for one, _ in pairs]
        return Share.of([vqa_accuracy(text, [answer]) == 1 for text, answer in zip(texts, answers, strict=True)])

    return AnswerScores(
        model=accuracy([(one, one) for one in asked]),
        blind=accuracy(blinded(asked)),
        majority=_majority(asked, train_fields) if train_fields else None,
    )


def _majority(asked: Sequence[Asked], train_fields: Sequence[Mapping[str, Any]]) -> Share:
    scores = majority_baseline(
        [fields["answer"] for fields in train_fields],
        [[one.fields["answer"]] for one in asked],
        ([" ".join(fields["pools"]) for fields in train_fields], [" ".join(one.kind) for one in asked]),
    )
    return Share(num=scores.num_questions, share=scores.accuracy)


# -- switching ---------------------------------------------------------------------------------------------------------


def score_switching(
    pipeline: DocumentPipeline,
    captions: Sequence[Asked],
    stories: Sequence[Asked],
    pictures: Sequence[Asked],
    options: AskOptions,
    *,
    picture_length: int,
    max_text_tokens: int,
) -> dict[str, SwitchingScores]:
    """Decode freely, every switch being the model's own, the likeliest token always.

    Args:
        pipeline: The model.
        captions: Documents of `caption_to_image`, which ask for a picture and end there.
        stories: Documents of `interleaved`, which ask for a picture and go on with text.
        pictures: Documents of `image_to_caption`, which ask for text and end there.
        options: Of asking.
        picture_length: Tokens of a picture.
        max_text_tokens: Bound on a text.

    Returns:
        `captions`, `stories`; `to_picture`: the two together; and `to_text`, of pictures, where any text will do.
    """
    free = {"whole_pictures": False, "do_sample": False}
    # Twice the length and some: a picture that is never closed must not have the right length by the bound.
    bound = 2 * picture_length + max_text_tokens
    asked = {"captions": captions, "stories": stories, "pictures": pictures}
    answers = {
        name: ask(pipeline, [one.prompt for one in of_kind], options, max_new_tokens=bound, **free)
        for name, of_kind in asked.items()
    }
    of_captions = [_picture_truths(answer, may_end=True) for answer in answers["captions"]]
    of_stories = [_picture_truths(answer, may_end=False) for answer in answers["stories"]]
    rows = {
        "captions": of_captions,
        "stories": of_stories,
        "to_picture": [*of_captions, *of_stories],
        "to_text": [*map(_text_truths, answers["pictures"])],
    }
    return {name: SwitchingScores.of(*map(list, zip(*truths, strict=True))) for name, truths in rows.items()}


def _picture_truths(answer: AnswerEvent, *, may_end: bool) -> tuple[bool, bool, bool]:
    """Whether a picture comes at once, has the right length, and is followed by text (or the end, where it may be)."""
    if not answer.parts or not is_picture(answer.parts[0]):
        return False, False, False
    is_whole = isinstance(answer.parts[0], Image.Image)
    ends = may_end and len(answer.parts) == 1 and answer.finish_reason == "eos"
    return True, is_whole, ends or (len(answer.parts) > 1 and isinstance(answer.parts[1], str))


def _text_truths(answer: AnswerEvent) -> tuple[bool, bool, bool]:
    """Whether text comes at once, is ended by the model itself, and ends the document."""
    if not answer.parts or is_picture(answer.parts[0]):
        return False, False, False
    ends = answer.finish_reason == "eos" and len(answer.parts) == 1
    return True, ends or len(answer.parts) > 1, ends
