"""Image data sets: a config, and the map-style data set it opens.

Whatever the format, an example is `{"image": Float [C, H, W] in [-1, 1], "label": int, "key": int}`, plus `caption`
where the source has one. `key` is the record's place in its source: it names a picture in every epoch, part and batch,
and keyed noise hangs on it.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from latentlm.data.decode import MAX_IMAGE_PIXELS
from latentlm.data.images import Resize, flip_keyed, load_image, to_unit_range
from latentlm.data.loader import Batch, MapDataset
from latentlm.data.records import RECORD_NAMES, DataError, Source
from latentlm.data.sources import OPENERS, detect_format
from latentlm.data.sources.concatenated import ConcatenatedSource
from latentlm.data.sources.digits import DigitsSource
from latentlm.data.sources.renumbered import RenumberedSource, names_are_numbers
from latentlm.data.splits import Split, make_split, read_split

Part = Literal["train", "validation", "test"]
SourceFormat = Literal[
    "auto", "digits", "class_folder", "image_folder", "idx", "npz", "parquet", "webdataset", "hf_dataset"
]


@dataclass(frozen=True, kw_only=True)
class ImageDataConfig:
    image_size: int
    """Side of the square picture a model sees, pixels."""
    num_channels: int = 3
    """1 (grey) or 3 (RGB); pictures are converted."""
    source: SourceFormat = "auto"
    """The format; `auto` tells it from the path. `digits` is the embedded set and needs no path."""
    path: str | None = None
    """A file or folder. A relative one is looked for here first, then in the folder that $LATENTLM_DATA names."""
    split: str = "train"
    """The split to train on, for formats that hold several."""
    test_path: str | None = None
    """The test pictures, as a data set of their own; None if they are the split called `test` of `path`."""
    additional_paths: list[str] = field(default_factory=list)
    """Further data sets that are put behind `path`, their classes numbered on; a split file counts through all."""
    additional_test_paths: list[str] = field(default_factory=list)
    """The test pictures of those, in the same order."""
    columns: dict[str, str] = field(default_factory=dict)
    """Our record names -> the file's own, for example {image: img, label: fine_label}."""
    resize: Resize = "center_crop"
    horizontal_flip: bool = False
    """Mirror half of the pictures in training, anew each epoch. Not for digits or letters."""
    validation_ratio: float = 0.05
    """Share of the training split that is held out as the part `validation`."""
    split_seed: int = 0
    """Chooses the pictures of the part `validation`."""
    split_file: str | None = None
    """A file of committed indices, such as fashion_mnist.json (`recipes/splits/`), instead of ratio and seed."""
    max_bad_records: int = 100
    """Unreadable pictures are named and skipped; above this number the run stops."""
    max_pixels: int = MAX_IMAGE_PIXELS
    """Larger pictures are not decoded but counted as bad. About 4 bytes of memory each."""

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ValueError(f"image_size is {self.image_size}, must be at least 1")
        if self.num_channels not in (1, 3):
            raise ValueError(f"num_channels is {self.num_channels}, must be 1 (grey) or 3 (RGB)")
        if not 0 <= self.validation_ratio < 1:
            raise ValueError(f"validation_ratio is {self.validation_ratio}, must be in [0, 1)")
        if self.max_bad_records < 0:
            raise ValueError(f"max_bad_records is {self.max_bad_records}, must be at least 0")
        if not 1 <= self.max_pixels <= 2**27:
            raise ValueError(f"max_pixels is {self.max_pixels}, must be between 1 and {2**27} (Pillow refuses more)")
        if self.source not in get_args(SourceFormat):
            raise ValueError(f"source is {self.source!r}, must be one of {', '.join(get_args(SourceFormat))}")
        if self.source != "digits" and self.path is None:
            raise ValueError("no data: give path, a file or folder, or source=digits for the embedded digits")
        if self.additional_test_paths and self.test_path is None:
            raise ValueError("additional_test_paths go with test_path: give the test pictures of `path` too")
        unknown = set(self.columns) - set(RECORD_NAMES)
        if unknown:
            raise ValueError(f"columns maps {sorted(unknown)}, but records have only {', '.join(RECORD_NAMES)}")


class ImageDataset(MapDataset):
    """Pictures of one part of a source, decoded and fitted on access.

    Args:
        source: Where the records come from.
        indices: Int64, the records of `source` that belong to this part.
        config: How to decode and fit them.
        augment: Whether `config.horizontal_flip` applies (training only).
    """

    def __init__(self, source: Source, indices: np.ndarray, config: ImageDataConfig, *, augment: bool) -> None:
        super().__init__(rejected=source.rejected, max_bad_records=config.max_bad_records)
        if "image" not in source.fields:
            raise DataError(f"{config.path}: has no images, only {', '.join(sorted(source.fields))}")
        self.source = source
        self.indices = indices
        self.config = config
        self._flips = augment and config.horizontal_flip

    @property
    def label_names(self) -> tuple[str, ...]:
        """Name of each class; a source without labels has the one class `unlabelled`."""
        return self.source.label_names

    @property
    def num_classes(self) -> int:
        """Number of classes: labels are in [0, num_classes)."""
        return len(self.source.label_names)

    @property
    def labels(self) -> np.ndarray:
        """Int64 [len], known without decoding a picture."""
        return self.source.labels[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One example, never flipped.

        Raises:
            BadRecord: If the picture cannot be used; the message names the file and the reason.
            IndexError: If `index` is outside [0, len).
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} pictures")
        config = self.config
        record = self.source[int(self.indices[index])]
        pixels = load_image(
            record["image"],
            record["name"],
            image_size=config.image_size,
            num_channels=config.num_channels,
            resize=config.resize,
            max_pixels=config.max_pixels,
        )
        image = to_unit_range(torch.from_numpy(pixels.copy()))  # Pillow's memory is read-only
        example = {"image": image, "label": record.get("label", 0), "key": record["key"]}
        if "caption" in record:
            example["caption"] = record["caption"]
        return example

    def take(self, indices: Sequence[int]) -> Batch | None:
        """A batch by plain indexing, if all pictures are in memory in the right size; None otherwise."""
        ready = self._pixels_of_right_size()
        if ready is None:
            return None
        chosen = self.indices[np.asarray(indices)]
        pixels = torch.from_numpy(ready[chosen])  # [B, H, W, C or 1]
        images = to_unit_range(pixels).expand(-1, self.config.num_channels, -1, -1).contiguous()
        labels = torch.from_numpy(self.source.labels[chosen])
        return {"image": images, "label": labels, "key": torch.from_numpy(self.source.keys(chosen))}

    def augment(self, batch: Batch, *, seed: int, epochs: torch.Tensor) -> Batch:
        """Flip, keyed by (seed, epoch, key); see `loader.make_loader`."""
        if not self._flips:
            return batch
        return {**batch, "image": flip_keyed(batch["image"], seed=seed, epochs=epochs, keys=batch["key"])}

    def _pixels_of_right_size(self) -> np.ndarray | None:
        pixels = self.source.pixels
        size = self.config.image_size
        if pixels is None or pixels.shape[1:3] != (size, size):
            return None
        if pixels.ndim == 3:
            pixels = pixels[..., None]
        return pixels if pixels.shape[3] in (1, self.config.num_channels) else None


def open_images(config: ImageDataConfig, *, part: Part) -> ImageDataset:
    """Open one part of an image data set.

    `train` and `validation` share the split `config.split`: a picture belongs to `validation` if `config.split_file`
    says so or, without one, if a hash of (split_seed, its index) is among the smallest `validation_ratio` of all.
    `test` is the source's own test split, or `config.test_path`. Its classes have the training split's numbers: names
    that few test pictures bear would otherwise be counted anew.

    Raises:
        DataError: If the data are missing, in no known format, empty, have no such part, are not those of the split
            file, or have test classes that are not in training.
        ImportError: If the format needs the extra `data`; the message says so.
    """
    if part == "test":
        if config.test_path is None:
            source = open_source(config, split="test")
        else:  # data sets of their own
            source = _open_paths([config.test_path, *config.additional_test_paths], config, split="train")
        if not names_are_numbers(source.label_names):
            source = RenumberedSource(source, open_source(config, split=config.split).label_names)
        indices = np.arange(len(source))
    else:
        source = open_source(config, split=config.split)
        parts = split_of(config, len(source))
        indices = parts.validation if part == "validation" else parts.train
    if len(indices) == 0:
        raise DataError(
            f"{config.path or config.source}: the part {part!r} is empty "
            f"({len(source)} records in all, validation_ratio={config.validation_ratio})"
        )
    return ImageDataset(source, indices, config, augment=part == "train")


def split_of(config: ImageDataConfig, num_records: int) -> Split:
    """How the training split of this many records is divided.

    Raises:
        DataError: If the split file is missing, damaged, or made for another number of records.
    """
    if config.split_file is None:
        return make_split(num_records, validation_ratio=config.validation_ratio, seed=config.split_seed)
    split = read_split(config.split_file)
    if split.num_records != num_records:
        raise DataError(
            f"{config.split_file} divides {split.num_records} records ({split.data}), but "
            f"{config.path or config.source} has {num_records}"
        )
    return split


def open_source(config: ImageDataConfig, *, split: str) -> Source:
    """The records of one split, before they are divided into parts and decoded. Errors as in `open_images`."""
    if config.source == "digits":
        return DigitsSource(split)
    assert config.path is not None  # checked by the config
    return _open_paths([config.path, *config.additional_paths], config, split)


def _open_paths(paths: Sequence[str], config: ImageDataConfig, split: str) -> Source:
    sources = [_open_path(resolve_path(path), config, split) for path in paths]
    return sources[0] if len(sources) == 1 else ConcatenatedSource(sources)


def _open_path(path: Path, config: ImageDataConfig, split: str) -> Source:
    name = detect_format(path, split) if config.source == "auto" else config.source
    return OPENERS[name](path, split, config.columns)


def resolve_path(path: str) -> Path:
    """Where `path` is: as given, else below $LATENTLM_DATA.

    Raises:
        DataError: If it is in neither place; both are named.
    """
    given = Path(path).expanduser()
    tried = [given]
    root = os.environ.get("LATENTLM_DATA")
    if root and not given.is_absolute():
        tried.append(Path(root).expanduser() / given)
    for candidate in tried:
        if candidate.exists():
            return candidate
    places = " or ".join(str(candidate.absolute()) for candidate in tried)
    hint = (
        ""
        if root or given.is_absolute()
        else "; relative paths are also looked for in $LATENTLM_DATA, which is not set"
    )
    raise DataError(f"no data at {places}{hint}")
