"""Where the words of a digit string lie: stretches of energy between pauses.

Made for words said one after the other with short pauses, as in joined recordings; not for fluent speech.

Shapes: S samples, T frames.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from latentlm.evaluation.speech.interfaces import SILENCE, peak

_HOP_SECONDS = 0.01
_WINDOW_SECONDS = 0.025
_RANGE_DECIBELS = 35.0
"""Below the loudest frame by more than this nothing is a word."""
_ABOVE_NOISE_RATIO = 0.3
"""Share of the way from the noise's level to the loudest frame's at which a word begins; both in dB."""
_MARGIN_SECONDS = 0.03
"""Added at both ends: soft consonants begin and end below the threshold."""


def segment_words(
    waveform: Float[Tensor, " S"],
    sample_rate: int,
    *,
    num_words: int | None = None,
    min_gap_seconds: float = 0.12,
    min_word_seconds: float = 0.08,
) -> list[tuple[int, int]]:
    """Ends of the words, in samples, in order; none in silence.

    Args:
        waveform: A string of words.
        sample_rate: Hz.
        num_words: If it is known: the shortest pauses are closed, or the longest words divided where they are softest,
            until it is right. A judge of generated speech must not know it.
        min_gap_seconds: Shorter pauses belong to the word: the stop in "six" or "eight" lasts up to 0.1 s.
        min_word_seconds: Shorter stretches are clicks.
    """
    if peak(waveform) < SILENCE:
        return []
    decibels = _level(waveform, sample_rate)
    loudest, noise = decibels.max(), decibels.quantile(0.1)
    threshold = max(loudest - _RANGE_DECIBELS, noise + _ABOVE_NOISE_RATIO * (loudest - noise))
    runs = _runs(decibels > threshold)
    runs = _close_gaps(runs, round(min_gap_seconds / _HOP_SECONDS))
    runs = [(start, end) for start, end in runs if end - start >= min_word_seconds / _HOP_SECONDS]
    if num_words is not None and runs:
        runs = _adjust(runs, decibels, num_words)
    return _with_margins(runs, len(waveform), sample_rate)


def cut_words(
    waveform: Float[Tensor, " S"], sample_rate: int, *, num_words: int | None = None
) -> list[Float[Tensor, "_"]]:
    """The words of `segment_words` as clips."""
    return [waveform[start:end] for start, end in segment_words(waveform, sample_rate, num_words=num_words)]


def _level(waveform: Tensor, sample_rate: int) -> Float[Tensor, " T"]:
    """Energy of frames centred on multiples of the hop, dB."""
    hop, window = round(_HOP_SECONDS * sample_rate), round(_WINDOW_SECONDS * sample_rate)
    padded = F.pad(waveform.float(), (window // 2, window))
    frames = padded.unfold(0, window, hop)[: len(waveform) // hop + 1]
    return 10 * frames.square().mean(dim=1).clamp_min(1e-12).log10()


def _runs(loud: Tensor) -> list[tuple[int, int]]:
    edges = torch.diff(F.pad(loud.int(), (1, 1)))
    starts, ends = (edges == 1).nonzero()[:, 0].tolist(), (edges == -1).nonzero()[:, 0].tolist()
    return list(zip(starts, ends, strict=True))


def _close_gaps(runs: list[tuple[int, int]], min_gap: int) -> list[tuple[int, int]]:
    closed: list[tuple[int, int]] = []
    for start, end in runs:
        if closed and start - closed[-1][1] < min_gap:
            closed[-1] = (closed[-1][0], end)
        else:
            closed.append((start, end))
    return closed


def _adjust(runs: list[tuple[int, int]], decibels: Tensor, num_words: int) -> list[tuple[int, int]]:
    runs = list(runs)
    while len(runs) > num_words:
        gaps = [right[0] - left[1] for left, right in zip(runs, runs[1:], strict=False)]
        place = gaps.index(min(gaps))
        runs[place : place + 2] = [(runs[place][0], runs[place + 1][1])]
    while len(runs) < num_words:
        lengths = [end - start for start, end in runs]
        place = lengths.index(max(lengths))
        start, end = runs[place]
        if end - start < 3:
            break  # nothing left to divide
        # Not in its outer quarters, which are soft in every word.
        quarter = (end - start) // 4
        inner = slice(start + max(1, quarter), end - max(1, quarter))
        softest = inner.start + int(decibels[inner].argmin())
        runs[place : place + 1] = [(start, softest), (softest, end)]
    return runs


def _with_margins(runs: list[tuple[int, int]], num_samples: int, sample_rate: int) -> list[tuple[int, int]]:
    """Frames to samples, widened, but not into the next word."""
    hop, margin = round(_HOP_SECONDS * sample_rate), round(_MARGIN_SECONDS * sample_rate)
    spans = [(start * hop, end * hop) for start, end in runs]
    widened = []
    for place, (start, end) in enumerate(spans):
        lowest = (spans[place - 1][1] + start) // 2 if place else 0
        highest = (end + spans[place + 1][0]) // 2 if place + 1 < len(spans) else num_samples
        widened.append((max(lowest, start - margin), min(highest, end + margin)))
    return widened
