"""JSON Lines: the forms of a line, references that are refused, damaged lines beside good ones, bounded memory."""

import base64
import json
import pickle
import tracemalloc

import pytest

from latentlm.data.records import BadRecord, DataError


def lines(path, *records, raw=()):
    content = [json.dumps(entry).encode() for entry in records] + list(raw)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\n".join(content) + b"\n")
    return path


def test_parts_keep_their_order_and_empty_texts(tmp_path, png, write, said, open_all):
    write(tmp_path / "pictures" / "1.png", png(1))
    embedded = base64.b64encode(png(2)).decode()
    parts = [{"image": "pictures/1.png"}, {"image_base64": embedded}, {"text": ""}, {"text": "end"}]
    parts += [{"image": "./pictures/1.png"}]
    source = open_all(lines(tmp_path / "a.jsonl", {"parts": parts, "kind": "novel"}, {"text": "alone"}))
    first, second = ("image", png(1)), ("image", png(2))
    assert said(source[0]) == [first, second, "", "end", first]
    assert source[0].fields == {"kind": "novel"}
    assert source[0].name == f"{tmp_path}/a.jsonl:1"
    assert said(source[1]) == ["alone"]
    assert [source[i].key for i in range(2)] == [0, 1]


def test_short_forms_go_through_the_template_and_columns_are_renamed(tmp_path, png, write, said, open_all):
    write(tmp_path / "1.png", png(1))
    path = lines(tmp_path / "a.jsonl", {"jpg": "1.png", "alt": "a cat", "caption": "unused", "split_kind": "novel"})
    columns = {"image": "jpg", "caption": "alt"}
    assert said(open_all(path, columns=columns)[0]) == ["a cat", ("image", png(1))]
    source = open_all(path, columns=columns, templates=["{image}{caption} ({split_kind})"])
    assert said(source[0]) == [("image", png(1)), "a cat (novel)"]
    assert source[0].fields == {"caption": "a cat", "split_kind": "novel"}


def test_a_null_counts_as_absent(tmp_path, said, open_all):
    source = open_all(lines(tmp_path / "a.jsonl", {"text": "only text", "image": None, "caption": None}))
    assert said(source[0]) == ["only text"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "broken JSON"),
        (b"[1]", "a JSON list, expected an object"),
        (b'{"text": "\xff"}', "not UTF-8"),
        (b'{"text": "\\ud800"}', "half of a surrogate pair"),
        (b'{"text": "x", "score": NaN}', "which JSON does not have"),
        (b'{"text": "x", "score": 1e999}', "which JSON does not have"),
        (b'{"text": "x", "n": ' + b"9" * 5000 + b"}", "broken JSON"),
        (b"[" * 100_000, "nested deeper than 64"),
        (b'{"text": ' * 100_000, "nested deeper than 64"),
        (b'{"text": "x", "deep": ' + b"[" * 70 + b"]" * 70 + b"}", "nested deeper than 64"),
        (b'{"parts": []}', "at least one part"),
        (b'{"parts": "text"}', "at least one part"),
        (b'{"parts": ["text"]}', r"\[part 0\]: expected an object with one of .* found str"),
        (b'{"parts": [{"text": "a"}, {"text": "b", "image": "c"}]}', r"part 1.*found \['image', 'text'\]"),
        (b'{"parts": [{"sound": "x"}]}', "found .'sound'"),
        (b'{"parts": [{"text": 3}]}', "text is a int"),
        (b'{"parts": [{"image": ["a.png"]}]}', "image is a list"),
        (b'{"parts": [{"image_base64": "a"}]}', "not base64"),
        ('{"image_base64": "käse"}'.encode(), "not base64"),
        (b'{"image_base64": ""}', "empty file"),
        (b'{"image": "1.png", "image_base64": "QUJD"}', "both image and image_base64"),
        (b'{"label": 1}', "give templates"),
        (b'{"caption": ["x"]}', "takes texts and numbers"),
        (b'{"image": "missing.png"}', "'missing.png' is missing"),
        (b'{"image": "http://example.com/a.png"}', "is missing"),
        (b'{"image": "empty.png"}', "empty file"),
        (b'{"image": ""}', "not a regular file"),
        (b'{"image": "."}', "not a regular file"),
        (b'{"image": "' + b"x" * 5000 + b'.png"}', "cannot be found"),
    ],
)
def test_a_damaged_line_is_a_bad_record_that_names_file_and_line(tmp_path, write, said, open_all, line, reason):
    write(tmp_path / "empty.png", b"")
    write(tmp_path / "1.png")
    source = open_all(lines(tmp_path / "a.jsonl", {"text": "before"}, raw=[line, b'{"text": "after"}']))
    with pytest.raises(BadRecord, match=reason) as caught:
        source[1]
    assert caught.value.name.startswith(f"{tmp_path}/a.jsonl:2")
    assert [said(source[i]) for i in (0, 2)] == [["before"], ["after"]]


@pytest.mark.parametrize(
    "reference",
    [
        *("/etc/hostname", "../secret.png", "sub/../../secret.png", "a\0b", "out.png"),
        *("C:\\secret.png", "\\\\host\\a.png", "..\\secret.png"),
    ],
)
def test_pictures_outside_the_folder_are_never_read(tmp_path, write, open_all, reference):
    secret = write(tmp_path / "secret.png")
    folder = tmp_path / "set"
    path = lines(folder / "a.jsonl", {"image": reference})
    (folder / "out.png").symlink_to(secret)
    with pytest.raises(BadRecord, match=r"is refused: .*below|link out of") as caught:
        open_all(path)[0]
    assert caught.value.name == f"{path}:1"


def test_links_inside_the_folder_are_followed_and_circles_are_refused(tmp_path, png, write, said, open_all):
    write(tmp_path / "1.png", png(1))
    (tmp_path / "inside.png").symlink_to("1.png")
    (tmp_path / "circle.png").symlink_to("circle.png")
    source = open_all(lines(tmp_path / "a.jsonl", {"image": "inside.png"}, {"image": "circle.png"}))
    assert said(source[0]) == [("image", png(1))]
    with pytest.raises(BadRecord, match="cannot be found"):
        source[1]


def test_one_large_picture_named_many_times_is_refused(tmp_path, monkeypatch, png, write, open_all):
    monkeypatch.setattr("latentlm.data.documents.json_records.MAX_DOCUMENT_BYTES", 3 * len(png(1)))
    write(tmp_path / "1.png", png(1))
    source = open_all(lines(tmp_path / "a.jsonl", *({"parts": [{"image": "1.png"}] * n} for n in (3, 4))))
    assert len(source[0].parts) == 3
    with pytest.raises(BadRecord, match="in one document"):
        source[1]


def test_line_ends_blank_lines_and_a_byte_order_mark_are_no_records(tmp_path, said, open_all):
    content = '\ufeff{"text": "one"}\r\n\r\n   \n{"text": "two\u2028"}\n\n{"text": "3"}'
    (tmp_path / "a.jsonl").write_bytes(content.encode())
    source = open_all(tmp_path / "a.jsonl")
    assert [said(source[i]) for i in range(3)] == [["one"], ["two\u2028"], ["3"]]
    assert [source[i].name.rpartition(":")[2] for i in range(3)] == ["1", "4", "6"]


def test_a_line_above_the_limit_is_rejected_and_the_others_are_read(tmp_path, monkeypatch, said, open_all):
    monkeypatch.setattr("latentlm.data.documents.jsonl.MAX_LINE_BYTES", 100)
    source = open_all(lines(tmp_path / "a.jsonl", {"text": "a"}, {"text": "b" * 200}, {"text": "c"}))
    assert [said(source[i]) for i in range(len(source))] == [["a"], ["c"]]
    assert [str(bad) for bad in source.rejected] == [f"{tmp_path}/a.jsonl:2: a line of 213 bytes, above 100"]


def test_a_long_line_is_indexed_in_bounded_memory(tmp_path, open_all):
    with (tmp_path / "a.jsonl").open("wb") as file:
        file.write(b'{"text": "first"}\n')
        file.truncate(200 * 2**20)  # sparse: zeros up to 200 MiB, one line
        file.seek(0, 2)
        file.write(b'\n{"text": "last"}\n')
    tracemalloc.start()
    source = open_all(tmp_path / "a.jsonl")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [source[i].parts for i in range(len(source))] == [("first",), ("last",)]
    assert len(source.rejected) == 1
    assert peak < 8 * 2**20  # pieces of 1 MiB, read ahead and joined; the line itself is 200


def test_the_files_of_a_folder_are_one_source_which_survives_pickling(tmp_path, said, open_all):
    for name, texts in (("0.jsonl", "ab"), ("1.jsonl", "c"), ("2.jsonl", ""), ("3.jsonl", "de")):
        lines(tmp_path / name, *({"text": text} for text in texts))
    source = pickle.loads(pickle.dumps(open_all(tmp_path)))  # noqa: S301
    assert [said(source[i]) for i in range(len(source))] == [["a"], ["b"], ["c"], ["d"], ["e"]]
    assert source[4].name == f"{tmp_path}/3.jsonl:2"


def test_files_without_records_are_refused(tmp_path, write, open_all):
    write(tmp_path / "a.jsonl", b"\n \n")
    with pytest.raises(DataError, match="no record in 1 JSON Lines file"):
        open_all(tmp_path)


def test_a_line_that_vanished_since_it_was_indexed_is_a_bad_record(tmp_path, open_all):
    path = lines(tmp_path / "a.jsonl", {"text": "a"}, {"text": "b"})
    source = open_all(path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(BadRecord, match=r"has a.jsonl changed"):
        source[1]
    path.unlink()
    with pytest.raises(BadRecord, match="cannot be read"):
        source[0]
