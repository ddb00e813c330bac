"""Class ids of test pictures are those of training, whatever classes the test happens to have."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentlm.data import DataError, ImageDataConfig, open_images


def write_classes(folder: Path, *names: str) -> str:
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for copy in range(2):
            pixels = np.full((4, 4), 10 * number + copy, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{copy}.png")
    return str(folder)


def config(tmp_path: Path, *test_names: str) -> ImageDataConfig:
    train = write_classes(tmp_path / "train", "ant", "bee", "cat", "dog")
    test = write_classes(tmp_path / "test", *test_names)
    return ImageDataConfig(path=train, test_path=test, image_size=4, num_channels=1, validation_ratio=0.0)


def test_a_test_set_that_lacks_a_class_keeps_the_numbers_of_training(tmp_path: Path) -> None:
    data = open_images(config(tmp_path, "bee", "dog"), part="test")
    assert data.label_names == ("ant", "bee", "cat", "dog")
    assert data.labels.tolist() == [1, 1, 3, 3]
    assert [data[index]["label"] for index in range(4)] == [1, 1, 3, 3]


def test_a_class_that_training_has_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="classes that are not in training: 'eel'"):
        open_images(config(tmp_path, "bee", "eel"), part="test")


def test_numbers_need_no_names(tmp_path: Path) -> None:
    test = str(tmp_path / "test.npz")
    images = np.zeros((3, 4, 4), dtype=np.uint8)
    np.savez(test, images=images, labels=np.array([0, 5, 2]))
    data = ImageDataConfig(path="nowhere.npz", test_path=test, image_size=4, num_channels=1)
    assert open_images(data, part="test").labels.tolist() == [0, 5, 2]
