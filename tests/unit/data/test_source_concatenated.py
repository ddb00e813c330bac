"""Several data sets as one."""

from pathlib import Path

import numpy as np
import pytest
import torch

from latentlm.data import DataError, ImageDataConfig, open_images
from latentlm.data.splits import read_split


def save(path: Path, count: int, *, num_classes: int | None = 3, side: int = 4, start: int = 0) -> str:
    arrays = {
        "images": np.full((count, side, side), 1, dtype=np.uint8)
        * (start + np.arange(count, dtype=np.uint8))[:, None, None]
    }
    if num_classes is not None:
        arrays["labels"] = np.arange(count) % num_classes
    np.savez(path, **arrays)
    return str(path)


def config(first: str, *others: str, **options: object) -> ImageDataConfig:
    return ImageDataConfig(
        path=first,
        additional_paths=list(others),
        image_size=4,
        num_channels=1,
        validation_ratio=0.0,
        **options,  # pyright: ignore[reportArgumentType]
    )


@pytest.mark.parametrize("second_side", [4, 6])
def test_records_follow_each_other_and_classes_are_numbered_on(tmp_path: Path, second_side: int) -> None:
    first, second = save(tmp_path / "a.npz", 5), save(tmp_path / "b.npz", 4, num_classes=2, side=second_side, start=100)
    dataset = open_images(config(first, second), part="train")
    assert len(dataset) == 9
    assert dataset.num_classes == 5
    assert dataset.labels.tolist() == [0, 1, 2, 0, 1, 3, 4, 3, 4]
    examples = [dataset[i] for i in range(9)]
    assert [example["label"] for example in examples] == dataset.labels.tolist()
    assert [example["key"] for example in examples] == list(range(9))
    pixels = [round((float(example["image"].mean()) + 1) * 127.5) for example in examples]
    assert pixels == [0, 1, 2, 3, 4, 100, 101, 102, 103]
    batch = dataset.take(range(9))
    assert (batch is None) == (second_side != 4), "all at once only if the pictures are of one size"
    if batch is not None:
        assert torch.equal(batch["image"], torch.stack([example["image"] for example in examples]))


def test_test_pictures_are_put_together_in_the_same_order(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{name}.npz", count) for name, count in (("a", 3), ("b", 4), ("c", 2), ("d", 6))]
    data = config(paths[0], paths[1], test_path=paths[2], additional_test_paths=[paths[3]])
    assert len(open_images(data, part="test")) == 8
    with pytest.raises(ValueError, match="additional_test_paths go with test_path"):
        config(paths[0], additional_test_paths=[paths[3]])


def test_labels_in_one_set_alone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="some of the data sets have labels and some have not"):
        open_images(config(save(tmp_path / "a.npz", 3), save(tmp_path / "b.npz", 3, num_classes=None)), part="train")


def test_the_committed_split_of_both_sets_is_that_of_each() -> None:
    both = read_split("digits_and_garments.json")
    digits, garments = read_split("mnist.json"), read_split("fashion_mnist.json")
    assert both.num_records == digits.num_records + garments.num_records
    assert both.validation.tolist() == [*digits.validation, *(garments.validation + digits.num_records)]
