"""pocketsphinx as a judge: a grammar holds it to its words, and no clip changes what it hears in another."""

import pytest
import torch

from latentlm.evaluation.speech.interfaces import Recogniser
from latentlm.evaluation.speech.word_errors import DIGIT_WORDS

pytest.importorskip("soxr")
pytest.importorskip("pocketsphinx")

from latentlm.evaluation.speech.pocketsphinx_recogniser import PocketsphinxRecogniser

RATE = 8000


@pytest.fixture(scope="module")
def digits() -> PocketsphinxRecogniser:
    return PocketsphinxRecogniser()


def vowels(*, seed: int) -> torch.Tensor:
    """Buzzes through two formants: nothing that anyone said, but enough to make the grammar write something."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(RATE) / RATE
    clip = torch.zeros(RATE)
    for formant in (500 + 200 * torch.rand(2, generator=generator)).tolist():
        for harmonic in range(1, 30):
            gain = 1 / (1 + ((harmonic * 110 - formant * 2) / 150) ** 2)
            clip += gain * torch.sin(2 * torch.pi * 110 * harmonic * time)
    return 0.1 * clip * torch.sin(torch.pi * 3 * time).square()


def test_the_grammar_allows_its_words_alone(digits):
    assert isinstance(digits, Recogniser)
    assert digits.label == "pocketsphinx WER"
    for text in digits.transcribe([vowels(seed=seed) for seed in range(3)], RATE):
        assert set(text.split()) <= set(DIGIT_WORDS)


def test_the_order_of_clips_and_their_level_do_not_matter(digits):
    clips = [vowels(seed=seed) for seed in range(3)]
    forward = digits.transcribe(clips, RATE)
    assert digits.transcribe(clips[::-1], RATE)[::-1] == forward
    # Half the level is an exact change of float32.
    assert digits.transcribe([0.5 * clip for clip in clips], RATE) == forward


def test_nothing_is_heard_in_silence(digits):
    assert digits.transcribe([torch.zeros(RATE), torch.zeros(0)], RATE) == ["", ""]


def test_words_that_its_dictionary_does_not_have_are_refused():
    with pytest.raises(ValueError, match="xqzt"):
        PocketsphinxRecogniser(["one", "xqzt"])
