"""Words of a string found by their energy: as many as there are, where they are."""

import pytest
import torch
from toy_speech import RATE, string, word

from latentlm.evaluation.speech.word_segmentation import cut_words, segment_words

TEXTS = ["zero", "two", "one", "one", "two"]


def joined(gap: float = 0.2, *, seed: int = 0) -> tuple[torch.Tensor, list[float]]:
    return string(TEXTS, generator=torch.Generator().manual_seed(seed), gap=gap)


@pytest.mark.parametrize("seed", range(3))
def test_words_are_found_where_they_end(seed):
    waveform, ends = joined(seed=seed)
    spans = segment_words(waveform, RATE)
    assert len(spans) == len(TEXTS)
    for (start, end), expected in zip(spans, ends, strict=True):
        # A margin of 30 ms, half a window of 25 ms, and a hop of 10 ms.
        assert end / RATE == pytest.approx(expected, abs=0.06)
        assert 0.15 < (end - start) / RATE < 0.4


def test_the_level_does_not_matter():
    waveform, _ = joined()
    assert segment_words(0.01 * waveform, RATE) == segment_words(waveform, RATE)


def test_a_short_pause_belongs_to_the_word():
    generator = torch.Generator().manual_seed(0)
    syllables = [word("one", generator=generator), torch.zeros(round(0.05 * RATE)), word("one", generator=generator)]
    assert len(segment_words(torch.cat(syllables), RATE)) == 1


def test_clicks_are_no_words():
    waveform, _ = joined()
    waveform[400:440] = 0.9
    assert len(segment_words(waveform, RATE)) == len(TEXTS)


@pytest.mark.parametrize("num_words", [1, 3, 5, 8])
def test_a_known_number_of_words_is_reached_by_joining_or_dividing(num_words):
    waveform, _ = joined()
    spans = segment_words(waveform, RATE, num_words=num_words)
    assert len(spans) == num_words
    assert all(left[1] <= right[0] for left, right in zip(spans, spans[1:], strict=False))


@pytest.mark.parametrize("waveform", [torch.zeros(0), torch.zeros(4000), torch.ones(3)])
def test_silence_and_scraps_hold_no_words(waveform):
    assert segment_words(waveform, RATE) == []


def test_cut_words_are_the_parts_of_the_string():
    waveform, _ = joined()
    words = cut_words(waveform, RATE)
    spans = segment_words(waveform, RATE)
    assert all(torch.equal(word, waveform[start:end]) for word, (start, end) in zip(words, spans, strict=True))
