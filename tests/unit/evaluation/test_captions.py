"""CIDEr worked out by hand, its refusals, exact match, and the words of captions."""

import math

import pytest

from latentlm.evaluation.captions import (
    caption_words,
    cider,
    document_frequencies,
    exact_match,
    score_cider,
    score_exact_match,
)
from latentlm.evaluation.scores_table import scores_table

TWO = [["red cat", "cat"], ["dog", "a dog"]]


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A dog runs.", ["a", "dog", "runs"]),
        ("A man's dog doesn't sit; it's here!", ["a", "man", "'s", "dog", "does", "n't", "sit", "it", "'s", "here"]),
        ("zipper-mouth face", ["zipper-mouth", "face"]),
        ("woman: medium-light skin tone", ["woman", "medium-light", "skin", "tone"]),
        ('"1,000" (or 3.5) cats at 12:30, 5th', ["1,000", "or", "3.5", "cats", "at", "12:30", "5th"]),
        ("eight o’clock, & he cannot go", ["eight", "o'clock", "&", "he", "can", "not", "go"]),
        ("...", []),
    ],
)
def test_words_are_lower_case_with_clitics_apart_and_without_punctuation(caption, words):
    assert caption_words(caption) == words


def test_a_weight_is_the_logarithm_of_the_inverse_share_of_items():
    frequencies = document_frequencies([["a cat", "cat cat"], ["a dog"], ["bird"]])
    assert frequencies.num_items == 3
    assert frequencies.counts[("cat",)] == 1, "an item counts once, however often it has the word"
    assert frequencies.weight(("a",)) == pytest.approx(math.log(3 / 2))
    assert frequencies.weight(("cat",)) == pytest.approx(math.log(3))
    assert frequencies.weight(("never", "seen")) == pytest.approx(math.log(3)), "as if it were seen once"


def test_cider_of_two_words_by_hand():
    """Every n-gram has the weight log 2, which cancels. "red cat" has unigrams (1, 1) and the bigram (1)."""
    values = cider(["red cat", "cat"], TWO)
    # Against itself cosine 1 for n = 1 and 2, and none for 3 and 4; against "cat" 1/sqrt 2 for n = 1, one word apart.
    itself, shorter = 2 / 4, (1 / math.sqrt(2)) / 4 * math.exp(-1 / 72)
    assert values[0] == pytest.approx(10 * (itself + shorter) / 2)
    assert values[1] == 0, "no word in common"


def test_a_word_repeated_beyond_the_reference_earns_nothing():
    """Clipping: the candidate's vector counts "cat" three times in its norm but once in the product."""
    (value, _) = cider(["cat cat cat", "dog"], [["cat", "cat"], ["dog", "dog"]])
    assert value == pytest.approx(10 / 4 * (1 / 3) * math.exp(-(2**2) / 72))


def test_words_of_every_item_weigh_nothing_and_an_empty_caption_scores_nothing():
    assert cider(["a", ""], [["a", "a cat"], ["a", "a dog"]]) == [0, 0]


def test_weights_can_come_from_another_corpus_and_then_one_item_suffices():
    frequencies = document_frequencies([["a red cat"], ["a dog"], ["a bird"]])
    (alone,) = cider(["red cat"], [["red cat", "red cat"]], frequencies=frequencies)
    assert alone == pytest.approx(10 * 2 / 4)
    with pytest.raises(ValueError, match="1 item"):
        cider(["red cat"], [["red cat", "red cat"]])


def test_a_set_of_single_references_is_refused_unless_insisted_upon():
    references = [["a cat"], ["two dogs"]]
    with pytest.raises(ValueError, match="exact match for one-reference sets"):
        cider(["a cat", "two dogs"], references)
    assert cider(["a cat", "two dogs"], references, allow_single_reference=True) == pytest.approx([5, 5])


@pytest.mark.parametrize(
    ("captions", "references", "reason"),
    [
        (["a", "b"], [["a cat", "cat"]], "2 captions and references of 1 items"),
        ([], [], "0 captions"),
        (["a", "b"], [["a cat", "cat"], []], r"item 1 needs a list of at least one reference, but has \[\]"),
        (["a", "b"], [["a cat", "cat"], "dog"], "item 1 needs a list .* but has 'dog'"),
    ],
)
def test_captions_without_their_references_are_refused(captions, references, reason):
    for measure in (cider, exact_match):
        with pytest.raises(ValueError, match=reason):
            measure(captions, references)


def test_exact_match_ignores_case_and_punctuation_but_no_word():
    references = [["Spade suit", "spades"], ["dog"], ["a dog"]]
    assert exact_match(["spade suit.", "DOG!", "dog"], references) == [True, True, False]


def test_scores_are_means_with_their_counts_and_a_table_row():
    scores = score_cider(["red cat", "dog"], TWO)
    assert scores.cider == pytest.approx(sum(cider(["red cat", "dog"], TWO)) / 2)
    assert scores.as_json() == {"num_captions": 2, "references_per_caption": 2.0, "cider": scores.cider}
    assert f"| model | 2 | 2.0 | {scores.cider:.3f} |" in scores_table({"model": scores})
    match = score_exact_match(["cat", "bird"], TWO)
    assert match.as_json() == {"num_captions": 2, "exact_match": 0.5}
    assert "| model | 2 | 50.0% |" in scores_table({"model": match})
