"""Documents around clips that were encoded beforehand: `"{text}{speech}"` speaks a text, `"{speech}{text}"` writes it.

LatentSequences (a cache) ─template▶ RawDocument(text, StoredLatents or StoredCodes)
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from latentlm.data.documents.document import DocumentSource, RawDocument, StoredCodes, StoredLatents
from latentlm.data.documents.records import RawRecord
from latentlm.data.documents.templates import DocumentTemplate, listed
from latentlm.data.latent_sequences import Clip, CodeClip
from latentlm.data.records import DataError

_FINGERPRINT_VERSION = 1  # counted up when the same clips would become other documents


class LatentDocuments(DocumentSource):
    """Every clip through every template that it has the fields for.

    So clips without a text take part in the templates that need none: in a mixture of transcribed and untranscribed
    recordings `"{speech}"` keeps voices from collapsing onto the few that are transcribed.

    Args:
        clips: By number; kept in memory.
        modality: Of their latents or codes, and the field of templates that stands for them.
        templates: At least one.
        fingerprint: Identifies the clips.

    Raises:
        DataError: If not one document comes out.
        ValueError: If a template is malformed or leaves the clip out.
    """

    def __init__(self, clips: Sequence[Clip], *, modality: str, templates: Sequence[str], fingerprint: str) -> None:
        self._clips = clips
        self._modality = modality
        self._templates = [DocumentTemplate.parse(template) for template in templates]
        for template in self._templates:
            if modality not in template.fields:
                raise ValueError(f"the template {template.source!r} leaves the clip out: it needs {{{modality}}}")
        self._places = [
            (index, number)
            for index, clip in enumerate(clips)
            for number, template in enumerate(self._templates)
            if template.fields <= self._record(index, clip).present
        ]
        if not self._places:
            known = listed(frozenset().union(*(self._record(i, clip).present for i, clip in enumerate(clips))))
            raise DataError(f"not one clip has what a template of {', '.join(templates)} asks for; they have {known}")
        self._fingerprint = fingerprint

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> RawDocument:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} documents")
        place, number = self._places[index]
        record = self._record(place, self._clips[place])
        return RawDocument(
            parts=self._templates[number].render(record),
            key=record.key * len(self._templates) + number,
            name=record.name,
            fields={**record.fields, "template": number},
        )

    def fingerprint(self) -> str:
        """See `DocumentSource.fingerprint`."""
        described = [_FINGERPRINT_VERSION, self._fingerprint, [template.source for template in self._templates]]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()

    def _record(self, index: int, clip: Clip) -> RawRecord:
        fields: Mapping[str, Any] = clip.fields
        name = str(fields.get("name", f"clip {index}"))
        if isinstance(clip, CodeClip):
            encoded = StoredCodes(self._modality, clip.codes, name)
        else:
            encoded = StoredLatents(self._modality, clip.mean, clip.log_std, name)
        return RawRecord(encoded=encoded, fields=fields, key=clip.key, name=name)
