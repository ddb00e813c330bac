"""Edited pictures: the same thing in another style, whose true target is known.

    edited picture ─dual encoder▶ feature ─nearest of all test targets▶ the right one? At least its caption, its style?
    edited picture, true target           ─▶ distance in pixels and in two feature spaces

A picture that was not edited at all is near its target already, so the same is measured of the source itself, of the
source as the model's tokens show it (a perfect copier), and of the target as they show it (a perfect editor).

Shapes: N pictures, M candidates, C channels, H height, W width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentlm.evaluation.document_scores import Share
from latentlm.evaluation.dual_encoder import DualEncoder
from latentlm.evaluation.image_scores import FeatureSpace
from latentlm.evaluation.scores_table import Columns


@dataclass(frozen=True, kw_only=True, eq=False)
class EditTargets:
    """All test targets.

    Attributes:
        numbers: Of the record of each; in order.
        images: Their pictures.
        facts: Name to what is true of each: {caption: [...], style: [...]}.
    """

    numbers: Sequence[int]
    images: Float[Tensor, "M C H W"]
    facts: Mapping[str, Sequence[Any]]

    def places(self, numbers: Sequence[int]) -> Int[Tensor, " N"]:
        """Where the targets with these numbers are."""
        place = {number: place for place, number in enumerate(self.numbers)}
        return torch.tensor([place[number] for number in numbers])


@dataclass(frozen=True, kw_only=True)
class EditScores:
    """Edited pictures under the judges."""

    num: int
    at_1: Share
    """The true target is nearer than every other target; a tie is no success."""
    at_5: Share
    """It is among the five nearest."""
    nearest: Mapping[str, Share]
    """By fact: the nearest target agrees in it with the true one."""
    nearer_to_target: Share
    """Nearer in pixels to the true target than to the source: what copies never are."""
    pixel_error: float
    """Mean square difference from the true target, pixels in [-1, 1]."""
    pixel_error_standard_error: float
    judge_distance: float
    """Mean Euclidean distance from it in the judge's features."""
    second_distance: float
    """The same in the second space."""

    columns: ClassVar[Columns] = {
        "num": ("pictures", "d"),
        "at_1_share": ("right target ↑", ".1%"),
        "at_5_share": ("among five ↑", ".1%"),
        "nearer_share": ("nearer to target than to source ↑", ".1%"),
        "pixel_error": ("square error ↓", ".4f"),
        "judge_distance": ("distance, judge ↓", ".2f"),
        "second_distance": ("distance, second space ↓", ".2f"),
    }

    @property
    def at_1_share(self) -> float:
        """For tables."""
        return self.at_1.share

    @property
    def at_5_share(self) -> float:
        """For tables."""
        return self.at_5.share

    @property
    def nearer_share(self) -> float:
        """For tables."""
        return self.nearer_to_target.share

    def as_json(self) -> dict[str, Any]:
        """Plain values by name."""
        shares = {name: getattr(self, name).as_json() for name in ("at_1", "at_5", "nearer_to_target")}
        nearest = {name: share.as_json() for name, share in self.nearest.items()}
        return {**asdict(self), **shares, "nearest": nearest}


class EditJudge:
    """Judges edits against their targets.

    Args:
        encoder: Trained on training pairs alone; never a loss or a selector.
        judge: A classifier of the same pictures.
        second_space: Features that owe nothing to it.
        targets: All test targets; the right one is to be found among them.
    """

    def __init__(
        self, encoder: DualEncoder, judge: FeatureSpace, second_space: FeatureSpace, targets: EditTargets
    ) -> None:
        self._encoder = encoder
        self._spaces = (judge, second_space)
        self.targets = targets
        self._target_features = encoder.picture_features(targets.images).double()  # (M, D)

    def score(
        self, images: Float[Tensor, "N C H W"], sources: Float[Tensor, "N C H W"], own: Int[Tensor, " N"]
    ) -> EditScores:
        """Score edits.

        Args:
            images: Edited pictures in [-1, 1].
            sources: What each was made of.
            own: Place of the true target of each among the targets.

        Raises:
            ValueError: If there is none, or pictures are not finite.
        """
        similarity = self._encoder.picture_features(images).double() @ self._target_features.T  # (N, M)
        chosen = similarity.gather(1, own[:, None])
        # As near as the true one or nearer, which it is itself: what ties with it stands before it.
        num_before = (similarity >= chosen).sum(dim=1) - 1
        nearest = similarity.argmax(dim=1)
        targets = self.targets.images[own]
        errors = _square_errors(images, targets)
        distances = [self._mean_distance(space, images, targets) for space in self._spaces]
        return EditScores(
            num=len(images),
            at_1=Share.of((num_before < 1).tolist()),
            at_5=Share.of((num_before < 5).tolist()),
            nearest={name: _agreement(values, nearest, own) for name, values in self.targets.facts.items()},
            nearer_to_target=Share.of((errors < _square_errors(images, sources)).tolist()),
            pixel_error=errors.mean().item(),
            pixel_error_standard_error=errors.std(correction=0).item() / len(errors) ** 0.5,
            judge_distance=distances[0],
            second_distance=distances[1],
        )

    @staticmethod
    def _mean_distance(space: FeatureSpace, images: Tensor, targets: Tensor) -> float:
        return (space.features(images) - space.features(targets)).norm(dim=1).mean().item()


def _square_errors(images: Tensor, others: Tensor) -> Float[Tensor, " N"]:
    return (images.double() - others.double()).square().flatten(1).mean(dim=1)


def _agreement(values: Sequence[Any], nearest: Tensor, own: Tensor) -> Share:
    pairs = zip(nearest.tolist(), own.tolist(), strict=True)
    return Share.of([values[found] == values[wanted] for found, wanted in pairs])


def targets_of(answers: Sequence[tuple[int, Tensor, Mapping[str, Any]]], facts: Sequence[str]) -> EditTargets:
    """The different targets of some edits.

    Args:
        answers: Of each edit: the number of its target's record, the picture, and the record's fields.
        facts: Fields to keep.

    Raises:
        ValueError: If there is none.
    """
    if not answers:
        raise ValueError("there is no edit, so that there are no targets")
    different = {number: (picture, fields) for number, picture, fields in answers}
    numbers = sorted(different)
    ordered = [different[number] for number in numbers]
    return EditTargets(
        numbers=numbers,
        images=torch.stack([picture for picture, _ in ordered]),
        facts={name: [fields[name] for _, fields in ordered] for name in facts},
    )
