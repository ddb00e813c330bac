"""The byte tokenizer, decoding of streams, long texts in pieces, and what a recipe opens."""

from pathlib import Path

import pytest
from tiny_text import llama_definition, tiny_bpe, tiny_tiktoken

from latentlm.config import from_mapping
from latentlm.tokenizers.text import (
    ByteTokenizer,
    HuggingFaceTokenizer,
    StreamDecoder,
    TextTokenizerConfig,
    load_text_tokenizer,
    open_text_tokenizer,
)
from latentlm.tokenizers.text.cutting import BEFORE_WORDS, BETWEEN_WORDS, cut_text, find_safe_places


def test_end_marks_vanish_and_broken_bytes_are_shown_as_such() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.encode("hé") == [104, 0xC3, 0xA9]
    assert tokenizer.decode([104, 105, tokenizer.eos_id]) == "hi"
    assert tokenizer.decode([0xC3]) == "\ufffd"  # the first half of a two-byte character


def test_a_stream_waits_for_the_rest_of_a_character_and_gives_up_on_none() -> None:
    stream = StreamDecoder(ByteTokenizer())
    assert [stream.push(token) for token in "né!".encode()] == ["n", "", "é", "!"]
    assert [stream.push(token) for token in (0xF0, 0x9F, ord("x"))] == ["", "", "\ufffdx"]
    assert (stream.push(0xF0), stream.flush(), stream.push(ord("y"))) == ("", "\ufffd", "y")


def test_a_stream_of_byte_fallbacks_waits_until_no_byte_can_follow() -> None:
    tokenizer = HuggingFaceTokenizer(llama_definition(), eos_token="</s>")
    ids = tokenizer.encode("a中 b")
    stream = StreamDecoder(tokenizer)
    assert [stream.push(token) for token in ids] == ["a", "", "", "", "中 ", "b"]


def test_pieces_end_at_safe_places_and_only_a_stretch_without_one_is_cut_elsewhere() -> None:
    text = "one two three. four" + "x" * 30 + " five\nsix"
    assert list(cut_text(text, piece_chars=5, max_piece_chars=20)) == [
        "one two",
        " three.",
        " four" + "x" * 15,
        "x" * 15,
        " five\nsix",
    ]
    assert list(cut_text(text, anywhere=False, piece_chars=5, max_piece_chars=20))[2] == " four" + "x" * 30


@pytest.mark.parametrize("text", ["a  b", "a 1", "a \n b", "a\n\nb", "a\tb", "a. (b", "中文"])
def test_places_where_a_word_might_go_on_are_not_safe(text: str) -> None:
    assert list(cut_text(text, anywhere=False, piece_chars=1, max_piece_chars=1)) == [text]


def test_safe_places_of_an_unknown_tokenizer_are_found_by_trying() -> None:
    def first_word_apart(text: str) -> list[int]:  # a pre-tokenizer that looks at the whole text
        return [len(text), *text.encode()]

    def space_before_text(text: str) -> list[int]:  # as Llama 2 does
        return list(f" {text}".encode())

    def lines_marked(text: str) -> list[int]:  # lines differ at their start, words do not
        return list((text if text.startswith(" ") else f"\0{text}").encode())

    assert find_safe_places(first_word_apart) is None
    assert find_safe_places(space_before_text) is BETWEEN_WORDS
    assert find_safe_places(lines_marked) is BEFORE_WORDS


def test_a_recipe_names_a_tokenizer_and_its_path_may_lie_in_the_data_folder(tmp_path: Path, monkeypatch) -> None:
    for name, tokenizer in (("bpe", tiny_bpe()), ("ranks", tiny_tiktoken())):
        (tmp_path / name).mkdir()
        tokenizer.write_files(tmp_path / name)
    monkeypatch.setenv("LATENTLM_DATA", str(tmp_path))
    recipe = from_mapping(TextTokenizerConfig, {"kind": "huggingface", "path": "bpe"}, where="a test")
    assert open_text_tokenizer(recipe).fingerprint() == tiny_bpe().fingerprint()
    opened = open_text_tokenizer(TextTokenizerConfig(kind="tiktoken", encoding="tiny", path="ranks"))
    assert opened.fingerprint() == tiny_tiktoken().fingerprint()
    assert open_text_tokenizer(TextTokenizerConfig()).num_ids == 257
    with pytest.raises(ValueError, match="nowhere"):
        open_text_tokenizer(TextTokenizerConfig(kind="huggingface", path="nowhere"))
    with pytest.raises(ValueError, match="was written with tiny"):
        open_text_tokenizer(TextTokenizerConfig(kind="tiktoken", path="ranks"))
    with pytest.raises(ValueError, match=r"was written with eos_token '<\|endoftext\|>'"):
        open_text_tokenizer(TextTokenizerConfig(kind="huggingface", path="bpe", eos_token="a"))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"path": "file"}, "takes no path"),
        ({"eos_token": "</s>"}, "no eos_token"),
        ({"kind": "huggingface"}, "needs path"),
    ],
)
def test_recipes_that_contradict_themselves_are_refused(settings: dict[str, str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        TextTokenizerConfig(**settings)  # pyright: ignore[reportArgumentType]


def test_files_of_a_stored_tokenizer_may_not_be_links_out_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    tiny_bpe().write_files(tmp_path / "elsewhere")
    for name in ("config.json", "tokenizer.json"):
        folder = tmp_path / f"linked {name}"
        folder.mkdir()
        tiny_bpe().write_files(folder)
        (folder / name).unlink()
        (folder / name).symlink_to(tmp_path / "elsewhere" / name)
        with pytest.raises(ValueError, match="leads out of"):
            load_text_tokenizer(folder)
