"""Pictures as single files: one folder per class, or one folder of pictures without classes."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from latentlm.data.decode import IMAGE_SUFFIXES, read_file
from latentlm.data.records import UNLABELLED, BadRecord, DataError, Record, Source


def split_folder(path: Path, split: str) -> Path:
    """`path/split` where there is one, else `path` itself for the training split.

    Raises:
        DataError: If another split is asked for and has no folder.
    """
    if (path / split).is_dir():
        return path / split
    if split != "train":
        raise DataError(f"{path} has no folder {split!r}; give test_path, or put the split into {path / split}")
    return path


class _FileSource(Source):
    """Records of image files, read from disk one by one.

    Args:
        files: Paths relative to `folder`, in the order of the records.
        labels: Int64 [len(files)], or None.
    """

    def __init__(
        self,
        folder: Path,
        files: list[str],
        labels: np.ndarray | None,
        label_names: tuple[str, ...],
        rejected: list[BadRecord],
    ) -> None:
        if not files:
            reasons = "".join(f"\n  {bad}" for bad in rejected)
            raise DataError(f"{folder}: no picture found ({', '.join(IMAGE_SUFFIXES)}){reasons}")
        self._folder = folder
        self._files = files
        self.labels = np.zeros(len(files), dtype=np.int64) if labels is None else labels
        self.label_names = label_names
        self.fields = frozenset({"image"}) if labels is None else frozenset({"image", "label"})
        self.rejected = tuple(rejected)

    def __getitem__(self, index: int) -> Record:
        path = self._folder / self._files[index]
        record: Record = {"image": read_file(path), "key": index, "name": str(path)}
        if "label" in self.fields:
            record["label"] = int(self.labels[index])
        return record


class ImageFolderSource(_FileSource):
    """All pictures under a folder, subfolders included, in the order of their names; no classes.

    Args:
        path: The folder, or a folder that holds the folder `split`.
        split: See `split_folder`.
        columns: Must be empty: files have no columns.
    """

    def __init__(self, path: Path, split: str, columns: dict[str, str]) -> None:
        _refuse_columns(columns)
        folder = split_folder(path, split)
        rejected: list[BadRecord] = []
        files = sorted(_image_files(folder, folder, rejected))
        super().__init__(folder, files, None, UNLABELLED, rejected)


class ClassFolderSource(_FileSource):
    """One subfolder per class; class ids follow the sorted folder names. Arguments as in `ImageFolderSource`."""

    def __init__(self, path: Path, split: str, columns: dict[str, str]) -> None:
        _refuse_columns(columns)
        folder = split_folder(path, split)
        rejected: list[BadRecord] = []
        classes = sorted(
            entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")
        )
        files: list[str] = []
        labels: list[int] = []
        for label, name in enumerate(classes):
            found = sorted(_image_files(folder / name, folder, rejected))
            files += found
            labels += [label] * len(found)
        super().__init__(folder, files, np.array(labels, dtype=np.int64), tuple(classes), rejected)


def _refuse_columns(columns: dict[str, str]) -> None:
    if columns:
        raise DataError(f"a folder of pictures has no columns to map, but columns={columns} was given")


def _image_files(folder: Path, root: Path, rejected: list[BadRecord]) -> Iterator[str]:
    """Paths relative to `root` of all image files below `folder`; links that lead out of `root` go to `rejected`.

    A data set from a stranger must not read the rest of the disk, so a link counts only inside its own folder.
    """
    real_root = root.resolve()
    if not folder.resolve().is_relative_to(real_root):
        rejected.append(BadRecord(str(folder), f"link out of {root}"))
        return

    def name_unreadable(error: OSError) -> None:
        rejected.append(BadRecord(str(error.filename), f"folder that cannot be read ({error.strerror})"))

    for parent, subfolders, names in os.walk(folder, onerror=name_unreadable, followlinks=False):
        for name in subfolders:
            if Path(parent, name).is_symlink():
                rejected.append(BadRecord(str(Path(parent, name)), "link to a folder, which is not followed"))
        for name in names:
            path = Path(parent, name)
            if path.suffix.lower() not in IMAGE_SUFFIXES or name.startswith("."):
                continue
            if path.is_symlink() and not path.resolve().is_relative_to(real_root):
                rejected.append(BadRecord(str(path), f"link out of {root}"))
            else:
                yield str(path.relative_to(root))
