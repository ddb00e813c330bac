"""Writing JSON Lines: what is read back is what was written, and what could not be is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentlm.data.documents import DocumentDataConfig, RawDocument, RawImage, open_documents, write_jsonl
from latentlm.data.images import load_image
from latentlm.data.records import DataError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.dictionaries(TEXT.filter(lambda name: name != "parts"), JSON, max_size=4)
PARTS = st.lists(TEXT | st.binary(min_size=6, max_size=6), min_size=1, max_size=5)  # bytes: the pixels of a picture


def document_of(parts: list[str | bytes], fields: dict) -> RawDocument:
    def picture(data: bytes) -> RawImage:
        return RawImage(np.frombuffer(data, dtype=np.uint8).reshape(2, 3), "made")

    made = tuple(part if isinstance(part, str) else picture(part) for part in parts)
    return RawDocument(made, 0, "made", fields)


def read(path):
    source = open_documents(DocumentDataConfig(path=str(path), validation_ratio=0.0), part="train")
    return [source[i] for i in range(len(source))]


def pixels_of(image: RawImage) -> list:
    return load_image(image.data, image.name, image_size=2, num_channels=1, resize="stretch").tolist()


def comparable(document: RawDocument) -> tuple:
    return [part if isinstance(part, str) else pixels_of(part) for part in document.parts], document.fields


@pytest.mark.parametrize("images", ["embedded", "files"])
@settings(max_examples=50, deadline=None)  # files on a busy machine: no time is promised
@given(contents=st.lists(st.tuples(PARTS, FIELDS), min_size=1, max_size=4))
def test_documents_are_read_back_as_they_were_written(tmp_path_factory, images, contents):
    documents = [document_of(*content) for content in contents]
    path = tmp_path_factory.mktemp("written") / "a.jsonl"
    assert write_jsonl(path, documents, images=images) == len(documents)
    found = read(path)
    assert [comparable(document) for document in found] == [comparable(document) for document in documents]
    assert [document.key for document in found] == list(range(len(documents)))
    assert write_jsonl(path.with_name("b.jsonl"), found) == len(documents)  # what was read can be written
    assert [comparable(d) for d in read(path.with_name("b.jsonl"))] == [comparable(d) for d in documents]


@pytest.mark.parametrize("images", ["embedded", "files"])
def test_encoded_pictures_are_kept_byte_by_byte(tmp_path, png, said, images):
    document = RawDocument((RawImage(png(1), "a"), "text", RawImage(png(2), "b")), 7, "made")
    write_jsonl(tmp_path / "new" / "a.jsonl", [document], images=images)
    assert said(read(tmp_path / "new" / "a.jsonl")[0]) == said(document)
    names = sorted(path.relative_to(tmp_path / "new").as_posix() for path in (tmp_path / "new").rglob("*.*"))
    pictures = ["a_images/00000000_0.png", "a_images/00000000_2.png"] if images == "files" else []
    assert names == ["a.jsonl", *pictures]


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (RawDocument(("\ud800",), 0, "made"), "surrogate"),
        (RawDocument(("x",), 0, "made", {"parts": 1}), "called parts"),
        (RawDocument(("x",), 0, "made", {"pair": (1, 2)}), "change in JSON"),
        (RawDocument(("x",), 0, "made", {"inner": {1: "one"}}), "change in JSON"),
        (RawDocument(("x",), 0, "made", {"score": float("nan")}), "not JSON"),
        (RawDocument(("x",), 0, "made", {"raw": b"x"}), "not JSON"),
        (RawDocument(("x",), 0, "made", {"half": "\udfff"}), "surrogate"),
        (RawDocument((RawImage(b"", "picture"),), 0, "made"), "picture: empty file"),
        (RawDocument((RawImage(b"shopping list", "picture"),), 0, "made"), "picture: not a picture"),
        (RawDocument((RawImage(np.zeros((2, 2)), "picture"),), 0, "made"), "an array of float64"),
        (RawDocument((RawImage(np.zeros((2, 2, 2), dtype=np.uint8), "picture"),), 0, "made"), "an array of uint8"),
    ],
)
def test_what_could_not_be_read_back_is_refused_and_leaves_nothing(tmp_path, png, document, reason):
    good = RawDocument((RawImage(png(1), "a"),), 0, "good")
    with pytest.raises(ValueError, match=reason):
        write_jsonl(tmp_path / "a.jsonl", [good, document], images="files")
    assert list(tmp_path.iterdir()) == []


def test_a_line_that_the_reader_would_reject_is_not_written(tmp_path, monkeypatch, png):
    monkeypatch.setattr("latentlm.data.documents.writer.MAX_LINE_BYTES", 100)
    document = RawDocument((RawImage(png(1), "a"), "x" * 20), 0, "made")
    with pytest.raises(ValueError, match="write its pictures as files"):
        write_jsonl(tmp_path / "a.jsonl", [document])
    assert write_jsonl(tmp_path / "a.jsonl", [document], images="files") == 1


def test_nothing_is_overwritten(tmp_path):
    document = RawDocument(("x",), 0, "made")
    write_jsonl(tmp_path / "a.jsonl", [document])
    with pytest.raises(DataError, match=r"a.jsonl exists already"):
        write_jsonl(tmp_path / "a.jsonl", [document])
    (tmp_path / "b_images").mkdir()
    with pytest.raises(DataError, match=r"b_images exists already"):
        write_jsonl(tmp_path / "b.jsonl", [document], images="files")
