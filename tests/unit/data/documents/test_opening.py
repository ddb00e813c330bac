"""Parts of a data set, the choice of templates, pictures of any mode, fingerprints, formats told from paths."""

import io
import itertools
import json
import os
import pickle
import tarfile
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile_files import huge_png
from PIL import Image

from latentlm.data.documents import DocumentDataConfig, RawDocument, RawImage, open_documents, open_image
from latentlm.data.documents.formats import OPENERS, detect_format
from latentlm.data.records import BadRecord, DataError
from latentlm.data.splits import make_split, write_split


def write_lines(path, count=100, start=0):
    path.write_text("".join(f'{{"text": "t{i}", "label": {i % 3}}}\n' for i in range(start, start + count)))
    return path


def all_texts(source):
    return [source[i].parts[0] for i in range(len(source))]


def test_train_and_validation_divide_the_records_and_test_is_its_own(tmp_path):
    path, test = write_lines(tmp_path / "a.jsonl"), write_lines(tmp_path / "b.jsonl", 7, 200)
    config = DocumentDataConfig(path=str(path), test_path=str(test), validation_ratio=0.1, split_seed=3)
    parts = {part: open_documents(config, part=part) for part in ("train", "validation", "test")}
    assert sorted(all_texts(parts["train"]) + all_texts(parts["validation"])) == sorted(f"t{i}" for i in range(100))
    expected = make_split(100, validation_ratio=0.1, seed=3).validation
    assert [parts["validation"][i].key for i in range(10)] == expected.tolist()
    assert all_texts(parts["test"]) == [f"t{i}" for i in range(200, 207)]


def test_a_split_file_decides_and_must_fit(tmp_path):
    write_split(tmp_path / "split.json", make_split(100, data="made up", validation_ratio=0.2, seed=9))
    config = DocumentDataConfig(path=str(write_lines(tmp_path / "a.jsonl")), split_file=str(tmp_path / "split.json"))
    assert len(open_documents(config, part="validation")) == 20
    write_lines(tmp_path / "a.jsonl", 99)
    with pytest.raises(DataError, match="divides 100 records"):
        open_documents(config, part="train")


def test_empty_parts_missing_splits_and_missing_data_are_refused(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", 3)
    with pytest.raises(DataError, match="the part 'validation' is empty"):
        open_documents(DocumentDataConfig(path=str(path), validation_ratio=0.0), part="validation")
    with pytest.raises(DataError, match="give test_path to read 'test'"):
        open_documents(DocumentDataConfig(path=str(path)), part="test")
    with pytest.raises(DataError, match=r"no data at .*missing.jsonl"):
        open_documents(DocumentDataConfig(path=str(tmp_path / "missing.jsonl")), part="train")


def test_each_record_keeps_one_template_whatever_part_it_is_in(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", 300)
    templates = ["a {text}", "b {text}", "c {text}"]
    config = DocumentDataConfig(path=str(path), templates=templates, validation_ratio=0.0)
    first = all_texts(open_documents(config, part="train"))
    assert first == all_texts(open_documents(config, part="train"))
    counts = Counter(text[0] for text in first)
    assert all(60 < counts[letter] < 140 for letter in "abc")  # 100 each; 5 standard deviations are 40
    divided = DocumentDataConfig(path=str(path), templates=templates, validation_ratio=0.5)
    for part in ("train", "validation"):
        source = open_documents(divided, part=part)
        assert all(first[source[i].key] == source[i].parts[0] for i in range(len(source)))


def test_every_template_makes_a_document_of_every_record_with_a_key_of_its_own(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", 20)
    config = DocumentDataConfig(path=str(path), templates=["{text}", "again {text}"], every_template=True)
    train, validation = (open_documents(config, part=part) for part in ("train", "validation"))
    assert (len(train), len(validation)) == (38, 2)
    assert train[0].parts[0] == train[1].parts[0].removeprefix("again ")
    documents = [*(train[i] for i in range(38)), *(validation[i] for i in range(2))]
    assert sorted(document.key for document in documents) == list(range(40))
    records = [{document.name for document in part} for part in (documents[:38], documents[38:])]
    assert not records[0] & records[1]  # both documents of a record are in one part


@pytest.mark.parametrize("every_template", [True, False])
def test_lines_of_a_text_or_a_picture_alone_need_no_template(tmp_path, png, write, said, every_template):
    write(tmp_path / "0.png", png(0))
    lines = [
        {"image": "0.png", "caption": "zero"},
        {"text": "a text alone"},
        {"image": "0.png", "caption": None},
        {"parts": [{"text": "as it is"}]},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    templates = ["{caption}{image}", "{image}{caption}"]
    config = DocumentDataConfig(
        path=str(path), templates=templates, every_template=every_template, validation_ratio=0.0
    )
    source = open_documents(config, part="train")
    documents = [said(source[i]) for i in range(len(source))]
    picture = ("image", png(0))
    copies = 2 if every_template else 1
    assert [sorted(document, key=str) for document in documents[:copies]] == [[picture, "zero"]] * copies
    assert documents[copies:] == [
        document for document in (["a text alone"], [picture], ["as it is"]) for _ in range(copies)
    ]
    assert [source.record(i) for i in range(len(source))] == [i // copies for i in range(len(source))]


@pytest.mark.parametrize(
    "line",
    [{"caption": "no picture"}, {"text": "x", "caption": "y"}, {"image": "0.png", "label": 3}, {"text": None}],
    ids=str,
)
def test_lines_of_anything_else_that_fit_no_template_are_bad(tmp_path, png, write, open_all, line):
    write(tmp_path / "0.png", png(0))
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(line))
    source = open_all(path, templates=["{caption}{image}"])
    with pytest.raises(BadRecord, match=r"a.jsonl:1: has no (caption|image), which the template"):
        source[0]


def test_an_empty_cell_of_a_table_is_a_bad_record(tmp_path, png, open_all):
    pq.write_table(pa.table({"image": [png(0)] * 2, "caption": ["zero", None]}), tmp_path / "a.parquet")
    source = open_all(tmp_path / "a.parquet", templates=["{image}{caption}"])
    with pytest.raises(BadRecord, match="has no caption"):
        source[1]


def test_an_index_out_of_range_is_refused(tmp_path, open_all):
    source = open_all(write_lines(tmp_path / "a.jsonl", 3))
    for index in (-1, 3):
        with pytest.raises(IndexError, match=f"index {index} of 3 documents"):
            source[index]


def test_the_digits_become_documents_without_a_path():
    config = DocumentDataConfig(format="digits", templates=["{image} is a {label_name}"], image_size=8, num_channels=1)
    source = open_documents(config, part="train")
    image, text = source[0].parts
    assert text == f" is a {source[0].fields['label']}"
    assert open_image(image, config).shape == (1, 8, 8)
    test = open_documents(config, part="test")
    assert len(test) == 539
    assert not {source[i].key for i in range(20)} & {test[i].key for i in range(539)}
    with pytest.raises(DataError, match="asks for caption, but the records have image, label, label_name"):
        open_documents(DocumentDataConfig(format="digits", templates=["{caption}"]), part="train")


@pytest.mark.parametrize("name", ["class_folder", "image_folder", "idx", "npz", "hf_dataset"])
def test_every_source_of_pictures_is_read_as_documents(tmp_path, name, png, write, said):
    pixels = np.arange(3 * 9, dtype=np.uint8).reshape(3, 3, 3)
    path = tmp_path / "set"
    if name == "class_folder":
        for i, kind in enumerate(("cat", "cat", "dog")):
            write(path / kind / f"{i}.png", png(i))
    elif name == "image_folder":
        for i in range(3):
            write(path / f"{i}.png", png(i))
    elif name == "idx":
        write(path / "train-images-idx3-ubyte", bytes([0, 0, 8, 3, *[0, 0, 0, 3] * 3]) + pixels.tobytes())
        write(path / "train-labels-idx1-ubyte", bytes([0, 0, 8, 1, 0, 0, 0, 3, 0, 0, 1]))
    elif name == "npz":
        path = tmp_path / "set.npz"
        np.savez(path, images=pixels, labels=np.array([0, 0, 1]))
    else:
        write(path / "state.json", json.dumps({"_data_files": [{"filename": "0.arrow"}]}).encode())
        table = pa.table({"image": [png(i) for i in range(3)], "label": [0, 0, 1]})
        with pa.ipc.new_stream(path / "0.arrow", table.schema) as stream:
            stream.write_table(table)
    labelled = name != "image_folder"
    names = ["Katze", "Hund"] if labelled else []
    template = "{image}{label_name}" if labelled else "{image}picture"
    config = DocumentDataConfig(path=str(path), validation_ratio=0.0, templates=[template], label_names=names)
    source = pickle.loads(pickle.dumps(open_documents(config, part="train")))  # noqa: S301
    pictures = pixels.tolist() if name in ("idx", "npz") else [png(i) for i in range(3)]
    expected = ["Katze", "Katze", "Hund"] if labelled else ["picture"] * 3
    assert [said(source[i]) for i in range(3)] == [[("image", p), t] for p, t in zip(pictures, expected, strict=True)]
    fingerprint = source.fingerprint()
    file = path if path.is_file() else min(file for file in path.rglob("*") if file.is_file())
    os.utime(file, ns=(1, 1))
    assert open_documents(config, part="train").fingerprint() != fingerprint == source.fingerprint()


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "red"),
    [
        (encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95), 255),
        (encoded(Image.fromarray(np.full((8, 8), 0x80FF, dtype=np.uint16))), 128),
        (encoded(Image.new("P", (8, 8)), transparency=0), 255),
        (encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 0))), 255),
        (np.full((8, 8, 3), 7, dtype=np.uint8), 7),
        (np.zeros((8, 8), dtype=np.float32), "type float32"),
        (b"", "empty file"),
        (b"no picture", "not an image"),
        (encoded(Image.new("RGB", (8, 8)), "BMP")[:100], "damaged image"),
        (huge_png(20000), "above the limit"),
    ],
    ids=["cmyk", "16 bit", "clear palette", "clear", "pixels", "floats", "empty", "text", "cut", "bomb"],
)
def test_pictures_of_any_mode_are_decoded_or_bad_records(data, red):
    config = DocumentDataConfig(path="unused", image_size=8)
    image = RawImage(data, "picture 1")
    if isinstance(red, str):
        with pytest.raises(BadRecord, match=rf"picture 1: .*{red}"):
            open_image(image, config)
    else:
        value = (open_image(image, config)[0, 4, 4].item() + 1) * 127.5
        assert value == pytest.approx(red, abs=2)  # JPEG moves flat colours by a level or two
    with pytest.raises(ValueError, match="give image_size"):
        open_image(image, DocumentDataConfig(path="unused"))


def test_a_fingerprint_changes_with_files_part_and_settings_and_with_nothing_else(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", 40)

    def fingerprint(part="train", **options):
        return open_documents(DocumentDataConfig(path=str(path), **options), part=part).fingerprint()

    variants = [
        fingerprint(),
        fingerprint("validation"),
        fingerprint(split_seed=1),
        fingerprint(templates=["{text}"]),
        fingerprint(label_names=["a", "b", "c"]),
        fingerprint(columns={"caption": "text"}),
    ]
    assert len(set(variants)) == len(variants)
    assert fingerprint() == variants[0] == fingerprint(max_bad_records=3, image_size=4)
    source = open_documents(DocumentDataConfig(path=str(path)), part="train")
    os.utime(path, ns=(1, 1))
    assert fingerprint() != variants[0] == source.fingerprint()  # what was opened keeps its own


def test_labels_beyond_the_given_names_are_bad_records(tmp_path, open_all):
    source = open_all(write_lines(tmp_path / "a.jsonl", 3), label_names=["a", "b"], templates=["{label_name}"])
    assert [source[i].parts[0] for i in range(2)] == ["a", "b"]
    with pytest.raises(BadRecord, match=r"a.jsonl:3: label 2 is no class id below 2"):
        source[2]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["a.jsonl", "0.png", "README.txt"], "jsonl"),
        (["train/a.jsonl"], "jsonl"),
        (["a.tar", "README.txt"], "webdataset"),
        (["a.parquet", "README.txt"], "parquet"),
        (["a.txt", "b.txt"], "text"),
        (["0.png", "0.txt"], "image_folder"),
        (["cat/0.png", "README.txt"], "class_folder"),
        (["0.png", "cat/0.png", "README.txt"], None),
        (["a.zip"], None),
    ],
)
def test_a_folder_is_told_from_its_files(tmp_path, files, expected, write):
    for name in files:
        write(tmp_path / name)
    if expected is None:
        with pytest.raises(DataError, match=r"found no pictures|both pictures and folders"):
            detect_format(tmp_path, "train")
    else:
        assert detect_format(tmp_path, "train") == expected
        assert expected in OPENERS


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"path": None}, "no data: give path"),
        ({"format": "digits"}, "leave one out"),
        ({"templates": ["{"]}, "a single '{'"),
        ({"templates": ["{a}"], "every_template": True}, "at least two templates"),
        ({"separator": ""}, "separator is empty"),
        ({"image_size": 0}, "image_size is 0"),
        ({"num_channels": 2}, "num_channels is 2"),
        ({"max_pixels": 0}, "max_pixels is 0"),
        ({"max_bad_records": -1}, "max_bad_records is -1"),
        ({"validation_ratio": 1.0}, "validation_ratio is 1.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, reason):
    with pytest.raises(ValueError, match=reason):
        DocumentDataConfig(**{"path": "a.jsonl", **options})


def test_an_unknown_format_is_refused_by_name():
    with pytest.raises((ValueError, TypeError), match="format"):  # TypeError: where the tests check the annotations
        DocumentDataConfig(path="a.csv", format="csv")


def test_a_document_has_at_least_one_part():
    with pytest.raises(ValueError, match="has no parts"):
        RawDocument((), 0, "nothing")


@pytest.fixture
def files(tmp_path, png, write):
    """The same three documents in each format, and a text file."""
    records = [{"text": f"number {i}", "image": f"{i}.png"} for i in range(3)]
    for i in range(3):
        write(tmp_path / f"{i}.png", png(i))
    write(tmp_path / "a.jsonl", "".join(json.dumps(record) + "\n" for record in records).encode())
    pq.write_table(
        pa.table({"text": [r["text"] for r in records], "image": [png(i) for i in range(3)]}), tmp_path / "a.parquet"
    )
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i, name in itertools.product(range(3), ("png", "txt")):
            data = png(i) if name == "png" else records[i]["text"].encode()
            info = tarfile.TarInfo(f"{i}.{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    write(tmp_path / "a.txt", b"number 0\n\nnumber 1\n\nnumber 2")
    return tmp_path


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.tar"])
def test_the_formats_agree(files, name, png, said, open_all):
    source = open_all(files / name)
    assert [said(source[i]) for i in range(3)] == [[f"number {i}", ("image", png(i))] for i in range(3)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.tar", "a.txt"])
def test_a_damaged_file_is_an_error_of_ours_at_every_byte(files, name, open_all):
    """One bit flipped, or the end cut off, at many places: documents come or are refused, and nothing else happens."""
    path = files / name
    good = path.read_bytes()
    generator = np.random.Generator(np.random.PCG64(0))
    outcomes = []
    for trial in range(60):
        place = int(generator.integers(len(good)))
        flipped = bytes([good[place] ^ (1 << int(generator.integers(8)))])
        path.write_bytes(good[:place] if trial % 3 == 0 else good[:place] + flipped + good[place + 1 :])
        try:
            source = open_all(path, separator="\n\n" if name == "a.txt" else None)
            for index in range(len(source)):
                source[index]
            outcomes.append("accepted")
        except DataError:  # includes BadRecord; any other exception fails the test
            outcomes.append("refused")
    assert "refused" in outcomes
