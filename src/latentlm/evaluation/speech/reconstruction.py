"""How much of a clip survives a codec: mel distance, SI-SDR, PESQ and STOI, clip by clip, failures counted.

    reference, copy ─within the corpus's bandwidth, same length▶ scorers ─▶ mean ± standard error, N, failures by reason

Rules: nothing above the corpus's bandwidth counts, whatever the sample rate. A copy may be longer or shorter than its
reference by 0.1 s, and both are cut to the shorter; more is an error. A codec that is known to delay is scored after
`remove_delay`. A clip that a measure is undefined on (silence, too short) is left out of that measure's mean alone.

Shapes: S samples, F frequencies, M mel bands.
"""

import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from latentlm.evaluation.speech.interfaces import (
    Clips,
    PairScorer,
    SpeechScorer,
    Unscorable,
    limit_bandwidth,
    refuse_silence,
    resample,
)
from latentlm.nn.mel import mel_filter_bank, mel_spectrogram

MAX_LENGTH_DIFFERENCE = 0.1
"""Seconds by which a copy's length may differ: codecs pad to whole frames, of 80 ms at most in common ones."""

# Kumar et al. 2023 (DAC), Section 3.5 and conf/base.yml: bands and windows of the seven scales, hop a quarter window.
_DAC_SCALES = {32: 5, 64: 10, 128: 20, 256: 40, 512: 80, 1024: 160, 2048: 320}
_DAC_FLOOR = 1e-5
_PESQ_WIDE, _PESQ_NARROW = 16000, 8000
_STOI_RATE = 10000
_STOI_MIN_SAMPLES = 29 * 128 + 256
"""Its 30 frames of 25.6 ms at half overlap, at 10 kHz."""


class MelDistance:
    """DAC's mel distance: L1 between log10 mel magnitudes, floor 1e-5, summed over seven scales.

    In the full band it is the measure of the paper's Table 5; limited to a narrower one it compares with nothing
    published.

    Args:
        max_frequency: Upper end of the last mel band, Hz; None is half the sample rate.
    """

    names: tuple[str, ...] = ("mel distance ↓",)

    def __init__(self, max_frequency: float | None = None) -> None:
        self._max_frequency = max_frequency

    def score(self, reference: Float[Tensor, " S"], copy: Float[Tensor, " S"], sample_rate: int) -> Mapping[str, float]:
        """Mean over bands and frames per scale, then the sum over scales."""
        refuse_silence(reference)
        if len(reference) < max(_DAC_SCALES):
            raise Unscorable(f"shorter than the longest window of {max(_DAC_SCALES)} samples")
        total = 0.0
        for window_length, num_mels in _DAC_SCALES.items():
            filters = mel_filter_bank(sample_rate, window_length, num_mels, fmax=self._fmax(sample_rate))
            both = mel_spectrogram(torch.stack([reference, copy]), filters, hop_length=window_length // 4)
            ours, theirs = both.double().clamp_min(_DAC_FLOOR).log10()
            total += (ours - theirs).abs().mean().item()
        return {self.names[0]: total}

    def _fmax(self, sample_rate: int) -> float:
        return min(sample_rate / 2, self._max_frequency or math.inf)


class SignalToDistortion:
    """SI-SDR in dB (Le Roux et al. 2019, Eq. 3), means removed; infinite for a scaled copy."""

    names: tuple[str, ...] = ("SI-SDR, dB ↑",)

    def score(self, reference: Float[Tensor, " S"], copy: Float[Tensor, " S"], sample_rate: int) -> Mapping[str, float]:
        """Energy of the part of the copy along the reference over the energy of the rest."""
        refuse_silence(reference)
        _refuse_silent_copy(copy)
        real, ours = reference.double(), copy.double()
        real, ours = real - real.mean(), ours - ours.mean()
        along = (ours @ real) / (real @ real) * real
        rest = ours - along
        return {self.names[0]: (10 * ((along @ along) / (rest @ rest)).log10()).item()}


class PerceptualQuality:
    """PESQ by the library `pesq`: P.862.2 wide-band at 16 kHz, or P.862.1 narrow-band at 8 kHz.

    Args:
        wideband: False is for corpora that hold nothing above 4 kHz; the two scales do not compare.

    Raises:
        ImportError: If pesq is missing; the message names the extra.
    """

    def __init__(self, *, wideband: bool = True) -> None:
        try:
            import pesq
        except ImportError as error:
            raise ImportError("PESQ needs the library pesq: pip install 'latentlm[eval-speech]'") from error
        self._pesq: Any = pesq
        self._rate, self._mode = (_PESQ_WIDE, "wb") if wideband else (_PESQ_NARROW, "nb")
        self.names: tuple[str, ...] = ("PESQ-WB ↑",) if wideband else ("PESQ-NB ↑",)

    def score(self, reference: Float[Tensor, " S"], copy: Float[Tensor, " S"], sample_rate: int) -> Mapping[str, float]:
        """MOS-LQO; up to 4.64 (wide-band) or 4.55 (narrow-band)."""
        refuse_silence(reference)
        _refuse_silent_copy(copy)
        real, ours = (resample(clip, sample_rate, self._rate).numpy() for clip in (reference, copy))
        try:
            return {self.names[0]: float(self._pesq.pesq(self._rate, real, ours, self._mode))}
        except self._pesq.BufferTooShortError as error:
            raise Unscorable("shorter than 1/4 s") from error
        except self._pesq.NoUtterancesError as error:
            raise Unscorable("PESQ finds no speech") from error


class Intelligibility:
    """STOI (Taal et al. 2011) and extended STOI (Jensen & Taal 2016) by the library `pystoi`.

    Raises:
        ImportError: If pystoi is missing; the message names the extra.
    """

    names: tuple[str, ...] = ("STOI ↑", "ESTOI ↑")

    def __init__(self) -> None:
        try:
            import pystoi
        except ImportError as error:
            raise ImportError("STOI needs the library pystoi: pip install 'latentlm[eval-speech]'") from error
        self._stoi: Any = pystoi.stoi

    def score(self, reference: Float[Tensor, " S"], copy: Float[Tensor, " S"], sample_rate: int) -> Mapping[str, float]:
        """Correlations of envelopes in third-octave bands; at most 1."""
        refuse_silence(reference)
        _refuse_silent_copy(copy)
        real, ours = (resample(clip, sample_rate, _STOI_RATE).numpy() for clip in (reference, copy))
        too_short = Unscorable("fewer than 30 frames of speech for STOI")
        if len(real) < _STOI_MIN_SAMPLES:
            raise too_short
        with warnings.catch_warnings():
            # The library drops silent frames, and where too few are left it warns and answers 1e-5.
            warnings.filterwarnings("error", message="Not enough STFT frames", category=RuntimeWarning)
            try:
                values = [float(self._stoi(real, ours, _STOI_RATE, extended=extended)) for extended in (False, True)]
            except RuntimeWarning as error:
                raise too_short from error
        return dict(zip(self.names, values, strict=True))


def pair_scorers(max_frequency: float | None = None) -> list[PairScorer]:
    """All measures of this file; narrow-band PESQ for a corpus that ends at 4 kHz.

    Args:
        max_frequency: The corpus's bandwidth, Hz; None is all that the sample rate holds, and wide-band PESQ.

    Raises:
        ImportError: If a library is missing; the message names the extra.
    """
    wideband = max_frequency is None or max_frequency > _PESQ_NARROW / 2
    return [MelDistance(max_frequency), SignalToDistortion(), PerceptualQuality(wideband=wideband), Intelligibility()]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One number over many clips, and why some of them have none."""

    num_scored: int
    mean: float | None
    """None if no clip could be scored."""
    standard_error: float | None
    """None for fewer than two clips, or an infinite mean."""
    failures: dict[str, int] = field(default_factory=dict)
    """Reason -> clips."""

    def as_json(self) -> dict[str, Any]:
        """Plain values; what is infinite is None."""
        return {
            "num_scored": self.num_scored,
            "mean": _finite(self.mean),
            "standard_error": _finite(self.standard_error),
            "failures": dict(self.failures),
        }


@dataclass(frozen=True, kw_only=True)
class ReconstructionScores:
    """Copies of clips against the clips."""

    num_clips: int
    seconds: float
    """Of sound in all references."""
    sample_rate: int
    max_frequency: float
    """Hz; what lies above was removed from both."""
    measures: dict[str, Measure]
    """By name of the number."""

    def as_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return {
            "num_clips": self.num_clips,
            "seconds": self.seconds,
            "sample_rate": self.sample_rate,
            "max_frequency": self.max_frequency,
            "measures": {name: measure.as_json() for name, measure in self.measures.items()},
        }


def reconstructions_table(rows: Mapping[str, ReconstructionScores]) -> str:
    """A Markdown table with a row per system: mean ± standard error, and in brackets N where clips had to be left out.

    Args:
        rows: System to scores with the same measures.

    Raises:
        ValueError: If there are no rows, or their measures differ.
    """
    names = {tuple(scores.measures) for scores in rows.values()}
    if len(names) != 1:
        raise ValueError("a table shows systems that were measured alike; score them with the same scorers")
    titles = names.pop()
    lines = [f"| | clips | {' | '.join(titles)} |", "|---" * (len(titles) + 2) + "|"]
    for system, scores in rows.items():
        cells = [_cell(scores.measures[title], scores.num_clips) for title in titles]
        lines.append(f"| {system} | {scores.num_clips} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def score_reconstructions(
    references: Clips,
    copies: Clips,
    sample_rate: int,
    *,
    max_frequency: float | None = None,
    scorers: Sequence[PairScorer] | None = None,
    speech_scorers: Sequence[SpeechScorer] = (),
    progress: bool = False,
) -> ReconstructionScores:
    """Score copies of clips against them. The clips scored against themselves are the ceiling.

    Args:
        references: Real clips.
        copies: What a codec made of each, at the same rate.
        sample_rate: Hz, of both.
        max_frequency: The corpus's bandwidth, Hz: recordings made at 8 kHz hold nothing above 4000. None is all that
            the sample rate holds.
        scorers: Compare the pairs; None is `pair_scorers`.
        speech_scorers: Judge the copies alone.
        progress: Show a progress bar.

    Raises:
        ValueError: If there are no clips, their numbers differ, lengths differ by more than 0.1 s, or a clip is not
            finite.
    """
    if len(references) != len(copies) or not references:
        raise ValueError(f"copies are scored clip by clip, but there are {len(copies)} copies of {len(references)}")
    bandwidth = min(sample_rate / 2, max_frequency or math.inf)
    scorers = pair_scorers(max_frequency) if scorers is None else scorers
    tally = Tally([name for scorer in (*scorers, *speech_scorers) for name in scorer.names])
    pairs = zip(references, copies, strict=True)
    for reference, copy in tqdm(pairs, desc="scoring", unit="clip", total=len(copies), disable=not progress):
        real, ours = (limit_bandwidth(clip, sample_rate, bandwidth) for clip in cut_alike(reference, copy, sample_rate))
        for scorer in scorers:
            try:
                tally.add(scorer.score(real, ours, sample_rate))
            except Unscorable as error:
                tally.fail(scorer.names, str(error))
        for scorer in speech_scorers:
            try:
                tally.add(scorer.score(ours, sample_rate))
            except Unscorable as error:
                tally.fail(scorer.names, str(error))
    return ReconstructionScores(
        num_clips=len(copies),
        seconds=sum(len(clip) for clip in references) / sample_rate,
        sample_rate=sample_rate,
        max_frequency=bandwidth,
        measures=tally.measures(),
    )


class Tally:
    """Collects numbers by name, and the reasons where there are none.

    Args:
        names: Of all numbers, in order.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._values: dict[str, list[float]] = {name: [] for name in names}
        self._failures: dict[str, Counter[str]] = {name: Counter() for name in names}

    def add(self, numbers: Mapping[str, float]) -> None:
        """Numbers of one clip."""
        for name, value in numbers.items():
            self._values[name].append(value)

    def fail(self, names: Sequence[str], reason: str) -> None:
        """One clip has none of these numbers."""
        for name in names:
            self._failures[name][reason] += 1

    def measures(self) -> dict[str, Measure]:
        """What was collected, by name."""
        return {name: _summarise(values, self._failures[name]) for name, values in self._values.items()}


def cut_alike(
    reference: Float[Tensor, " _a"], copy: Float[Tensor, " _b"], sample_rate: int
) -> tuple[Float[Tensor, " S"], Float[Tensor, " S"]]:
    """Both clips at the length of the shorter.

    Raises:
        ValueError: If their lengths differ by more than 0.1 s.
    """
    difference = abs(len(reference) - len(copy)) / sample_rate
    if difference > MAX_LENGTH_DIFFERENCE:
        raise ValueError(
            f"a copy of a clip of {len(reference)} samples has {len(copy)}, {difference:.2f} s apart at {sample_rate} "
            f"Hz; up to {MAX_LENGTH_DIFFERENCE} s is cut off, more means that the pairs do not belong together"
        )
    length = min(len(reference), len(copy))
    return reference[:length], copy[:length]


def remove_delay(reference: Float[Tensor, " S"], copy: Float[Tensor, " S"], *, max_delay: int) -> Float[Tensor, " S"]:
    """The copy moved to where it correlates most with the reference; what moves in is silence.

    Args:
        reference: Real clip.
        copy: Late or early by up to `max_delay`.
        max_delay: Samples; small, because speech resembles itself a pitch period later.
    """
    length = len(reference)
    size = 2 * length  # no wrap-around
    spectrum = torch.fft.rfft(copy.double(), size) * torch.fft.rfft(reference.double(), size).conj()
    correlation = torch.fft.irfft(spectrum, size)
    reach = min(max_delay, length - 1)
    delays = torch.arange(-reach, reach + 1)
    delay = int(delays[correlation[delays].argmax()])  # negative ones index from the end, where they are
    if delay >= 0:
        return F.pad(copy[delay:], (0, delay))
    return F.pad(copy[:delay], (-delay, 0))


def _refuse_silent_copy(copy: Tensor) -> None:
    try:
        refuse_silence(copy)
    except Unscorable as error:
        raise Unscorable("the copy is silent") from error


def _summarise(values: list[float], failures: Counter[str]) -> Measure:
    count = len(values)
    mean = math.fsum(values) / count if count else None
    error = None
    if mean is not None and math.isfinite(mean) and count > 1:
        error = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1) / count)
    return Measure(num_scored=count, mean=mean, standard_error=error, failures=dict(failures))


def _cell(measure: Measure, num_clips: int) -> str:
    if measure.mean is None:
        return "–"
    error = f" ± {measure.standard_error:.3f}" if measure.standard_error is not None else ""
    count = f" (N {measure.num_scored})" if measure.num_scored < num_clips else ""
    return f"{measure.mean:.3f}{error}{count}"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
