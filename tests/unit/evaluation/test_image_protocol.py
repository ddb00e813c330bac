"""The protocol on digits: what is drawn, what chooses, what judges, and the report of it."""

import json
from dataclasses import dataclass, replace

import pytest
import torch

from latentlm.data import ImageDataConfig
from latentlm.evaluation import image_protocol
from latentlm.evaluation.classifier import ClassifierConfig
from latentlm.evaluation.generator_report import GeneratorRow, make_report
from latentlm.evaluation.image_protocol import ImageProtocol, draw_samples, floor, score_samples, select_score
from latentlm.evaluation.image_scores import LabelledImages
from latentlm.evaluation.judges import Judges, JudgesConfig, load_judges
from latentlm.evaluation.second_space import SecondSpaceConfig

PROTOCOL = ImageProtocol(num_samples=300, num_validation_samples=60, batch_size=128)


@dataclass(frozen=True)
class Sampling:
    cfg_scale: float = 1.0


class Copier:
    """A generator that returns real pictures of the class it is asked for, under noise; notes what it was asked."""

    num_classes = 10

    def __init__(self, real: LabelledImages, noise: float) -> None:
        self.sampling = {"image": Sampling()}
        self.real, self.noise = real, noise
        self.asked: list[tuple[int, int]] = []

    def generate_images(self, labels, *, seeds=None, sampling=None, batch_size, precision="float32"):
        self.asked += list(zip(labels, seeds, strict=True))
        pictures = []
        for label, seed in zip(labels, seeds, strict=True):
            generator = torch.Generator().manual_seed(seed)
            members = self.real.images[self.real.labels == label]
            picture = members[int(torch.randint(len(members), (), generator=generator))]
            pictures.append(picture + self.noise * torch.randn(picture.shape, generator=generator))
        return torch.stack(pictures)


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> Judges:
    config = JudgesConfig(
        judge=ClassifierConfig(num_steps=120, width=8, num_features=8),
        second_space=SecondSpaceConfig(num_features=16, width=8),
        selector=ClassifierConfig(num_steps=60, width=8, num_features=8, seed=1),
    )
    data = ImageDataConfig(source="digits", image_size=8, num_channels=1)
    return load_judges(data, cache_dir=tmp_path_factory.mktemp("judges"), config=config)


def test_samples_take_the_labels_of_real_pictures_and_seeds_of_their_own(judges):
    asked = {}
    for part, count in (("test", 300), ("validation", 60)):
        generator = Copier(judges.test, noise=0.0)
        samples = draw_samples(generator, judges, PROTOCOL, part=part)
        assert len(samples) == count
        assert [label for label, _ in generator.asked] == samples.labels.tolist()
        asked[part] = {seed for _, seed in generator.asked}
        assert len(asked[part]) == count
    assert not asked["test"] & asked["validation"]
    real = image_protocol.real_images(judges, "test", 300)
    test_labels = draw_samples(Copier(judges.test, noise=0.0), judges, PROTOCOL).labels
    assert torch.equal(test_labels, real.labels), "floor and samples have each class equally often"


def test_samples_do_not_depend_on_the_batches(judges):
    small = replace(PROTOCOL, batch_size=7)
    whole, parts = (draw_samples(Copier(judges.test, noise=0.1), judges, p) for p in (PROTOCOL, small))
    assert torch.equal(whole.images, parts.images)


def test_every_score_says_worse_of_worse_samples_and_the_floor_is_between_nothing_and_them(judges):
    # Clean copies of test pictures are as good as real ones; the training set's would be copying.
    clean, noisy, bad = (
        score_samples(draw_samples(Copier(judges.test, noise), judges, PROTOCOL), judges) for noise in (0.0, 0.3, 1.0)
    )
    real = floor(judges, 300)
    assert clean.accuracy > noisy.accuracy > bad.accuracy
    assert clean.classifier_score > bad.classifier_score
    distances = ("frechet", "frechet_second_space", "kernel", "kernel_second_space")
    for name in (*distances, "high_frequency", "nearest_train_distance"):
        assert getattr(clean, name) < getattr(noisy, name) < getattr(bad, name), name
        # Copies repeat some pictures: a little worse than the floor, and far better than noise.
        assert abs(getattr(clean, name) - getattr(real, name)) < 0.5 * abs(getattr(bad, name) - getattr(real, name))
    assert clean.precision > bad.precision
    # 1 up to chance and to the difference of test and reference digits.
    assert real.diversity == pytest.approx(1, abs=0.1)
    assert real.high_frequency == pytest.approx(1, abs=0.1)
    # The first percentile of 539 test pictures, seen in 300 of them.
    assert 0 <= real.nearest_train_share <= 0.02


def test_copies_of_training_pictures_and_a_single_picture_per_class_are_found_out(judges):
    train = LabelledImages(images=judges.panel.reference.images, labels=judges.panel.reference.labels)
    copied = score_samples(draw_samples(Copier(train, 0.0), judges, PROTOCOL), judges)
    assert copied.nearest_train_share == 1.0
    one_each = LabelledImages(
        images=torch.stack([judges.test.images[judges.test.labels == label][0] for label in range(10)]),
        labels=torch.arange(10),
    )
    collapsed = score_samples(draw_samples(Copier(one_each, 0.001), judges, PROTOCOL), judges)
    assert collapsed.diversity < 0.1
    assert collapsed.recall < 0.2


def test_the_selector_prefers_better_samples_and_the_judge_is_not_asked(judges, monkeypatch):
    samples = [
        draw_samples(Copier(judges.test, noise), judges, PROTOCOL, part="validation") for noise in (0.0, 0.3, 1.0)
    ]
    monkeypatch.setattr(judges.panel.judge, "features", None)
    clean, noisy, bad = (select_score(drawn, judges) for drawn in samples)
    assert clean < noisy < bad


def test_refusals(judges):
    with pytest.raises(ValueError, match="540 samples were asked for, but the part test has 539"):
        floor(judges, 540)
    other = Copier(judges.test, 0.0)
    other.num_classes = 3
    with pytest.raises(ValueError, match="knows 3 classes, but the data set has 10"):
        draw_samples(other, judges, PROTOCOL)
    with pytest.raises(ValueError, match=r"shape \(1, 6, 6\), but the real images \(1, 8, 8\)"):
        score_samples(LabelledImages(images=torch.zeros(5, 1, 6, 6), labels=torch.zeros(5).long()), judges)
    with pytest.raises(ValueError, match="num_samples is 0"):
        ImageProtocol(num_samples=0)


def test_a_report_says_how_many_which_seeds_what_floor_and_how_good_the_judge_is(judges):
    samples = draw_samples(Copier(judges.test, 0.1), judges, PROTOCOL)
    scores, real = score_samples(samples, judges), floor(judges, 300)
    row = GeneratorRow(weights="raw", sampling={"cfg_scale": 1.5}, scores=scores)
    report = make_report(
        model="runs/x", kind="toy", part="test", protocol=PROTOCOL, rows=(row,), floor=real, judges=judges
    )
    text = report.as_markdown()
    assert "| cfg_scale 1.5, raw weights | " in text
    assert f"| real test pictures | {real.accuracy:.1%} |" in text
    assert "300 samples per row (seeds 0 to 299)" in text
    assert f"right on {judges.judge_accuracy:.1%} of real test pictures" in text
    content = json.loads(json.dumps(report.as_json()))
    assert content["num_samples"] == 300
    assert content["rows"][0]["scores"]["frechet"] == scores.frechet
    assert content["floor"]["accuracy"] == real.accuracy
