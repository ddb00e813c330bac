"""Documents to JSON Lines, so that generated or converted data can be kept, read by people, and trained on."""

import base64
import io
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from latentlm.data.decode import DECODER_ERRORS, IMAGE_FORMATS, check_record_bytes
from latentlm.data.documents.document import RawDocument, RawImage
from latentlm.data.documents.json_records import parse_object
from latentlm.data.documents.jsonl import MAX_LINE_BYTES
from latentlm.data.records import DataError

ImagePlace = Literal["embedded", "files"]


def write_jsonl(path: Path, documents: Iterable[RawDocument], *, images: ImagePlace = "embedded") -> int:
    """Write documents, one per line; reading them gives the same parts and fields (key and name are the new file's).

    Encoded pictures are kept byte by byte, pixels become PNG. The file appears under its name when it is whole.

    Args:
        path: The new file.
        documents: In the order of the lines; read one at a time.
        images: `embedded` in the lines as base64, or `files` in the folder `<name>_images` beside the file.

    Returns:
        How many were written.

    Raises:
        DataError: If the file or the folder of pictures exists already.
        ValueError: If a document cannot be written so that it would be read back the same: fields that are not JSON or
            are called `parts`, half of a surrogate pair, an empty picture, or a line above the reader's limit.
    """
    folder = path.with_name(f"{path.stem}_images")
    for existing in (path, *((folder,) if images == "files" else ())):
        if existing.exists():
            raise DataError(f"{existing} exists already; remove it, or choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.staging-", dir=path.parent) as staging:
        staged, staged_folder = Path(staging) / path.name, Path(staging) / folder.name
        with staged.open("xb") as file:
            for document in documents:
                file.write(_line(document, count, staged_folder if images == "files" else None))
                count += 1
        if staged_folder.exists():
            staged_folder.rename(folder)
        staged.rename(path)
    return count


def _line(document: RawDocument, number: int, folder: Path | None) -> bytes:
    _check_fields(document)
    parts: list[dict[str, str]] = []
    for place, part in enumerate(document.parts):
        if isinstance(part, str):
            parts.append({"text": part})
        elif not isinstance(part, RawImage):
            raise ValueError(f"{document.name}: holds latents of {part.name}, which JSON Lines has no place for")
        elif folder is None:
            parts.append({"image_base64": base64.b64encode(_encoded(part)).decode("ascii")})
        else:
            parts.append({"image": _write_image(part, folder, f"{number:08d}_{place}")})
    try:
        line = json.dumps({"parts": parts, **document.fields}, ensure_ascii=False).encode("utf-8") + b"\n"
    except UnicodeEncodeError as error:
        raise ValueError(f"{document.name}: half of a surrogate pair in a text, which has no UTF-8") from error
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(
            f"{document.name}: takes a line of {len(line):,} bytes, above the reader's limit of {MAX_LINE_BYTES:,}; "
            "write its pictures as files"
        )
    return line


def _check_fields(document: RawDocument) -> None:
    """JSON would turn a tuple into a list and the key 1 into "1" without a word."""
    fields = dict(document.fields)
    if "parts" in fields:
        raise ValueError(f"{document.name}: a field is called parts, which is where the document itself is written")
    try:
        same = parse_object(json.dumps(fields, allow_nan=False).encode(), document.name) == fields
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{document.name}: its fields are not JSON that the reader takes ({error})") from error
    if not same:
        raise ValueError(f"{document.name}: its fields change in JSON; are there tuples, or keys that are no texts?")


def _encoded(image: RawImage) -> bytes:
    if isinstance(image.data, bytes):
        return check_record_bytes(image.data, image.name)
    return _png(image.data, image.name)


def _png(pixels: np.ndarray, name: str) -> bytes:
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    shaped = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
    if pixels.dtype != np.uint8 or not shaped or pixels.size == 0:
        raise ValueError(
            f"{name}: an array of {pixels.dtype} {pixels.shape}, expected uint8 [H, W] or [H, W, 1, 3 or 4]"
        )
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
    return buffer.getvalue()


def _write_image(image: RawImage, folder: Path, stem: str) -> str:
    """Write one picture file; returns its name relative to the JSON Lines file."""
    data = _encoded(image)
    name = f"{stem}.{_suffix(data, image.name)}"
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    return f"{folder.name}/{name}"


def _suffix(data: bytes, name: str) -> str:
    try:
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:  # reads the header only
            return str(image.format).lower()
    except (*DECODER_ERRORS, Image.DecompressionBombError) as error:
        raise ValueError(f"{name}: not a picture that could be read back ({error})") from error
