"""Pictures stored as one large array: NPZ and IDX files."""

import re
import zipfile
from pathlib import Path

import numpy as np

from latentlm.data.decode import DECODER_ERRORS, read_idx, read_npz_array
from latentlm.data.records import UNLABELLED, DataError, Record, Source, labels_from_values

_NPZ_NAMES = {"image": ("images", "image", "x", "arr_0"), "label": ("labels", "label", "y", "arr_1")}
_IDX_SPLITS = {"train": "train", "test": "t10k"}


class ArraySource(Source):
    """Records of a uint8 array of pictures, all in memory.

    Args:
        path: The file, for names and messages.
        pixels: uint8 [n, H, W], [n, H, W, C] or [n, C, H, W] with C in (1, 3, 4).
        labels: [n] integers or strings, or None.
    """

    def __init__(self, path: Path, pixels: np.ndarray, labels: np.ndarray | None) -> None:
        if pixels.dtype != np.uint8:
            raise DataError(f"{path}: images have type {pixels.dtype}, expected uint8 (0 to 255)")
        if pixels.ndim == 4 and pixels.shape[3] not in (1, 3, 4) and pixels.shape[1] in (1, 3, 4):
            pixels = np.moveaxis(pixels, 1, 3)
        if pixels.ndim not in (3, 4) or (pixels.ndim == 4 and pixels.shape[3] not in (1, 3, 4)):
            raise DataError(f"{path}: images have shape {pixels.shape}, expected [n, H, W] or [n, H, W, 1, 3 or 4]")
        if labels is not None and labels.shape == (len(pixels), 1):
            labels = labels[:, 0]
        if labels is not None and labels.shape[:1] != pixels.shape[:1]:
            raise DataError(f"{path}: {len(pixels)} images but labels of shape {labels.shape}")
        self._path = path
        self._images = pixels
        self.pixels = pixels
        if labels is None:
            self.labels, self.label_names = np.zeros(len(pixels), dtype=np.int64), UNLABELLED
            self.fields = frozenset({"image"})
        else:
            self.labels, self.label_names = labels_from_values(labels, str(path))
            self.fields = frozenset({"image", "label"})

    def __getitem__(self, index: int) -> Record:
        record: Record = {"image": self._images[index], "key": index, "name": f"{self._path}[{index}]"}
        if "label" in self.fields:
            record["label"] = int(self.labels[index])
        return record


def open_npz(path: Path, split: str, columns: dict[str, str]) -> ArraySource:
    """A NPZ file with an array of images and, optionally, one of labels.

    Array names come from `columns`, else from the usual ones: `images` and `labels`, `x` and `y`, ...; a file that
    holds several splits names them `x_train`, `y_train`, `x_test`, ...

    Raises:
        DataError: If the file is no NPZ, lacks the arrays, or they are pickled, damaged, too large or of a wrong type.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
            image_name = _npz_member("image", members, split, columns)
            label_name = _npz_member("label", members, split, columns)
            if image_name is None:
                raise DataError(
                    f"{path}: no array of images for the split {split!r} among {sorted(members)}; "
                    "name it with columns, for example {image: my_array, label: my_labels}"
                )
            pixels = read_npz_array(archive, image_name, str(path))
            labels = None if label_name is None else read_npz_array(archive, label_name, str(path))
    except DataError:
        raise
    except DECODER_ERRORS as error:
        raise DataError(f"{path}: cannot be read as NPZ ({error})") from error
    return ArraySource(path, pixels, labels)


def _npz_member(field: str, members: list[str], split: str, columns: dict[str, str]) -> str | None:
    if field in columns:
        return columns[field]  # even if absent: the reader's error names it
    plain = _NPZ_NAMES[field] if split == "train" else ()
    candidates = (*(f"{name}_{split}" for name in _NPZ_NAMES[field]), *plain)
    return next((name for name in candidates if name in members), None)


def open_idx(path: Path, split: str, columns: dict[str, str]) -> ArraySource:
    """MNIST's own format, plain or gzipped: a folder of the four files, or one images file with its labels beside it.

    Raises:
        DataError: If the files are missing, damaged, or do not belong together.
    """
    if columns:
        raise DataError("IDX files have no columns to map")
    if path.is_dir():
        prefix = _IDX_SPLITS.get(split, split)
        found = sorted(p for p in path.iterdir() if re.match(rf"{re.escape(prefix)}-images.idx\d-ubyte", p.name))
        if not found:
            raise DataError(f"{path}: no file {prefix}-images-idx3-ubyte (or .gz) for the split {split!r}")
        path = found[0]
    elif split != "train":
        raise DataError(f"{path}: one IDX file has one split; give its folder, or test_path, to read {split!r}")
    stem = re.sub(r"images(.)idx\d", r"labels\1idx1", path.name.removesuffix(".gz"))
    label_files = [p for p in (path.with_name(stem), path.with_name(f"{stem}.gz")) if p.is_file() and p != path]
    return ArraySource(path, read_idx(path), read_idx(label_files[0]) if label_files else None)
