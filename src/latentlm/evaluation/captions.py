"""Captions against references that people wrote: CIDEr where there are several, exact match where there is one.

    candidate, references ─tokenize▶ words ─▶ counts of 1- to 4-grams ─tf-idf▶ vectors ─cosine, length penalty▶ CIDEr-D

CIDEr (Vedantam et al. 2015) measures agreement with a consensus, which one reference does not have: it is refused on
sets in which no item has two, unless the caller insists. The variant is CIDEr-D with the constants of the COCO caption
code, which is what papers report as "CIDEr"; they print it times 100.

Words are ours: COCO's are those of the Stanford PTB tokenizer, a Java program. `caption_words` gives the same on plain
captions, but drops the period of abbreviations ("mr") and the "-lrb-" that the Java program makes of a parenthesis; for
numbers to compare with published ones, inject that tokenizer.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from latentlm.evaluation.scores_table import Columns

Tokenize = Callable[[str], Sequence[str]]
"""A caption's words."""
Ngram = tuple[str, ...]

_MAX_ORDER = 4
_SIGMA = 6.0
"""Words of difference in length at which a score has fallen to exp(-1/2)."""
_SCALE = 10.0
"""CIDEr-D's own, so that its values come near those of CIDEr."""

# A word with inner hyphens, apostrophes or periods ("zipper-mouth", "o'clock", "a.m"), a number with its separators
# ("1,000", "12:30", "5th"), or a sign that is read as a word; any other punctuation is dropped, as COCO drops it.
_WORD = re.compile(r"\w+(?:(?:[-'.]|(?<=\d)[,:/](?=\d))\w+)*|[%$&#@+=*€£]")
# "doesn't" -> "does", "n't"; "man's" -> "man", "'s": the Penn Treebank's clitics.
_CLITIC = re.compile(r"(?<=\w)(n't|'(?:s|m|d|re|ve|ll))$")


def caption_words(caption: str) -> list[str]:
    """The words of a caption, like those of the Penn Treebank: lower-case, clitics apart, punctuation removed.

    >>> caption_words("A man's dog doesn't sit (on the zipper-mouth sofa).")
    ['a', 'man', "'s", 'dog', 'does', "n't", 'sit', 'on', 'the', 'zipper-mouth', 'sofa']
    """
    words = []
    for word in _WORD.findall(caption.lower().replace("’", "'")):
        clitic = _CLITIC.search(word)
        if word == "cannot":
            words += ["can", "not"]
        elif clitic:
            words += [word[: clitic.start()], clitic[0]]
        else:
            words.append(word)
    return words


@dataclass(frozen=True, kw_only=True, eq=False)
class DocumentFrequencies:
    """In how many items (pictures) of a corpus each n-gram occurs in some reference.

    Attributes:
        num_items: Items of the corpus.
        counts: n-gram to number of items; n-grams of 1 to 4 words.
    """

    num_items: int
    counts: Counter[Ngram]

    def weight(self, ngram: Ngram) -> float:
        """Inverse document frequency: log(items / items with the n-gram), an unseen n-gram counting as seen once."""
        return math.log(self.num_items) - math.log(max(1, self.counts[ngram]))


def document_frequencies(
    references: Sequence[Sequence[str]], *, tokenize: Tokenize = caption_words
) -> DocumentFrequencies:
    """Count the n-grams of a corpus of references, such as the training captions, for the weights of CIDEr.

    Args:
        references: The references of each item.
        tokenize: The words of a caption.

    Raises:
        ValueError: If there are fewer than two items: every weight would be zero.
    """
    if len(references) < 2:
        raise ValueError(
            f"CIDEr weighs n-grams by how few items have them, which {len(references)} item(s) cannot show; "
            "pass the document frequencies of a larger corpus"
        )
    counts: Counter[Ngram] = Counter()
    for texts in references:
        counts.update({ngram for text in texts for ngram in _ngrams(tokenize(text))})
    return DocumentFrequencies(num_items=len(references), counts=counts)


def cider(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    tokenize: Tokenize = caption_words,
    frequencies: DocumentFrequencies | None = None,
    allow_single_reference: bool = False,
) -> list[float]:
    """CIDEr-D of each candidate against the references of its item (Vedantam et al. 2015, "CIDEr-D").

    For n = 1..4, the cosine of the tf-idf vectors of n-grams, in whose product a candidate's n-gram counts at most as
    often as the reference has it; times exp(-(difference in length)² / (2 · 6²)); mean over n and over references,
    times 10.

    Args:
        candidates: One caption per item.
        references: The references of each item.
        tokenize: The words of a caption.
        frequencies: Of another corpus, of the same tokenizer; None counts them over `references`, as COCO does.
        allow_single_reference: Compute it although no item has two references; say so beside the number.

    Returns:
        A value in [0, 10] per item; their mean is the score of a corpus.

    Raises:
        ValueError: If the lengths differ, an item has no reference, or every item has a single one.
    """
    _check_items(candidates, references)
    if not allow_single_reference and max(len(texts) for texts in references) == 1:
        raise ValueError(
            "every item has a single reference, and CIDEr measures the agreement with a consensus of several; use "
            "exact match for one-reference sets, or insist with allow_single_reference=True"
        )
    if frequencies is None:
        frequencies = document_frequencies(references, tokenize=tokenize)
    scores = []
    for candidate, texts in zip(candidates, references, strict=True):
        vector = _weigh(tokenize(candidate), frequencies)
        similarities = [_similarity(vector, _weigh(tokenize(text), frequencies)) for text in texts]
        scores.append(_SCALE * sum(similarities) / len(similarities))
    return scores


def exact_match(
    candidates: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: Tokenize = caption_words
) -> list[bool]:
    """Whether each candidate has the very words of one of its references; case and punctuation do not count.

    Args:
        candidates: One caption per item.
        references: The references of each item.
        tokenize: The words of a caption.

    Raises:
        ValueError: If the lengths differ, or an item has no reference.
    """
    _check_items(candidates, references)
    return [
        list(tokenize(candidate)) in [list(tokenize(text)) for text in texts]
        for candidate, texts in zip(candidates, references, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class CiderScores:
    """CIDEr-D of a set of captions."""

    num_captions: int
    references_per_caption: float
    """Mean; values for different numbers of references do not compare."""
    cider: float
    """Mean over the captions, in [0, 10]; papers print it times 100."""

    columns: ClassVar[Columns] = {
        "num_captions": ("captions", "d"),
        "references_per_caption": ("references each", ".1f"),
        "cider": ("CIDEr-D ↑", ".3f"),
    }

    def as_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class ExactMatchScores:
    """Exact match of a set of captions."""

    num_captions: int
    exact_match: float
    """Share of captions with the very words of a reference."""

    columns: ClassVar[Columns] = {
        "num_captions": ("captions", "d"),
        "exact_match": ("exact match ↑", ".1%"),
    }

    def as_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return asdict(self)


def score_cider(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    tokenize: Tokenize = caption_words,
    frequencies: DocumentFrequencies | None = None,
    allow_single_reference: bool = False,
) -> CiderScores:
    """The mean of `cider`, with its arguments and errors."""
    values = cider(
        candidates,
        references,
        tokenize=tokenize,
        frequencies=frequencies,
        allow_single_reference=allow_single_reference,
    )
    return CiderScores(
        num_captions=len(values),
        references_per_caption=sum(len(texts) for texts in references) / len(references),
        cider=sum(values) / len(values),
    )


def score_exact_match(
    candidates: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: Tokenize = caption_words
) -> ExactMatchScores:
    """The mean of `exact_match`, with its arguments and errors."""
    matches = exact_match(candidates, references, tokenize=tokenize)
    return ExactMatchScores(num_captions=len(matches), exact_match=sum(matches) / len(matches))


@dataclass(frozen=True)
class _Weighed:
    """A caption's tf-idf vector of each order, their norms, and its length."""

    vectors: list[dict[Ngram, float]]
    norms: list[float]
    length: int


def _weigh(words: Sequence[str], frequencies: DocumentFrequencies) -> _Weighed:
    vectors: list[dict[Ngram, float]] = [{} for _ in range(_MAX_ORDER)]
    for ngram, count in _ngrams(words).items():
        # The plain count, not its share as in the paper's Eq. 1: the cosine does not see the difference, the clipping
        # does, and COCO's code clips counts.
        vectors[len(ngram) - 1][ngram] = count * frequencies.weight(ngram)
    norms = [math.sqrt(sum(value**2 for value in vector.values())) for vector in vectors]
    # COCO's code measures length in bigrams: one less than the words, but the same for no word as for one.
    return _Weighed(vectors, norms, length=max(len(words) - 1, 0))


def _similarity(candidate: _Weighed, reference: _Weighed) -> float:
    """Mean over the orders; an order in which either has no weight counts 0."""
    total = 0.0
    for mine, theirs, norm, their_norm in zip(
        candidate.vectors, reference.vectors, candidate.norms, reference.norms, strict=True
    ):
        if norm > 0 and their_norm > 0:
            shared = mine.keys() & theirs.keys()
            # Sorted: the order of a set of strings changes from run to run, and with it the rounding of the sum.
            products = (min(mine[ngram], theirs[ngram]) * theirs[ngram] for ngram in sorted(shared))
            total += sum(products) / (norm * their_norm)
    difference = candidate.length - reference.length
    return total / _MAX_ORDER * math.exp(-(difference**2) / (2 * _SIGMA**2))


def _ngrams(words: Sequence[str]) -> Counter[Ngram]:
    return Counter(
        tuple(words[start : start + order])
        for order in range(1, _MAX_ORDER + 1)
        for start in range(len(words) - order + 1)
    )


def _check_items(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if len(candidates) != len(references) or not candidates:
        raise ValueError(
            f"captions are scored item by item, but there are {len(candidates)} captions and references of "
            f"{len(references)} items"
        )
    for item, texts in enumerate(references):
        if isinstance(texts, str) or not texts:
            raise ValueError(f"item {item} needs a list of at least one reference, but has {texts!r}")
