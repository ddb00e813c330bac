"""Word errors of recognised speech, with the facts that speech synthesis is asked about: whole strings, last words.

Alignment and counting are jiwer's; a rate here is errors over reference words of the whole set, as papers have it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from latentlm.evaluation.intervals import Interval, bootstrap_ratio

DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_NOT_A_WORD = re.compile(r"[^\w\s']|_")


def normalize_text(text: str, *, spell_digits: bool = False) -> str:
    """Lower-case words with single spaces, no punctuation but apostrophes.

    >>> normalize_text("It's 3-1, now!", spell_digits=True)
    "it's three one now"

    Args:
        text: A reference or what a recogniser wrote.
        spell_digits: Write every decimal digit as a word, for strings of digits: Whisper writes "31415". Never for
            texts with numbers.
    """
    text = _NOT_A_WORD.sub(" ", text.lower().replace("’", "'"))
    if spell_digits:
        text = re.sub(r"[0-9]", lambda match: f" {DIGIT_WORDS[int(match[0])]} ", text)
    return " ".join(text.split())


@dataclass(frozen=True, kw_only=True)
class WordErrors:
    """What a recogniser got wrong, text by text.

    Attributes:
        words: Words of each reference.
        errors: Substituted, deleted and inserted words of each text.
        deletions: Of these, the deleted ones.
        insertions: Of these, the inserted ones.
        exact: Whether a text has no error.
        last_word_lost: Whether the last word of the reference was deleted; one that was misread is not lost.
    """

    words: tuple[int, ...]
    errors: tuple[int, ...]
    deletions: tuple[int, ...]
    insertions: tuple[int, ...]
    exact: tuple[bool, ...]
    last_word_lost: tuple[bool, ...]

    @property
    def num_texts(self) -> int:
        """N."""
        return len(self.words)

    @property
    def rate(self) -> float:
        """Errors per reference word; may pass 1."""
        return sum(self.errors) / sum(self.words)

    @property
    def accuracy(self) -> float:
        """1 - rate, not below 0."""
        return max(0.0, 1.0 - self.rate)

    @property
    def exact_share(self) -> float:
        """Texts without any error: digit-string accuracy."""
        return sum(self.exact) / self.num_texts

    @property
    def last_word_lost_share(self) -> float:
        """Texts whose last word is missing."""
        return sum(self.last_word_lost) / self.num_texts

    def rate_interval(self, *, seed: int = 0) -> Interval:
        """Bootstrap over texts."""
        return bootstrap_ratio(self.errors, self.words, seed=seed)

    def as_json(self) -> dict[str, Any]:
        """Sums and rates."""
        return {
            "num_texts": self.num_texts,
            "num_words": sum(self.words),
            "word_error_rate": self.rate,
            "interval": self.rate_interval().as_json(),
            "substitutions": sum(self.errors) - sum(self.deletions) - sum(self.insertions),
            "deletions": sum(self.deletions),
            "insertions": sum(self.insertions),
            "exact_share": self.exact_share,
            "last_word_lost_share": self.last_word_lost_share,
        }


def word_errors(references: Sequence[str], hypotheses: Sequence[str], *, spell_digits: bool = False) -> WordErrors:
    """Count the errors of texts against references; both are normalised.

    Args:
        references: What was to be said.
        hypotheses: What was recognised, in the same order.
        spell_digits: See `normalize_text`.

    Raises:
        ImportError: If jiwer is missing; the message names the extra.
        ValueError: If the numbers differ, there are none, or a reference has no word.
    """
    try:
        import jiwer
    except ImportError as error:
        raise ImportError("word errors need the library jiwer: pip install 'latentlm[eval-speech]'") from error
    if len(references) != len(hypotheses) or not references:
        raise ValueError(f"texts are scored one by one, but there are {len(hypotheses)} for {len(references)}")
    expected, heard = (
        [normalize_text(text, spell_digits=spell_digits) for text in texts] for texts in (references, hypotheses)
    )
    if empty := [reference for reference, words in zip(references, expected, strict=True) if not words]:
        raise ValueError(f"the reference {empty[0]!r} has no word")
    words, errors, deletions, insertions, lost = [], [], [], [], []
    for text, said in zip(expected, heard, strict=True):
        counted = jiwer.process_words(text, said)
        num_words = len(text.split())
        words.append(num_words)
        errors.append(counted.substitutions + counted.deletions + counted.insertions)
        deletions.append(counted.deletions)
        insertions.append(counted.insertions)
        fate = next(part.type for part in counted.alignments[0] if part.ref_start_idx < num_words <= part.ref_end_idx)
        lost.append(fate == "delete")
    return WordErrors(
        words=tuple(words),
        errors=tuple(errors),
        deletions=tuple(deletions),
        insertions=tuple(insertions),
        exact=tuple(count == 0 for count in errors),
        last_word_lost=tuple(lost),
    )
