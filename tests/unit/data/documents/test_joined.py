"""Documents of several records: which groups make them, which records fill them, and that no group is divided."""

import base64
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentlm.data.documents import DocumentDataConfig, JoinConfig, RawImage, open_documents, write_jsonl
from latentlm.data.documents.document import RawDocument
from latentlm.data.documents.joined_templates import JoinedTemplate, RecordField
from latentlm.data.records import BadRecord, DataError
from latentlm.data.splits import make_split, write_split

STYLES = ("noto", "flat", "solid")
EDIT = "{image:style=noto} in flat: {image:style=flat}"
EXAMPLE = "{other.image:style=noto}{other.image:style=flat}{caption} {image:style=noto}{image:style=flat}"


def write_drawings(path: Path, *, captions: int = 30, in_one_style: int = 10) -> Path:
    """Captions drawn in three styles, some in the first alone; the pixel of a picture says whose it is."""
    lines = []
    for number in range(captions):
        for style in STYLES if number >= in_one_style else STYLES[:1]:
            lines.append({"number": number, "style": style, "caption": f"idea {number}"})
    lines.sort(key=lambda line: hash_of(line["number"], line["style"]))  # groups lie scattered in the file
    documents = [RawDocument((RawImage(pixels(**line), "x"),), key=0, name="x", fields=line) for line in lines]
    write_jsonl(path, documents)
    # Records with parts make documents by themselves: spell them as pictures with columns.
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**row.pop("parts")[0], **row}) + "\n" for row in rows))
    return path


def hash_of(number: int, style: str) -> int:
    return (number * 7919 + STYLES.index(style) * 104729) % 1009


def pixels(number: int, style: str, **_: Any) -> np.ndarray:
    return np.array([[number, STYLES.index(style)]], dtype=np.uint8)


def opened(path: Path, *templates: str, part: str = "train", seed: int = 0, **options: Any) -> Any:
    options = {"validation_ratio": 0.0, "every_template": len(templates) > 1, **options}
    join = JoinConfig(by="caption", seed=seed)
    config = DocumentDataConfig(path=str(path), templates=list(templates), join=join, **options)
    return open_documents(config, part=part)  # pyright: ignore[reportArgumentType]


def all_of(source: Any) -> list[RawDocument]:
    return [source[index] for index in range(len(source))]


@pytest.fixture
def drawings(tmp_path: Path) -> Path:
    return write_drawings(tmp_path / "drawings.jsonl")


def test_a_document_shows_the_records_of_one_group_in_the_order_of_the_template(drawings: Path) -> None:
    documents = all_of(opened(drawings, EDIT))
    assert len(documents) == 20, "groups in one style make none"
    for document in documents:
        first, text, second = document.parts
        assert text == " in flat: "
        assert [one["style"] for one in document.fields["media"]] == ["noto", "flat"]
        assert len({one["caption"] for one in document.fields["media"]}) == 1
        assert document.fields["caption"] == document.fields["media"][0]["caption"]
        assert "style" not in document.fields, "its records do not agree in it"
        assert first.data != second.data  # pyright: ignore[reportAttributeAccessIssue]


def test_pictures_are_those_of_the_named_records(drawings: Path) -> None:
    lines = [json.loads(line) for line in drawings.read_text().splitlines()]
    for document in all_of(opened(drawings, EDIT))[:5]:
        for picture, shown in zip(document.parts[::2], document.fields["media"], strict=True):
            line = lines[shown["place"]]
            assert (line["caption"], line["style"]) == (shown["caption"], shown["style"])
            assert line["image_base64"].encode() == base64.b64encode(picture.data)  # type: ignore[union-attr]


def test_an_example_comes_from_another_group_and_from_one_alone(drawings: Path) -> None:
    others = set()
    for document in all_of(opened(drawings, EXAMPLE)):
        captions = [one["caption"] for one in document.fields["media"]]
        assert captions[0] == captions[1] != captions[2] == captions[3]
        assert document.parts[2] == f"{captions[2]} "
        others.add(captions[0])
    assert len(others) > 8, "of 20 groups more than a few are shown as examples"


def test_every_template_makes_a_document_with_a_key_of_its_own(drawings: Path) -> None:
    documents = all_of(opened(drawings, EDIT, EXAMPLE))
    assert len(documents) == 40
    assert len({document.key for document in documents}) == 40
    by_template = {document.fields["template"] for document in documents}
    assert by_template == {EDIT, EXAMPLE}


def test_without_it_each_group_keeps_one_template_that_it_can_fill(drawings: Path) -> None:
    alone = "{image:style=noto}{caption}"
    documents = all_of(opened(drawings, EDIT, alone, every_template=False))
    assert len(documents) == 30
    pairs = [document for document in documents if document.fields["template"] == EDIT]
    assert 3 <= len(pairs) <= 17, "20 fair coins: both bounds are 3 standard deviations away"


def test_documents_are_a_function_of_the_seed_and_survive_pickling(drawings: Path) -> None:
    def shown(seed: int) -> list[str]:
        source = pickle.loads(pickle.dumps(opened(drawings, EXAMPLE, seed=seed)))  # noqa: S301
        return [document.fields["media"][0]["caption"] for document in all_of(source)]

    assert shown(0) == shown(0) != shown(1)
    assert opened(drawings, EXAMPLE).fingerprint() == opened(drawings, EXAMPLE).fingerprint()
    assert opened(drawings, EXAMPLE).fingerprint() != opened(drawings, EXAMPLE, seed=1).fingerprint()


def test_of_several_records_that_fit_one_is_drawn_for_the_whole_document(tmp_path: Path) -> None:
    lines = [{"caption": f"c{n % 8}", "style": "noto", "text": f"t{n}"} for n in range(32)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    documents = all_of(opened(path, "{text:style=noto} {text:style=noto}"))
    drawn = [str(document.parts[0]).split() for document in documents]
    assert all(first == second for first, second in drawn)
    assert {int(first[1:]) // 8 for first, _ in drawn} > {0}, "not always the first"


def test_no_group_is_divided_between_training_and_validation(drawings: Path, tmp_path: Path) -> None:
    parts = {part: all_of(opened(drawings, EDIT, part=part, validation_ratio=0.3)) for part in ("train", "validation")}
    captions = {part: {one.fields["caption"] for one in documents} for part, documents in parts.items()}
    assert len(captions["train"]) + len(captions["validation"]) == 20
    assert captions["validation"]
    assert not captions["train"] & captions["validation"]

    lines = [json.loads(line) for line in drawings.read_text().splitlines()]
    whole = make_split(len(lines), validation_ratio=0.3, groups=np.array([line["number"] for line in lines]))
    write_split(tmp_path / "whole.json", whole)
    by_file = opened(drawings, EDIT, part="validation", split_file=str(tmp_path / "whole.json"))
    assert {one.fields["caption"] for one in all_of(by_file)} <= {
        lines[place]["caption"] for place in whole.validation.tolist()
    }
    write_split(tmp_path / "divided.json", make_split(len(lines), validation_ratio=0.3))
    with pytest.raises(DataError, match=r"divided.json divides the records of 'idea \d+'; a split of groups keeps"):
        opened(drawings, EDIT, split_file=str(tmp_path / "divided.json"))


def test_a_split_by_groups_keeps_them_together_and_has_their_share() -> None:
    groups = np.arange(1000) // 4 * 17
    split = make_split(1000, validation_ratio=0.1, groups=groups)
    assert len(split.validation) == 100
    assert not set(groups[split.validation]) & set(groups[split.train])
    assert np.array_equal(split.validation, make_split(1000, validation_ratio=0.1, groups=groups).validation)


def test_records_that_cannot_be_joined_are_counted_as_bad(drawings: Path) -> None:
    with drawings.open("a") as file:
        file.write('{"style": "noto"}\nno json\n')
    source = opened(drawings, EDIT)
    assert len(source) == 20
    assert sorted(bad.reason[:17] for bad in source.rejected) == ["broken JSON (Expe", "has no caption, b"]


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{image}{caption}", "does not say of which record {image} is; write {image:style=noto}"),
        ("{image:style}", "a field is written {caption}, {image:style=noto} or {other.image:style=noto}"),
        ("{image:style=noto", "a single '{'"),
    ],
)
def test_malformed_templates_are_refused(template: str, sentence: str) -> None:
    with pytest.raises(ValueError, match="template") as refused:
        JoinedTemplate.parse(template)
    assert sentence in str(refused.value)


def test_fields_are_told_apart() -> None:
    (field,) = JoinedTemplate.parse("{other.image:style=a=b: c}").fields
    assert field == RecordField("image", ("style", "a=b: c"), of_other=True)


def test_what_can_make_no_document_is_refused(drawings: Path) -> None:
    with pytest.raises(DataError, match=r"of 30 groups by caption none can fill a template; they choose style=oil"):
        opened(drawings, "{image:style=oil}")
    with pytest.raises(ValueError, match="join makes documents by templates alone"):
        opened(drawings)
    with pytest.raises(BadRecord, match="do not agree in style, but in caption, number; say which one is meant"):
        _ = opened(drawings, "{style}{image:style=flat}")[0]
