"""Scores of generated images of known classes, for data sets of small pictures.

A `Panel` holds what judges them: a classifier, a second feature space that owes nothing to it, real reference images
that neither was trained on, and the training images, to tell whether samples copy. Every score stands beside the same
score of real test images, as many as there are samples: the floor (or ceiling) that a perfect model would reach at this
count.

Shapes: N images, M references, C channels, H height, W width, D features.
"""

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from latentlm.evaluation.classifier import ClassifierConfig, ImageClassifier, classifier_score, train_classifier
from latentlm.evaluation.distances import (
    frechet_distance,
    kernel_distance,
    mean_distance_within_classes,
    precision_and_recall,
)
from latentlm.evaluation.memorization import near_threshold, nearest_distances
from latentlm.evaluation.scores_table import Columns, scores_table
from latentlm.evaluation.spectrum import high_frequency_energy


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Images in [-1, 1] with their classes."""

    images: Float[Tensor, "N C H W"]
    labels: Int[Tensor, " N"]

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Int[Tensor, " n"]) -> "LabelledImages":
        """The images at these positions."""
        return LabelledImages(images=self.images[indices], labels=self.labels[indices])


@runtime_checkable
class FeatureSpace(Protocol):
    """Something that turns images into features."""

    def features(self, images: Float[Tensor, "N C H W"]) -> Float[Tensor, "N D"]:
        """Features in float64."""
        ...


class PixelSpace:
    """The pixels themselves as features: for pictures of 8 x 8 grey pixels, where they are few enough."""

    def features(self, images: Float[Tensor, "N C H W"]) -> Float[Tensor, "N D"]:
        """Flattened pixels."""
        return images.flatten(1).double()


@dataclass(frozen=True, kw_only=True)
class ImageScores:
    """One set of images, judged. Distances compare only with those of the same panel and the same number of images."""

    num_images: int
    accuracy: float
    """Share that the classifier takes for what they were meant to be."""
    classifier_score: float
    """exp of the mean KL divergence of p(class | image) from p(class): the Inception score's formula with our judge."""
    frechet: float
    """Fréchet distance to the references in the classifier's features."""
    frechet_second_space: float
    """The same in a space that owes nothing to the classifier."""
    kernel: float
    """Unbiased kernel distance (KID's formula) in the classifier's features; 0 on average for equal distributions."""
    kernel_second_space: float
    """The same in the second space: a ranking counts when both agree."""
    precision: float
    recall: float
    nearest_train_share: float
    """Share nearer to a training image than 99% of real images are."""
    nearest_train_distance: float
    """Median distance to the nearest training image, in pixels in [-1, 1]."""
    diversity: float
    """Mean distance between two images of one class in the judge's features, over that of the references: 1 is real."""
    high_frequency: float
    """Energy above half of Nyquist over that of the references: below 1 is blurred, above 1 is noisy."""

    columns: ClassVar[Columns] = {
        "accuracy": ("accuracy ↑", ".1%"),
        "classifier_score": ("classifier score ↑", ".2f"),
        "frechet": ("Fréchet, judge ↓", ".3f"),
        "frechet_second_space": ("Fréchet, second space ↓", ".3f"),
        "kernel": ("kernel distance ↓", ".4f"),
        "kernel_second_space": ("kernel distance, second space ↓", ".4f"),
        "precision": ("precision ↑", ".3f"),
        "recall": ("recall ↑", ".3f"),
        "nearest_train_share": ("near a training image", ".1%"),
        "nearest_train_distance": ("distance to it", ".2f"),
        "diversity": ("diversity within class", ".2f"),
        "high_frequency": ("high frequencies", ".2f"),
    }

    def as_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return asdict(self)

    def as_markdown(self) -> str:
        """A table with one row."""
        return scores_table({"samples": self})


@dataclass(frozen=True, kw_only=True, eq=False)
class Panel:
    """What samples are judged by and compared with. What the references need is computed once, when first asked for.

    Attributes:
        judge: A classifier that saw neither references nor test images.
        second_space: Features that owe nothing to it.
        reference: Real images.
        train_images: All images that the models were trained on; uint8 is 0 to 255 over [-1, 1].
        near_threshold: Distance below which an image counts as near a training image.
    """

    judge: ImageClassifier
    second_space: FeatureSpace
    reference: LabelledImages
    train_images: Float[Tensor, "M C H W"] | UInt8[Tensor, "M C H W"]
    near_threshold: float

    @cached_property
    def reference_features(self) -> Float[Tensor, "M D"]:
        """In the judge's space."""
        return self.judge.features(self.reference.images)

    @cached_property
    def reference_second_features(self) -> Float[Tensor, "M D"]:
        """In the second space."""
        return self.second_space.features(self.reference.images)

    @cached_property
    def reference_diversity(self) -> float:
        """Mean distance between two references of one class."""
        return mean_distance_within_classes(self.reference_features, self.reference.labels)

    @cached_property
    def reference_high_frequency(self) -> float:
        """Energy of the references above half of Nyquist."""
        return high_frequency_energy(self.reference.images)

    def score(self, judged: LabelledImages) -> ImageScores:
        """Score images with the classes they were meant to show.

        Raises:
            ValueError: If they have another shape than the references, are fewer than the measures need, or are not
                finite.
        """
        self.check_shape(judged.images)
        features = self.judge.features(judged.images)
        second_features = self.second_space.features(judged.images)
        precision, recall = precision_and_recall(features, self.reference_features)
        probabilities = self.judge.probabilities(judged.images)
        nearest = nearest_distances(judged.images, self.train_images)
        return ImageScores(
            num_images=len(judged),
            accuracy=(probabilities.argmax(dim=1) == judged.labels).double().mean().item(),
            classifier_score=classifier_score(probabilities),
            frechet=frechet_distance(features, self.reference_features),
            frechet_second_space=frechet_distance(second_features, self.reference_second_features),
            kernel=kernel_distance(features, self.reference_features),
            kernel_second_space=kernel_distance(second_features, self.reference_second_features),
            precision=precision,
            recall=recall,
            nearest_train_share=(nearest < self.near_threshold).double().mean().item(),
            nearest_train_distance=nearest.median().item(),
            diversity=mean_distance_within_classes(features, judged.labels) / self.reference_diversity,
            high_frequency=high_frequency_energy(judged.images) / self.reference_high_frequency,
        )

    def check_shape(self, images: Tensor) -> None:
        """Refuse images of another shape than the references.

        Raises:
            ValueError: Naming both shapes.
        """
        expected, found = tuple(self.reference.images.shape[1:]), tuple(images.shape[1:])
        if found != expected:
            raise ValueError(f"the images have the shape {found}, but the real images {expected}")


@dataclass(frozen=True, kw_only=True)
class ImageComparison:
    """Samples and real test images under one judge."""

    samples: ImageScores
    real_test: ImageScores
    num_samples: int
    num_real_test: int
    num_reference: int
    num_judge_train: int
    judge_seed: int
    split_seed: int


def compare_with_real(
    samples: LabelledImages,
    train: LabelledImages,
    test: LabelledImages,
    *,
    judge: ClassifierConfig,
    split_seed: int = 0,
    progress: bool = False,
) -> ImageComparison:
    """Train a judge on the spot and score samples and real test images in the same way, with pixels as second space.

    For sets of a few thousand tiny pictures, such as the demo's digits; `judges.load_judges` is for the larger ones.

    Args:
        samples: Generated images, labelled with the class that was asked for.
        train: The images the model was trained on; one half trains the judge, the other is the reference.
        test: Real images that neither model nor judge has seen; as many as there are samples, for equal inflation of
            the distances.
        judge: The classifier's size, training and seed.
        split_seed: Divides `train` into the judge's half and the reference half.
        progress: Show the judge's progress bar.

    Raises:
        ValueError: If samples and test images differ in number or shape.
    """
    if len(samples) != len(test):
        raise ValueError(
            f"{len(samples)} samples against {len(test)} real test images: distances depend on the count, so the "
            f"floor needs the same one"
        )
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(split_seed))
    judge_half, reference_half = order.chunk(2)
    judge_train = train.subset(judge_half)
    panel = Panel(
        judge=train_classifier(judge, judge_train.images, judge_train.labels, progress=progress),
        second_space=PixelSpace(),
        reference=train.subset(reference_half),
        train_images=train.images,
        near_threshold=near_threshold(train.images),
    )
    return ImageComparison(
        samples=panel.score(samples),
        real_test=panel.score(test),
        num_samples=len(samples),
        num_real_test=len(test),
        num_reference=len(panel.reference),
        num_judge_train=len(judge_train),
        judge_seed=judge.seed,
        split_seed=split_seed,
    )
