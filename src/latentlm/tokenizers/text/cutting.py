"""Long texts in pieces, cut where the ids do not change.

tiktoken's regular expressions run out of stack on a million spaces (the process panics), and `tokenizers` keeps some
hundred bytes per character of whatever it is given at once. Both are linear on pieces.

A cut is *safe* where every known pre-tokenizer ends a word whatever stands around: between a visible character and one
space before a letter, or after one line feed that stands between a visible character and a letter. Only a stretch of
`max_piece_chars` without any such place (a megabyte of spaces, of base64) is cut elsewhere: its text survives, but
around that cut its ids differ from the uncut text's.
"""

import re
from collections.abc import Callable, Iterator

PIECE_CHARS = 2**16
"""A piece ends at the first safe place after so many characters."""
MAX_PIECE_CHARS = 2**17
"""… and at the latest here; tiktoken 0.14 panics on a million characters of white space, in every encoding."""

BEFORE_WORDS = re.compile(r"(?<=\S)(?= [^\W\d_])")
BEFORE_WORDS_AND_LINES = re.compile(rf"{BEFORE_WORDS.pattern}|(?<=\S\n)(?=[^\W\d_])")
# For tokenizers that put a space before every text they are given: the piece's own space is dropped for it.
BETWEEN_WORDS = re.compile(r"(?<=\S) (?=[^\W\d_])")

# Words, lines, numbers, marks and scripts around safe places.
_PROBE = "Some words, one after another.\nThe second line (é ß 中 文); 12 or 345\tend!\n\n don't's it's_ x\ny <b> z"


def cut_text(
    text: str,
    places: re.Pattern[str] = BEFORE_WORDS_AND_LINES,
    *,
    anywhere: bool = True,
    piece_chars: int = PIECE_CHARS,
    max_piece_chars: int = MAX_PIECE_CHARS,
) -> Iterator[str]:
    """The pieces of a text, in order; a text of at most `max_piece_chars` is one piece.

    Args:
        text: Any.
        places: Where to cut; what it matches is dropped.
        anywhere: Whether a stretch without such a place is cut all the same.
        piece_chars: Length from which the next place is taken, at least 1.
        max_piece_chars: Length of a piece at most (with `anywhere`), at least `piece_chars`.
    """
    start = 0
    while len(text) - start > max_piece_chars:
        limit = start + max_piece_chars
        match = places.search(text, start + piece_chars, limit if anywhere else len(text))
        if match is None and not anywhere:
            break
        end, following = (limit, limit) if match is None else match.span()
        yield text[start:end]
        start = following
    yield text[start:]


def find_safe_places(encode: Callable[[str], list[int]]) -> re.Pattern[str] | None:
    """Where texts of an unknown tokenizer may be cut, found by trying; None if nothing leaves the ids as they are.

    Args:
        encode: The tokenizer's, without cutting.
    """
    whole = encode(_PROBE)
    for places in (BEFORE_WORDS_AND_LINES, BEFORE_WORDS, BETWEEN_WORDS):
        pieces = cut_text(_PROBE, places, anywhere=False, piece_chars=1, max_piece_chars=1)
        if [token for piece in pieces for token in encode(piece)] == whole:
            return places
    return None
