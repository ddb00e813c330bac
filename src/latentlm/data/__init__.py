"""Raw files -> batches of raw tensors. Start with `ImageDataConfig`, `open_images` and `make_loader`.

Flow: `sources/` (one reader per container format) yield records; `decode.py` opens their media under limits;
`images.py` fits pictures to tensors; `datasets.py` makes them examples, `loader.py` batches. `latents.py` keeps what a
tokenizer made of them. `documents/` reads text with pictures in it: files -> `RawDocument`s, for the mixed sequences of
LatentLM. This room never tokenizes: latents are just files to read.
"""

from latentlm.data.datasets import ImageDataConfig, ImageDataset, open_images
from latentlm.data.documents import (
    DocumentDataConfig,
    DocumentSource,
    RawDocument,
    RawImage,
    open_documents,
    open_image,
    write_jsonl,
)
from latentlm.data.groups import PictureGroups
from latentlm.data.latents import LatentDataset, LatentWriter
from latentlm.data.loader import MapDataset, TooManyBadRecords, WorkerFailure, loader_factory, make_loader, read_once
from latentlm.data.records import BadRecord, DataError

__all__ = [
    "BadRecord",
    "DataError",
    "DocumentDataConfig",
    "DocumentSource",
    "ImageDataConfig",
    "ImageDataset",
    "LatentDataset",
    "LatentWriter",
    "MapDataset",
    "PictureGroups",
    "RawDocument",
    "RawImage",
    "TooManyBadRecords",
    "WorkerFailure",
    "loader_factory",
    "make_loader",
    "open_documents",
    "open_image",
    "open_images",
    "read_once",
    "write_jsonl",
]
