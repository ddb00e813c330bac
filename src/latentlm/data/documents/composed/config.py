"""What a data set of composed documents is, as a recipe says it."""

import math
from dataclasses import dataclass, field

from latentlm.data.datasets import ImageDataConfig, SourceFormat
from latentlm.data.decode import MAX_IMAGE_PIXELS
from latentlm.data.documents.composed.tasks import TASKS
from latentlm.data.images import Resize


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """One labelled set of pictures, and what its classes are called."""

    path: str | None = None
    """A file or folder. A relative one is looked for here first, then in the folder that $LATENTLM_DATA names."""
    source: SourceFormat = "auto"
    """The format; `auto` tells it from the path. `digits` is the embedded set and needs no path."""
    split: str = "train"
    """The split to train on, for formats that hold several."""
    test_path: str | None = None
    """The test pictures, as a data set of their own; None if they are the split called `test` of `path`."""
    columns: dict[str, str] = field(default_factory=dict)
    """Our record names -> the file's own, for example {image: img, label: fine_label}."""
    names: list[str] = field(default_factory=list)
    """What each class id is called in texts ("ankle boot"); empty: the names that the data give."""
    plurals: list[str] = field(default_factory=list)
    """The plural of each name; empty: with "s", or "es" after s, x, z, ch, sh."""
    validation_ratio: float = 0.05
    """Share of the training split that is held out as the part `validation`."""
    split_seed: int = 0
    """Chooses the pictures of the part `validation`."""
    split_file: str | None = None
    """A file of committed indices (`recipes/splits/`), instead of ratio and seed."""

    def __post_init__(self) -> None:
        if self.plurals and len(self.plurals) != len(self.names):
            raise ValueError(f"plurals has {len(self.plurals)} entries for {len(self.names)} names; give one for each")
        if self.source == "digits" and (self.path or self.test_path):
            raise ValueError("source=digits is the embedded set, with test pictures of its own; leave the paths out")
        self.image_data()  # refuses what is wrong with path, source, columns and ratio

    def image_data(self) -> ImageDataConfig:
        """The pool as a data set of pictures; its size says nothing, for pictures are fitted when they are read."""
        return ImageDataConfig(
            image_size=1,
            source=self.source,
            path=self.path,
            split=self.split,
            test_path=self.test_path,
            columns=self.columns,
            validation_ratio=self.validation_ratio,
            split_seed=self.split_seed,
            split_file=self.split_file,
        )


@dataclass(frozen=True, kw_only=True)
class ComposedDataConfig:
    """Documents composed from labelled pictures. Fields below `seed` mean what they do in `DocumentDataConfig`."""

    pools: dict[str, PoolConfig]
    """Labelled pictures, by the noun for all of their classes: {digit: ..., garment: ...} asks "Which digit is it?"."""
    tasks: dict[str, float] = field(default_factory=lambda: dict.fromkeys(TASKS, 1.0))
    """Task (a row of `tasks.TASKS`) -> its share of the documents, up to a common factor. Not given: all alike."""
    num_documents: int = 60_000
    """Documents of the part `train`; an epoch is these, again."""
    num_held_out_documents: int = 2_000
    """Documents of the parts `validation` and `test`, each."""
    seed: int = 0
    """Another one, other documents from the same pictures. Every part draws from a stream of its own."""
    image_size: int | None = None
    """Side of the square picture a model sees, pixels, whatever the pools hold."""
    num_channels: int = 3
    """1 (grey) or 3 (RGB); pictures are converted."""
    resize: Resize = "center_crop"
    max_pixels: int = MAX_IMAGE_PIXELS
    """Larger pictures are not decoded but counted as bad. About 4 bytes of memory each."""
    max_bad_records: int = 100
    """Documents with an unreadable picture are named and skipped; above this number the run stops."""

    def __post_init__(self) -> None:
        if not self.pools:
            raise ValueError("pools is empty: name at least one set of labelled pictures")
        if not all(noun.strip() for noun in self.pools):
            raise ValueError("a pool has a blank name; it is the noun that texts use, such as digit")
        self._check_tasks()
        for name in ("num_documents", "num_held_out_documents"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, must be at least 1")
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"image_size is {self.image_size}, must be at least 1")
        if self.num_channels not in (1, 3):
            raise ValueError(f"num_channels is {self.num_channels}, must be 1 (grey) or 3 (RGB)")
        if not 1 <= self.max_pixels <= 2**27:
            raise ValueError(f"max_pixels is {self.max_pixels}, must be between 1 and {2**27} (Pillow refuses more)")
        if self.max_bad_records < 0:
            raise ValueError(f"max_bad_records is {self.max_bad_records}, must be at least 0")

    def _check_tasks(self) -> None:
        unknown = self.tasks.keys() - TASKS.keys()
        if unknown:
            raise ValueError(f"tasks names {', '.join(sorted(unknown))}, but the tasks are {', '.join(TASKS)}")
        if not all(math.isfinite(weight) and weight >= 0 for weight in self.tasks.values()):
            raise ValueError(f"tasks has a weight that is negative or no number: {self.tasks}")
        if not any(self.tasks.values()):
            raise ValueError("tasks gives no task a weight above 0: there is nothing to compose")

    @property
    def validation_ratio(self) -> float:
        """The smallest of the pools': above 0 if all of them hold pictures out."""
        return min(pool.validation_ratio for pool in self.pools.values())
