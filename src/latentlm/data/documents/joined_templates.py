"""Templates over several records: "{image:style=noto} in fluent_3d: {image:style=fluent_3d}" -> picture, text, picture.

    {caption}                what all records of the group agree in
    {image:style=noto}       of the record of the group whose `style` is `noto`
    {other.image:style=noto} of such a record of another group, drawn by a hash; all `other` fields of a document are of
                             one group

They are `DocumentTemplate`s otherwise: parsed once, and values are only ever joined.
"""

import re
from dataclasses import dataclass

from latentlm.data.documents.templates import MEDIA_FIELDS, DocumentTemplate, Field

_FIELD = re.compile(r"(?P<other>other\.)?(?P<name>[^:]+)(?::(?P<column>[^=]+)=(?P<value>.*))?", re.DOTALL)


@dataclass(frozen=True)
class RecordField:
    """A place that a record of a group fills.

    Attributes:
        name: The record's field, or a medium such as `image`.
        chosen_by: The field by which the record is chosen, and its value as text; None for what all agree in.
        of_other: It is a record of another group.
    """

    name: str
    chosen_by: tuple[str, str] | None
    of_other: bool

    @property
    def is_medium(self) -> bool:
        """Whether no text stands here, but a picture or a sound."""
        return self.name in MEDIA_FIELDS


@dataclass(frozen=True)
class JoinedTemplate:
    """A parsed template.

    Attributes:
        source: The string it was parsed from.
        pieces: Literal texts and fields, in order.
    """

    source: str
    pieces: tuple[str | RecordField, ...]

    @classmethod
    def parse(cls, source: str) -> "JoinedTemplate":
        """Parse a template string.

        Raises:
            ValueError: If braces or fields are malformed, or a medium is asked for without saying whose.
        """
        pieces = DocumentTemplate.parse(source).pieces
        return cls(
            source, tuple(_parse_field(piece, source) if isinstance(piece, Field) else piece for piece in pieces)
        )

    @property
    def fields(self) -> tuple[RecordField, ...]:
        """In order."""
        return tuple(piece for piece in self.pieces if isinstance(piece, RecordField))

    def choices(self, *, of_other: bool) -> frozenset[tuple[str, str]]:
        """By which fields and values records are chosen, in the own group or in the other."""
        return frozenset(
            field.chosen_by for field in self.fields if field.of_other == of_other and field.chosen_by is not None
        )

    @property
    def needs_other(self) -> bool:
        """Whether it takes anything from another group."""
        return any(field.of_other for field in self.fields)


def _parse_field(piece: Field, source: str) -> RecordField:
    match = _FIELD.fullmatch(piece.name)
    if match is None:
        raise ValueError(
            f"the template {source!r} has a field {{{piece.name}}}; over several records a field is written "
            "{caption}, {image:style=noto} or {other.image:style=noto}"
        )
    chosen_by = None if match["column"] is None else (match["column"], match["value"])
    field = RecordField(match["name"], chosen_by, match["other"] is not None)
    if field.is_medium and chosen_by is None:
        raise ValueError(
            f"the template {source!r} does not say of which record {{{piece.name}}} is; write {{image:style=noto}}"
        )
    return field
