"""The report of `latentlm evaluate` on a generator: one row per setting, the floor, and what makes the numbers mean
something: how many samples, which seeds, which judges and how good they are."""

from dataclasses import dataclass
from typing import Any

from latentlm.evaluation.image_protocol import EvaluatedPart, ImageProtocol, SelectionScores, Weights
from latentlm.evaluation.image_scores import ImageScores
from latentlm.evaluation.inception import InceptionScores
from latentlm.evaluation.judges import Judges
from latentlm.evaluation.scores_table import scores_table

Scores = ImageScores | SelectionScores


@dataclass(frozen=True, kw_only=True)
class GeneratorRow:
    """One setting of one set of weights."""

    weights: Weights
    sampling: dict[str, Any]
    """The options it was drawn with, `cfg_scale` among them."""
    scores: Scores
    inception: InceptionScores | None = None

    @property
    def name(self) -> str:
        """How the table calls it."""
        suffix = "" if self.weights == "ema" else ", raw weights"
        return f"cfg_scale {self.sampling['cfg_scale']:g}{suffix}"


@dataclass(frozen=True, kw_only=True)
class GeneratorReport:
    """A generator on one part of its data set."""

    model: str
    kind: str
    part: EvaluatedPart
    protocol: ImageProtocol
    rows: tuple[GeneratorRow, ...]
    floor: Scores
    """The same number of real pictures, scored in the same way."""
    judge_accuracy: float
    """On real test pictures; of the selector on real validation pictures where the part is `validation`."""
    judges_fingerprint: str
    num_references: int

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "model": self.model,
            "kind": self.kind,
            "part": self.part,
            "num_samples": self.floor.num_images,
            "num_references": self.num_references,
            "first_seed": self.protocol.first_seed(self.part),
            "judge_accuracy": self.judge_accuracy,
            "judges_fingerprint": self.judges_fingerprint,
            "rows": [
                {
                    "weights": row.weights,
                    "sampling": row.sampling,
                    "scores": row.scores.as_json(),
                    "inception": None if row.inception is None else row.inception.as_json(),
                }
                for row in self.rows
            ],
            "floor": self.floor.as_json(),
        }

    def as_markdown(self) -> str:
        """The table, and below it how to read it."""
        floor_name = "real test pictures" if self.part == "test" else "real pictures"
        table = scores_table({row.name: row.scores for row in self.rows} | {floor_name: self.floor})
        inception = {row.name: row.inception for row in self.rows if row.inception is not None}
        if inception:
            table += "\n" + scores_table(inception)
        first = self.protocol.first_seed(self.part)
        seeds = f"seeds {first} to {first + self.floor.num_images - 1}"
        count = self.floor.num_images
        if self.part == "test":
            explanation = (
                f"{count} samples per row ({seeds}) with the classes of {count} real test pictures, against "
                f"{self.num_references} real pictures; the last row is the floor. The judge is right on "
                f"{self.judge_accuracy:.1%} of real test pictures. 'Classifier score' has the Inception score's "
                "formula and another network; the distances compare only with rows of the same judges and count."
            )
        else:
            explanation = (
                f"{count} samples per row ({seeds}) against {self.num_references} validation pictures, seen by the "
                f"selector, which is right on {self.judge_accuracy:.1%} of them: for choosing settings, not for "
                "reporting. The smallest distance wins."
            )
        return f"{table}\n{explanation} Judges {self.judges_fingerprint[:16]}.\n"


def make_report(
    *,
    model: str,
    kind: str,
    part: EvaluatedPart,
    protocol: ImageProtocol,
    rows: tuple[GeneratorRow, ...],
    floor: Scores,
    judges: Judges,
) -> GeneratorReport:
    """A report with what it says of the judges filled in."""
    tested = part == "test"
    return GeneratorReport(
        model=model,
        kind=kind,
        part=part,
        protocol=protocol,
        rows=rows,
        floor=floor,
        judge_accuracy=judges.judge_accuracy if tested else judges.selector_accuracy,
        judges_fingerprint=judges.fingerprint,
        num_references=len(judges.panel.reference if tested else judges.validation),
    )
