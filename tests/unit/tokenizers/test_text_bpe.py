"""Training a byte-level BPE, by function and by `latentlm bpe`."""

import argparse
from pathlib import Path

import pytest
from tiny_text import CORPUS, tiny_bpe

from latentlm.cli import bpe
from latentlm.storage import verify_folder
from latentlm.tokenizers.text import load_text_tokenizer, train_bpe
from latentlm.tokenizers.text.bpe import EOS_TOKEN


def run(*arguments: str | Path) -> int:
    parser = argparse.ArgumentParser()
    bpe.add_arguments(parser)
    return bpe.run(parser.parse_args([str(argument) for argument in arguments]), [])


def test_training_learns_words_and_knows_every_byte() -> None:
    tokenizer = tiny_bpe()
    assert tokenizer.num_ids == 280
    assert len(tokenizer.encode(" cat")) < 4
    table = [tokenizer.token_bytes(token) for token in range(tokenizer.num_ids)]
    assert {bytes([value]) for value in range(256)} < set(table)
    assert len(set(table)) == 280


def test_the_order_of_texts_changes_nothing() -> None:
    texts = [f"{word} number {index}" for index, word in enumerate(CORPUS[0].split())]
    made = [train_bpe(ordered, vocab_size=300).fingerprint() for ordered in (texts, texts[::-1], iter(texts))]
    assert len(set(made)) == 1


def test_rare_pairs_are_joined_only_on_request() -> None:
    assert train_bpe(["abc"], vocab_size=300).num_ids == 257
    assert train_bpe(["abc"], vocab_size=300, min_frequency=1).num_ids == 259  # ab or bc, then abc


def test_texts_that_spell_the_end_mark_teach_no_way_to_write_it() -> None:
    tokenizer = train_bpe([EOS_TOKEN * 50], vocab_size=400)
    ids = tokenizer.encode(EOS_TOKEN)
    assert tokenizer.eos_id not in ids
    assert tokenizer.decode(ids) == EOS_TOKEN


@pytest.mark.parametrize(
    ("texts", "settings", "sentence"),
    [
        (["a"], {"vocab_size": 256}, "already need 257"),
        (["a"], {"vocab_size": 300, "min_frequency": 0}, "must be at least 1"),
        ([], {"vocab_size": 300}, "no text"),
        ([""], {"vocab_size": 300}, "no text"),
    ],
)
def test_impossible_trainings_are_refused(texts: list[str], settings: dict[str, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        train_bpe(texts, **settings)


def test_the_verb_writes_a_whole_folder_that_loads(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(bpe, "_BLOCK_CHARS", 64)  # several blocks per file
    for name, text in (("one.txt", CORPUS[0]), ("two.txt", "é\r\n中 " * 9)):
        (tmp_path / name).write_bytes(text.encode())
    assert run(tmp_path / "one.txt", tmp_path / "two.txt", "--vocab-size", "280", "--out", tmp_path / "bpe") == 0
    assert "bpe holds 280 ids; end-of-text is 0" in capsys.readouterr().out
    verify_folder(tmp_path / "bpe")
    tokenizer = load_text_tokenizer(tmp_path / "bpe")
    assert tokenizer.decode(tokenizer.encode("the cat\r\n")) == "the cat\r\n"


def test_a_text_that_supports_fewer_ids_is_said_so(tmp_path: Path, capsys) -> None:
    (tmp_path / "a.txt").write_text("hello hello")
    assert run(tmp_path / "a.txt", "--vocab-size", "500", "--out", tmp_path / "bpe") == 0
    assert "holds 261 ids, for no further pair occurs often enough" in capsys.readouterr().out


def test_the_verb_refuses_before_it_trains(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello hello")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(ValueError, match="exists already"):
        run(tmp_path / "a.txt", "--vocab-size", "300", "--out", tmp_path)
    with pytest.raises(ValueError, match="nowhere is no file"):
        run(tmp_path / "nowhere", "--vocab-size", "300", "--out", tmp_path / "new")
    with pytest.raises(ValueError, match=r"latin\.txt is not UTF-8"):
        run(tmp_path / "latin.txt", "--vocab-size", "300", "--out", tmp_path / "new")
    assert not (tmp_path / "new").exists()
