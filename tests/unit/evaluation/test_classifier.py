"""The judge: learns, is reproducible, leaves the caller's random numbers alone."""

import pytest
import torch

from latentlm.evaluation.classifier import ClassifierConfig, classifier_score, train_classifier
from latentlm.evaluation.image_scores import LabelledImages, compare_with_real

CONFIG = ClassifierConfig(num_steps=40, width=8, num_features=8)


def bars(count: int, seed: int) -> LabelledImages:
    """Three easy classes: a bright left, middle or right third, under noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    images = 0.2 * torch.randn(count, 1, 6, 6, generator=generator) - 0.5
    for i, label in enumerate(labels.tolist()):
        images[i, :, :, 2 * label : 2 * label + 2] += 1
    return LabelledImages(images=images, labels=labels)


def test_the_judge_learns_an_easy_task_and_its_features_are_standardised():
    train, test = bars(200, seed=0), bars(100, seed=1)
    classifier = train_classifier(CONFIG, train.images, train.labels)
    # Three well separated classes: one mistake in a hundred is already generous.
    assert classifier.accuracy(test.images, test.labels) >= 0.99
    features = classifier.features(train.images)
    torch.testing.assert_close(features.mean(dim=0), torch.zeros(8).double(), atol=1e-5, rtol=0)  # float32 means
    torch.testing.assert_close(features.std(dim=0), torch.ones(8).double(), atol=1e-5, rtol=0)


def test_the_same_seed_trains_the_same_judge_whatever_was_drawn_before():
    train = bars(60, seed=0)
    state = torch.random.get_rng_state()
    first = train_classifier(CONFIG, train.images, train.labels)
    assert torch.equal(torch.random.get_rng_state(), state), "the caller's generator was moved"
    with torch.random.fork_rng():
        torch.rand(7)
        second = train_classifier(CONFIG, train.images, train.labels)
    assert torch.equal(first(train.images), second(train.images))


def test_real_images_score_like_real_images_and_noise_like_noise():
    train, test = bars(300, seed=0), bars(100, seed=1)
    fresh = compare_with_real(bars(100, seed=2), train, test, judge=CONFIG)
    assert fresh.samples.accuracy >= 0.98
    assert fresh.samples.frechet < 2 * fresh.real_test.frechet + 0.1, "both are fresh draws of the same distribution"
    assert (fresh.num_samples, fresh.num_reference, fresh.num_judge_train) == (100, 150, 150)
    noise = LabelledImages(images=torch.zeros_like(test.images) + 0.3, labels=test.labels)
    bad = compare_with_real(noise, train, test, judge=CONFIG)
    assert bad.samples.accuracy < 0.6
    assert bad.samples.frechet > 3 * bad.real_test.frechet
    assert bad.samples.recall < 0.1
    assert bad.real_test == fresh.real_test, "the same judge, trained again"


def test_copied_training_images_are_reported_as_near():
    train, test = bars(300, seed=0), bars(100, seed=1)
    copies = train.subset(torch.arange(100))
    assert compare_with_real(copies, train, test, judge=CONFIG).samples.nearest_train_share == 1.0


def test_samples_and_test_images_must_match_in_number_and_shape():
    train, test = bars(50, seed=0), bars(20, seed=1)
    with pytest.raises(ValueError, match="the same one"):
        compare_with_real(bars(10, seed=2), train, test, judge=CONFIG)
    cropped = LabelledImages(images=test.images[..., :5], labels=test.labels)
    with pytest.raises(ValueError, match="shape"):
        compare_with_real(cropped, train, test, judge=CONFIG)


def test_the_classifier_score_is_one_for_undecided_images_and_the_number_of_classes_for_sure_and_even_ones():
    assert classifier_score(torch.full((6, 4), 0.25).double()) == pytest.approx(1)
    assert classifier_score(torch.eye(4).double().repeat(3, 1)) == pytest.approx(4)
    assert classifier_score(torch.eye(4).double()[:1].repeat(5, 1)) == pytest.approx(1), "one class alone is no variety"


def test_a_judge_of_larger_pictures_pools_instead_of_striding():
    train = LabelledImages(images=torch.rand(40, 1, 28, 28) * 2 - 1, labels=torch.arange(40) % 2)
    config = ClassifierConfig(num_steps=2, width=8, num_features=4, max_pooling=True)
    classifier = train_classifier(config, train.images, train.labels, num_classes=3)
    assert classifier.features(train.images).shape == (40, 4)
    assert classifier.probabilities(train.images).shape == (40, 3)
    torch.testing.assert_close(classifier.probabilities(train.images).sum(dim=1), torch.ones(40).double())
