"""Documents of several records of one table: those that share a value, such as drawings of one caption in three styles.

    records ─by `join.by`▶ groups ─templates that say which record▶ RawDocument(picture, " in fluent_3d:", picture)

A document is a pure function of (records, config, part, index). All records of a group are in one part.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from latentlm.data.documents.config import DocumentDataConfig
from latentlm.data.documents.document import DocumentSource, RawDocument, RawPart
from latentlm.data.documents.joined_templates import JoinedTemplate, RecordField
from latentlm.data.documents.records import RawRecord, Records
from latentlm.data.documents.templates import listed
from latentlm.data.records import BadRecord, DataError
from latentlm.nn.keyed_noise import combine_keys

_TEMPLATE_STREAM, _OTHER_STREAM, _RECORD_STREAM = 0x1011, 0x1012, 0x1013
_FINGERPRINT_VERSION = 1  # counted up when the same records would become other documents
_NUM_RECENT = 64
"""Records that are kept: the documents of one group stand side by side, and reading a record costs a millisecond."""


@dataclass(frozen=True)
class RecordGroup:
    """The records that share a value.

    Attributes:
        value: What they share.
        places: Of its records, in order.
        chosen: (field, value) -> places of the records that have it.
    """

    value: str
    places: tuple[int, ...]
    chosen: Mapping[tuple[str, str], tuple[int, ...]]

    def has(self, choices: frozenset[tuple[str, str]]) -> bool:
        """Whether each choice finds a record."""
        return choices <= self.chosen.keys()


class JoinedDocuments(DocumentSource):
    """The documents of one part.

    With `every_template` a group makes a document by each template that it can fill, or else by one of them, chosen by
    a hash. A group that can fill none makes none.

    Args:
        records: Of the whole split.
        groups: Of this part, by `group_records`.
        rejected: What else that function gave.
        config: Templates and `join`.
        settings: What tells these documents from others: of the files, and of the part.

    Raises:
        DataError: If no group can fill a template.
    """

    def __init__(
        self,
        records: Records,
        groups: Sequence[RecordGroup],
        rejected: Sequence[BadRecord],
        config: DocumentDataConfig,
        settings: Sequence[str],
    ) -> None:
        assert config.join is not None
        self.rejected = (*records.rejected, *rejected)
        self._records = records
        self._recent: OrderedDict[int, RawRecord] = OrderedDict()
        self._groups = tuple(groups)
        self._templates = config.joined_templates()
        self._path = config.path or config.format
        self._join = config.join
        self._every_template = config.every_template
        described = [_FINGERPRINT_VERSION, config.templates, config.every_template, config.join.by, config.join.seed]
        self._settings = [*described, *settings]
        # Of each template: the groups that can be its other one, and where each stands among them.
        self._others = [
            [number for number, group in enumerate(groups) if group.has(template.choices(of_other=True))]
            for template in self._templates
        ]
        self._rank_among_others = [{number: rank for rank, number in enumerate(others)} for others in self._others]
        self._documents = [(number, template) for number in range(len(groups)) for template in self._fillable(number)]
        if not self._documents:
            wanted = sorted({f"{name}={value}" for one in self._templates for name, value in _all_choices(one)})
            raise DataError(
                f"{self._path}: of {len(groups)} groups by {self._join.by} none can fill a template; they choose "
                f"{', '.join(wanted)}"
            )

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> RawDocument:
        """See `DocumentSource`; `fields` are what all records of the group agree in, and besides

        `template`, its source, and `media`, of each picture in order the fields of its record and its `place`.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} documents")
        number, place = self._documents[index]
        group, template = self._groups[number], self._templates[place]
        key = self._key(number, place)
        name = f"{self._path}[{self._join.by}={group.value!r}, template {place}]"
        other = self._groups[self._other(number, place)] if template.needs_other else None
        filled = _Filled(self._read, group, other, int(combine_keys(self._join.seed, _RECORD_STREAM, key)), name)
        parts = filled.parts(template)
        fields = {**filled.shared(group), "template": template.source, "media": filled.media}
        return RawDocument(parts=parts, key=key, name=name, fields=fields)

    def fingerprint(self) -> str:
        """See `DocumentSource.fingerprint`; the files are stamped when the source is opened."""
        described = [*self._settings, [[group.value, *group.places] for group in self._groups]]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()

    def _fillable(self, number: int) -> list[int]:
        """The templates by which a group makes documents."""
        group = self._groups[number]
        places = [
            place
            for place, template in enumerate(self._templates)
            if group.has(template.choices(of_other=False))
            and (not template.needs_other or self._num_others(number, place) > 0)
        ]
        if self._every_template or len(places) < 2:
            return places
        return [places[self._draw(_TEMPLATE_STREAM, group.places[0], len(places))]]

    def _other(self, number: int, place: int) -> int:
        """The other group of a document: any that can be it, all alike, but never its own."""
        drawn = self._draw(_OTHER_STREAM, self._key(number, place), self._num_others(number, place))
        own = self._rank_among_others[place].get(number)
        if own is not None and drawn >= own:
            drawn += 1
        return self._others[place][drawn]

    def _num_others(self, number: int, place: int) -> int:
        return len(self._others[place]) - (number in self._rank_among_others[place])

    def _read(self, place: int) -> RawRecord:
        if place not in self._recent:
            self._recent[place] = self._records[place]
            if len(self._recent) > _NUM_RECENT:
                self._recent.popitem(last=False)
        self._recent.move_to_end(place)
        return self._recent[place]

    def _key(self, number: int, place: int) -> int:
        return self._groups[number].places[0] * len(self._templates) + place

    def _draw(self, stream: int, key: int, count: int) -> int:
        return int(combine_keys(self._join.seed, stream, key)) % count


class _Filled:
    """One document in the making."""

    def __init__(
        self, read: Callable[[int], RawRecord], group: RecordGroup, other: RecordGroup | None, key: int, name: str
    ) -> None:
        self._record = read
        self._group, self._other = group, other
        self._key, self._name = key, name
        self.media: list[dict[str, Any]] = []

    def parts(self, template: JoinedTemplate) -> tuple[RawPart, ...]:
        parts: list[RawPart] = []
        stretch: list[str] = []
        for piece in template.pieces:
            if isinstance(piece, str):
                stretch.append(piece)
            elif not piece.is_medium:
                stretch.append(self._text(piece))
            else:
                if stretch:
                    parts.append("".join(stretch))
                    stretch = []
                parts.append(self._medium(piece))
        return (*parts, "".join(stretch)) if stretch else tuple(parts)

    def _medium(self, field: RecordField) -> RawPart:
        place = self._place(field)
        record = self._record(place)
        if field.name not in record.media:
            raise BadRecord(
                record.name, f"has no {field.name}, which a template asks for; it has {listed(record.present)}"
            )
        self.media.append({**record.fields, "place": place})
        return record.media[field.name]

    def _text(self, field: RecordField) -> str:
        group = self._of(field)
        fields = self.shared(group) if field.chosen_by is None else self._record(self._place(field)).fields
        value = fields.get(field.name)
        if isinstance(value, str | int | float):
            return str(value)
        if field.chosen_by is None:
            raise BadRecord(
                self._name, f"its records do not agree in {field.name}, but in {listed(fields)}; say which one is meant"
            )
        raise BadRecord(self._name, f"the record with {'='.join(field.chosen_by)} has no {field.name} that is text")

    def shared(self, group: RecordGroup) -> dict[str, Any]:
        """The fields in which all records of a group agree."""
        first, *rest = (self._record(place).fields for place in group.places)
        return {name: value for name, value in first.items() if all(other.get(name) == value for other in rest)}

    def _of(self, field: RecordField) -> RecordGroup:
        group = self._other if field.of_other else self._group
        assert group is not None, "a template that needs another group was given one"
        return group

    def _place(self, field: RecordField) -> int:
        """Of the record that a field is of; of several that fit one is drawn, the same in all of the document."""
        assert field.chosen_by is not None
        places = self._of(field).chosen[field.chosen_by]
        return places[self._key % len(places)]


def group_records(
    records: Records, by: str, templates: Sequence[JoinedTemplate]
) -> tuple[list[RecordGroup], list[BadRecord]]:
    """Find the groups of a table. Every record is read once, without decoding pictures.

    Args:
        records: Of a whole split.
        by: The field whose value a group shares.
        templates: Whose choices are looked for.

    Returns:
        The groups in the order of their first records; and the records that cannot be read or lack the field, which
        are in none.

    Raises:
        DataError: If the records have no such field.
    """
    known = records.fields
    asked = {by} | {name for template in templates for name, _ in _all_choices(template)}
    asked |= {field.name for template in templates for field in template.fields}
    if known is not None and (missing := asked - known):
        raise DataError(f"join asks for {listed(missing)}, but the records have {listed(known)}")
    choices = {choice for template in templates for choice in _all_choices(template)}
    rejected: list[BadRecord] = []
    places: dict[str, list[int]] = {}
    chosen: dict[str, dict[tuple[str, str], list[int]]] = {}
    for place in range(len(records)):
        try:
            record = records[place]
            if (value := record.fields.get(by)) is None:
                raise BadRecord(record.name, f"has no {by}, by which records are joined")
        except BadRecord as error:
            rejected.append(error)
            continue
        places.setdefault(str(value), []).append(place)
        for choice in choices:
            if str(record.fields.get(choice[0])) == choice[1]:
                chosen.setdefault(str(value), {}).setdefault(choice, []).append(place)
    groups = [
        RecordGroup(value, tuple(found), {choice: tuple(of) for choice, of in chosen.get(value, {}).items()})
        for value, found in places.items()
    ]
    return groups, rejected


def groups_within(groups: Sequence[RecordGroup], indices: np.ndarray, where: str) -> list[RecordGroup]:
    """The groups whose records are among `indices`.

    Raises:
        DataError: If a group lies half in and half out: then it would be in two parts.
    """
    inside = set(indices.tolist())
    chosen = []
    for group in groups:
        if all(place in inside for place in group.places):
            chosen.append(group)
        elif any(place in inside for place in group.places):
            raise DataError(f"{where} divides the records of {group.value!r}; a split of groups keeps them together")
    return chosen


def _all_choices(template: JoinedTemplate) -> frozenset[tuple[str, str]]:
    return template.choices(of_other=False) | template.choices(of_other=True)
