"""One reader per container format, behind one table. A new format is one file here and one row below.

Every reader is a function `(path, split, columns) -> Source`; what a `Source` promises stands in `records.py`.
"""

import re
from collections.abc import Callable
from pathlib import Path

from latentlm.data.decode import IMAGE_SUFFIXES
from latentlm.data.records import DataError, Source
from latentlm.data.sources.arrays import open_idx, open_npz
from latentlm.data.sources.folders import ClassFolderSource, ImageFolderSource, split_folder
from latentlm.data.sources.tables import open_hf_dataset, open_parquet
from latentlm.data.sources.webdataset import open_webdataset

OPENERS: dict[str, Callable[[Path, str, dict[str, str]], Source]] = {
    "class_folder": ClassFolderSource,
    "image_folder": ImageFolderSource,
    "idx": open_idx,
    "npz": open_npz,
    "parquet": open_parquet,
    "webdataset": open_webdataset,
    "hf_dataset": open_hf_dataset,
}
"""Format name -> reader, for all formats that are read from a path (the embedded digits are not)."""

_FILE_PATTERNS = {
    "npz": re.compile(r"\.npz$"),
    "parquet": re.compile(r"\.parquet$"),
    "webdataset": re.compile(r"\.tar$"),
    "idx": re.compile(r"idx\d-ubyte(\.gz)?$"),
}


def detect_format(path: Path, split: str) -> str:
    """The name in `OPENERS` of the format that `path` looks like.

    Raises:
        DataError: If it looks like none, or like two.
    """
    if path.is_file():
        for name, pattern in _FILE_PATTERNS.items():
            if pattern.search(path.name):
                return name
        raise DataError(f"{path}: cannot tell the format from the name; give source as one of {', '.join(OPENERS)}")
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return "hf_dataset"
    names = [entry.name for folder in (path, path / "data", path / split) for entry in _entries(folder)]
    for name, pattern in _FILE_PATTERNS.items():
        if name != "npz" and any(pattern.search(file_name) for file_name in names):
            return name
    folder = split_folder(path, split)
    flat = _holds_images(folder)
    classes = any(_holds_images(entry) for entry in _entries(folder) if entry.is_dir())
    if flat and classes:
        raise DataError(
            f"{folder} holds both pictures and folders of pictures; give source=class_folder (one class per folder, "
            "loose pictures left out) or source=image_folder (all pictures, no classes)"
        )
    if flat or classes:
        return "class_folder" if classes else "image_folder"
    raise DataError(
        f"{folder}: found no pictures ({', '.join(IMAGE_SUFFIXES)}), no folders of pictures, "
        "no Parquet, tar or IDX files"
    )


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _holds_images(folder: Path) -> bool:
    return any(entry.suffix.lower() in IMAGE_SUFFIXES for entry in folder.iterdir())
