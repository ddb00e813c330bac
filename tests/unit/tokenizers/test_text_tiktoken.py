"""tiktoken's encodings from local ranks: pattern and special tokens are tiktoken's, and so are the ids."""

import base64
import hashlib
from pathlib import Path

import pytest
import tiktoken
from tiny_text import CORPUS, GPT2_PATTERN, SPECIAL_TOKENS, tiny_ranks, tiny_tiktoken

from latentlm.tokenizers.text import TiktokenTokenizer
from latentlm.tokenizers.text import tiktoken as ours
from latentlm.tokenizers.text.cutting import cut_text

ENCODINGS = ("gpt2", "p50k_edit", "cl100k_base", "o200k_base", "o200k_harmony")


def ranks_file(folder: Path) -> tuple[Path, str]:
    """A ranks file in tiktoken's form, and its SHA-256."""
    path = folder / "tiny.tiktoken"
    lines = [base64.b64encode(data) + b" %d\n" % rank for data, rank in tiny_ranks().items()]
    path.write_bytes(b"".join(lines))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def known_to_tiktoken(tmp_path: Path, monkeypatch) -> Path:
    """Ranks of an encoding `tiny` that tiktoken knows, and would download from nowhere."""
    path, sha256 = ranks_file(tmp_path)
    plugin = {"load_tiktoken_bpe": None, "SHA256": sha256, "PATTERN": GPT2_PATTERN, "SPECIAL": SPECIAL_TOKENS}
    code = """
def tiny():
    ranks = load_tiktoken_bpe("https://nowhere.invalid/tiny.tiktoken", expected_hash=SHA256)
    return {"name": "tiny", "pat_str": PATTERN, "mergeable_ranks": ranks, "special_tokens": SPECIAL}
"""
    exec(code, plugin)  # a constructor with globals of its own, like those of a plugin module
    tiktoken.list_encoding_names()  # fills the table below
    constructors = tiktoken.registry.ENCODING_CONSTRUCTORS
    assert constructors is not None
    monkeypatch.setitem(constructors, "tiny", plugin["tiny"])
    return path


def test_an_encoding_opens_from_local_ranks_without_a_network(known_to_tiktoken: Path) -> None:
    tokenizer = TiktokenTokenizer.open("tiny", known_to_tiktoken)
    assert tokenizer.fingerprint() == tiny_tiktoken().fingerprint()
    assert (tokenizer.num_ids, tokenizer.eos_id) == (403, 400)  # special tokens at 400 and 402, 401 unassigned
    assert tokenizer.decode([400, 401, 402]) == ""


def test_ids_are_those_of_tiktoken(known_to_tiktoken: Path) -> None:
    authority = tiktoken.Encoding(
        "tiny", pat_str=GPT2_PATTERN, mergeable_ranks=tiny_ranks(), special_tokens=SPECIAL_TOKENS
    )
    text = CORPUS[0] + "<|endoftext|> é 中\n\n  x"
    assert TiktokenTokenizer.open("tiny", known_to_tiktoken).encode(text) == authority.encode_ordinary(text)


def test_ranks_other_than_those_tiktoken_knows_are_refused_with_both_hashes(known_to_tiktoken: Path) -> None:
    with pytest.raises(ValueError, match=r"not the ranks file of cl100k_base: .* tiktoken expects 223921b7"):
        TiktokenTokenizer.open("cl100k_base", known_to_tiktoken)
    with pytest.raises(ValueError, match="has 279 ranks, but gpt2 has 50256"):  # its form has no hash of its own
        TiktokenTokenizer.open("gpt2", known_to_tiktoken)
    known_to_tiktoken.write_bytes(known_to_tiktoken.read_bytes()[:-20])
    with pytest.raises(ValueError, match="not the ranks file of tiny"):
        TiktokenTokenizer.open("tiny", known_to_tiktoken)


def test_what_cannot_be_opened_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="knows no encoding 'cl100k'; it knows gpt2, "):
        TiktokenTokenizer.open("cl100k")
    with pytest.raises(ValueError, match="does not exist"):
        TiktokenTokenizer.open("cl100k_base", tmp_path / "nowhere")
    for content, sentence in ((b"IQ== x\n", "has the line"), (b"!! 1\n", "is no base64")):
        path = tmp_path / "broken.tiktoken"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=sentence):
            ours.read_ranks(path, None, "tiny")


def test_without_network_or_cache_the_remedy_is_named(known_to_tiktoken: Path, monkeypatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    constructors = tiktoken.registry.ENCODING_CONSTRUCTORS
    assert constructors is not None
    monkeypatch.setitem(constructors["tiny"].__globals__, "load_tiktoken_bpe", no_network)
    with pytest.raises(OSError, match=r"cannot be fetched \(no route\); give path, a ranks file"):
        TiktokenTokenizer.open("tiny")


def test_vocabularies_that_cannot_work_are_refused() -> None:
    def build(ranks=None, special_tokens=None, **settings) -> TiktokenTokenizer:
        return TiktokenTokenizer(
            ranks or tiny_ranks(),
            encoding="tiny",
            pattern=GPT2_PATTERN,
            special_tokens=special_tokens or SPECIAL_TOKENS,
            **settings,
        )

    with pytest.raises(ValueError, match="lack 1 of the 256 bytes, the first is 97"):
        build({data: rank for data, rank in tiny_ranks().items() if data != b"a"})
    with pytest.raises(ValueError, match="share an id"):
        build(special_tokens={"<|endoftext|>": 5})
    with pytest.raises(ValueError, match=r"no special token '</s>' to end a text; it has <\|endoftext\|>"):
        build(eos_token="</s>")


def test_tiktokens_own_table_is_left_as_it_was(known_to_tiktoken: Path) -> None:
    from tiktoken_ext import openai_public

    before = dict(vars(openai_public))
    with pytest.raises(ValueError, match="not the ranks file"):
        TiktokenTokenizer.open("o200k_harmony", known_to_tiktoken)
    assert dict(vars(openai_public)) == before


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_cuts_are_exact_under_the_patterns_of_every_encoding(encoding: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(ours, "read_ranks", lambda *_: tiny_ranks())
    pattern = ours._define(encoding, tmp_path)["pat_str"]
    tokenizer = tiny_tiktoken(pattern=pattern)
    text = (
        "It's 12 345 cats' hats,  and\tthe end.\n\nThe 2nd: 'it isn't'\r\nÉa1 中文。\n中 ½ x_y <b> ./a\n/b !?\n c\n "
        "CamelCase aB  c\u00a0d e\u0301 f\n" + CORPUS[0]
    )
    pieces = list(cut_text(text, anywhere=False, piece_chars=1, max_piece_chars=1))
    assert len(pieces) > 20
    assert [token for piece in pieces for token in tokenizer.encode(piece)] == tokenizer.encode(text)


@pytest.mark.network
def test_the_papers_vocabulary_is_cl100k_base() -> None:
    tokenizer = TiktokenTokenizer.open()
    assert (tokenizer.num_ids, tokenizer.eos_id) == (100_277, 100_257)
    assert tokenizer.encode("hello world") == [15339, 1917]
