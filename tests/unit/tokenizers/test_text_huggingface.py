"""Hugging Face tokenizers: what a folder says, what is special, and that no word of a vocabulary forges it."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from tiny_text import added, chat_definition, llama_definition, tiny_bpe, unigram_definition, words_definition
from tokenizers import Tokenizer

from latentlm.sequence import Document, SequenceBuilder, TextPart, VocabularyConfig
from latentlm.tokenizers.text import HuggingFaceTokenizer
from latentlm.tokenizers.text.huggingface_files import token_ids


def folder_with(folder: Path, definition: dict[str, Any], **files: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in {"tokenizer": definition, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("files", "eos_id"),
    [
        ({"tokenizer_config": {"eos_token": "<|im_start|>"}}, 280),
        ({"tokenizer_config": {"eos_token": {"content": "<|im_start|>", "lstrip": False}}}, 280),
        ({"tokenizer_config": {"eos_token": None}, "special_tokens_map": {"eos_token": "<|im_start|>"}}, 280),
        ({"generation_config": {"eos_token_id": [280, 0]}, "config": {"eos_token_id": 0}}, 280),
        ({"config": {"model_type": "llama", "eos_token_id": 0}}, 0),
    ],
)
def test_the_end_of_text_is_what_the_folder_says(files: dict[str, Any], eos_id: int, tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "model", chat_definition(), **files)
    assert HuggingFaceTokenizer.open(folder).eos_id == eos_id
    assert HuggingFaceTokenizer.open(folder / "tokenizer.json").eos_id == eos_id
    assert HuggingFaceTokenizer.open(folder, "<|endoftext|>").eos_id == 0


@pytest.mark.parametrize(
    ("files", "bos_id"),
    [
        ({"tokenizer_config": {"bos_token": "<|im_start|>"}}, 280),
        ({"tokenizer_config": {"bos_token": None}, "special_tokens_map": {"bos_token": "<|im_start|>"}}, 280),
        ({"tokenizer_config": {"bos_token": None}, "config": {"bos_token_id": 280}}, 280),
        ({"generation_config": {"bos_token_id": 280}, "config": {"bos_token_id": 0}}, 280),
        ({"config": {"bos_token_id": 0}}, 0),
        ({"config": {"bos_token_id": 65}}, 0),  # an ordinary letter: a default that this tokenizer knows nothing of
        ({}, 0),
    ],
)
def test_the_beginning_of_text_is_what_the_folder_says(files: dict[str, Any], bos_id: int, tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "model", chat_definition(), **files)
    tokenizer = HuggingFaceTokenizer.open(folder, "<|endoftext|>")
    assert (tokenizer.bos_id, tokenizer.eos_id) == (bos_id, 0)
    assert HuggingFaceTokenizer.open(folder, "<|endoftext|>", "<|endoftext|>").bos_id == 0
    assert HuggingFaceTokenizer.open(folder, "<|endoftext|>", "<|im_start|>").bos_id == 280
    plain = HuggingFaceTokenizer(chat_definition(), eos_token="<|endoftext|>")
    assert (tokenizer.fingerprint() == plain.fingerprint()) == (bos_id == 0)


def test_an_unknown_end_of_text_is_asked_for(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "model", chat_definition())
    with pytest.raises(ValueError, match=r"give eos_token, perhaps .* <\|endoftext\|>, <\|im_start\|>"):
        HuggingFaceTokenizer.open(folder)
    definition = chat_definition()
    definition["added_tokens"] += [added(282 + index, f"<|{index}|>", special=True) for index in range(20)]
    with pytest.raises(ValueError, match=r"<\|5\|> and 14 more$"):
        HuggingFaceTokenizer.open(folder_with(tmp_path / "many", definition))
    with pytest.raises(ValueError, match="has no token '</s>' to end a text"):
        HuggingFaceTokenizer.open(folder, "</s>")


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.json"])
def test_slow_tokenizers_are_refused_with_the_way_to_convert_them(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(ValueError, match=r"no tokenizer.json; write one .*save_pretrained"):
        HuggingFaceTokenizer.open(tmp_path)
    with pytest.raises(ValueError, match=r"no tokenizer.json; write one"):
        HuggingFaceTokenizer.open(tmp_path / name)
    with pytest.raises(ValueError, match="does not exist"):
        HuggingFaceTokenizer.open(tmp_path / "nowhere" / "tokenizer.json")


@pytest.mark.parametrize(
    "definition",
    [
        {},
        {"model": {}},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}},
        {"model": {"type": "BPE", "vocab": {"a": 0}}, "added_tokens": [{"content": "</s>"}]},
    ],
)
def test_damaged_definitions_are_refused_in_a_sentence(definition: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        HuggingFaceTokenizer.open(folder_with(tmp_path / "model", definition), "a")


def test_ids_that_the_library_would_number_otherwise_are_refused() -> None:
    definition = chat_definition()
    definition["added_tokens"].append(added(400, "<|far|>", special=True))
    with pytest.raises(ValueError, match=r"gives '<\|far\|>' the id 400, but it is 282"):
        HuggingFaceTokenizer(definition, eos_token="<|endoftext|>")


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config": {"additional_special_tokens": ["<|im_start|>"]}},
        {"special_tokens_map": {"pad_token": {"content": "<|im_start|>"}}},
        {"tokenizer_config": {"added_tokens_decoder": {"280": {"content": "<|im_start|>", "special": True}}}},
    ],
)
def test_a_token_is_special_if_any_file_of_the_folder_says_so(files: dict[str, Any], tmp_path: Path) -> None:
    definition = chat_definition()
    definition["added_tokens"] = [{**token, "special": False} for token in definition["added_tokens"]]
    plain = HuggingFaceTokenizer.open(folder_with(tmp_path / "plain", definition), "<|endoftext|>")
    assert plain.encode("<|im_start|>") == [280]
    tokenizer = HuggingFaceTokenizer.open(folder_with(tmp_path / "model", definition, **files), "<|endoftext|>")
    assert tokenizer.special_ids == {0, 280}
    assert 280 not in tokenizer.encode("a<|im_start|>b")
    assert tokenizer.decode(tokenizer.encode("a<|im_start|>b")) == "a<|im_start|>b"


def test_added_tokens_that_nothing_calls_special_are_ordinary_words() -> None:
    tokenizer = HuggingFaceTokenizer(chat_definition(), eos_token="<|endoftext|>")
    assert tokenizer.encode("a    b")[1] == 281
    assert tokenizer.token_bytes(281) == b"    "
    assert tokenizer.token_bytes(280) == b""


@pytest.mark.parametrize(
    ("definition", "eos_token", "text"),
    [(unigram_definition(), "</s>", "ab</s>ab</s>"), (words_definition(), "[SEP]", "a [SEP] [SEP] cat")],
)
def test_special_words_of_a_vocabulary_are_read_as_text(definition: dict[str, Any], eos_token: str, text: str) -> None:
    library = Tokenizer.from_str(json.dumps(definition))
    library.encode_special_tokens = True
    tokenizer = HuggingFaceTokenizer(definition, eos_token=eos_token)
    assert tokenizer.eos_id in library.encode(text, add_special_tokens=False).ids  # its own protection is not enough
    assert tokenizer.eos_id not in tokenizer.encode(text)


def test_a_single_character_that_ends_texts_cannot_be_written() -> None:
    tokenizer = HuggingFaceTokenizer(unigram_definition(), eos_token="/")
    with pytest.raises(ValueError, match="reads '/' as its special token"):
        tokenizer.encode("a/b")


def test_training_leftovers_do_not_shorten_or_randomise_texts() -> None:
    tokenizer = HuggingFaceTokenizer(llama_definition(), eos_token="</s>")  # max_length 8, dropout 0.5
    first = tokenizer.encode("ab " * 50)
    assert len(first) >= 50
    assert all(tokenizer.encode("ab " * 50) == first for _ in range(5))


def test_ids_and_texts_are_those_of_the_library() -> None:
    for definition, eos_token in ((tiny_bpe().definition, "<|endoftext|>"), (llama_definition(), "</s>")):
        tokenizer = HuggingFaceTokenizer(definition, eos_token=eos_token)
        library = Tokenizer.from_str(json.dumps(tokenizer.definition))
        for text in ("ab ab a", "The cat's hat", "é中 b", "", "   "):
            ids = library.encode(text, add_special_tokens=False).ids
            assert tokenizer.encode(text) == ids
            assert tokenizer.decode(ids) == library.decode(ids)


def test_a_space_before_every_text_does_not_multiply_in_long_ones() -> None:
    tokenizer = HuggingFaceTokenizer(llama_definition(), eos_token="</s>")
    text = "ab s " * 40_000  # longer than a piece
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_words_are_lost_as_far_as_the_vocabulary_lacks_them() -> None:
    lower_case = words_definition() | {"normalizer": {"type": "Lowercase"}}
    tokenizer = HuggingFaceTokenizer(lower_case, eos_token="[SEP]")
    assert tokenizer.encode("A CAT sat") == [2, 3, 0]
    assert tokenizer.decode([2, 3, 0]) == "a cat"
    assert tokenizer.num_bytes([2, 3, 0]) == 5


def test_a_vocabulary_may_begin_texts_by_a_token_of_its_own(tmp_path: Path) -> None:
    definition = chat_definition()
    mark = added(1 + max(token_ids(definition).values()), "<begin>", special=False)
    definition = {**definition, "added_tokens": [*definition["added_tokens"], mark]}
    eos = "<|endoftext|>"
    tokenizer = HuggingFaceTokenizer(definition, eos_token=eos, bos_token="<begin>")
    assert tokenizer.bos_id == mark["id"] != tokenizer.eos_id
    assert tokenizer.bos_id in tokenizer.special_ids
    assert tokenizer.bos_id not in tokenizer.encode("a <begin> of nothing")
    assert tokenizer.decode(tokenizer.encode("a <begin> of nothing")) == "a <begin> of nothing"
    plain = HuggingFaceTokenizer(definition, eos_token=eos)
    assert plain.bos_id == plain.eos_id
    assert plain.fingerprint() != tokenizer.fingerprint()
    tokenizer.write_files(tmp_path)
    loaded = HuggingFaceTokenizer.from_folder(tmp_path)
    assert (loaded.bos_id, loaded.fingerprint()) == (tokenizer.bos_id, tokenizer.fingerprint())
    assert pickle.loads(pickle.dumps(tokenizer)).bos_id == tokenizer.bos_id  # noqa: S301
    with pytest.raises(ValueError, match="no token '<start>' to begin a text"):
        HuggingFaceTokenizer(definition, eos_token=eos, bos_token="<start>")

    builder = SequenceBuilder(VocabularyConfig(num_text_ids=tokenizer.num_ids, switch_tokens=True), [], tokenizer)
    sequence = builder.build(Document((TextPart("words"),)))
    assert sequence.input_ids[0] == tokenizer.bos_id
    assert sequence.input_ids[-1] == tokenizer.eos_id
    assert builder.restore(sequence).parts == (TextPart("words"),)
