"""What the tests of documents share: opening all of a file, and comparing what documents say."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from latentlm.data.documents import DocumentDataConfig, RawDocument, RecordDocuments, open_documents


def _said(document: RawDocument) -> list:
    """The parts, pictures as their bytes or nested lists of pixels."""
    return [part if isinstance(part, str) else ("image", _plain(part.data)) for part in document.parts]


def _plain(data: bytes | np.ndarray) -> bytes | list:
    return data if isinstance(data, bytes) else data.tolist()


def _open_all(path: Path, **options) -> RecordDocuments:
    return open_documents(DocumentDataConfig(path=str(path), validation_ratio=0.0, **options), part="train")


@pytest.fixture
def said() -> Callable[[RawDocument], list]:
    """`said(document)`: its parts in a form that `==` compares."""
    return _said


@pytest.fixture
def open_all() -> Callable[..., RecordDocuments]:
    """`open_all(path, **config)`: every document of a file or folder."""
    return _open_all
