"""Phonemes as a text tokenizer: by a stand-in everywhere, by espeak-ng itself where it is installed."""

import logging
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentlm.storage import StorageError
from latentlm.tokenizers.text import (
    PhonemeTokenizer,
    TextTokenizerConfig,
    load_text_tokenizer,
    open_text_tokenizer,
    phonemes,
)

needs_espeak = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")


class Backend:
    """Says everything backwards."""

    def __init__(self, version: tuple[int, ...] = (1, 51)) -> None:
        self.said: list[str] = []
        self._version = version

    def phonemize(self, texts: list[str], *, strip: bool) -> list[str]:
        assert strip
        self.said += texts
        return [text[::-1] for text in texts]

    def version(self) -> tuple[int, ...]:
        return self._version


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Backend:
    made = Backend()
    monkeypatch.setattr(phonemes, "_backend", lambda language: made)
    return made


def test_ids_are_the_bytes_of_what_is_heard(backend: Backend) -> None:
    tokenizer = PhonemeTokenizer()
    assert tokenizer.encode("abc") == list(b"cba")
    assert tokenizer.decode([*b"cba", tokenizer.eos_id]) == "cba"
    assert tokenizer.num_bytes(tokenizer.encode("abc")) == 3


def test_the_library_is_asked_for_one_line(backend: Backend) -> None:
    tokenizer = PhonemeTokenizer()
    tokenizer.encode(" two\n lines\0here ")
    assert backend.said == ["two lines here"]
    assert tokenizer.encode("") == tokenizer.encode(" \n") == []
    assert len(backend.said) == 1, "nothing is asked for where nothing is written"


def test_a_folder_keeps_the_language_and_another_espeak_is_told(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = PhonemeTokenizer("en-gb")
    tokenizer.write_files(tmp_path)
    with caplog.at_level(logging.WARNING):
        found = load_text_tokenizer(tmp_path)
    assert isinstance(found, PhonemeTokenizer)
    assert (found.language, found.fingerprint()) == ("en-gb", tokenizer.fingerprint())
    assert found.fingerprint() != PhonemeTokenizer("de").fingerprint()
    assert not caplog.records
    monkeypatch.setattr(phonemes, "_backend", lambda language: Backend((1, 52)))
    load_text_tokenizer(tmp_path)
    assert "trained with espeak-ng 1.51, here is 1.52" in caplog.text
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace("en-gb", "en-us"))
    with pytest.raises(StorageError, match="is damaged"):
        load_text_tokenizer(tmp_path)


def test_a_recipe_names_the_language(backend: Backend) -> None:
    tokenizer = open_text_tokenizer(TextTokenizerConfig(kind="phonemes", language="de"))
    assert isinstance(tokenizer, PhonemeTokenizer)
    assert tokenizer.language == "de"
    with pytest.raises(ValueError, match="'bytes' takes no language"):
        TextTokenizerConfig(language="de")
    with pytest.raises(ValueError, match="'phonemes' takes no path"):
        TextTokenizerConfig(kind="phonemes", path="ranks")


@needs_espeak
def test_espeak_is_heard() -> None:
    pytest.importorskip("phonemizer")
    tokenizer = PhonemeTokenizer()
    assert tokenizer.phonemes("three one four") == "θɹˈiː wˈʌn fˈoːɹ"
    assert tokenizer.phonemes("Hello, 42!").endswith("!")
    assert tokenizer.encode("2 birds") == tokenizer.encode("two birds")
    assert PhonemeTokenizer("en-gb").phonemes("four") != tokenizer.phonemes("four")
    with pytest.raises(ValueError, match=r"phonemes of 'klingon-9' cannot be had.*espeak-ng --voices"):
        PhonemeTokenizer("klingon-9")


@needs_espeak
@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_no_text_gives_a_special_id_or_two_lines(text: str) -> None:
    pytest.importorskip("phonemizer")
    tokenizer = PhonemeTokenizer()
    ids = tokenizer.encode(text)
    assert tokenizer.eos_id not in ids
    assert "\n" not in tokenizer.decode(ids)


@needs_espeak
@settings(deadline=None)
@given(st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=30))
def test_a_text_in_latin_letters_is_always_read_alike(text: str) -> None:
    pytest.importorskip("phonemizer")
    tokenizer = PhonemeTokenizer()
    assert tokenizer.encode(text) == tokenizer.encode(text)
