"""How a class-conditional generator is measured: which labels and seeds it draws, what chooses, what judges.

    validation: labels of real validation pictures ─draw▶ samples ─select_score▶ one number; smaller is better
    test:       labels of real test pictures       ─draw▶ samples ─score_samples▶ ImageScores beside their floor

Guidance, steps and temperature are chosen on validation, by a classifier that judges nothing; then the test is drawn
once. Samples take the labels of real pictures, so that samples and floor have the same classes equally often.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from latentlm.evaluation.distances import frechet_distance
from latentlm.evaluation.image_scores import ImageScores, LabelledImages
from latentlm.evaluation.judges import Judges, load_judges
from latentlm.evaluation.scores_table import Columns, scores_table
from latentlm.evaluation.tokenizer_scores import TokenizerScores, score_tokenizer
from latentlm.nn.precision import Precision

__all__ = [
    "ImageGenerator",
    "ImageProtocol",
    "SelectionScores",
    "TokenizerScores",
    "draw_samples",
    "floor",
    "load_judges",
    "score_samples",
    "score_tokenizer",
    "select_score",
    "selection_floor",
    "selection_scores",
]

EvaluatedPart = Literal["validation", "test"]
Weights = Literal["ema", "raw"]

_SEEDS_PER_DRAW = 1_000_000
"""Seeds of one draw follow each other; those of another protocol seed or part never meet them."""


@runtime_checkable
class ImageGenerator(Protocol):
    """What can be measured. `sampling["image"]` is a dataclass with at least `cfg_scale`."""

    sampling: dict[str, Any]

    @property
    def num_classes(self) -> int:
        """Classes that can be asked for."""
        ...

    def generate_images(
        self,
        labels: Sequence[int | None],
        *,
        seeds: Sequence[int] | None = None,
        sampling: Any = None,
        batch_size: int,
        precision: Precision,
    ) -> Float[Tensor, "B C H W"]:
        """One picture in [-1, 1] per label."""
        ...


@dataclass(frozen=True, kw_only=True)
class ImageProtocol:
    """Numbers of a measurement; the same for all generators that are compared."""

    num_samples: int = 5000
    """On the part `test`, for the scores and for their floor."""
    num_validation_samples: int = 1000
    """Per candidate, on the part `validation`."""
    seed: int = 0
    """Of the samples."""
    batch_size: int = 250
    precision: Precision = "float32"
    """Of the generator's matrix products."""

    def __post_init__(self) -> None:
        for name in ("num_samples", "num_validation_samples", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")

    def first_seed(self, part: EvaluatedPart) -> int:
        """Seed of the first sample; sample i has this plus i."""
        return (2 * self.seed + (part == "validation")) * _SEEDS_PER_DRAW


@dataclass(frozen=True, kw_only=True)
class SelectionScores:
    """Samples seen by the selector, on validation pictures: for choosing settings, never for reporting."""

    num_images: int
    frechet: float
    """Fréchet distance to the validation pictures in the selector's features."""
    accuracy: float
    """Share that the selector takes for what they were meant to be."""

    columns: ClassVar[Columns] = {
        "frechet": ("Fréchet, selector ↓", ".3f"),
        "accuracy": ("accuracy, selector ↑", ".1%"),
    }

    def as_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return asdict(self)

    def as_markdown(self) -> str:
        """A table with one row."""
        return scores_table({"samples": self})


def real_images(judges: Judges, part: EvaluatedPart, count: int, *, seed: int = 0) -> LabelledImages:
    """Real pictures of a part, drawn by a seed: their labels are what generators are asked for.

    Raises:
        ValueError: If the part has fewer.
    """
    pictures = judges.test if part == "test" else judges.validation
    if not 1 <= count <= len(pictures):
        raise ValueError(
            f"{count} samples were asked for, but the part {part} has {len(pictures)} real pictures; distances depend "
            "on the count, so that the floor needs as many"
        )
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed))
    return pictures.subset(order[:count])


def draw_samples(
    generator: ImageGenerator,
    judges: Judges,
    protocol: ImageProtocol,
    *,
    part: EvaluatedPart = "test",
    sampling: Any = None,
    progress: bool = False,
) -> LabelledImages:
    """Draw what a protocol asks for: `num_samples` or `num_validation_samples` pictures, on the CPU.

    Args:
        generator: On any device.
        judges: Of the data set it was trained on.
        protocol: Counts and seeds.
        part: Whose labels are taken; the seeds differ too.
        sampling: Options of the generator; None takes its own.
        progress: Show a progress bar that moves once per batch.

    Raises:
        ValueError: If the generator knows another number of classes, or the part has too few pictures.
    """
    if generator.num_classes != judges.num_classes:
        raise ValueError(
            f"the model knows {generator.num_classes} classes, but the data set has {judges.num_classes}; was it "
            "trained on another one?"
        )
    count = protocol.num_samples if part == "test" else protocol.num_validation_samples
    labels = real_images(judges, part, count, seed=protocol.seed).labels
    first_seed, batches = protocol.first_seed(part), []
    with tqdm(total=count, desc="drawing", unit="image", disable=not progress) as bar:
        for start in range(0, count, protocol.batch_size):
            chosen = labels[start : start + protocol.batch_size].tolist()
            seeds = list(range(first_seed + start, first_seed + start + len(chosen)))
            pictures = generator.generate_images(
                chosen, seeds=seeds, sampling=sampling, batch_size=len(chosen), precision=protocol.precision
            )
            batches.append(pictures.float().cpu())
            bar.update(len(chosen))
    return LabelledImages(images=torch.cat(batches), labels=labels)


def score_samples(samples: LabelledImages, judges: Judges) -> ImageScores:
    """Judge samples that were drawn for the part `test`; see `Panel.score`."""
    return judges.panel.score(samples)


def floor(judges: Judges, num_samples: int, *, seed: int = 0) -> ImageScores:
    """The same scores of as many real test pictures.

    Raises:
        ValueError: If there are fewer.
    """
    return judges.panel.score(real_images(judges, "test", num_samples, seed=seed))


def select_score(samples: LabelledImages, judges: Judges) -> float:
    """What settings are chosen by: `SelectionScores.frechet`; smaller is better."""
    return selection_scores(samples, judges).frechet


def selection_scores(samples: LabelledImages, judges: Judges) -> SelectionScores:
    """Compare samples with the validation pictures in the selector's eyes.

    Raises:
        ValueError: If the samples have another shape, or are not finite.
    """
    judges.panel.check_shape(samples.images)
    real = judges.selector.features(judges.validation.images)
    return SelectionScores(
        num_images=len(samples),
        frechet=frechet_distance(judges.selector.features(samples.images), real),
        accuracy=judges.selector.accuracy(samples.images, samples.labels),
    )


def selection_floor(judges: Judges, num_samples: int) -> SelectionScores:
    """The same of real pictures that neither the selector nor the part `validation` has: some of the judge half."""
    pictures = judges.selector_test
    return selection_scores(pictures.subset(torch.arange(min(num_samples, len(pictures)))), judges)
