"""Which files of a folder make up one split, for formats that spread a data set over many files."""

from pathlib import Path

from latentlm.data.records import DataError

_SPLIT_NAMES = ("train", "test", "validation", "valid", "val", "dev")


def split_files(path: Path, suffix: str, split: str) -> list[Path]:
    """The files of `split`, sorted by name.

    A file is taken as it is, whatever the split. In a folder, the first of these that exist: all files of the
    subfolder `split`; files whose names begin with the split's (`train-00000-of-00002.parquet`), there or in `data/`,
    as hubs lay them out; for the training split all files, if none of them is named for any split.

    Raises:
        DataError: If there are none.
    """
    if path.is_file():
        return [path]
    in_subfolder = _files(path / split, suffix)
    if in_subfolder:
        return in_subfolder
    files = _files(path, suffix) or _files(path / "data", suffix)
    of_split = [file for file in files if _named_for(file, split)]
    if of_split:
        return of_split
    unnamed = not any(_named_for(file, name) for file in files for name in _SPLIT_NAMES)
    if files and unnamed and split == "train":
        return files
    raise DataError(f"{path}: no {suffix} files for the split {split!r}")


def _files(folder: Path, suffix: str) -> list[Path]:
    return sorted(file for file in folder.glob(f"*{suffix}") if file.is_file())


def _named_for(file: Path, split: str) -> bool:
    rest = file.name.removeprefix(split)
    return rest != file.name and rest[0] in "-_."
