"""How good a recogniser is as a judge: its accuracy on real speech that it never heard, clean and degraded.

The numbers stand beside every error that it finds in generated speech.
"""

from dataclasses import dataclass
from typing import Any

from latentlm.evaluation.speech.degradations import DEGRADATIONS
from latentlm.evaluation.speech.interfaces import Recogniser
from latentlm.evaluation.speech.recordings import Recordings
from latentlm.evaluation.speech.word_errors import word_errors

CLEAN = "clean"


@dataclass(frozen=True, kw_only=True)
class JudgeReport:
    """Accuracy of one recogniser on real recordings."""

    label: str
    num_texts: int
    num_speakers: int
    accuracy: dict[str, float]
    """1 - word error rate, not below 0: `clean`, and by degradation."""

    def as_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return {
            "label": self.label,
            "num_texts": self.num_texts,
            "num_speakers": self.num_speakers,
            "accuracy": dict(self.accuracy),
        }

    def as_markdown(self) -> str:
        """A table with one row."""
        cells = [f"{value:.1%}" for value in self.accuracy.values()]
        return (
            f"| accuracy of the judge | N | speakers | {' | '.join(self.accuracy)} |\n"
            + "|---" * (len(cells) + 3)
            + f"|\n| {self.label} | {self.num_texts} | {self.num_speakers} | {' | '.join(cells)} |\n"
        )


def report_judge(
    recogniser: Recogniser,
    real: Recordings,
    *,
    train: Recordings | None = None,
    spell_digits: bool = False,
    seed: int = 0,
    num_degraded: int = 100,
) -> JudgeReport:
    """Try a recogniser on real recordings, as they are and degraded.

    Args:
        recogniser: Any.
        real: That it never heard; of speakers that it knows, or of others: two reports.
        train: What it was trained on, to make sure of that; None for one that was trained elsewhere.
        spell_digits: See `word_errors.normalize_text`.
        seed: Of the degradations.
        num_degraded: Recordings that are degraded, evenly from all: recognisers are slow on noise.

    Raises:
        ValueError: If a recording is among those it was trained on, or there are none.
    """
    if train is not None:
        train.refuse_overlap(real)
    step = max(1, len(real) // num_degraded)
    some_real = real.take(range(0, len(real), step))
    copies = {CLEAN: real} | {name: some_real.degraded(degrade, seed=seed) for name, degrade in DEGRADATIONS.items()}
    accuracy = {
        name: word_errors(
            some.texts, recogniser.transcribe(some.waveforms, real.sample_rate), spell_digits=spell_digits
        ).accuracy
        for name, some in copies.items()
    }
    return JudgeReport(
        label=recogniser.label, num_texts=len(real), num_speakers=len(set(real.speakers)), accuracy=accuracy
    )
