"""WebDataset tars of documents: `000042.json` with `000042.0.png`, `000042.1.png`, or `000042.jpg` with `000042.txt`.

The tars are indexed once by their headers and then read at random places; nothing is ever unpacked. A sample's JSON is
a record (see `json_records.py`) whose `image` entries name members of the same sample ("0.png"). Without parts, the
sample's picture, its text (`.txt` or `.caption`: field `caption`) and class (`.cls`: field `label`) join the JSON's
entries, and a template makes the document.
"""

import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from latentlm.data.decode import IMAGE_SUFFIXES, MAX_RECORD_BYTES, check_record_bytes
from latentlm.data.documents.document import RawImage
from latentlm.data.documents.json_records import parse_object, record_of
from latentlm.data.documents.records import RawRecord, Records, decode_text, read_at
from latentlm.data.records import BadRecord, DataError
from latentlm.data.sources.shards import split_files
from latentlm.data.sources.webdataset import _USUAL_EXTENSIONS, _check_end, _check_member

_MAX_LABEL_DIGITS = 18  # an int64; Python itself refuses to convert thousands of digits


@dataclass
class _Sample:
    """One sample's members: extension in lower case -> (offset in the tar, size), bytes."""

    shard: int
    name: str
    members: dict[str, tuple[int, int]] = field(default_factory=dict)


class WebDatasetRecords(Records):
    """The samples of some tars.

    Args:
        files: The tars, uncompressed.
        columns: Our names (image, caption, label) -> extensions in the tar, without the dot (`{caption: alt.txt}`).

    Raises:
        DataError: If there is no sample.
    """

    def __init__(self, files: list[Path], columns: Mapping[str, str]) -> None:
        mapped = {ours: (theirs.lower(),) for ours, theirs in columns.items()}
        self._extensions = {**_USUAL_EXTENSIONS, **mapped}
        rejected: list[BadRecord] = []
        self._samples = [
            sample for shard, file in enumerate(files) for sample in self._index_tar(file, shard, rejected)
        ]
        self.files = tuple(files)
        self.rejected = tuple(rejected)
        if not self._samples:
            reasons = "".join(f"\n  {bad}" for bad in rejected)
            raise DataError(f"{files[0]}: no sample in {len(files)} tar(s){reasons}")
        extensions = {extension for sample in self._samples for extension in sample.members}
        if "json" not in extensions:  # whose entries are not known before it is read
            self.fields = frozenset(ours for ours, theirs in self._extensions.items() if extensions & set(theirs))

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> RawRecord:
        sample = self._samples[index]
        name = self._place(sample)
        content = parse_object(self._read(sample, "json"), name) if "json" in sample.members else {}
        if "parts" not in content:
            for ours, extensions in self._extensions.items():
                extension = next((known for known in extensions if known in sample.members), None)
                if extension is None:
                    continue
                content[ours] = extension if ours == "image" else self._text(sample, ours, extension)
        return record_of(
            content, key=index, name=name, columns={}, read_image=lambda reference: self._image(sample, reference)
        )

    def _text(self, sample: _Sample, ours: str, extension: str) -> str | int:
        text = decode_text(self._read(sample, extension), f"{self._place(sample)}.{extension}")
        if ours != "label":
            return text
        text = text.strip()
        return int(text) if text.isdecimal() and len(text) <= _MAX_LABEL_DIGITS else text

    def _image(self, sample: _Sample, reference: str) -> RawImage:
        name = f"{self._place(sample)}.{reference}"
        if reference.lower() not in sample.members:
            images = [extension for extension in sample.members if _is_image(extension)]
            raise BadRecord(name, f"no such picture in the sample; it has {', '.join(images) or 'none'}")
        return RawImage(check_record_bytes(self._read(sample, reference.lower()), name), name)

    def _read(self, sample: _Sample, extension: str) -> bytes:
        offset, size = sample.members[extension]
        return read_at(self.files[sample.shard], offset, size, f"{self._place(sample)}.{extension}")

    def _place(self, sample: _Sample) -> str:
        return f"{self.files[sample.shard]}/{sample.name}"

    def _index_tar(self, path: Path, shard: int, rejected: list[BadRecord]) -> list[_Sample]:
        samples: dict[str, _Sample] = {}
        wanted = {"json", *(extension for known in self._extensions.values() for extension in known)}
        for member in _members(path, rejected):
            parent, _, file_name = member.name.rpartition("/")
            stem, _, extension = file_name.partition(".")  # the key ends at the first dot: WebDataset's rule
            extension = extension.lower()
            if not stem or not (extension in wanted or _is_image(extension)):
                continue
            key = f"{parent}/{stem}" if parent else stem
            sample = samples.setdefault(key, _Sample(shard, key))
            if extension in sample.members:
                rejected.append(BadRecord(f"{path}/{member.name}", f"a second {extension} for sample {key}"))
            elif member.size > MAX_RECORD_BYTES:
                rejected.append(BadRecord(f"{path}/{member.name}", f"larger than {MAX_RECORD_BYTES // 2**20} MiB"))
            else:
                sample.members[extension] = (member.offset_data, member.size)
        return list(samples.values())


def _is_image(extension: str) -> bool:
    return f".{extension}".endswith(IMAGE_SUFFIXES)


def _members(path: Path, rejected: list[BadRecord]) -> Iterator[tarfile.TarInfo]:
    """The plain files of a tar; links, names that lead out, and a damaged end go to `rejected`."""
    try:
        size = path.stat().st_size
        with tarfile.open(path, "r:") as tar:  # "r:" is uncompressed only; compressed tars allow no random access
            while (member := tar.next()) is not None:
                # tarfile would keep every header: gigabytes for millions of files
                tar.members = []  # pyright: ignore[reportAttributeAccessIssue]  (unknown to the type stubs)
                if member.isdir():
                    continue
                try:
                    _check_member(member, size)
                except BadRecord as error:
                    rejected.append(BadRecord(f"{path}/{member.name}", error.reason))
                    continue
                yield member
            end = tar.offset
        _check_end(path, end)
    except BadRecord as error:
        rejected.append(error)
    except (tarfile.TarError, OSError, ValueError) as error:
        rejected.append(BadRecord(str(path), f"not a readable uncompressed tar, or cut short ({error})"))


def open_webdataset(path: Path, split: str, columns: Mapping[str, str]) -> WebDatasetRecords:
    """A tar, or the tars of one split in a folder (see `shards.split_files`).

    Raises:
        DataError: If there are none, or none holds a sample.
    """
    return WebDatasetRecords(split_files(path, ".tar", split), columns)
