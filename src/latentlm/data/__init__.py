"""Raw files -> batches of raw tensors. Start with `ImageDataConfig`, `open_images` and `make_loader`.

Flow: `sources/` (one reader per container format) yield records; `decode.py` opens their media under limits;
`images.py` fits pictures to tensors; `datasets.py` makes them examples, `loader.py` batches. `latents.py` keeps what a
tokenizer made of them. This room never tokenizes: latents are just files to read.
"""

from latentlm.data.datasets import ImageDataConfig, ImageDataset, open_images
from latentlm.data.groups import PictureGroups
from latentlm.data.latents import LatentDataset, LatentWriter
from latentlm.data.loader import MapDataset, TooManyBadRecords, WorkerFailure, loader_factory, make_loader, read_once
from latentlm.data.records import BadRecord, DataError

__all__ = [
    "BadRecord",
    "DataError",
    "ImageDataConfig",
    "ImageDataset",
    "LatentDataset",
    "LatentWriter",
    "MapDataset",
    "PictureGroups",
    "TooManyBadRecords",
    "WorkerFailure",
    "loader_factory",
    "make_loader",
    "open_images",
    "read_once",
]
