"""Judges: divided as the split says, trained once, found again, and another folder for anything else."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from latentlm.data import ImageDataConfig, open_images
from latentlm.data.datasets import split_of
from latentlm.evaluation import judges as judges_module
from latentlm.evaluation.classifier import ClassifierConfig
from latentlm.evaluation.judges import Judges, JudgesConfig, default_judges, load_judges
from latentlm.evaluation.second_space import SecondSpaceConfig
from latentlm.storage import StorageError

DATA = ImageDataConfig(source="digits", image_size=8, num_channels=1)
TINY = JudgesConfig(
    judge=ClassifierConfig(num_steps=30, width=8, num_features=8),
    second_space=SecondSpaceConfig(num_features=8, width=8),
    selector=ClassifierConfig(num_steps=10, width=8, num_features=6, seed=1),
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("judges")


@pytest.fixture(scope="module")
def judges(cache: Path) -> Judges:
    return load_judges(DATA, cache_dir=cache, config=TINY, num_references=200)


def rows(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_references_come_from_the_half_that_the_judge_never_saw(judges):
    dataset = open_images(DATA, part="train")
    split = split_of(DATA, len(dataset.source))
    place = {int(index): row for row, index in enumerate(dataset.indices)}
    halves = []
    for half in (split.judge_half, [index for index in split.train if index not in set(split.judge_half)]):
        batch = dataset.take([place[int(index)] for index in half])
        assert batch is not None
        halves.append(rows(batch["image"]))
    judge_half, reference_half = halves
    assert not judge_half & reference_half
    assert len(judges.panel.reference) == 200
    assert rows(judges.panel.reference.images) <= reference_half
    assert rows(judges.selector_test.images) <= judge_half


def test_parts_and_facts_are_those_of_the_data(judges):
    assert judges.num_classes == 10
    assert (len(judges.test), len(judges.validation)) == (539, 63)
    assert judges.panel.train_images.dtype == torch.uint8
    test = open_images(DATA, part="test").take(range(539))
    assert test is not None
    assert torch.equal(judges.test.images, test["image"]), "bytes and back change nothing"
    assert judges.judge_accuracy == judges.panel.judge.accuracy(judges.test.images, judges.test.labels)
    # One in a hundred of 539, up to the interpolation of a quantile.
    nearest = judges_module.nearest_distances(judges.test.images, judges.panel.train_images)
    assert 4 <= int((nearest < judges.panel.near_threshold).sum()) <= 6


def test_the_second_call_trains_nothing_and_gives_the_same_judges(judges, cache, monkeypatch):
    monkeypatch.setattr(judges_module, "train_classifier", None)
    again = load_judges(DATA, cache_dir=cache, config=TINY, num_references=200)
    assert again.fingerprint == judges.fingerprint
    images = judges.test.images[:50]
    for space in ("judge", "second_space"):
        first, second = (getattr(found.panel, space).features(images) for found in (judges, again))
        assert torch.equal(first, second)
    assert torch.equal(again.selector.features(images), judges.selector.features(images))
    assert again.judge_accuracy == judges.judge_accuracy
    assert torch.equal(again.panel.reference.images, judges.panel.reference.images)


@pytest.mark.parametrize(
    ("data", "config"),
    [
        (replace(DATA, split_seed=1), TINY),
        (replace(DATA, validation_ratio=0.1), TINY),
        (DATA, replace(TINY, judge=replace(TINY.judge, seed=5))),
    ],
)
def test_another_split_or_config_is_another_folder(judges, tmp_path, data, config):
    assert load_judges(data, cache_dir=tmp_path, config=config).fingerprint != judges.fingerprint


def test_a_damaged_cache_is_refused(judges, cache, tmp_path):
    folder = tmp_path / judges.fingerprint[:16]
    folder.mkdir()
    for file in (cache / folder.name).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    facts = json.loads((folder / "judges.json").read_text())
    (folder / "judges.json").write_text(json.dumps({**facts, "judge_accuracy": 1.0}))
    with pytest.raises(StorageError, match=r"judges\.json"):
        load_judges(DATA, cache_dir=tmp_path, config=TINY)


def test_small_pictures_get_smaller_judges_of_different_shapes_for_judging_and_choosing():
    for size in (8, 28):
        config = default_judges(size)
        assert config.judge.max_pooling == (size == 28)
        assert config.judge.seed != config.selector.seed
        assert config.judge.width != config.selector.width
        assert config.judge.num_features <= 64, "the Fréchet distance of 5,000 images needs few dimensions"
