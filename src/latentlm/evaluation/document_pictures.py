"""Pictures that models of documents draw for captions: judged all together, and pool by pool.

Shapes: N pictures, C channels, H height, W width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from latentlm.evaluation.document_protocol import Asked
from latentlm.evaluation.image_scores import ImageScores, LabelledImages, Panel
from latentlm.evaluation.judges import Judges

ALL = "all"
"""Name of the row over all pools; theirs are their nouns."""


def label_ranges(num_classes: Mapping[str, int]) -> dict[str, range]:
    """Where the labels of each pool lie when pools are put behind one another, as judges number them.

    Args:
        num_classes: Of each pool, by noun, in the judges' order.
    """
    ranges, start = {}, 0
    for noun, count in num_classes.items():
        ranges[noun] = range(start, start + count)
        start += count
    return ranges


def asked_labels(fields: Sequence[Mapping[str, Any]], ranges: Mapping[str, range]) -> Tensor:
    """The judges' label of the picture that each document of `caption_to_image` asks for."""
    return torch.tensor([ranges[one["pools"][0]][one["labels"][0]] for one in fields])


def own_pictures(asked: Sequence[Asked], ranges: Mapping[str, range]) -> LabelledImages:
    """The real pictures with which documents of `caption_to_image` end."""
    pictures = [part for one in asked for part in one.answer if isinstance(part, Tensor)]
    return LabelledImages(images=torch.stack(pictures), labels=asked_labels([one.fields for one in asked], ranges))


class PoolPanels:
    """The panel of some judges, and for each pool one whose references show nothing else.

    Args:
        judges: Of the pooled pictures.
        ranges: Labels of each pool.

    Raises:
        ValueError: If the judges know another number of classes.
    """

    def __init__(self, judges: Judges, ranges: Mapping[str, range]) -> None:
        total = sum(map(len, ranges.values()))
        if judges.num_classes != total:
            raise ValueError(
                f"the judges know {judges.num_classes} classes, but the pools {', '.join(ranges)} have {total}; "
                "judge_data must put the data of all pools together, in their order"
            )
        self._ranges = dict(ranges)
        self._panels: dict[str, Panel] = {ALL: judges.panel}
        for noun, labels in ranges.items():
            reference = judges.panel.reference
            self._panels[noun] = replace(judges.panel, reference=_within(reference, labels))

    def score(self, pictures: LabelledImages) -> dict[str, ImageScores]:
        """Scores of all pictures, and of those of each pool against references of that pool."""
        scores = {ALL: self._panels[ALL].score(pictures)}
        for noun, labels in self._ranges.items():
            scores[noun] = self._panels[noun].score(_within(pictures, labels))
        return scores


def _within(pictures: LabelledImages, labels: range) -> LabelledImages:
    inside = (pictures.labels >= labels.start) & (pictures.labels < labels.stop)
    return pictures.subset(inside.nonzero()[:, 0])
