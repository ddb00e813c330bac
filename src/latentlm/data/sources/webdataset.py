"""WebDataset tars: files `000042.jpg`, `000042.cls`, `000042.txt` in a tar make up record 000042.

The tars are indexed once by their headers and then read at random places; nothing is ever unpacked. Contents are read
as raw bytes only: of the format's many member types (`.pyd` is a pickle) those that are not mapped are left alone.
"""

import tarfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from latentlm.data.decode import IMAGE_SUFFIXES, check_record_bytes
from latentlm.data.records import UNLABELLED, BadRecord, DataError, Record, Source, labels_from_values
from latentlm.data.sources.shards import split_files

_USUAL_EXTENSIONS = {
    "image": tuple(suffix[1:] for suffix in IMAGE_SUFFIXES),
    "label": ("cls",),
    "caption": ("txt", "caption"),
}
_MAX_LABEL_BYTES = 1024


@dataclass
class _Sample:
    """One record's members: field -> (offset in the tar, size), bytes."""

    shard: int
    name: str
    members: dict[str, tuple[int, int]] = field(default_factory=dict)
    label: str | None = None


class WebDatasetSource(Source):
    """Records of a list of tars.

    Args:
        path: For messages.
        shards: The tars, uncompressed.
        columns: Our names -> extensions in the tar, without the dot (`{image: seg.png}`).

    Raises:
        DataError: If no record can be read.
    """

    def __init__(self, path: Path, shards: list[Path], columns: dict[str, str]) -> None:
        self._shards = shards
        extensions = {**_USUAL_EXTENSIONS, **{ours: (theirs.lower(),) for ours, theirs in columns.items()}}
        rejected: list[BadRecord] = []
        samples: list[_Sample] = []
        for number, shard in enumerate(shards):
            samples += _index_tar(shard, number, extensions, rejected)
        fields = {name for sample in samples for name in _fields(sample)}
        if not fields - {"label"}:
            raise DataError(f"{path}: found no records{_listed(rejected)}")
        # Every field that any record has must be in all of them; in particular an image without a label is no example.
        self._samples: list[_Sample] = []
        for sample in samples:
            missing = sorted(fields - _fields(sample))
            if missing:
                rejected.append(BadRecord(f"{shards[sample.shard]}/{sample.name}", f"has no {', '.join(missing)}"))
            else:
                self._samples.append(sample)
        if not self._samples:
            raise DataError(f"{path}: no record has all of {', '.join(sorted(fields))}{_listed(rejected)}")
        self.fields = frozenset(fields)
        self.rejected = tuple(rejected)
        if "label" in fields:
            self.labels, self.label_names = _parse_labels(self._samples, path)
        else:
            self.labels, self.label_names = np.zeros(len(self._samples), dtype=np.int64), UNLABELLED

    def __getitem__(self, index: int) -> Record:
        sample = self._samples[index]
        name = f"{self._shards[sample.shard]}/{sample.name}"
        record: Record = {"key": index, "name": name}
        for ours in sorted(self.fields - {"label"}):
            data = self._read(sample, ours)
            record[ours] = data if ours in ("image", "audio") else _text(data, name)
        if "label" in self.fields:
            record["label"] = int(self.labels[index])
        return record

    def _read(self, sample: _Sample, ours: str) -> bytes:
        offset, size = sample.members[ours]
        name = f"{self._shards[sample.shard]}/{sample.name}"
        try:
            with self._shards[sample.shard].open("rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise BadRecord(name, f"cannot be read ({error})") from error
        if len(data) != size:
            raise BadRecord(name, f"the tar ends inside its {ours}")
        return check_record_bytes(data, name)


def _fields(sample: _Sample) -> set[str]:
    return {*sample.members, *(("label",) if sample.label is not None else ())}


def _listed(rejected: list[BadRecord]) -> str:
    return "".join(f"\n  {bad}" for bad in rejected)


def _parse_labels(samples: list[_Sample], path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    texts = [sample.label or "" for sample in samples]
    values = [int(text) for text in texts] if all(text.isdecimal() for text in texts) else texts
    return labels_from_values(np.array(values), str(path))


def _index_tar(
    path: Path, shard: int, extensions: dict[str, tuple[str, ...]], rejected: list[BadRecord]
) -> list[_Sample]:
    samples: dict[str, _Sample] = {}
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:  # "r:" is uncompressed only; compressed tars allow no random access
            while (member := tar.next()) is not None:
                # tarfile would keep every header: gigabytes for millions of files
                tar.members = []  # pyright: ignore[reportAttributeAccessIssue]  (unknown to the type stubs)
                if member.isdir():
                    continue
                try:
                    _check_member(member, size)
                    parent, _, file_name = member.name.rpartition("/")
                    stem, _, extension = file_name.partition(".")  # the key ends at the first dot: WebDataset's rule
                    ours = next((name for name, known in extensions.items() if extension.lower() in known), None)
                    if ours is None or not stem:
                        continue
                    key = f"{parent}/{stem}" if parent else stem
                    sample = samples.setdefault(key, _Sample(shard, key))
                    if ours in _fields(sample):
                        raise BadRecord("", f"a second {ours} for record {key}")
                    if ours == "label":
                        sample.label = _read_label(tar, member)
                    else:
                        sample.members[ours] = (member.offset_data, member.size)
                except BadRecord as error:
                    rejected.append(BadRecord(f"{path}/{member.name}", error.reason))
            end = tar.offset
        _check_end(path, end)
    except BadRecord as error:
        rejected.append(error)
    except (tarfile.TarError, OSError, ValueError) as error:
        rejected.append(BadRecord(str(path), f"not a readable uncompressed tar, or cut short ({error})"))
    return list(samples.values())


def _check_member(member: tarfile.TarInfo, tar_size: int) -> None:
    if not member.isreg() or member.sparse is not None:
        raise BadRecord(member.name, "a link, device or sparse file: only plain files are read")
    if member.name.startswith("/") or ".." in PurePosixPath(member.name).parts:
        raise BadRecord(member.name, "a name that leads out of the tar")
    if member.offset_data + member.size > tar_size:
        raise BadRecord(member.name, "the tar ends inside it")


def _check_end(path: Path, offset: int) -> None:
    """tarfile takes a damaged header or a missing end mark for the end: the rest would be lost unseen."""
    with path.open("rb") as file:
        file.seek(offset)
        block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or any(block):
        raise BadRecord(str(path), f"damaged or cut short at byte {offset:,}: what follows is not read")


def _read_label(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    """Labels are read while indexing: all of them are needed to number the classes."""
    content = tar.extractfile(member)
    if content is None or member.size > _MAX_LABEL_BYTES:
        raise BadRecord(member.name, f"a label of {member.size:,} bytes")
    return _text(content.read(), member.name).strip()


def _text(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRecord(name, f"text that is not UTF-8 ({error.reason})") from error


def open_webdataset(path: Path, split: str, columns: dict[str, str]) -> WebDatasetSource:
    """A tar, or the tars of one split in a folder (see `shards.split_files`).

    Raises:
        DataError: If there are none, or none holds a readable record.
    """
    if path.is_file() and split != "train":
        raise DataError(f"{path}: one tar has one split; give test_path to read {split!r}")
    return WebDatasetSource(path, split_files(path, ".tar", split), columns)
