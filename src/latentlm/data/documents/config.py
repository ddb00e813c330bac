"""What a data set of documents is, as a recipe says it."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from latentlm.data.decode import MAX_IMAGE_PIXELS
from latentlm.data.documents.joined_templates import JoinedTemplate
from latentlm.data.documents.templates import DocumentTemplate
from latentlm.data.images import Resize

DocumentFormat = Literal[
    "auto",
    "jsonl",
    "parquet",
    "webdataset",
    "text",
    "class_folder",
    "image_folder",
    "idx",
    "npz",
    "hf_dataset",
    "digits",
]


@dataclass(frozen=True, kw_only=True)
class JoinConfig:
    """Records that share a value make documents together: `joined.py`."""

    by: str
    """The field that they share: caption."""
    seed: int = 0
    """Of what is drawn: a template, a record where several fit, another group."""


@dataclass(frozen=True, kw_only=True)
class DocumentDataConfig:
    path: str | None = None
    """A file or folder. A relative one is looked for here first, then in the folder that $LATENTLM_DATA names."""
    format: DocumentFormat = "auto"
    """How to read it; `auto` tells from the path. `digits` is the embedded set and needs no path."""
    split: str = "train"
    """The split to train on, for formats that hold several."""
    test_path: str | None = None
    """The test documents, as a data set of their own; None if they are the split called `test` of `path`."""
    columns: dict[str, str] = field(default_factory=dict)
    """Our names -> the file's own, for example {image: jpg, caption: alt_text}."""
    templates: list[str] = field(default_factory=list)
    """How a record becomes a document: "{caption}{image}", "{image} This is {label_name}.". Several: each record keeps
    one, chosen by a hash of its key. None: its caption or text, then its picture. Records with parts need none, nor do
    JSON objects of nothing but a text or a picture."""
    every_template: bool = False
    """Every record is made into a document by each of the templates (without need of one it counts as often)."""
    join: JoinConfig | None = None
    """Documents of several records that share a value; the templates then say which record a field is of
    (`joined_templates.py`)."""
    label_names: list[str] = field(default_factory=list)
    """Name of each class id, for `{label_name}`, instead of the names that the data give."""
    separator: str | None = None
    """Text files only: what stands between two documents ("\\n\\n" is a blank line). None: each file is a document."""
    image_size: int | None = None
    """Side of the square picture a model sees, pixels; None for documents without pictures."""
    num_channels: int = 3
    """1 (grey) or 3 (RGB); pictures are converted."""
    resize: Resize = "center_crop"
    max_pixels: int = MAX_IMAGE_PIXELS
    """Larger pictures are not decoded but counted as bad. About 4 bytes of memory each."""
    max_bad_records: int = 100
    """Unreadable documents are named and skipped; above this number the run stops."""
    validation_ratio: float = 0.05
    """Share of the records of the training split that is held out as the part `validation`."""
    split_seed: int = 0
    """Chooses the records of the part `validation`."""
    split_file: str | None = None
    """A file of committed indices (`recipes/splits/`), instead of ratio and seed."""

    def __post_init__(self) -> None:
        if self.format not in get_args(DocumentFormat):
            raise ValueError(f"format is {self.format!r}, must be one of {', '.join(get_args(DocumentFormat))}")
        if self.format != "digits" and self.path is None:
            raise ValueError("no data: give path, a file or folder, or format=digits for the embedded digits")
        if self.format == "digits" and self.path is not None:
            raise ValueError(f"format=digits is the embedded set, but path={self.path!r} was given; leave one out")
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"image_size is {self.image_size}, must be at least 1")
        if self.num_channels not in (1, 3):
            raise ValueError(f"num_channels is {self.num_channels}, must be 1 (grey) or 3 (RGB)")
        if not 1 <= self.max_pixels <= 2**27:
            raise ValueError(f"max_pixels is {self.max_pixels}, must be between 1 and {2**27} (Pillow refuses more)")
        if self.max_bad_records < 0:
            raise ValueError(f"max_bad_records is {self.max_bad_records}, must be at least 0")
        if not 0 <= self.validation_ratio < 1:
            raise ValueError(f"validation_ratio is {self.validation_ratio}, must be in [0, 1)")
        if self.separator == "":
            raise ValueError("separator is empty; leave it out to make each file one document")
        if self.every_template and len(self.templates) < 2:
            raise ValueError(f"every_template needs at least two templates, but there are {len(self.templates)}")
        if self.join is not None and not self.templates:
            raise ValueError("join makes documents by templates alone, but there are none")
        if self.join is not None and self.label_names:
            raise ValueError("label_names are for records that make documents one by one; leave them out beside join")
        self.parsed_templates()
        self.joined_templates()

    def parsed_templates(self) -> tuple[DocumentTemplate, ...]:
        """The templates, parsed; ValueError if one is malformed. None with `join`, which has templates of its own."""
        return () if self.join is not None else tuple(map(DocumentTemplate.parse, self.templates))

    def joined_templates(self) -> tuple[JoinedTemplate, ...]:
        """The templates of several records, parsed; ValueError if one is malformed. None without `join`."""
        return () if self.join is None else tuple(map(JoinedTemplate.parse, self.templates))
