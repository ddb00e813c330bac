"""Which format a path holds, which files make up a split, and the embedded digits."""

import numpy as np
import pytest

from latentlm.data.records import DataError
from latentlm.data.sources import detect_format
from latentlm.data.sources.digits import DigitsSource
from latentlm.data.sources.shards import split_files


def test_loose_pictures_beside_folders_of_pictures_are_ambiguous(tmp_path, write):
    write(tmp_path / "loose.png")
    write(tmp_path / "class" / "1.png")
    with pytest.raises(DataError, match="both pictures and folders"):
        detect_format(tmp_path, "train")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("x.npz", "npz"),
        ("x.parquet", "parquet"),
        ("x.tar", "webdataset"),
        ("train-images-idx3-ubyte", "idx"),
        ("train-images.idx3-ubyte.gz", "idx"),
    ],
)
def test_the_format_of_a_file_is_told_from_its_name(tmp_path, name, expected, write):
    assert detect_format(write(tmp_path / name), "train") == expected


def test_what_has_no_known_format_is_refused_with_what_is_known(tmp_path, write):
    with pytest.raises(DataError, match=r"give source as one of class_folder"):
        detect_format(write(tmp_path / "data.zip"), "train")
    with pytest.raises(DataError, match="found no pictures"):
        detect_format(tmp_path, "train")


@pytest.mark.parametrize(
    ("files", "split", "expected"),
    [
        (["1.tar", "0.tar"], "train", ["0.tar", "1.tar"]),
        (["train-0.tar", "test-0.tar"], "test", ["test-0.tar"]),
        (["data/train-0.tar", "data/test-0.tar"], "train", ["data/train-0.tar"]),
        (["test/0.tar", "train/0.tar", "x.tar"], "train", ["train/0.tar"]),
        (["training.tar"], "train", ["training.tar"]),
        (["test-0.tar"], "train", None),
        (["0.tar"], "test", None),
    ],
)
def test_the_files_of_a_split(tmp_path, files, split, expected, write):
    for name in files:
        write(tmp_path / name)
    if expected is None:
        with pytest.raises(DataError, match=f"split '{split}'"):
            split_files(tmp_path, ".tar", split)
    else:
        assert split_files(tmp_path, ".tar", split) == [tmp_path / name for name in expected]


def test_the_digits_split_is_the_same_rule_for_ever():
    train, test = DigitsSource("train"), DigitsSource("test")
    assert (len(train), len(test)) == (1258, 539)
    keys = [source.keys(np.arange(len(source))).tolist() for source in (train, test)]
    assert sorted(keys[0] + keys[1]) == list(range(1797))
    assert keys[1][:5] == [1, 4, 10, 18, 19]  # numbers reported on the test digits depend on it
    assert train.pixels is not None
    assert (train.pixels.min(), train.pixels.max()) == (0, 255)
    assert np.bincount(test.labels).min() > 40  # every class is there: 54 on average
