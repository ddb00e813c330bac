"""Small picture files that the tests of this room share."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image


def _png(value: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (3, 3), value).save(buffer, "PNG")
    return buffer.getvalue()


def _write(path: Path, data: bytes | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_png() if data is None else data)
    return path


@pytest.fixture
def png() -> Callable[..., bytes]:
    """`png(value)`: the bytes of a 3 x 3 picture of one grey level."""
    return _png


@pytest.fixture
def write() -> Callable[..., Path]:
    """`write(path, data)`: a file with its folders; without data, a picture."""
    return _write
