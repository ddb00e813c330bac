"""Scores of generated images of known classes, for data sets of small pictures.

The training images are split in two fixed halves: a classifier is trained on one and judges, the other is the reference
of the distances. Every score stands beside the same score of real test images, as many as there are samples: the floor
(or ceiling) that a perfect model would reach at this count.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentlm.evaluation.classifier import ClassifierConfig, train_classifier
from latentlm.evaluation.distances import frechet_distance, kernel_distance, precision_and_recall
from latentlm.evaluation.memorization import near_threshold, nearest_train_share


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


@dataclass(frozen=True, kw_only=True)
class ImageScores:
    """One set of images, judged."""

    accuracy: float
    """Share that the classifier takes for what they were meant to be."""
    frechet: float
    """Fréchet distance in the classifier's features, comparable only with others of the same classifier and count."""
    frechet_pixels: float
    """The same in a second space that owes nothing to the classifier: the pixels."""
    kernel: float
    """Unbiased kernel distance in the classifier's features; 0 on average for equal distributions."""
    precision: float
    recall: float
    nearest_train_share: float
    """Share nearer to a training image than 99% of the training images are to each other."""


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
    """Score samples and real test images in the same way.

    Args:
        samples: Generated images, labelled with the class that was asked for.
        train: The images the model was trained on.
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
    if samples.images.shape[1:] != test.images.shape[1:]:
        raise ValueError(
            f"samples have the shape {tuple(samples.images.shape[1:])} and real images {tuple(test.images.shape[1:])}"
        )
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(split_seed))
    judge_half, reference_half = order.chunk(2)
    judge_train, reference = train.subset(judge_half), train.subset(reference_half)
    classifier = train_classifier(judge, judge_train.images, judge_train.labels, progress=progress)
    reference_features = classifier.features(reference.images)
    threshold = near_threshold(train.images)

    def scores(judged: LabelledImages) -> ImageScores:
        features = classifier.features(judged.images)
        precision, recall = precision_and_recall(features, reference_features)
        return ImageScores(
            accuracy=classifier.accuracy(judged.images, judged.labels),
            frechet=frechet_distance(features, reference_features),
            frechet_pixels=frechet_distance(judged.images.flatten(1), reference.images.flatten(1)),
            kernel=kernel_distance(features, reference_features),
            precision=precision,
            recall=recall,
            nearest_train_share=nearest_train_share(judged.images, train.images, threshold=threshold),
        )

    return ImageComparison(
        samples=scores(samples),
        real_test=scores(test),
        num_samples=len(samples),
        num_real_test=len(test),
        num_reference=len(reference),
        num_judge_train=len(judge_train),
        judge_seed=judge.seed,
        split_seed=split_seed,
    )
