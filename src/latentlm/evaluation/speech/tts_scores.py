"""What is said of synthesized speech: errors beside the judge's own, voices, ends, lengths, costs, with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from latentlm.evaluation.intervals import Interval
from latentlm.evaluation.speech.speakers import SimilarityScores
from latentlm.evaluation.speech.tts_trials import Origin, Protocol
from latentlm.evaluation.speech.word_errors import WordErrors

FIT_ACCURACY = 0.85
"""A recogniser that reads less of the real speech is no judge: train a better one first."""
RELATIVE_ACCURACY = 0.9
"""Share of its accuracy on real speech that a recogniser must reach on generated speech."""
SHORTEST, LONGEST = 0.5, 2.0
"""Of the expected length: what ends elsewhere did not end in time."""


@dataclass(frozen=True, kw_only=True)
class RecognitionScores:
    """What one recogniser heard."""

    errors: WordErrors
    own: WordErrors
    """On the real recordings of the same texts by the same speakers."""

    @property
    def relative_accuracy(self) -> float | None:
        """Accuracy over that on real speech; None if the recogniser reads nothing of it."""
        return self.errors.accuracy / self.own.accuracy if self.own.accuracy > 0 else None

    @property
    def is_fit(self) -> bool:
        """Whether the recogniser reads real speech well enough to judge."""
        return self.own.accuracy >= FIT_ACCURACY

    @property
    def passes(self) -> bool | None:
        """Whether the criterion is met; None where the judge is not fit."""
        if not self.is_fit or self.relative_accuracy is None:
            return None
        return self.relative_accuracy >= RELATIVE_ACCURACY

    def as_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return {
            "errors": self.errors.as_json(),
            "own_errors": self.own.as_json(),
            "relative_accuracy": self.relative_accuracy,
            "judge_is_fit": self.is_fit,
            "passes": self.passes,
        }


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What a second of sound costs; None where the system does not say."""

    seconds_per_second: float | None
    """Wall time over sound; its reciprocal is the speed against real time."""
    steps_per_second: float | None
    """Autoregressive steps."""
    evaluations_per_second: float | None
    """Network evaluations: head steps times guidance, non-autoregressive passes."""
    flops_per_second: float | None

    def as_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class TtsScores:
    """One system on one set of trials."""

    recognition: dict[str, RecognitionScores]
    """By the recogniser's label."""
    similarity: tuple[SimilarityScores, ...]
    """One per speaker encoder; empty without one."""
    ended: Interval
    """Share that ended by itself."""
    ended_in_time: Interval
    """Share that ended by itself, at half to twice the length of the real recording."""
    length_ratio: Interval
    """Seconds of sound over those of the real recordings, all together."""
    costs: Costs

    @property
    def num_trials(self) -> int:
        """N."""
        return self.ended.num

    def as_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return {
            "num_trials": self.num_trials,
            "recognition": {label: scores.as_json() for label, scores in self.recognition.items()},
            "similarity": [scores.as_json() for scores in self.similarity],
            "ended": self.ended.as_json(),
            "ended_in_time": self.ended_in_time.as_json(),
            "length_ratio": self.length_ratio.as_json(),
            "costs": self.costs.as_json(),
        }


@dataclass(frozen=True, kw_only=True)
class TtsReport:
    """All systems on one set of trials, the real recordings first."""

    protocol: Protocol
    origin: Origin
    num_trials: int
    num_speakers: int
    systems: dict[str, TtsScores]

    def as_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return {
            "protocol": self.protocol,
            "origin": self.origin,
            "num_trials": self.num_trials,
            "num_speakers": self.num_speakers,
            "systems": {name: scores.as_json() for name, scores in self.systems.items()},
        }

    def as_markdown(self) -> str:
        """Two tables, of what was said and of how; 95% intervals of a bootstrap over the trials in brackets."""
        heading = (
            f"Protocol {self.protocol}, {self.origin} voices, {self.num_speakers} speakers, "
            f"N = {self.num_trials} trials."
        )
        return f"{heading}\n\n{self._words()}\n{self._voices()}"

    def _words(self) -> str:
        labels = list(next(iter(self.systems.values())).recognition)
        titles = [
            title
            for label in labels
            for title in (f"{label} ↓", "of the judge's accuracy ↑", "whole texts right ↑", "last word lost ↓")
        ]
        rows = []
        for name, scores in self.systems.items():
            cells = [name]
            for label in labels:
                heard = scores.recognition[label]
                relative = "–" if heard.relative_accuracy is None else f"{heard.relative_accuracy:.1%}"
                cells += [
                    heard.errors.rate_interval().as_percent(),
                    relative if heard.is_fit else f"{relative} (judge unfit)",
                    f"{heard.errors.exact_share:.1%}",
                    f"{heard.errors.last_word_lost_share:.1%}",
                ]
            rows.append(cells)
        return _table(["", *titles], rows)

    def _voices(self) -> str:
        encoders = next(iter(self.systems.values())).similarity
        titles = [f"{scores.label} ↑ (midpoint {scores.calibration.midpoint:.3f})" for scores in encoders]
        titles += ["ended ↑", "ended in time ↑", "length ratio", "steps/s", "evaluations/s", "FLOP/s", "s per s ↓"]
        rows = []
        for name, scores in self.systems.items():
            costs = scores.costs
            cells = [name, *(f"{one.similarity} (N {one.similarity.num})" for one in scores.similarity)]
            cells += [scores.ended.as_percent(), scores.ended_in_time.as_percent(), str(scores.length_ratio)]
            cells += [_number(costs.steps_per_second, ".1f"), _number(costs.evaluations_per_second, ".1f")]
            cells += [_number(costs.flops_per_second, ".2e"), _number(costs.seconds_per_second, ".2f")]
            rows.append(cells)
        return _table(["", *titles], rows)


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    lines += [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join(lines) + "\n"


def _number(value: float | None, spec: str) -> str:
    return "–" if value is None else format(value, spec)


def per_second(amounts: Sequence[float | int | None], seconds: float) -> float | None:
    """Sum over sound; None if one is not known or nothing was said.

    Args:
        amounts: Of each clip.
        seconds: Of sound in all of them.
    """
    known = [amount for amount in amounts if amount is not None]
    return sum(known) / seconds if len(known) == len(amounts) and seconds > 0 else None
