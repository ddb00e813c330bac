"""The byte tokenizer: exact on every string, end marks out of reach."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentlm.tokenizers.text import ByteTokenizer


@given(st.text())
def test_every_text_survives_the_round_trip_and_never_encodes_to_the_end_mark(text: str) -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.eos_id not in ids


def test_end_marks_vanish_and_broken_bytes_are_shown_as_such() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.decode([104, 105, tokenizer.eos_id]) == "hi"
    assert tokenizer.decode([0xC3]) == "\ufffd"  # the first half of a two-byte character


@pytest.mark.parametrize("token", [-1, 257])
def test_an_id_of_another_vocabulary_is_refused(token: int) -> None:
    with pytest.raises(ValueError, match="not a byte"):
        ByteTokenizer().decode([104, token])
