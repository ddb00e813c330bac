"""What can judge speech, and the rate and bandwidth at which it listens.

A clip is one waveform, Float [S] around [-1, 1], mono. Clips differ in length and are never padded: silence behind a
clip changes what recognisers and quality measures say.

    SpeechScorer    a clip              -> numbers by name          (DNSMOS, UTMOS)
    PairScorer      reference, a copy   -> numbers by name          (mel distance, SI-SDR, PESQ, STOI, ViSQOL)
    Recogniser      clips               -> texts                    (CTC, pocketsphinx, Whisper, HuBERT)
    SpeakerEncoder  a clip              -> a unit vector            (Resemblyzer, WavLM)

A measure that cannot say anything about a clip (silence, too short) raises `Unscorable`, which tables count.

Shapes: S samples, D features.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Clips = Sequence[Float[Tensor, "_"]]
"""Waveforms of any lengths."""

SILENCE = 1e-4
"""Peak level below which a clip counts as silent: -80 dB, under the last bits of 16-bit PCM with noise."""


class Unscorable(ValueError):
    """A measure is undefined on one clip; the others are scored, and this one is counted.

    Args:
        reason: A few words that are the same for every clip of its sort: tables count by them.
    """


@runtime_checkable
class SpeechScorer(Protocol):
    """Says how good a clip sounds, without a reference.

    Attributes:
        names: Of the numbers, in the order of a table; with an arrow where one end is better.
    """

    names: tuple[str, ...]

    def score(self, waveform: Float[Tensor, " S"], sample_rate: int) -> Mapping[str, float]:
        """A number for each of `names`.

        Raises:
            Unscorable: If the clip is silent or too short for the measure.
        """
        ...


@runtime_checkable
class PairScorer(Protocol):
    """Compares a copy of a clip with the clip itself.

    Attributes:
        names: Of the numbers, in the order of a table; with an arrow where one end is better.
    """

    names: tuple[str, ...]

    def score(self, reference: Float[Tensor, " S"], copy: Float[Tensor, " S"], sample_rate: int) -> Mapping[str, float]:
        """A number for each of `names`.

        Raises:
            Unscorable: If the clip is silent or too short for the measure.
        """
        ...


@runtime_checkable
class Recogniser(Protocol):
    """Writes down what is said.

    Attributes:
        label: What its errors are called in tables, such as "pocketsphinx WER".
    """

    label: str

    def transcribe(self, clips: Clips, sample_rate: int) -> list[str]:
        """A text per clip, empty where nothing was heard; what one clip gives does not depend on the others."""
        ...


@runtime_checkable
class SpeakerEncoder(Protocol):
    """Maps voices to directions: clips of one speaker point the same way.

    Attributes:
        label: What its similarities are called in tables.
    """

    label: str

    def embed(self, waveform: Float[Tensor, " S"], sample_rate: int) -> Float[Tensor, " D"]:
        """A unit vector.

        Raises:
            Unscorable: If the clip holds no voice.
        """
        ...


def resample(waveform: Float[Tensor, " S"], from_rate: int, to_rate: int) -> Float[Tensor, " _"]:
    """A clip at another rate, band-limited to the lower of the two (soxr, very high quality).

    Args:
        waveform: One clip.
        from_rate: Hz.
        to_rate: Hz.

    Returns:
        round(S · to_rate / from_rate) samples, in float32.

    Raises:
        ImportError: If soxr is missing; the message names the extra.
    """
    if from_rate == to_rate:
        return waveform.float()
    try:
        import soxr
    except ImportError as error:
        raise ImportError("changing the sample rate needs soxr: pip install 'latentlm[audio]'") from error
    samples = waveform.detach().cpu().float().numpy().astype(np.float64)  # soxr rounds less in float64
    return torch.from_numpy(soxr.resample(samples, from_rate, to_rate, quality="VHQ")).float().to(waveform.device)


def limit_bandwidth(waveform: Float[Tensor, " S"], sample_rate: int, max_frequency: float) -> Float[Tensor, " S"]:
    """The same clip without what lies above `max_frequency`, so that clips of unlike origins compare.

    Args:
        waveform: One clip.
        sample_rate: Hz.
        max_frequency: Hz; from half the sample rate on, nothing is done.
    """
    narrow_rate = round(2 * max_frequency)
    if narrow_rate >= sample_rate:
        return waveform.float()
    limited = resample(resample(waveform, sample_rate, narrow_rate), narrow_rate, sample_rate)
    missing = max(0, len(waveform) - len(limited))  # two roundings of the length may lose a sample
    return F.pad(limited, (0, missing))[: len(waveform)]


def peak(waveform: Float[Tensor, " S"]) -> float:
    """Largest absolute value; 0 of an empty clip.

    Raises:
        ValueError: If the clip holds values that are not finite.
    """
    if not waveform.isfinite().all():
        raise ValueError("a clip holds values that are not finite; did the model diverge?")
    return waveform.abs().max().item() if len(waveform) else 0.0


def refuse_silence(waveform: Float[Tensor, " S"]) -> None:
    """Raise `Unscorable` for a clip that is silent or empty."""
    if peak(waveform) < SILENCE:
        raise Unscorable("silence")
