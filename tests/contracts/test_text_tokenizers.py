"""Laws of every text tokenizer: no text forges a special id, and nothing is lost on the way."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_text import (
    SPECIAL_TOKENS,
    chat_definition,
    llama_definition,
    tiny_bpe,
    tiny_ranks,
    tiny_tiktoken,
    unigram_definition,
    words_definition,
)

from latentlm.sequence import TextTokenizer
from latentlm.storage import read_json, write_json
from latentlm.tokenizers.text import (
    ByteTokenizer,
    HuggingFaceTokenizer,
    StoredTextTokenizer,
    StreamDecoder,
    TiktokenTokenizer,
    load_text_tokenizer,
)
from latentlm.tokenizers.text.cutting import cut_text

# A new tokenizer adds a line. Those that are byte-level give back every text.
BYTE_LEVEL: dict[str, Callable[[], StoredTextTokenizer]] = {
    "bytes": ByteTokenizer,
    "tiktoken": tiny_tiktoken,
    "bpe": tiny_bpe,
    "bpe with chat marks": lambda: HuggingFaceTokenizer(chat_definition(), eos_token="<|endoftext|>"),
}
OTHERS: dict[str, Callable[[], StoredTextTokenizer]] = {
    "like Llama 2": lambda: HuggingFaceTokenizer(llama_definition(), eos_token="</s>"),
    "unigram": lambda: HuggingFaceTokenizer(unigram_definition(), eos_token="</s>"),
    "words": lambda: HuggingFaceTokenizer(words_definition(), eos_token="[SEP]"),
}
UNKNOWN_ID = 0  # what those that are not byte-level make of characters they lack

# What is the same but for one thing that decides ids.
CHANGED: dict[str, Callable[[], StoredTextTokenizer]] = {
    "a smaller tiktoken": lambda: tiny_tiktoken(260),
    "another pattern": lambda: tiny_tiktoken(pattern=r"\p{L}+|\P{L}"),
    "another end mark": lambda: TiktokenTokenizer(
        tiny_ranks(), encoding="tiny", pattern=r"\p{L}+|\P{L}", special_tokens=SPECIAL_TOKENS, eos_token="<|im_start|>"
    ),
    "a smaller bpe": lambda: tiny_bpe(279),
    "chat marks as end": lambda: HuggingFaceTokenizer(chat_definition(), eos_token="<|im_start|>"),
}

FORGERIES = ("<|endoftext|>", "<|im_start|>", "</s>", "<s>", "<unk>", "[SEP]", "[sep]", "<0x41>", "    ", "\0", "▁")
TEXTS = st.lists(st.one_of(st.text(), st.sampled_from(FORGERIES), st.text("ab s\n</>", max_size=5))).map("".join)
# One tokenizer serves all examples of a property; it has no state.
PROPERTY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module", params=[*BYTE_LEVEL, *OTHERS])
def tokenizer(request) -> StoredTextTokenizer:
    made = (BYTE_LEVEL | OTHERS)[request.param]()
    assert isinstance(made, StoredTextTokenizer)
    assert isinstance(made, TextTokenizer)
    return made


@pytest.fixture(scope="module", params=BYTE_LEVEL)
def byte_level(request) -> StoredTextTokenizer:
    return BYTE_LEVEL[request.param]()


def ids_of(tokenizer: StoredTextTokenizer) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, tokenizer.num_ids - 1), max_size=12)


@PROPERTY
@given(data=st.data())
def test_no_text_forges_a_special_id(tokenizer: StoredTextTokenizer, data) -> None:
    ids = tokenizer.encode(data.draw(TEXTS))
    assert tokenizer.eos_id in tokenizer.special_ids
    assert tokenizer.eos_id not in ids
    assert not (tokenizer.special_ids - {UNKNOWN_ID}) & set(ids)
    assert all(0 <= token < tokenizer.num_ids for token in ids)


@PROPERTY
@given(text=TEXTS)
def test_byte_level_tokenizers_give_back_every_text(byte_level: StoredTextTokenizer, text: str) -> None:
    ids = byte_level.encode(text)
    assert byte_level.decode(ids) == text
    assert byte_level.num_bytes(ids) == len(text.encode())


@PROPERTY
@given(data=st.data())
def test_a_stream_joins_to_the_whole_decoding_whatever_the_ids(tokenizer: StoredTextTokenizer, data) -> None:
    stream = StreamDecoder(tokenizer)
    for _ in range(2):  # a flushed stream begins anew
        ids = data.draw(ids_of(tokenizer))
        assert "".join([*map(stream.push, ids), stream.flush()]) == tokenizer.decode(ids)


@settings(PROPERTY, max_examples=20)  # quadratic in the text's length
@given(text=TEXTS)
def test_a_stream_shows_every_character_as_soon_as_it_is_whole(byte_level: StoredTextTokenizer, text: str) -> None:
    stream, ids = StreamDecoder(byte_level), byte_level.encode(text)
    shown = ""
    for index, token in enumerate(ids):
        shown += stream.push(token)
        whole = b"".join([byte_level.token_bytes(token) or b"" for token in ids[: index + 1]])
        assert shown == whole.decode(errors="ignore")  # `ignore` drops an unfinished end, and nothing else here
    assert shown == text
    assert stream.flush() == ""


@PROPERTY
@given(data=st.data())
def test_bytes_of_any_ids_are_counted_and_end_marks_are_none(tokenizer: StoredTextTokenizer, data) -> None:
    ids = data.draw(ids_of(tokenizer))
    text = tokenizer.decode(ids)
    if "\ufffd" not in text:
        assert tokenizer.num_bytes(ids) == len(text.encode())
    assert tokenizer.decode([tokenizer.eos_id, *ids, tokenizer.eos_id]) == text
    assert tokenizer.num_bytes([tokenizer.eos_id]) == 0


@PROPERTY
@given(text=st.text("ab1.é中½\u0301_<| \n\r\t\u00a0'/", min_size=2, max_size=60))
def test_cutting_at_safe_places_leaves_the_ids_as_they_are(byte_level: StoredTextTokenizer, text: str) -> None:
    pieces = list(cut_text(text, anywhere=False, piece_chars=1, max_piece_chars=1))
    assert [token for piece in pieces for token in byte_level.encode(piece)] == byte_level.encode(text)


@pytest.mark.parametrize("wrong", [-1, "num_ids"])
def test_ids_of_another_vocabulary_are_refused(tokenizer: StoredTextTokenizer, wrong: int | str) -> None:
    token = tokenizer.num_ids if wrong == "num_ids" else -1
    for use in (tokenizer.decode, tokenizer.num_bytes):
        with pytest.raises(ValueError, match=f"id {token} is none of this text tokenizer's"):
            use([0, token])
    with pytest.raises(ValueError, match="another vocabulary"):
        StreamDecoder(tokenizer).push(token)


def test_a_lone_surrogate_is_refused_with_its_place(tokenizer: StoredTextTokenizer) -> None:
    with pytest.raises(ValueError, match=r"lone surrogate U\+D83D at character 2"):
        tokenizer.encode(json.loads(r'"ab\ud83d"'))


def test_no_text_has_no_ids(tokenizer: StoredTextTokenizer) -> None:
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""
    assert StreamDecoder(tokenizer).flush() == ""


def test_a_million_characters_without_a_word_neither_hang_nor_panic(byte_level: StoredTextTokenizer) -> None:
    for text in (" " * 1_000_001 + "x", "a" * 300_000, "\r\n" * 150_000):  # tiktoken itself panics on the first
        ids = byte_level.encode(text)
        assert byte_level.decode(ids) == text


@pytest.mark.parametrize("name", [*BYTE_LEVEL, *OTHERS])
def test_saving_and_loading_keeps_ids_and_fingerprint(name: str, tmp_path: Path) -> None:
    tokenizer = (BYTE_LEVEL | OTHERS)[name]()
    tokenizer.write_files(tmp_path)
    assert all(path.suffix == ".json" for path in tmp_path.iterdir())
    loaded = load_text_tokenizer(tmp_path)
    copy = pickle.loads(pickle.dumps(tokenizer))  # noqa: S301 - our own, as a data worker gets it
    text = "The cat's a <|endoftext|> </s> cat [SEP]\n    12é中"
    for other in (loaded, copy):
        assert type(other) is type(tokenizer)
        assert other.fingerprint() == tokenizer.fingerprint()
        assert (other.num_ids, other.eos_id, other.special_ids) == (
            tokenizer.num_ids,
            tokenizer.eos_id,
            tokenizer.special_ids,
        )
        assert other.encode(text) == tokenizer.encode(text)


def test_whatever_decides_ids_changes_the_fingerprint() -> None:
    made = {name: build() for name, build in (BYTE_LEVEL | OTHERS | CHANGED).items()}
    fingerprints = {name: tokenizer.fingerprint() for name, tokenizer in made.items()}
    assert len(set(fingerprints.values())) == len(fingerprints)
    assert BYTE_LEVEL["bpe"]().fingerprint() == fingerprints["bpe"]


@pytest.mark.parametrize("name", [*BYTE_LEVEL, *OTHERS])
def test_damaged_folders_are_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    (BYTE_LEVEL | OTHERS)[name]().write_files(tmp_path)
    config = read_json(tmp_path / "config.json")
    for damage, sentence in (
        ({"kind": "image_tokenizer"}, "no text tokenizer"),
        ({"format_version": 99}, "upgrade"),
        ({"fingerprint": "0" * 64}, "is damaged: its text tokenizer has the fingerprint"),
    ):
        write_json(tmp_path / "config.json", config | damage)
        with pytest.raises(ValueError, match=sentence):
            load_text_tokenizer(tmp_path)
    write_json(tmp_path / "config.json", config)
    for path in tmp_path.iterdir():
        whole = path.read_bytes()
        for broken in (b"", whole[: len(whole) // 2], b"[]", b"{}"):
            path.write_bytes(broken)
            with pytest.raises(ValueError, match=f"{tmp_path}.*(damaged|JSON|ours)"):
                load_text_tokenizer(tmp_path)
        path.unlink()
        with pytest.raises(ValueError, match="does not exist"):
            load_text_tokenizer(tmp_path)
        path.write_bytes(whole)
    load_text_tokenizer(tmp_path)
