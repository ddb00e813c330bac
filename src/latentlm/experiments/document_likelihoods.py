"""Likelihoods of a run's model: of plain text, of captions given their pictures, of the right one among some texts.

None of it samples a token, so that a model is scored on what it finds likely and not on how it is decoded. Of the
captions themselves the perplexity also holds the choice among phrasings, and that between a caption and whatever else
may follow a picture (a question); the choice among classes, all in one phrasing, holds neither.
"""

from collections.abc import Sequence
from typing import Any

from latentlm.data.datasets import Part
from latentlm.data.documents import DocumentDataConfig, RawDocument, open_documents
from latentlm.evaluation.document_likelihood import choice_nlls, score_text, text_after_picture
from latentlm.evaluation.document_protocol import blind_documents, caption_choices, name_choices
from latentlm.evaluation.document_scores import ChoiceScores, LikelihoodScores
from latentlm.experiments.document_run import DocumentRun


def plain_text(run: DocumentRun) -> dict[str, Any]:
    """Perplexity and bits per byte of the sources whose documents hold no picture.

    Returns:
        By part (`validation`, `test`) and source, `TextCounts`.

    Raises:
        ValueError: If the recipe has no such source.
    """
    sources = run.recipe.sources
    files = {name: source.data for name, source in sources.items() if source.data is not None}
    result: dict[str, Any] = {"validation": {}, "test": {}}
    parts: tuple[Part, ...] = ("validation", "test")
    for name, data in files.items():
        if _is_text(data):
            for part in parts:
                opened = open_documents(data, part=part)
                documents = [opened[index] for index in range(len(opened))]
                scores = score_text(run.objective, documents, run.text_tokenizer, progress=run.bar(name))
                result[part][name] = scores.as_json()
    if not result["test"]:
        raise ValueError("no source of the recipe is plain text; leave text out of the option measures")
    return result


def _is_text(data: DocumentDataConfig) -> bool:
    return all(isinstance(part, str) for part in open_documents(data, part="validation")[0].parts)


def captions_given(
    run: DocumentRun, documents: Sequence[RawDocument], *, noise_level: float = 0.0, name: str = "captions"
) -> LikelihoodScores:
    """Captions and their ends of text, given the pictures before them.

    Args:
        run: The measured run.
        documents: Of the task `image_to_caption`, or what `blind_captions` made of them.
        noise_level: Share of the schedule up to which the pictures are noised.
        name: Of the progress bar.
    """
    nll, counts = text_after_picture(
        run.objective, documents, run.text_tokenizer, run.reader, noise_level=noise_level, progress=run.bar(name)
    )
    return LikelihoodScores.of(nll, counts)


def class_of_picture(run: DocumentRun, documents: Sequence[RawDocument], *, noise_level: float = 0.0) -> ChoiceScores:
    """The caption of each picture among those of all classes of its pool, in the same phrasing.

    Args:
        run: The measured run.
        documents: Of the task `image_to_caption`.
        noise_level: As in `captions_given`.
    """
    choices = [caption_choices(one, run.names[one.fields["pools"][0]]) for one in documents]
    nlls = choice_nlls(
        run.objective,
        choices,
        run.text_tokenizer,
        run.reader,
        noise_level=noise_level,
        progress=run.bar("classes"),
    )
    return ChoiceScores.of(nlls, [one.fields["labels"][0] for one in documents])


def name_of_picture(run: DocumentRun, documents: Sequence[RawDocument]) -> dict[str, ChoiceScores]:
    """The right one of the two invented names that each document lists.

    Args:
        run: The measured run.
        documents: Of the task `few_shot`.

    Returns:
        `model`; `blind`: the same with the pictures of another document of as many pictures of the same pool.
    """
    rows = {"model": documents, "blind": blind_documents(documents)}
    scores = {}
    for row, shown in rows.items():
        choices = [name_choices(one) for one in shown]
        nlls = choice_nlls(run.objective, choices, run.text_tokenizer, run.reader, progress=run.bar(f"names, {row}"))
        right = [one.fields["choices"].index(one.fields["answer"]) for one in shown]
        scores[row] = ChoiceScores.of(nlls, right)
    return scores
