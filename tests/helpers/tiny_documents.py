"""Documents made up for tests, and a tiny recipe that trains on some."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tiny_models import tiny_image_tokenizer

from latentlm.catalog import KINDS
from latentlm.config import from_mapping
from latentlm.data.documents import DocumentSource, RawDocument, RawImage, RawPart, write_jsonl
from latentlm.data.records import BadRecord


def picture(value: int, *, side: int = 8) -> RawImage:
    """A grey picture whose pixels depend on `value`."""
    pixels = np.random.default_rng(value).integers(0, 256, (side, side), dtype=np.uint8)
    return RawImage(pixels, f"picture {value}")


class ListedDocuments(DocumentSource):
    """Documents from a list; those that are None cannot be read."""

    def __init__(self, documents: Sequence[tuple[RawPart, ...] | None]) -> None:
        self.documents = list(documents)

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, index: int) -> RawDocument:
        parts = self.documents[index]
        if parts is None:
            raise BadRecord(f"document {index}", "made unreadable")
        return RawDocument(parts, key=index, name=f"document {index}")

    def fingerprint(self) -> str:
        return str(len(self))


def save_tiny_documents(folder: Path, *, count: int = 40) -> Path:
    """A JSONL file of captions with pictures of 8 x 8, text alone, and pictures between texts."""
    documents = []
    for i in range(count):
        parts: tuple[RawPart, ...] = (f"number {i % 7}", picture(i % 7))
        if i % 3 == 1:
            parts = (f"words about {i} and no more",)
        elif i % 3 == 2:
            parts = (picture(i % 7), f"is {i % 7}; ", picture(i % 5), "end")
        documents.append(RawDocument(parts, key=i, name=str(i)))
    path = folder / "documents.jsonl"
    write_jsonl(path, documents)
    return path


def tiny_multimodal_recipe(folder: Path, **changes: Any) -> Any:
    """Two sources of the same documents, text and pictures; tokenizer and data are written into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "tokenizer").exists():
        tiny_image_tokenizer().save_pretrained(folder / "tokenizer")
        save_tiny_documents(folder)
    (folder / "text.txt").write_text("\n\n".join(f"line {i} of a text" for i in range(60)))
    mapping: dict[str, Any] = {
        "kind": "multimodal",
        "sources": {
            "mixed": {"data": {"path": str(folder / "documents.jsonl"), "validation_ratio": 0.2}},
            "text": {"data": {"path": str(folder / "text.txt"), "separator": "\n\n", "validation_ratio": 0.2}},
        },
        "tokenizer": str(folder / "tokenizer"),
        "max_length": 48,
        "model": {
            "vocabulary": {"switch_tokens": True},
            "transformer": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 24},
            "modalities": {"image": {"latent_dim": 6, "head": {"num_layers": 1}}},
        },
        "generation": {"cfg_scale": 1.5, "solver": {"num_inference_steps": 2}},
        "optim": {"lr": 1.0e-3, "num_warmup_steps": 1},
        "trainer": {"num_steps": 2, "batch_size": 16, "tensorboard": False, "device": "cpu"},
    }
    for name, value in changes.items():
        *parents, last = name.split("__")
        place = mapping
        for parent in parents:
            place = place[parent]
        place[last] = value
    return from_mapping(KINDS["multimodal"].recipe_class, json.loads(json.dumps(mapping)))
