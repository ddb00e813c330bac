"""Splits: disjoint parts, committed indices that bind, and refusals."""

import json
from pathlib import Path

import numpy as np
import pytest

from latentlm.catalog import KINDS
from latentlm.config import load_recipe
from latentlm.data import DataError, ImageDataConfig, open_images
from latentlm.data.datasets import split_of
from latentlm.data.documents import open_documents
from latentlm.data.splits import make_split, read_split, write_split

COMMITTED = {
    "fashion_mnist.json": 60_000,
    "mnist.json": 60_000,
    "cifar10_jpeg.json": 50_000,
    "tinyshakespeare.json": 6283,
}


def npz(folder: Path, count: int) -> str:
    images = np.arange(count, dtype=np.uint8)[:, None, None] * np.ones((1, 4, 4), dtype=np.uint8)
    np.savez(folder / "data.npz", images=images, labels=np.arange(count) % 3)
    return str(folder / "data.npz")


@pytest.mark.parametrize(("name", "num_records"), COMMITTED.items())
def test_the_committed_splits_are_those_of_the_seeded_rule(name, num_records):
    split = read_split(name)
    ruled = make_split(num_records)
    assert split.num_records == num_records
    assert split.data
    assert np.array_equal(split.validation, ruled.validation)
    assert np.array_equal(split.judge_half, ruled.judge_half)
    assert len(split.validation) == round(num_records * 0.05)
    assert len(split.judge_half) == (num_records - len(split.validation)) // 2


def test_the_committed_split_of_emoji_holds_out_five_percent_of_their_names():
    split = read_split("emoji.json")
    assert split.num_records == 8303
    assert len(split.validation) == 437  # of 157 of 3,143 names, in up to three styles each


def test_the_parts_do_not_overlap_and_leave_nothing_out():
    split = make_split(1001, validation_ratio=0.1, seed=3)
    reference_half = np.setdiff1d(split.train, split.judge_half)
    everything = np.concatenate([split.validation, split.judge_half, reference_half])
    assert sorted(everything.tolist()) == list(range(1001))
    assert abs(len(split.judge_half) - len(reference_half)) <= 1


def test_another_seed_divides_otherwise_and_the_halves_ignore_the_order_of_validation():
    first, second = make_split(1000), make_split(1000, seed=1)
    assert not np.array_equal(first.validation, second.validation)
    # A half picked by the validation's own hash would hold the smallest indices of that order: a biased neighbour.
    place = np.searchsorted(first.train, first.judge_half)
    assert 420 < place.mean() < 530, "the half is spread over the whole split"


def test_a_split_file_is_read_back_and_decides_the_parts_of_a_data_set(tmp_path):
    path = npz(tmp_path, 40)
    write_split(tmp_path / "split.json", make_split(40, data="forty grey levels", validation_ratio=0.25, seed=7))
    config = ImageDataConfig(path=path, image_size=4, num_channels=1, split_file=str(tmp_path / "split.json"))
    split = split_of(config, 40)
    assert open_images(config, part="validation").indices.tolist() == split.validation.tolist()
    assert open_images(config, part="train").indices.tolist() == split.train.tolist()
    assert len(split.validation) == 10, "validation_ratio of the config is 0.05"


@pytest.mark.parametrize("kind", ["multimodal", "transfusion", "vq_mllm"])
def test_the_recipes_hold_out_the_committed_speeches_of_shakespeare(kind, tmp_path, monkeypatch):
    split = read_split("tinyshakespeare.json")
    path = Path(__file__).parents[3] / "recipes" / f"{kind}_digits_and_garments.yaml"
    recipe = load_recipe(path, [], {kind: KINDS[kind].recipe_class})
    assert recipe.sources["text"].data.split_file == "tinyshakespeare.json"
    (tmp_path / "tinyshakespeare_train.txt").write_text("\n\n".join(f"SPEAKER:\n{i}" for i in range(6283)))
    monkeypatch.setenv("LATENTLM_DATA", str(tmp_path))
    held_out = open_documents(recipe.sources["text"].data, part="validation")
    assert [held_out[i].parts[0] for i in range(len(held_out))] == [f"SPEAKER:\n{i}" for i in split.validation]


def test_a_split_file_of_other_data_is_refused(tmp_path):
    config = ImageDataConfig(path=npz(tmp_path, 40), image_size=4, num_channels=1, split_file="mnist.json")
    with pytest.raises(DataError, match=r"mnist.json divides 60000 records \(MNIST .*data.npz has 40"):
        open_images(config, part="train")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"validation": [3, 2]}, "sorted, distinct indices below num_records"),
        ({"validation": [3, 3]}, "sorted, distinct indices below num_records"),
        ({"validation": [40]}, "sorted, distinct indices below num_records"),
        ({"validation": [1, 2]}, "judge half that this version computes is not the one"),
        ({"validation": "all"}, "is not a split file"),
        ({"judge_half": {"seed": 0}}, "is not a split file: KeyError"),
    ],
)
def test_a_damaged_split_file_is_refused(tmp_path, change, reason):
    path = tmp_path / "split.json"
    path.write_text(json.dumps({**make_split(40, data="x").as_json(), **change}))
    with pytest.raises(DataError, match=reason):
        read_split(str(path))


def test_a_split_file_that_does_not_exist_is_refused():
    with pytest.raises(DataError, match=r"no split file elsewhere\.json"):
        read_split("elsewhere.json")
