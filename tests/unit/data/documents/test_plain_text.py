"""Plain text: separators, documents cut because of their size, characters that are never cut, bounded memory."""

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentlm.data.documents import plain_text
from latentlm.data.documents.plain_text import TextRecords
from latentlm.data.records import BadRecord, DataError


def texts(source) -> list[str]:
    return [source[i].fields["text"] for i in range(len(source))]


def test_each_file_is_a_document_verbatim(tmp_path, said, open_all):
    (tmp_path / "1.txt").write_bytes("\ufefföne\r\n\n".encode())
    (tmp_path / "2.txt").write_bytes(b"two <|boi|>")
    (tmp_path / "3.txt").write_bytes(b"")
    source = open_all(tmp_path)
    assert [said(source[i]) for i in range(len(source))] == [["öne\r\n\n"], ["two <|boi|>"]]
    assert [str(bad) for bad in source.rejected] == [f"{tmp_path}/3.txt: holds no text"]
    assert source[1].name == f"{tmp_path}/2.txt[bytes 0:11]"


@pytest.mark.parametrize("read_bytes", [1, 2, 5, 2**20])
@settings(max_examples=60, deadline=None)  # files on a busy machine: no time is promised
@given(content=st.text("ab\nä", max_size=40), separator=st.text("ab\nä", min_size=1, max_size=3))
def test_a_separator_cuts_as_split_does_without_the_empty_pieces(tmp_path_factory, read_bytes, content, separator):
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes(content.encode())
    expected = [piece for piece in content.split(separator) if piece]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain_text, "_READ_BYTES", read_bytes)
        if expected:
            assert texts(TextRecords([path], separator)) == expected
        else:
            with pytest.raises(DataError, match="no text"):
                TextRecords([path], separator)


@settings(max_examples=100, deadline=None)
@given(content=st.text("a\nä€😀", min_size=1, max_size=200))
def test_a_document_above_the_limit_is_cut_between_lines_or_characters(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes(content.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain_text, "MAX_TEXT_BYTES", 64)
        patch.setattr(plain_text, "PIECE_BYTES", 16)
        pieces = texts(TextRecords([path], None))
    assert "".join(pieces) == content
    assert len(pieces) == 1 or len(content.encode()) > 64
    if len(pieces) > 1:
        assert all(16 <= len(piece.encode()) <= 32 for piece in pieces[:-1])
        for piece in pieces[:-1]:
            # Not at a line end only where no line end lay in the 16 bytes after the first 16.
            assert piece.endswith("\n") or b"\n" not in piece.encode()[16:]


def test_a_large_file_is_opened_and_read_in_bounded_memory(tmp_path):
    path = tmp_path / "a.txt"
    line = b"All happy families are alike.\n"
    with path.open("wb") as file:
        for _ in range(20):
            file.write(line * (2**20 // len(line)))
    size = path.stat().st_size
    tracemalloc.start()
    whole = TextRecords([path], None)
    peak_open = tracemalloc.get_traced_memory()[1]
    count = sum(len(whole[i].fields["text"]) for i in range(len(whole)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == size
    assert len(whole) == 20  # of about 1 MiB each
    assert peak_open < 2 * 2**20  # a buffer and the offsets; the file has 20 MiB
    assert peak < 6 * 2**20  # one piece as bytes and as text


@pytest.mark.parametrize("separator", [None, "\n\n"])
def test_two_hundred_megabytes_without_a_line_end_are_cut_in_bounded_memory(tmp_path, separator):
    path = tmp_path / "a.txt"
    with path.open("wb") as file:
        file.truncate(200 * 2**20)  # sparse: zeros, which are characters
    tracemalloc.start()
    source = TextRecords([path], separator)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(source) == 199  # the last takes what remains, at most twice the others
    assert source[0].fields["text"] == "\0" * 2**20
    assert source[198].fields["text"] == "\0" * 2**21
    assert peak < 8 * 2**20  # pieces of 1 MiB, read ahead and joined


def test_text_that_is_no_utf8_spoils_its_own_document_only(tmp_path, said, open_all):
    (tmp_path / "a.txt").write_bytes(b"good\n\nb\xffd\n\nfine")
    source = open_all(tmp_path / "a.txt", separator="\n\n")
    assert said(source[0]) == ["good"]
    with pytest.raises(BadRecord, match=r"a.txt\[bytes 6:9\]: text that is not UTF-8 .*byte 1"):
        source[1]
    assert said(source[2]) == ["fine"]


def test_text_files_have_no_columns_and_other_formats_no_separator(tmp_path, write, open_all):
    write(tmp_path / "a.txt", b"text")
    write(tmp_path / "b.jsonl", b'{"text": "x"}')
    with pytest.raises(DataError, match="no columns"):
        open_all(tmp_path / "a.txt", columns={"text": "body"})
    with pytest.raises(DataError, match="separator='x' is for text files"):
        open_all(tmp_path / "b.jsonl", separator="x")
