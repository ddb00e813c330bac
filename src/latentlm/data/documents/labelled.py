"""Any source of pictures as records of documents: class folders, NPZ and IDX arrays, saved data sets, the digits."""

from collections.abc import Sequence
from pathlib import Path

from latentlm.data.documents.document import RawImage
from latentlm.data.documents.records import RawRecord, Records
from latentlm.data.records import Source

_NOT_FIELDS = ("image", "audio", "key", "name")  # media are no texts, key and name have places of their own


class LabelledRecords(Records):
    """The records of a source of pictures; fields `label` and `label_name` where it has labels, `caption`, `text`.

    Args:
        source: Opened by `datasets.open_source` or a reader of `sources/`.
        files: What the source was read from, for fingerprints.
    """

    def __init__(self, source: Source, files: Sequence[Path]) -> None:
        self._source = source
        self.files = tuple(files)
        self.rejected = source.rejected
        names = source.fields - {"audio"}
        self.fields = names | {"label_name"} if "label" in names else names

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> RawRecord:
        record = self._source[index]
        fields = {name: value for name, value in record.items() if name not in _NOT_FIELDS}
        if "label" in fields:
            fields["label_name"] = self._source.label_names[fields["label"]]
        name = record["name"]
        image = RawImage(record["image"], name) if record.get("image") is not None else None
        return RawRecord(image=image, fields=fields, key=record["key"], name=name)
