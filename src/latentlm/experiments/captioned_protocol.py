"""How a trained model of captioned pictures is measured, both ways: `captioned_pictures`.

    text_to_image   test captions, drawn once; kernel distances, class, R-precision, for each kind of caption
    image_to_text   likelihood of captions given their pictures
    captions        greedy captions: exact match, facts

For sets with one reference per picture (emoji and their names). Guidance is chosen on validation captions.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch

from latentlm.config import from_mapping
from latentlm.data.documents import RawDocument
from latentlm.evaluation.captioned_pictures import (
    answer_picture,
    caption_facts,
    caption_key,
    kinds_of,
    majority_facts,
    others_of_class,
    score_drawn,
)
from latentlm.evaluation.consistency import caption_consistency
from latentlm.evaluation.cost import parameters_by_part
from latentlm.evaluation.document_answers import ask_for_text
from latentlm.evaluation.document_likelihood import text_after_picture
from latentlm.evaluation.document_protocol import Asked, blind_captions
from latentlm.evaluation.document_scores import LikelihoodScores, Share
from latentlm.experiments.captioned_options import CaptionedOptions
from latentlm.experiments.captioned_run import CaptionedRun, Settings
from latentlm.experiments.document_drawing import consistency_as_json, with_intervals
from latentlm.experiments.protocol import MeasureContext, remembered
from latentlm.experiments.training_cost import Build, document_training
from latentlm.pictures import picture_grid, save_picture

_SHOWN = 16
"""Pictures of each kind on the results page: real ones above drawn ones."""


def captioned_pictures(context: MeasureContext, *, build: Build) -> dict[str, Any]:
    """Measure a run of which one source holds captioned pictures, both ways round.

    Args:
        context: The cell's.
        build: Makes the objective of a recipe; its weights are replaced by the run's.

    Returns:
        By measure, those that were asked for:
        `text_to_image`: `judges`; `trials`, `chosen`, `sampling`; `pictures_per_second`; `kinds`: for `all` and each
        kind `drawn`, `ceiling` (the real pictures through the tokenizer) and `others` (real training pictures of the
        same classes), each as `score_drawn` gives it, and `consistency`, `CaptionConsistency`;
        `image_to_text`: for `all` and each kind `model` and `blind`, `LikelihoodScores`;
        `captions`: for `all` and each kind `model`, `blind` (the caption of another picture) and `majority`, `Share` by
        fact, `exact` among them, and `examples`;
        and always `trained`, see `document_training`; `parameters`; and `seconds` by measure.
    """
    options = from_mapping(CaptionedOptions, context.options, where=f"options of {context.cell}")
    run = CaptionedRun(context, options, build)
    measures = {"text_to_image": _text_to_image, "image_to_text": _image_to_text, "captions": _captions}
    result: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    for name in options.measures:
        timed = remembered(
            context.scratch_dir, f"measure_{name}", lambda name=name: _timed(measures[name], run, options)
        )
        result[name], seconds[name] = timed["result"], timed["seconds"]
    trained = remembered(context.scratch_dir, "trained", lambda: document_training(context.recipe, build))
    parameters = sum(parameters_by_part(run.pipeline.model).values())
    return {**result, "trained": trained, "parameters": parameters, "seconds": seconds}


def _timed(measure: Any, run: CaptionedRun, options: CaptionedOptions) -> dict[str, Any]:
    start = time.perf_counter()
    return {"result": measure(run, options), "seconds": time.perf_counter() - start}


def _text_to_image(run: CaptionedRun, options: CaptionedOptions) -> dict[str, Any]:
    settings = Settings(run, options, run.captions_first("validation"))
    everything = run.asked(run.captions_first("test"))
    asked = everything[: options.num_pictures]

    def draw() -> dict[str, Any]:
        start = time.perf_counter()
        return {"images": settings.draw(asked), "seconds": torch.tensor(time.perf_counter() - start)}

    drawn = remembered(run.context.scratch_dir, f"{settings.name}_pictures", draw)
    real = torch.stack([answer_picture(one) for one in asked])
    rows = {"drawn": drawn["images"], "ceiling": run.through_tokenizer(real)}
    candidates = [str(one.prompt[0]) for one in everything]
    kinds = {}
    for kind, places in kinds_of([one.fields for one in asked], options.kinds_by).items():
        fields = [asked[place].fields for place in places]
        own = run.labelled(real[places], fields)
        judged = {row: run.labelled(images[places], fields) for row, images in rows.items()}
        judged["others"] = others_of_class(run.judges.panel.reference, own.labels, seed=options.seed)
        captions = [str(asked[place].prompt[0]) for place in places]
        consistency = caption_consistency(
            run.dual_encoder[0],
            rows["drawn"][places],
            captions,
            real_images=own.images,
            real_captions=captions,
            candidates=candidates,
        )
        kinds[kind] = {
            **{
                row: with_intervals(score_drawn(run.judges.panel, pictures, own).as_json())
                for row, pictures in judged.items()
            },
            "consistency": consistency_as_json(consistency),
        }
        shown = torch.cat([own.images[:_SHOWN], judged["drawn"].images[:_SHOWN]])
        columns = min(_SHOWN, len(places))
        save_picture(run.context.picture_path(kind), picture_grid(shown, columns=columns))
    speed = len(asked) / float(drawn["seconds"])
    return {"judges": run.judged_by(), **settings.as_json(), "pictures_per_second": speed, "kinds": kinds}


def _image_to_text(run: CaptionedRun, options: CaptionedOptions) -> dict[str, Any]:
    documents = run.pictures_first("test")[: options.num_pictures]
    kinds = kinds_of([one.fields for one in documents], options.kinds_by)
    scores: dict[str, dict[str, Any]] = {kind: {} for kind in kinds}
    text_tokenizer = run.pipeline.text_tokenizer
    assert text_tokenizer is not None, "a model of captions has text"
    for row, given in {"model": documents, "blind": blind_captions(documents)}.items():
        nll, counts = text_after_picture(run.objective, given, text_tokenizer, run.reader, progress=run.bar(row))
        for kind, places in kinds.items():
            scores[kind][row] = LikelihoodScores.of(nll[places], counts[places]).as_json()
    return scores


def _captions(run: CaptionedRun, options: CaptionedOptions) -> dict[str, Any]:
    asked = run.asked(run.pictures_first("test")[: options.num_pictures])
    texts = ask_for_text(
        run.pipeline, [one.prompt for one in asked], run.asking("test"), max_new_tokens=options.max_caption_tokens
    )
    train = run.pictures_first("train")
    known = _known([*train, *run.pictures_first("validation"), *run.pictures_first("test")])
    # Each picture with the caption that was written for the next one.
    rows = {"model": texts, "blind": [*texts[1:], texts[0]]}
    scores: dict[str, Any] = {}
    for kind, places in kinds_of([one.fields for one in asked], options.kinds_by).items():
        of_kind = [asked[place] for place in places]
        scores[kind] = {
            row: _as_json(caption_facts([said[place] for place in places], of_kind, known, options.facts))
            for row, said in rows.items()
        }
        scores[kind]["majority"] = _as_json(majority_facts([one.fields for one in train], of_kind, options.facts))
    return {**scores, "examples": _examples(texts, asked)}


def _known(documents: Sequence[RawDocument]) -> dict[str, Any]:
    return {caption_key(str(document.parts[-1])): document.fields for document in documents}


def _examples(texts: Sequence[str], asked: Sequence[Asked]) -> list[dict[str, str]]:
    """The first captions beside their references, for people."""
    pairs = zip(texts[:_SHOWN], asked[:_SHOWN], strict=True)
    return [{"written": text, "reference": str(one.answer[0])} for text, one in pairs]


def _as_json(shares: dict[str, Share]) -> dict[str, Any]:
    return {name: share.as_json() for name, share in shares.items()}
