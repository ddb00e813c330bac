"""Documents around clips that were encoded beforehand."""

import pytest
import torch

from latentlm.data.documents import StoredCodes, StoredLatents, write_jsonl
from latentlm.data.documents.stored import LatentDocuments
from latentlm.data.latent_sequences import CodeClip, LatentClip
from latentlm.data.records import DataError

BOTH_WAYS = ["{text}{speech}", "{speech}{text}", "{speech}"]


def clip(number: int, **fields: str) -> LatentClip:
    return LatentClip(torch.full((2 + number, 3), float(number)), None, number, fields)


def documents_of(*clips: LatentClip, templates: list[str], fingerprint: str = "f") -> LatentDocuments:
    return LatentDocuments(clips, modality="speech", templates=templates, fingerprint=fingerprint)


def test_every_clip_goes_through_every_template_that_it_has_the_fields_for() -> None:
    documents = documents_of(clip(0, text="one"), clip(1), templates=BOTH_WAYS)
    shapes = [["T" if isinstance(part, str) else len(part.mean) for part in one.parts] for one in documents]
    assert shapes == [["T", 2], [2, "T"], [2], [3]]
    assert [one.fields["template"] for one in documents] == [0, 1, 2, 2]
    assert len({one.key for one in documents}) == len(documents)
    spoken = documents[0].parts[1]
    assert isinstance(spoken, StoredLatents)
    assert spoken.modality == "speech"
    assert documents[0].parts[0] == "one"


def test_clips_of_a_codec_become_documents_of_codes() -> None:
    clip_of_codes = CodeClip(torch.arange(6).view(2, 3), 0, {"text": "one"})
    documents = LatentDocuments([clip_of_codes], modality="speech", templates=BOTH_WAYS, fingerprint="f")
    text, spoken = documents[0].parts
    assert text == "one"
    assert isinstance(spoken, StoredCodes)
    assert (spoken.modality, spoken.num_tokens) == ("speech", 2)
    assert torch.equal(spoken.codes, clip_of_codes.codes)


def test_a_text_that_spells_a_field_stays_a_text() -> None:
    (document,) = documents_of(clip(0, text="{speech}"), templates=["{text}{speech}"])
    assert document.parts[0] == "{speech}"


def test_templates_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="leaves the clip out"):
        documents_of(clip(0, text="one"), templates=["{text}"])
    with pytest.raises(DataError, match="not one clip has"):
        documents_of(clip(0), templates=["{text}{speech}"])


def test_other_clips_or_templates_are_other_documents() -> None:
    one = clip(0, text="one")
    prints = {
        documents_of(one, templates=BOTH_WAYS).fingerprint(),
        documents_of(one, templates=BOTH_WAYS[:2]).fingerprint(),
        documents_of(one, templates=BOTH_WAYS, fingerprint="g").fingerprint(),
    }
    assert len(prints) == 3


def test_latents_are_not_written_as_json_lines(tmp_path) -> None:
    documents = documents_of(clip(0), templates=["{speech}"])
    with pytest.raises(ValueError, match="no place for"):
        write_jsonl(tmp_path / "new.jsonl", list(documents))
    assert not list(tmp_path.iterdir())
