"""Whether two clips are of one voice, and how far that can be trusted.

    clips ─one bandwidth─▶ ─joined to 3 s a side─▶ encoder ─cosine▶ similarity
    real speech: pairs of one speaker, pairs of two ─▶ means, their midpoint, equal error rate
    generated speech against its prompts             ─▶ mean ± interval, above the midpoint?

Rules: clips of one corpus only, brought to one bandwidth; at least 3 s a side, by joining clips of the speaker that are
used for nothing else; at least 200 trials. On one spoken digit Resemblyzer errs in every fifth trial, on five joined
ones hardly ever.

Shapes: S samples, D features.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from latentlm.evaluation.intervals import Interval, bootstrap_ratio
from latentlm.evaluation.speech.interfaces import (
    Clips,
    SpeakerEncoder,
    Unscorable,
    limit_bandwidth,
    refuse_silence,
    resample,
)
from latentlm.evaluation.speech.log_mel import LogMel
from latentlm.evaluation.speech.recordings import Recordings

MIN_SECONDS = 3.0
MIN_TRIALS = 200
_RESEMBLYZER_RATE = 16000


class Resemblyzer:
    """GE2E embeddings (Wan et al. 2018) of the library Resemblyzer, with the weights that it ships.

    Raises:
        ImportError: If Resemblyzer is missing; the message names the extra.
    """

    label = "Resemblyzer similarity"

    def __init__(self) -> None:
        try:
            with warnings.catch_warnings():
                # It imports a deprecated name of SciPy and, by way of webrtcvad, of setuptools.
                warnings.simplefilter("ignore")
                import resemblyzer  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError(
                "speaker similarity needs the library Resemblyzer: pip install 'latentlm[eval-speaker]'"
            ) from error
        self._resemblyzer: Any = resemblyzer
        self._encoder: Any = resemblyzer.VoiceEncoder("cpu", verbose=False)

    def embed(self, waveform: Float[Tensor, " S"], sample_rate: int) -> Float[Tensor, " D"]:
        """A unit vector, of the voiced parts as the library finds them; of all if it finds none."""
        refuse_silence(waveform)
        samples = resample(waveform, sample_rate, _RESEMBLYZER_RATE).numpy()
        voiced = self._resemblyzer.preprocess_wav(samples)
        return F.normalize(torch.from_numpy(self._encoder.embed_utterance(voiced if len(voiced) else samples)), dim=0)


class VoiceLikeness:
    """How alike a codec's copy of a clip and the clip are to a speaker encoder; of clips of 3 s and more.

    Args:
        encoder: See `SpeakerEncoder`.
    """

    names: tuple[str, ...] = ("voice ↑",)

    def __init__(self, encoder: SpeakerEncoder) -> None:
        self._encoder = encoder

    def score(self, reference: Float[Tensor, " S"], copy: Float[Tensor, " S"], sample_rate: int) -> Mapping[str, float]:
        """Cosine of the angle between the two; 1 for the clip itself."""
        if len(reference) < MIN_SECONDS * sample_rate:
            raise Unscorable(f"shorter than {MIN_SECONDS:g} s")
        try:
            ours, theirs = (self._encoder.embed(clip, sample_rate) for clip in (reference, copy))
        except Unscorable as error:
            raise Unscorable("the clip or its copy holds no voice") from error
        return {self.names[0]: float(ours @ theirs)}


class MfccStatistics:
    """Means and deviations of cepstral coefficients: tells unlike voices and microphones apart, and is no verifier.

    For tests, and where no speaker encoder can be had; its label says so in every table.

    Args:
        sample_rate: Hz at which clips are looked at.
        num_coefficients: Cepstral coefficients, without the zeroth.
    """

    label = "MFCC statistics, no speaker verifier"

    def __init__(self, *, sample_rate: int = 8000, num_coefficients: int = 19) -> None:
        num_mels = 32
        self._sample_rate = sample_rate
        self._log_mel = LogMel(sample_rate=sample_rate, num_mels=num_mels)
        orders = torch.arange(1, num_coefficients + 1)[:, None]
        self._cosines = torch.cos(torch.pi * orders * (torch.arange(num_mels) + 0.5) / num_mels)  # DCT-II

    def embed(self, waveform: Float[Tensor, " S"], sample_rate: int) -> Float[Tensor, " D"]:
        """A unit vector."""
        refuse_silence(waveform)
        frames = self._log_mel(resample(waveform, sample_rate, self._sample_rate)[None])[0]
        loud = frames.mean(dim=0) > frames.mean()  # pauses say nothing of a voice
        cepstra = self._cosines @ frames[:, loud]
        return F.normalize(torch.cat([cepstra.mean(dim=1), cepstra.std(dim=1, correction=0)]), dim=0)


@dataclass(frozen=True, kw_only=True)
class SpeakerCalibration:
    """What an encoder says of real speech of the corpus: the scale on which similarities are read."""

    label: str
    """Of the encoder."""
    num_same: int
    num_other: int
    same_mean: float
    """Mean cosine of two sides of one speaker."""
    other_mean: float
    equal_error_rate: float
    """Where as many pairs of one speaker are refused as pairs of two are accepted."""
    seconds: float
    """Shortest side."""

    @property
    def midpoint(self) -> float:
        """Between the two means: generated speech above it is nearer to the speaker than to others."""
        return (self.same_mean + self.other_mean) / 2

    def as_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return {**asdict(self), "midpoint": self.midpoint}


@dataclass(frozen=True, kw_only=True)
class SimilarityScores:
    """Similarity of generated speech to its prompts."""

    label: str
    """Of the encoder."""
    similarity: Interval
    num_voiceless: int
    """Trials with a silent side; they count as a similarity of 0."""
    calibration: SpeakerCalibration

    @property
    def is_above_midpoint(self) -> bool:
        """Whether the mean is nearer to that of one speaker than to that of two."""
        return self.similarity.estimate > self.calibration.midpoint

    def as_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return {
            "label": self.label,
            "similarity": self.similarity.as_json(),
            "num_voiceless": self.num_voiceless,
            "is_above_midpoint": self.is_above_midpoint,
            "calibration": self.calibration.as_json(),
        }


class SpeakerJudge:
    """An encoder under the rules above.

    Args:
        encoder: Maps voices to directions.
        max_frequency: Bandwidth that every clip is brought to, Hz: the corpus's own.
        min_seconds: Of a side.
        min_trials: Fewer are refused: their mean would decide nothing.
    """

    def __init__(
        self,
        encoder: SpeakerEncoder,
        *,
        max_frequency: float,
        min_seconds: float = MIN_SECONDS,
        min_trials: int = MIN_TRIALS,
    ) -> None:
        self._encoder = encoder
        self._max_frequency, self._min_seconds, self._min_trials = max_frequency, min_seconds, min_trials

    def calibrate(self, real: Recordings, *, num_trials: int | None = None, seed: int = 0) -> SpeakerCalibration:
        """Compare real speech with real speech.

        Args:
            real: Of several speakers, each with enough for two sides.
            num_trials: Pairs of each sort, drawn with replacement; None is the fewest that are allowed.
            seed: Of the order of clips and of the pairs.

        Raises:
            ValueError: If there are fewer than two speakers, one has less than two sides, or the trials are too few.
        """
        num_trials = self._min_trials if num_trials is None else num_trials
        self._refuse_few(num_trials)
        generator = torch.Generator().manual_seed(seed)
        voices = []
        for speaker in sorted(set(real.speakers)):
            clips = real.of_speakers([speaker]).waveforms
            order = torch.randperm(len(clips), generator=generator).tolist()
            groups = group_clips([len(clips[i]) / real.sample_rate for i in order], self._min_seconds)
            if len(groups) < 2:
                raise ValueError(f"speaker {speaker} has not enough speech for two sides of {self._min_seconds:g} s")
            sides = [torch.cat([clips[order[place]] for place in group]) for group in groups]
            voices.append(self._embed(sides, real.sample_rate))
        if len(voices) < 2:
            raise ValueError("telling speakers apart needs the speech of two at least")
        same = [_pair(voices, generator, same=True) for _ in range(num_trials)]
        other = [_pair(voices, generator, same=False) for _ in range(num_trials)]
        return SpeakerCalibration(
            label=self._encoder.label,
            num_same=len(same),
            num_other=len(other),
            same_mean=sum(same) / len(same),
            other_mean=sum(other) / len(other),
            equal_error_rate=equal_error_rate(same, other),
            seconds=self._min_seconds,
        )

    def compare(
        self,
        generated: Clips,
        prompts: Clips,
        speakers: Sequence[str],
        sample_rate: int,
        *,
        calibration: SpeakerCalibration,
    ) -> SimilarityScores:
        """Similarity of generated clips to the prompts that they were to imitate.

        Short ones are joined: neighbours of one speaker, in their order, until both the generated and the prompts'
        side are long enough; what remains at the end of a speaker is left out. No clip is in two trials.

        Args:
            generated: Without their prompts' sound.
            prompts: The original recording behind each.
            speakers: Of each.
            sample_rate: Hz, of both.
            calibration: Of the same encoder on the same corpus.

        Raises:
            ValueError: If the numbers differ, or there are too few trials.
        """
        if not len(generated) == len(prompts) == len(speakers):
            raise ValueError(f"{len(generated)} clips have {len(prompts)} prompts and {len(speakers)} speakers")
        similarities: list[float] = []
        num_voiceless = 0
        for speaker in sorted(set(speakers)):
            of_speaker = [place for place, name in enumerate(speakers) if name == speaker]
            shorter = [min(len(generated[place]), len(prompts[place])) / sample_rate for place in of_speaker]
            groups = group_clips(shorter, self._min_seconds)
            for group in groups:
                members = [of_speaker[place] for place in group]
                sides = [torch.cat([clips[place] for place in members]) for clips in (generated, prompts)]
                try:
                    ours, theirs = self._embed(sides, sample_rate)
                    similarities.append((ours @ theirs).item())
                except Unscorable:  # left out, silence would raise the mean
                    similarities.append(0.0)
                    num_voiceless += 1
        self._refuse_few(len(similarities))
        return SimilarityScores(
            label=self._encoder.label,
            similarity=bootstrap_ratio(similarities),
            num_voiceless=num_voiceless,
            calibration=calibration,
        )

    def _embed(self, sides: Sequence[Tensor], sample_rate: int) -> Float[Tensor, "N D"]:
        narrow = [limit_bandwidth(side, sample_rate, self._max_frequency) for side in sides]
        return torch.stack([self._encoder.embed(side, sample_rate) for side in narrow])

    def _refuse_few(self, num_trials: int) -> None:
        if num_trials < self._min_trials:
            raise ValueError(
                f"{num_trials} trials of {self._min_seconds:g} s a side decide nothing about voices; make at least "
                f"{self._min_trials}"
            )


def group_clips(seconds: Sequence[float | int], min_seconds: float) -> list[list[int]]:
    """Neighbours joined until each group lasts `min_seconds`; a rest that does not is left out.

    Args:
        seconds: Of each clip.
        min_seconds: Of a group.

    Returns:
        Places of the clips of each group, in order.
    """
    groups: list[list[int]] = []
    group, total = [], 0.0
    for place, length in enumerate(seconds):
        group.append(place)
        total += length
        if total >= min_seconds:
            groups.append(group)
            group, total = [], 0.0
    return groups


def equal_error_rate(same: Sequence[float | int], other: Sequence[float | int]) -> float:
    """The error at the threshold where false refusals are as frequent as false acceptances.

    Args:
        same: Similarities of pairs of one speaker.
        other: Of pairs of two.

    Raises:
        ValueError: If there are none of one sort.
    """
    if not same or not other:
        raise ValueError("an equal error rate needs pairs of one speaker and pairs of two")
    ours, theirs = (torch.tensor(values, dtype=torch.float64) for values in (same, other))
    # Above every value too: there everything is refused.
    thresholds = torch.cat([ours, theirs]).unique()
    thresholds = torch.cat([thresholds, thresholds[-1:] + 1])
    refused = (ours < thresholds[:, None]).double().mean(dim=1)
    accepted = (theirs >= thresholds[:, None]).double().mean(dim=1)
    nearest = (refused - accepted).abs().argmin()
    return ((refused[nearest] + accepted[nearest]) / 2).item()


def _pair(voices: list[Tensor], generator: torch.Generator, *, same: bool) -> float:
    """Cosine of two different sides, of one voice or of two."""
    first, second = torch.randperm(len(voices), generator=generator)[:2].tolist()
    if same:
        left, right = torch.randperm(len(voices[first]), generator=generator)[:2].tolist()
        return (voices[first][left] @ voices[first][right]).item()
    places = [int(torch.randint(len(voices[voice]), (), generator=generator)) for voice in (first, second)]
    return (voices[first][places[0]] @ voices[second][places[1]]).item()
