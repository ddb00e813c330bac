"""NPZ and IDX: names of arrays, labels, and arrays of the wrong kind."""

from pathlib import Path

import numpy as np
import pytest

from latentlm.data.records import DataError
from latentlm.data.sources.arrays import open_idx, open_npz


def save_npz(path: Path, **arrays) -> Path:
    np.savez(path, **arrays)
    return path


def test_npz_labels_may_be_names_and_channels_may_come_first(tmp_path):
    pixels = np.zeros((4, 3, 5, 5), dtype=np.uint8)
    source = open_npz(save_npz(tmp_path / "a.npz", images=pixels, labels=np.array(["b", "a", "b", "c"])), "train", {})
    assert source.label_names == ("a", "b", "c")
    assert source.labels.tolist() == [1, 0, 1, 2]
    assert source[0]["image"].shape == (5, 5, 3)


def test_npz_arrays_may_have_any_name_by_the_column_mapping(tmp_path):
    path = save_npz(tmp_path / "a.npz", pics=np.ones((2, 3, 3), dtype=np.uint8), kind=np.array([[1], [0]]))
    source = open_npz(path, "train", {"image": "pics", "label": "kind"})
    assert source.labels.tolist() == [1, 0]
    with pytest.raises(DataError, match="no array of images"):
        open_npz(path, "train", {})


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"images": np.zeros((2, 3, 3))}, "type float64, expected uint8"),
        ({"images": np.zeros((2, 3), dtype=np.uint8)}, "shape"),
        ({"images": np.zeros((2, 3, 3), dtype=np.uint8), "labels": np.zeros(3, dtype=int)}, "2 images but labels"),
        ({"images": np.zeros((2, 3, 3), dtype=np.uint8), "labels": np.array([0, -1])}, "-1 is negative"),
        ({"images": np.zeros((2, 3, 3), dtype=np.uint8), "labels": np.array([0, 10**9])}, "above 1,000,000"),
        ({"images": np.zeros((2, 3, 3), dtype=np.uint8), "labels": np.zeros(2)}, "expected integers or strings"),
        ({"images": np.array([None, {}], dtype=object)}, "pickled Python objects"),
    ],
)
def test_npz_arrays_of_the_wrong_kind_are_refused(tmp_path, arrays, reason):
    with pytest.raises(DataError, match=reason):
        open_npz(save_npz(tmp_path / "a.npz", **arrays), "train", {})


def test_a_file_that_is_no_npz_is_refused(tmp_path, write):
    with pytest.raises(DataError, match="cannot be read as NPZ"):
        open_npz(write(tmp_path / "a.npz", b"PK\x03\x04 not really"), "train", {})


def test_idx_labels_that_do_not_match_are_refused(tmp_path, write):
    write(tmp_path / "train-images-idx3-ubyte", bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 7, 7]))
    write(tmp_path / "train-labels-idx1-ubyte", bytes([0, 0, 8, 1, 0, 0, 0, 1, 0]))
    with pytest.raises(DataError, match="2 images but labels"):
        open_idx(tmp_path, "train", {})
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    assert open_idx(tmp_path, "train", {}).label_names == ("unlabelled",)
