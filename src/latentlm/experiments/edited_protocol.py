"""How a trained model edits pictures: the same thing in another style, told in words or shown: `edited_pictures`.

    joined document [... source picture, words, target picture] ─all but the target▶ model ─▶ edited picture
    edited picture ─EditJudge▶ the right one of all test targets? How far from it?

Rows beside the model's: the unedited source, the source through the tokenizer (a perfect copier), and the target
through the tokenizer (a perfect editor). Guidance is chosen on validation edits.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from latentlm.config import from_mapping
from latentlm.data.documents import RawDocument
from latentlm.evaluation.captioned_pictures import answer_picture, kinds_of
from latentlm.evaluation.cost import parameters_by_part
from latentlm.evaluation.document_protocol import Asked
from latentlm.evaluation.editing import EditJudge, targets_of
from latentlm.experiments.captioned_options import EditedOptions
from latentlm.experiments.captioned_run import CaptionedRun, Settings
from latentlm.experiments.protocol import MeasureContext, remembered
from latentlm.experiments.training_cost import Build, document_training
from latentlm.nn.keyed_noise import combine_keys
from latentlm.pictures import picture_grid, save_picture

_SHOWN = 16
"""Edits on the results page: sources above edited pictures above targets."""
_ORDER_STREAM = 0xED17


def edited_pictures(context: MeasureContext, *, build: Build) -> dict[str, Any]:
    """Measure a run of which one source holds joined documents that end in a picture.

    Args:
        context: The cell's.
        build: As in `captioned_pictures`.

    Returns:
        `judges`; by number of pictures in the prompt (`1`: the source alone, `2`: the source behind another picture,
        which has the style) `trials`, `chosen`, `sampling`, `pictures_per_second`, and `kinds`: for `all` and each kind
        `edited`, `source`, `copied` and `ceiling`, `EditScores`; and `num_targets`, `trained` (see
        `document_training`), `parameters`.
    """
    options = from_mapping(EditedOptions, context.options, where=f"options of {context.cell}")
    run = CaptionedRun(context, options, build)
    test = in_hashed_order(run.documents(options.edits, "test"))
    validation = in_hashed_order(run.documents(options.edits, "validation"))
    asked = run.asked(test)
    targets = targets_of(
        [(number_of(one), answer_picture(one), one.fields["media"][-1]) for one in asked], options.facts
    )
    panel = run.judges.panel
    judge = EditJudge(run.dual_encoder[0], panel.judge, panel.second_space, targets)
    result: dict[str, Any] = {"judges": run.judged_by(), "num_targets": len(targets.numbers)}
    for count in sorted({len(one.pictures) for one in asked}):
        chosen = [one for one in asked if len(one.pictures) == count][: options.num_edits]
        alike = [one for one in validation if len(one.fields["media"]) == count + 1]
        result[str(count)] = _scores(run, options, chosen, Settings(run, options, alike, name=f"edits{count}"), judge)
    trained = remembered(context.scratch_dir, "trained", lambda: document_training(context.recipe, build))
    return {**result, "trained": trained, "parameters": sum(parameters_by_part(run.pipeline.model).values())}


def _scores(
    run: CaptionedRun, options: EditedOptions, asked: Sequence[Asked], settings: Settings, judge: EditJudge
) -> dict[str, Any]:
    def draw() -> dict[str, Tensor]:
        start = time.perf_counter()
        return {"images": settings.draw(asked), "seconds": torch.tensor(time.perf_counter() - start)}

    drawn = remembered(run.context.scratch_dir, f"{settings.name}_pictures", draw)
    sources = torch.stack([one.pictures[-1] for one in asked])
    real = torch.stack([answer_picture(one) for one in asked])
    rows = {
        "edited": drawn["images"],
        "source": sources,
        "copied": run.through_tokenizer(sources),
        "ceiling": run.through_tokenizer(real),
    }
    own = judge.targets.places([number_of(one) for one in asked])
    kinds = {}
    for kind, places in kinds_of([one.fields for one in asked], options.kinds_by).items():
        kinds[kind] = {
            row: judge.score(images[places], sources[places], own[places]).as_json() for row, images in rows.items()
        }
        shown = torch.cat([images[places[:_SHOWN]] for images in (sources, drawn["images"], real)])
        picture = picture_grid(shown, columns=min(_SHOWN, len(places)))
        save_picture(run.context.picture_path(f"{settings.name}_{kind}"), picture)
    return {
        **settings.as_json(),
        "pictures_per_second": len(asked) / float(drawn["seconds"]),
        "kinds": kinds,
    }


def number_of(asked: Asked) -> int:
    """The place of the target's record among all test records."""
    return asked.fields["media"][-1]["place"]


def in_hashed_order(documents: Sequence[RawDocument]) -> list[RawDocument]:
    """Documents in an order that owes nothing to that of their file: the first few are a sample of all."""
    return sorted(documents, key=lambda document: int(combine_keys(_ORDER_STREAM, document.key)))
