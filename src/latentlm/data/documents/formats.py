"""One reader per format of documents, behind one table. A new format is one file here and one row below.

Every reader is a function `(path, split, config) -> Records`; what `Records` promise stands in `records.py`.
"""

from collections.abc import Callable
from pathlib import Path

from latentlm.data import sources
from latentlm.data.datasets import resolve_path
from latentlm.data.decode import IMAGE_SUFFIXES
from latentlm.data.documents.config import DocumentDataConfig
from latentlm.data.documents.jsonl import JsonLinesRecords
from latentlm.data.documents.labelled import LabelledRecords
from latentlm.data.documents.parquet import open_parquet
from latentlm.data.documents.plain_text import TextRecords
from latentlm.data.documents.records import Records
from latentlm.data.documents.webdataset import open_webdataset
from latentlm.data.records import DataError
from latentlm.data.sources.digits import DigitsSource
from latentlm.data.sources.shards import split_files

Opener = Callable[[Path, str, DocumentDataConfig], Records]


def open_records(config: DocumentDataConfig, path: str | None, split: str) -> Records:
    """The records of one split of a data set.

    Args:
        config: How to read it.
        path: Where it is (`config.path` or `config.test_path`); None for the embedded digits.
        split: Its split.

    Raises:
        DataError: If the data are missing, in no known format, empty, or have no such split.
        ImportError: If the format needs an extra; the message names it.
    """
    if path is None:
        return LabelledRecords(DigitsSource(split), ())
    found = resolve_path(path)
    # The digits have no path of their own, so that this one is a test set beside them.
    name = detect_format(found, split) if config.format in ("auto", "digits") else config.format
    if config.separator is not None and name != "text":
        raise DataError(f"{found} is read as {name}, but separator={config.separator!r} is for text files")
    if found.is_file() and split != "train" and name in _ONE_SPLIT_PER_FILE:
        raise DataError(f"{found}: one file has one split; give test_path to read {split!r}")
    return OPENERS[name](found, split, config)


def detect_format(path: Path, split: str) -> str:
    """The name in `OPENERS` of the format that `path` looks like.

    Raises:
        DataError: If it looks like none, or like two.
    """
    if path.is_file():
        suffixes = {path.suffix}
    else:
        folders = [folder for folder in (path, path / "data", path / split) if folder.is_dir()]
        suffixes = {entry.suffix for folder in folders for entry in folder.iterdir() if entry.is_file()}
    if ".jsonl" in suffixes:
        return "jsonl"
    try:
        return sources.detect_format(path, split)
    except DataError:
        # Asked last: a folder of pictures or tars may well hold a README.txt.
        if ".txt" in suffixes and not suffixes & set(IMAGE_SUFFIXES):
            return "text"
        raise


def _open_jsonl(path: Path, split: str, config: DocumentDataConfig) -> Records:
    return JsonLinesRecords(split_files(path, ".jsonl", split), config.columns)


def _open_text(path: Path, split: str, config: DocumentDataConfig) -> Records:
    if config.columns:
        raise DataError(f"{path}: text files have no columns to map, but columns={config.columns} was given")
    return TextRecords(split_files(path, ".txt", split), config.separator)


def _open_parquet(path: Path, split: str, config: DocumentDataConfig) -> Records:
    return open_parquet(path, split, config.columns)


def _open_webdataset(path: Path, split: str, config: DocumentDataConfig) -> Records:
    return open_webdataset(path, split, config.columns)


def _labelled(name: str) -> Opener:
    def open_labelled(path: Path, split: str, config: DocumentDataConfig) -> Records:
        # A file of IDX pictures has its labels beside it.
        files = sorted(path.parent.glob("*-ubyte*")) if name == "idx" and path.is_file() else [path]
        return LabelledRecords(sources.OPENERS[name](path, split, config.columns), files)

    return open_labelled


OPENERS: dict[str, Opener] = {
    "jsonl": _open_jsonl,
    "parquet": _open_parquet,
    "webdataset": _open_webdataset,
    "text": _open_text,
    **{name: _labelled(name) for name in ("class_folder", "image_folder", "idx", "npz", "hf_dataset")},
}
"""Format name -> reader, for all formats that are read from a path (the embedded digits are not)."""

_ONE_SPLIT_PER_FILE = ("jsonl", "parquet", "webdataset", "text")  # the sources of pictures have rules of their own
