"""Judges of the embedded digits that nobody trained: random features tell noise from digits as well, and at once."""

import torch
from torch import Tensor

from latentlm.data import ImageDataConfig, open_images
from latentlm.evaluation.classifier import ClassifierConfig, ImageClassifier
from latentlm.evaluation.image_scores import LabelledImages, Panel
from latentlm.evaluation.judges import Judges, JudgesConfig
from latentlm.evaluation.second_space import RandomFeatures, SecondSpaceConfig

DIGITS = ImageDataConfig(source="digits", image_size=8, num_channels=1)


def tiny_judges(*, image_size: int = 8) -> Judges:
    """Judges of digits, enlarged pixel by pixel to a multiple of 8; they have chance's accuracy."""
    judge, selector = (ClassifierConfig(width=8, num_features=8, seed=seed) for seed in (0, 1))
    config = JudgesConfig(judge=judge, selector=selector, second_space=SecondSpaceConfig(num_features=8, width=8))
    train, validation, test = (_digits(part, image_size // 8) for part in ("train", "validation", "test"))
    second_space = RandomFeatures(config.second_space, num_channels=1)
    second_space.fit(train.images)
    return Judges(
        config=config,
        fingerprint="tiny",
        panel=Panel(
            judge=_untrained(judge, train.images),
            second_space=second_space,
            reference=train.subset(torch.arange(300)),
            train_images=train.images,
            near_threshold=1.0,
        ),
        selector=_untrained(selector, train.images),
        selector_test=train.subset(torch.arange(300, 600)),
        validation=validation,
        test=test,
        label_names=tuple("0123456789"),
        judge_accuracy=0.1,
        selector_accuracy=0.1,
    )


def _digits(part: str, factor: int) -> LabelledImages:
    dataset = open_images(DIGITS, part=part)  # pyright: ignore[reportArgumentType]
    pictures = dataset.take(range(len(dataset)))
    assert pictures is not None
    images = pictures["image"].repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)
    return LabelledImages(images=images, labels=pictures["label"])


def _untrained(config: ClassifierConfig, images: Tensor) -> ImageClassifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        classifier = ImageClassifier(config, num_channels=1, num_classes=10).eval()
    raw = classifier.features(images)
    classifier.feature_mean.copy_(raw.mean(dim=0))
    classifier.feature_std.copy_(raw.std(dim=0))
    return classifier
