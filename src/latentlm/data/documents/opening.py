"""From a config to documents: which records make up a part, and how each becomes a document."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from latentlm.data.datasets import ImageDataConfig, Part, split_of
from latentlm.data.documents.config import DocumentDataConfig
from latentlm.data.documents.document import DocumentSource, RawDocument, RawImage
from latentlm.data.documents.formats import open_records
from latentlm.data.documents.joined import JoinedDocuments, RecordGroup, group_records, groups_within
from latentlm.data.documents.records import RawRecord, Records
from latentlm.data.documents.templates import LONE_FIELDS, DocumentTemplate, default_template, listed
from latentlm.data.images import load_image, to_unit_range
from latentlm.data.records import BadRecord, DataError
from latentlm.data.splits import make_split
from latentlm.nn.keyed_noise import combine_keys

_TEMPLATE_STREAM = 0x7E3B  # keeps the choice of templates apart from the split, which hashes the same keys
_FINGERPRINT_VERSION = 2  # counted up when the same records would become other documents


class RecordDocuments(DocumentSource):
    """The documents of some records.

    Args:
        records: Of the whole split.
        indices: Int64, the records that belong to this part.
        config: Templates and label names.

    Raises:
        DataError: If a template asks for a field that no record has, or the records need no template.
    """

    def __init__(self, records: Records, indices: np.ndarray, config: DocumentDataConfig) -> None:
        self._records = records
        self._indices = indices
        self._templates = config.parsed_templates()
        self._copies = len(self._templates) if config.every_template else 1
        self._label_names = tuple(config.label_names)
        self.rejected = records.rejected
        self._files = digest_of_files(records.files)
        self._settings = [config.format, config.columns, config.separator]
        self._settings += [config.templates, config.every_template, config.label_names]
        self._check_templates(config)

    def __len__(self) -> int:
        return len(self._indices) * self._copies

    def __getitem__(self, index: int) -> RawDocument:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} documents")
        place, copy = divmod(index, self._copies)
        record = self._records[int(self._indices[place])]
        record = replace(record, fields=self._with_label_name(record))
        return RawDocument(
            parts=record.parts or self._template(record, copy).render(record),
            key=record.key * self._copies + copy,
            name=record.name,
            fields=record.fields,
        )

    def record(self, index: int) -> int:
        """See `DocumentSource.record`."""
        return index // self._copies

    def fingerprint(self) -> str:
        """See `DocumentSource.fingerprint`; the files are stamped when the source is opened."""
        described = [_FINGERPRINT_VERSION, self._settings, self._files, len(self._records)]
        return hashlib.sha256(json.dumps(described).encode() + self._indices.astype("<i8").tobytes()).hexdigest()

    def _template(self, record: RawRecord, copy: int) -> DocumentTemplate:
        if self._templates:
            drawn = int(combine_keys(_TEMPLATE_STREAM, record.key)) % len(self._templates)
            template = self._templates[copy if self._copies > 1 else drawn]
            # A text among captioned pictures is a document; a hole in a table is a bad record.
            is_lone = self._records.fields is None and record.present in LONE_FIELDS
            if template.fields <= record.present or not is_lone:
                return template
        names = record.present if self._records.fields is None else self._records.fields
        template = default_template(names)
        if template is None:
            raise BadRecord(record.name, f"give templates: it is not clear what to say of {listed(names)}")
        return template

    def _with_label_name(self, record: RawRecord) -> Mapping[str, Any]:
        label = record.fields.get("label")
        if not self._label_names or label is None:
            return record.fields
        if not isinstance(label, int) or not 0 <= label < len(self._label_names):
            raise BadRecord(record.name, f"label {label!r} is no class id below {len(self._label_names)} (label_names)")
        return {**record.fields, "label_name": self._label_names[label]}

    def _check_templates(self, config: DocumentDataConfig) -> None:
        """Refuse at once what would make every record a bad one, where the records' fields are known."""
        if self._records.has_parts:
            if self._templates:
                raise DataError(f"{config.path}: its records have parts of their own; templates have no use")
            return
        known = self._records.fields
        if known is None:
            return
        if self._label_names and "label" in known:
            known |= {"label_name"}
        for template in self._templates:
            missing = template.fields - known
            if missing:
                raise DataError(
                    f"{config.path or config.format}: the template {template.source!r} asks for {listed(missing)}, "
                    f"but the records have {listed(known)}"
                )
        if not self._templates and default_template(known) is None:
            raise DataError(f"{config.path or config.format}: give templates: the records have {listed(known)}")


def open_documents(config: DocumentDataConfig, *, part: Part) -> DocumentSource:
    """Open one part of a data set of documents.

    `train` and `validation` divide the split `config.split` as they do for pictures (`datasets.open_images`), by
    record: all documents that templates make of a record are in one part; with `config.join`, by group. `test` is the
    data's own test split, or `config.test_path`.

    Raises:
        DataError: If the data are missing, in no known format, empty, have no such part, lack a field that a template
            asks for, or are not those of the split file.
        ImportError: If the format needs an extra; the message names it.
    """
    if part == "test":
        own = config.test_path is not None
        records = open_records(config, config.test_path if own else config.path, "train" if own else "test")
    else:
        records = open_records(config, config.path, config.split)
    joined = _join(records, config)
    indices = np.arange(len(records)) if part == "test" else _indices(records, joined, config, part)
    if len(indices) == 0:
        raise DataError(
            f"{config.path or config.format}: the part {part!r} is empty "
            f"({len(records)} records in all, validation_ratio={config.validation_ratio})"
        )
    if joined is None:
        return RecordDocuments(records, indices, config)
    groups, rejected = joined
    where = config.split_file or f"split_seed={config.split_seed}"
    settings = [config.format, json.dumps(config.columns), digest_of_files(records.files)]
    return JoinedDocuments(records, groups_within(groups, indices, where), rejected, config, settings)


def _join(records: Records, config: DocumentDataConfig) -> tuple[list[RecordGroup], list[BadRecord]] | None:
    """The groups of all records; None if each makes documents of its own."""
    if config.join is None:
        return None
    if records.has_parts:
        raise DataError(f"{config.path}: its records have parts of their own; join has no use")
    return group_records(records, config.join.by, config.joined_templates())


def _indices(
    records: Records,
    joined: tuple[list[RecordGroup], list[BadRecord]] | None,
    config: DocumentDataConfig,
    part: Part,
) -> np.ndarray:
    """The records of `train` or `validation`."""
    if joined is None or config.split_file is not None:
        split = split_of(_split_settings(config), len(records))
    else:
        of_record = np.arange(len(records))  # what is in no group stays alone
        for group in joined[0]:
            of_record[list(group.places)] = group.places[0]
        split = make_split(
            len(records), validation_ratio=config.validation_ratio, seed=config.split_seed, groups=of_record
        )
    return split.validation if part == "validation" else split.train


def open_image(image: RawImage, config: DocumentDataConfig) -> Float[Tensor, "C H W"]:
    """A picture of a document, decoded under limits and fitted to `config.image_size`, in [-1, 1].

    Raises:
        BadRecord: If it cannot be decoded or is too large.
        ValueError: If the config has no image_size.
    """
    if config.image_size is None:
        raise ValueError(f"{image.name}: the documents have pictures; give image_size")
    pixels = load_image(
        image.data,
        image.name,
        image_size=config.image_size,
        num_channels=config.num_channels,
        resize=config.resize,
        max_pixels=config.max_pixels,
    )
    return to_unit_range(torch.from_numpy(pixels.copy()))  # Pillow's memory is read-only


def _split_settings(config: DocumentDataConfig) -> ImageDataConfig:
    """The settings that `split_of` reads; the image size is not one of them, but has no default."""
    return ImageDataConfig(
        path=config.path or config.format,
        image_size=config.image_size or 1,
        validation_ratio=config.validation_ratio,
        split_seed=config.split_seed,
        split_file=config.split_file,
    )


def digest_of_files(files: Sequence[Path]) -> str:
    """SHA-256, as hex, of the stamps of some files, and of all files below those that are folders."""
    digest = hashlib.sha256()
    for file in files:
        inside = sorted(Path(parent, name) for parent, _, names in os.walk(file) for name in names)
        for one in inside if file.is_dir() else [file]:
            digest.update(json.dumps(_stamp(one)).encode())
    return digest.hexdigest()


def _stamp(file: Path) -> tuple[str, int, int]:
    """Path, size and modification time (ns). A file that vanished since it was indexed has its own, odd stamp."""
    try:
        stat = file.stat()
    except OSError:
        return str(file.absolute()), -1, -1
    return str(file.absolute()), stat.st_size, stat.st_mtime_ns
