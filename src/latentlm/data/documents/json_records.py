"""Records written as JSON objects: the lines of JSON Lines files and the `.json` members of tars.

Long form: `{"parts": [{"text": "A cat: "}, {"image": "cats/1.png"}, {"image_base64": "iVBORw0..."}], ...}`. Short form:
`{"text": ...}`, `{"image": ..., "caption": ...}` and the like, from which a template makes the document. Other entries
become fields. What a reference in `image` means is the container's business; a URL is a name like any other, and
nothing is fetched.
"""

import base64
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from latentlm.data.decode import check_record_bytes
from latentlm.data.documents.document import RawImage, RawPart
from latentlm.data.documents.records import MAX_DOCUMENT_BYTES, RawRecord, decode_text, renamed
from latentlm.data.records import BadRecord

MAX_JSON_DEPTH = 64
"""Nesting that is still read. A record needs 4 levels; Python's own limit depends on who calls."""

ReadImage = Callable[[str], RawImage]
"""Turns the reference of an `image` entry into the picture; raises BadRecord."""


def parse_object(data: bytes, name: str) -> dict[str, Any]:
    """One JSON object in UTF-8, checked so that nothing in it can fail later.

    Raises:
        BadRecord: If it is not one: broken, nested too deep, NaN or infinite numbers, half a surrogate pair.
    """
    text = decode_text(data, name)
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise BadRecord(name, f"JSON nested deeper than {MAX_JSON_DEPTH} levels") from error
    except ValueError as error:  # also numbers of more than 4300 digits, which Python refuses to convert
        raise BadRecord(name, f"broken JSON ({error})") from error
    if not isinstance(content, dict):
        raise BadRecord(name, f"a JSON {type(content).__name__}, expected an object such as {{'text': ...}}")
    _check_value(content, name, depth=1)
    return content


def _check_value(value: Any, name: str, depth: int) -> None:
    if isinstance(value, str):
        _check_unicode(value, name)
    elif isinstance(value, float) and not math.isfinite(value):
        raise BadRecord(name, f"the number {value}, which JSON does not have")
    elif isinstance(value, dict | list):
        if depth > MAX_JSON_DEPTH:
            raise BadRecord(name, f"JSON nested deeper than {MAX_JSON_DEPTH} levels")
        for item in [*value, *value.values()] if isinstance(value, dict) else value:
            _check_value(item, name, depth + 1)


def _check_unicode(text: str, name: str) -> None:
    """JSON can spell half of a surrogate pair (\\ud800), which is no character and has no UTF-8."""
    try:
        if not text.isascii():
            text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRecord(name, f"half of a surrogate pair at character {error.start:,} of a text") from error


def record_of(
    content: Mapping[str, Any], *, key: int, name: str, columns: Mapping[str, str], read_image: ReadImage
) -> RawRecord:
    """The record that a JSON object spells.

    Args:
        content: From `parse_object`.
        key: Of the record.
        name: Of the record.
        columns: Our names -> the object's.
        read_image: Opens what an `image` entry refers to.

    Raises:
        BadRecord: If parts or pictures are not as described above, or cannot be read.
    """
    fields = renamed(content, columns)
    if "parts" in fields:
        return RawRecord(parts=_parts(fields.pop("parts"), name, read_image), fields=fields, key=key, name=name)
    given = {kind: fields.pop(kind, None) for kind in ("image", "image_base64")}
    pictures = [_image(kind, value, name, read_image) for kind, value in given.items() if value is not None]
    if len(pictures) > 1:
        raise BadRecord(name, "has both image and image_base64; a record has one picture, or parts")
    image = pictures[0] if pictures else None
    return RawRecord(image=image, fields=fields, key=key, name=name)


def _parts(value: Any, name: str, read_image: ReadImage) -> tuple[RawPart, ...]:
    if not isinstance(value, list) or not value:
        raise BadRecord(name, "parts must be a list with at least one part")
    parts: list[RawPart] = []
    num_bytes = 0
    for number, entry in enumerate(value):
        where = f"{name}[part {number}]"
        if not isinstance(entry, dict) or len(entry) != 1 or not entry.keys() <= {"text", "image", "image_base64"}:
            found = sorted(entry) if isinstance(entry, dict) else type(entry).__name__
            raise BadRecord(where, f"expected an object with one of text, image, image_base64, found {found}")
        ((kind, content),) = entry.items()
        if kind == "text":
            if not isinstance(content, str):
                raise BadRecord(where, f"text is a {type(content).__name__}, expected a string")
            parts.append(content)
            continue
        image = _image(kind, content, where, read_image)
        num_bytes += len(image.data)
        if num_bytes > MAX_DOCUMENT_BYTES:
            raise BadRecord(name, f"pictures of more than {MAX_DOCUMENT_BYTES // 2**20} MiB in one document")
        parts.append(image)
    return tuple(parts)


def _image(kind: str, value: Any, where: str, read_image: ReadImage) -> RawImage:
    if not isinstance(value, str):
        raise BadRecord(where, f"{kind} is a {type(value).__name__}, expected a string")
    if kind == "image":
        return read_image(value)
    try:
        data = base64.b64decode(value, validate=True)
    except ValueError as error:
        raise BadRecord(where, f"image_base64 is not base64 ({error})") from error
    return RawImage(check_record_bytes(data, where), where)
