"""Decoding of frames by hand: repetitions, blanks, double letters, and strings of known words."""

import itertools

import pytest
import torch

from latentlm.evaluation.speech.ctc_decoding import WordGraph, greedy_text

ALPHABET = " abc"


def frames(path: str, *, doubt: float = 0.02) -> torch.Tensor:
    """Log-probabilities whose likeliest class of each frame is that of `path`; `_` is the blank, `-` the space."""
    names = "_" + ALPHABET.replace(" ", "-")
    rows = torch.full((len(path), 5), doubt)
    for row, character in enumerate(path):
        rows[row, names.index(character)] = 1 - 4 * doubt
    return rows.log()


@pytest.mark.parametrize(
    ("path", "text"),
    [("_aa_ab", "aab"), ("a__a", "aa"), ("aaaa", "a"), ("____", ""), ("-a--b-", "a b"), ("a-_-b", "a b")],
)
def test_repetitions_collapse_and_blanks_vanish(path, text):
    assert greedy_text(frames(path), ALPHABET) == text


def test_nothing_is_read_from_no_frames():
    assert greedy_text(torch.zeros(0, 5), ALPHABET) == ""
    assert WordGraph(["ab"], ALPHABET).likeliest_text(torch.zeros(0, 5)) == ""


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("_ab__-_c_c_", "ab cc"),
        ("ab-ab", "ab ab"),
        ("____", ""),
        ("c_c", "cc"),
        ("_b_-c_c", "ab cc"),  # "b" is no word; "ab" fits best
    ],
)
def test_known_words_are_read_where_letters_are_nearly_right(path, text):
    assert WordGraph(["ab", "cc"], ALPHABET).likeliest_text(frames(path)) == text


def test_the_path_is_the_likeliest_of_all_that_spell_words():
    """Against every path of six frames, collapsed by CTC's rule."""
    words = ["a", "ba", "cc"]
    allowed = {" ".join(said) for count in range(4) for said in itertools.product(words, repeat=count)}
    graph = WordGraph(words, ALPHABET)
    for seed in range(5):
        scores = torch.randn(6, 5, generator=torch.Generator().manual_seed(seed)).log_softmax(dim=1)
        best = (-float("inf"), "")
        for path in itertools.product(range(5), repeat=6):
            letters = "".join(ALPHABET[k - 1] for k, _ in itertools.groupby(path) if k)
            if letters in allowed:
                likelihood = scores[torch.arange(6), torch.tensor(path)].sum().item()
                best = max(best, (likelihood, letters))
        assert graph.likeliest_text(scores) == best[1]


def test_words_of_other_characters_are_refused():
    for word in ("", "a b", "xyz"):
        with pytest.raises(ValueError, match="no word"):
            WordGraph([word], ALPHABET)
