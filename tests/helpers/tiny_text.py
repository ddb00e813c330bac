"""Small text tokenizers of every kind, made here: nothing is downloaded."""

from functools import cache
from typing import Any

from latentlm.tokenizers.text import HuggingFaceTokenizer, TiktokenTokenizer, train_bpe

CORPUS = ("The cat sat on the mat, and the cat's hat sat on that cat.\nThe end? It isn't the end of the hat! " * 4,)
# GPT-2's splitting, as tiktoken writes it.
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
SPECIAL_TOKENS = {"<|endoftext|>": 400, "<|im_start|>": 402}  # 401 stays unassigned, as ids of cl100k_base do

_PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def tiny_bpe(vocab_size: int = 280) -> HuggingFaceTokenizer:
    return train_bpe(CORPUS, vocab_size=vocab_size)


@cache
def tiny_ranks(num_ranks: int = 279) -> dict[bytes, int]:
    """Ranks of a trained BPE: its ids are in order of merging, after end-of-text."""
    tokenizer = tiny_bpe(num_ranks + 1)
    return {tokenizer.token_bytes(token) or b"": token - 1 for token in range(1, tokenizer.num_ids)}


def tiny_tiktoken(num_ranks: int = 279, pattern: str = GPT2_PATTERN) -> TiktokenTokenizer:
    return TiktokenTokenizer(tiny_ranks(num_ranks), encoding="tiny", pattern=pattern, special_tokens=SPECIAL_TOKENS)


def added(token: int, content: str, *, special: bool) -> dict[str, Any]:
    return {"id": token, "content": content, **_PLAIN, "special": special}


def definition(model: dict[str, Any], **parts: Any) -> dict[str, Any]:
    """A tokenizer.json."""
    absent = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    return {"version": "1.0", **absent, "added_tokens": [], "model": model, **parts}


def chat_definition() -> dict[str, Any]:
    """A byte-level BPE with chat marks and a run of spaces, which is an added token but an ordinary one."""
    base = tiny_bpe().definition
    marks = [added(280, "<|im_start|>", special=True), added(281, "    ", special=False)]
    return {**base, "added_tokens": [*base["added_tokens"], *marks]}


def llama_definition() -> dict[str, Any]:
    """The form of Llama 2: a space before every text, unknown characters as their bytes, special tokens as words."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{value:02X}>": 3 + value for value in range(256)}
    for piece in ("▁", "a", "b", "s", "<", "/", ">", "ab", "▁a", "▁ab", "▁s"):
        vocab[piece] = len(vocab)
    model = {
        "type": "BPE",
        "vocab": vocab,
        "merges": [["a", "b"], ["▁", "a"], ["▁a", "b"], ["▁", "s"]],
        "unk_token": "<unk>",
        "byte_fallback": True,
        "fuse_unk": True,
        "dropout": 0.5,
    }
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    return definition(
        model,
        normalizer={"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, space]},
        decoder={"type": "Sequence", "decoders": decoders},
        added_tokens=[added(vocab[name], name, special=True) for name in ("<unk>", "<s>", "</s>")],
        truncation={"max_length": 8, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
    )


def unigram_definition() -> dict[str, Any]:
    """The form of T5: a word list with scores, in which "</s>" is likelier than its letters."""
    pieces = {"<unk>": 0.0, "</s>": -1.0, "▁": -2.0, "a": -3.0, "b": -3.0, "s": -3.0, "<": -4.0, ">": -4.0, "/": -4.0}
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    return definition(
        {"type": "Unigram", "unk_id": 0, "vocab": [[piece, score] for piece, score in pieces.items()]},
        pre_tokenizer=space,
        decoder=space,
        added_tokens=[added(0, "<unk>", special=True), added(1, "</s>", special=True)],
    )


def words_definition() -> dict[str, Any]:
    """Whole words between white space, "[SEP]" among them."""
    vocab = {"[UNK]": 0, "[SEP]": 1, "a": 2, "cat": 3}
    return definition(
        {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"},
        pre_tokenizer={"type": "WhitespaceSplit"},
        added_tokens=[added(0, "[UNK]", special=True), added(1, "[SEP]", special=True)],
    )
