"""Templates: how a record of columns becomes a document. `"{image} This is {label_name}."` -> picture, then text.

A field in braces is replaced by the record's value, `{image}` by its picture, `{speech}` by its sound; `{{` and `}}`
are literal braces. The template is parsed once, and values are only ever joined: `str.format` on data would let a
column name such as `{caption.__class__}` read the program, and would let a caption that says `{image}` place a picture.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass

from latentlm.data.documents.document import RawPart
from latentlm.data.documents.records import RawRecord
from latentlm.data.records import BadRecord

IMAGE_FIELD = "image"
MEDIA_FIELDS = (IMAGE_FIELD, "speech")
LONE_FIELDS = (frozenset({"text"}), frozenset({IMAGE_FIELD}))
"""Records of one of these fields alone need no template: there is one thing to say of them."""
_TOKEN = re.compile(r"\{\{|\}\}|\{[^{}]*\}|[{}]|[^{}]+")


@dataclass(frozen=True)
class Field:
    """A place that a column of the record fills."""

    name: str


@dataclass(frozen=True)
class DocumentTemplate:
    """A parsed template.

    Attributes:
        source: The string it was parsed from, for messages.
        pieces: Literal texts and fields, in order.
    """

    source: str
    pieces: tuple[str | Field, ...]

    @classmethod
    def parse(cls, source: str) -> "DocumentTemplate":
        """Parse a template string.

        Raises:
            ValueError: If it is empty, a brace stands alone, or a field has no name; the message gives the place.
        """
        pieces: list[str | Field] = []
        for match in _TOKEN.finditer(source):
            token = match.group()
            where = f"the template {source!r}, character {match.start()}"
            if token in ("{{", "}}"):
                pieces.append(token[0])
            elif token in ("{", "}"):
                raise ValueError(f"{where}: a single {token!r}; a field is written {{caption}}, a brace {token * 2}")
            elif token.startswith("{"):
                name = token[1:-1]
                if not name.strip():
                    raise ValueError(f"{where}: a field without a name; a field is written {{caption}}")
                pieces.append(Field(name))
            else:
                pieces.append(token)
        if not pieces:
            raise ValueError("a template is empty; a document has at least a field or a text")
        return cls(source, tuple(pieces))

    @property
    def fields(self) -> frozenset[str]:
        """The names in braces."""
        return frozenset(piece.name for piece in self.pieces if isinstance(piece, Field))

    def render(self, record: RawRecord) -> tuple[RawPart, ...]:
        """The document of a record: text between two pictures is one part, even if its fields are empty texts.

        Raises:
            BadRecord: If the record lacks a field, or a field is neither text nor number.
        """
        parts: list[RawPart] = []
        stretch: list[str] = []
        media = record.media
        for piece in self.pieces:
            if isinstance(piece, str) or piece.name not in MEDIA_FIELDS:
                stretch.append(piece if isinstance(piece, str) else self._text(piece.name, record))
                continue
            if piece.name not in media:
                raise self._missing(piece.name, record)
            if stretch:
                parts.append("".join(stretch))
                stretch = []
            parts.append(media[piece.name])
        if stretch:
            parts.append("".join(stretch))
        return tuple(parts)

    def _text(self, name: str, record: RawRecord) -> str:
        value = record.fields.get(name)
        if value is None:
            raise self._missing(name, record)
        if isinstance(value, str):
            return value
        if isinstance(value, int | float):
            return str(value)
        kind = type(value).__name__
        raise BadRecord(record.name, f"its {name} is a {kind}; the template {self.source!r} takes texts and numbers")

    def _missing(self, name: str, record: RawRecord) -> BadRecord:
        return BadRecord(
            record.name,
            f"has no {name}, which the template {self.source!r} asks for; it has {listed(record.present)}",
        )


def default_template(names: Collection[str]) -> DocumentTemplate | None:
    """What a record with these fields says if nobody wrote a template: its caption or text, then its picture.

    Text first is text-to-image order (the paper does not say which order its pairs have); give both orders as
    templates to train both ways.

    Returns:
        None if there is nothing to say, or both a caption and a text to choose from.
    """
    texts = [name for name in ("caption", "text") if name in names]
    chosen = [Field(name) for name in (*texts, IMAGE_FIELD) if name in names]
    if not chosen or len(texts) == 2:
        return None
    return DocumentTemplate("".join(f"{{{field.name}}}" for field in chosen), tuple(chosen))


def listed(names: Collection[str]) -> str:
    """Field names for a message."""
    return ", ".join(sorted(names)) or "nothing"
