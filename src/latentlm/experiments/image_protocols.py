"""How cells about pictures are measured: a generator, a tokenizer, a held-out loss.

A generator's settings are chosen among its `trials` by the selector on validation pictures; then every row is drawn for
the labels of real test pictures and judged once. All partial results are remembered, so that a cut costs minutes.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from latentlm.config import from_mapping, to_mapping
from latentlm.evaluation.cost import parameters_by_part
from latentlm.evaluation.image_protocol import (
    EvaluatedPart,
    ImageProtocol,
    Weights,
    draw_samples,
    real_images,
    score_samples,
    select_score,
)
from latentlm.evaluation.image_scores import LabelledImages
from latentlm.evaluation.judges import Judges, load_judges
from latentlm.evaluation.tokenizer_scores import score_tokenizer
from latentlm.experiments.protocol import MeasureContext, remembered
from latentlm.generation.image_pipeline import ImagePipeline
from latentlm.generation.pipeline_folder import AnyImageTokenizer
from latentlm.nn.precision import Precision
from latentlm.pictures import picture_grid, save_picture
from latentlm.storage import waiting_lock
from latentlm.tokenizers.image import ImageTokenizer

_PICTURES_PER_CLASS = 6
_DISTANCES = ("frechet", "frechet_second_space", "kernel")

MODEL_FOLDERS: Mapping[Weights, str] = {"ema": "model", "raw": "model_raw"}


@dataclass(frozen=True, kw_only=True)
class RowOptions:
    """One set of samples to draw and judge."""

    weights: Weights = "ema"
    changes: dict[str, Any] = field(default_factory=dict)
    """Sampling options by dotted name, written over the chosen ones: {cfg_scale: 1.0}."""
    from_defaults: bool = False
    """Write them over the recipe's own options instead, so that nothing chosen under guidance leaks in."""


@dataclass(frozen=True, kw_only=True)
class ImageGeneratorOptions:
    """What is drawn of a trained generator."""

    num_samples: int = 5000
    """Test samples of each row."""
    num_validation_samples: int = 1000
    """Of each trial."""
    seed: int = 0
    """Of all samples."""
    batch_size: int = 250
    precision: Precision = "float32"
    """Of the generator's matrix products while it draws."""
    judge_image_size: int | None = None
    """Side at which pictures are judged, pixels; those of another size are resized bicubically. None: the model's."""
    trials: list[dict[str, Any]] = field(default_factory=lambda: [{}])
    """Settings to choose from, each a mapping of sampling options; as many for every method that is compared."""
    refinements: list[dict[str, Any]] = field(default_factory=list)
    """A second round: each is written over the best of `trials`, and the best of all is taken."""
    rows: dict[str, RowOptions] = field(default_factory=lambda: {"best": RowOptions()})
    """What is judged, by name; "best" is the chosen setting."""

    def __post_init__(self) -> None:
        if not self.trials or not self.rows:
            raise ValueError("a generator needs at least one trial and one row")


def open_judges(context: MeasureContext, *, image_size: int | None = None) -> Judges:
    """The judges of the data that a cell's run was trained on, trained by whichever cell needs them first.

    Args:
        context: The cell's.
        image_size: Side of the pictures they judge; None is that of the run.
    """
    data = context.recipe.data
    if image_size is not None:
        data = replace(data, image_size=image_size)
    with waiting_lock(context.cache_dir / "judges.lock"):
        return load_judges(data, cache_dir=context.cache_dir / "judges", progress=context.progress)


def resized(pictures: LabelledImages, side: int) -> LabelledImages:
    """Pictures of another size, bicubically; the same ones if they have it already."""
    if pictures.images.shape[-1] == side:
        return pictures
    images = F.interpolate(pictures.images, (side, side), mode="bicubic", antialias=True).clamp(-1, 1)
    return LabelledImages(images=images, labels=pictures.labels)


def image_generator(context: MeasureContext) -> dict[str, Any]:
    """Choose a generator's settings on validation pictures, then score it on test ones.

    Returns:
        `judges`; `floor`, scores of real test pictures by way of the model's size; `ceiling`, scores of those pictures
        through the tokenizer as models see them: what a perfect model of its tokens would reach; `trials`; `chosen`;
        `rows`, name to scores, distances over those of the ceiling, sampling and images per second; and `cost`.
    """
    options = from_mapping(ImageGeneratorOptions, context.options, where=f"options of {context.cell}")
    assert context.run_dir is not None
    judges = open_judges(context, image_size=options.judge_image_size)
    measured = _Measured(context, judges, options)
    chosen = measured.choose()
    rows = {name: measured.row(name, row, chosen) for name, row in options.rows.items()}
    real = remembered(context.scratch_dir, "floor", measured.floor)
    ceiling = remembered(context.scratch_dir, "ceiling", measured.ceiling)
    for row in rows.values():
        row["over_ceiling"] = {name: row["scores"][name] - ceiling[name] for name in _DISTANCES}
    return {
        "judges": {
            "fingerprint": judges.fingerprint,
            "image_size": judges.test.images.shape[-1],
            "judge_accuracy": judges.judge_accuracy,
            "selector_accuracy": judges.selector_accuracy,
        },
        "floor": real,
        "ceiling": ceiling,
        "trials": measured.trials,
        "chosen": chosen,
        "rows": rows,
        "cost": measured.cost(chosen),
    }


class _Measured:
    """A run's generators, loaded when they are needed."""

    def __init__(self, context: MeasureContext, judges: Judges, options: ImageGeneratorOptions) -> None:
        self.context = context
        self.judges = judges
        self.options = options
        self.protocol = ImageProtocol(
            num_samples=options.num_samples,
            num_validation_samples=options.num_validation_samples,
            seed=options.seed,
            batch_size=options.batch_size,
            precision=options.precision,
        )
        self.trials: list[dict[str, Any]] = []
        self._pipelines: dict[Weights, ImagePipeline] = {}

    def pipeline(self, weights: Weights) -> ImagePipeline:
        if weights not in self._pipelines:
            assert self.context.run_dir is not None
            self._pipelines[weights] = self.context.load(self.context.run_dir / MODEL_FOLDERS[weights])
        return self._pipelines[weights]

    def choose(self) -> dict[str, Any]:
        """The setting whose validation samples are nearest to real ones in the selector's eyes, after both rounds.

        Raises:
            ValueError: If not one setting could be drawn.
        """
        options = self.options
        if len(options.trials) == 1 and not options.refinements:
            return dict(options.trials[0])
        for changes in options.trials:
            self._try(changes)
        first = self._best()
        for changes in options.refinements:
            self._try({**first, **changes})
        return self._best()

    def _best(self) -> dict[str, Any]:
        drawn = [trial for trial in self.trials if trial["selector_frechet"] is not None]
        if not drawn:
            raise ValueError(f"not one setting of {self.context.cell} could be drawn: {self.trials[0]['failure']}")
        return dict(min(drawn, key=lambda trial: trial["selector_frechet"])["changes"])

    def _try(self, changes: Mapping[str, Any]) -> None:
        key = f"trial{len(self.trials)}"
        self.trials.append(remembered(self.context.scratch_dir, key, lambda: self._trial(changes)))

    def _trial(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        try:
            samples, _ = self._draw("ema", changes, "validation")
        except ValueError as error:  # latents that are not finite: a setting that does not work, not a broken cell
            return {"changes": changes, "selector_frechet": None, "failure": str(error)}
        return {"changes": changes, "selector_frechet": select_score(samples, self.judges)}

    def row(self, name: str, row: RowOptions, chosen: Mapping[str, Any]) -> dict[str, Any]:
        return remembered(self.context.scratch_dir, f"row_{name}", lambda: self._row(name, row, chosen))

    def _row(self, name: str, row: RowOptions, chosen: Mapping[str, Any]) -> dict[str, Any]:
        changes = row.changes if row.from_defaults else {**chosen, **row.changes}
        samples, seconds = self._draw(row.weights, changes, "test")
        save_picture(self.context.picture_path(name), class_grid(samples))
        pipeline = self.pipeline(row.weights)
        return {
            "scores": score_samples(samples, self.judges).as_json(),
            "weights": row.weights,
            "sampling": to_mapping(pipeline.sampling_with(changes)),
            "generation_flops": pipeline.flops(pipeline.sampling_with(changes)).generation,
            "images_per_second": len(samples) / seconds,
        }

    def floor(self) -> dict[str, Any]:
        """Scores of real test pictures, reduced to the model's size and enlarged again where it is smaller."""
        real = real_images(self.judges, "test", self.options.num_samples, seed=self.options.seed)
        side = real.images.shape[-1]
        through = resized(resized(real, self.pipeline("ema").image_tokenizer.config.image_size), side)
        return score_samples(through, self.judges).as_json()

    def ceiling(self) -> dict[str, Any]:
        """Scores of the tokenizer's reconstructions of the floor's pictures, latents sampled as in training."""
        tokenizer = self.pipeline("ema").image_tokenizer
        real = real_images(self.judges, "test", self.options.num_samples, seed=self.options.seed)
        real = resized(real, tokenizer.config.image_size)
        batches = zip(real.images.split(250), torch.arange(len(real)).split(250), strict=True)
        decoded = torch.cat([through_tokens(tokenizer, images, keys) for images, keys in batches])
        pictures = LabelledImages(images=decoded, labels=real.labels)
        return score_samples(resized(pictures, self.judges.test.images.shape[-1]), self.judges).as_json()

    def _draw(self, weights: Weights, changes: Mapping[str, Any], part: EvaluatedPart) -> tuple[LabelledImages, float]:
        pipeline = self.pipeline(weights)
        sampling, start = pipeline.sampling_with(changes), time.perf_counter()
        samples = draw_samples(
            pipeline, self.judges, self.protocol, part=part, sampling=sampling, progress=self.context.progress
        )
        seconds = time.perf_counter() - start
        return resized(samples, self.judges.test.images.shape[-1]), seconds

    def cost(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        pipeline, trainer = self.pipeline("ema"), self.context.recipe.trainer
        flops = pipeline.flops(pipeline.sampling_with(chosen))
        images = trainer.num_steps * trainer.batch_size * trainer.num_accumulation_steps
        return {
            "parameters": sum(parameters_by_part(pipeline.model).values()),
            "training_flops_per_image": flops.training,
            "training_flops": flops.training * images,
            "images_seen": images,
            "generation_flops": flops.generation,
        }


def class_grid(samples: LabelledImages, *, per_class: int = _PICTURES_PER_CLASS) -> torch.Tensor:
    """The first samples of each class, one class per column, as a picture."""
    columns = [samples.images[samples.labels == label][:per_class] for label in samples.labels.unique()]
    rows = min(len(column) for column in columns)
    return picture_grid(torch.stack([c[:rows] for c in columns], dim=1).flatten(0, 1), columns=len(columns))


@torch.no_grad()
def through_tokens(
    tokenizer: AnyImageTokenizer, images: Float[Tensor, "B C H W"], keys: Int[Tensor, "B"]
) -> Float[Tensor, "B C H W"]:
    """Encode and decode pictures by the tokens that models are trained on: samples of the posterior, or codes."""
    if isinstance(tokenizer, ImageTokenizer):
        tokens = tokenizer.sample_keyed(tokenizer.posterior(images), 0, keys)
    else:
        tokens = tokenizer.encode(images)
    return tokenizer.decode(tokens, grid=tokenizer.grid(*images.shape[2:]))


def image_tokenizer(context: MeasureContext) -> dict[str, Any]:
    """Score a tokenizer's reconstructions of test pictures and its tokens; the only option is `num_images`.

    Returns:
        `TokenizerScores`; beside it two of its reconstructions under names that every tokenizer has: `from_mean`, and
        `as_models_see` (from a sample, which a model of codes is not given); and `parameters`.
    """
    assert context.run_dir is not None
    if unknown := sorted(context.options.keys() - {"num_images"}):
        raise ValueError(f"options of {context.cell}: {', '.join(unknown)} is unknown; there is num_images")
    judges, tokenizer = open_judges(context), context.load(context.run_dir / "model")
    scores = score_tokenizer(
        tokenizer,
        judges,
        beta=context.recipe.losses.beta,
        num_images=context.options.get("num_images"),
        progress=context.progress,
    )
    images = judges.test.images[:10]
    decoded = through_tokens(tokenizer, images, torch.arange(len(images)))
    save_picture(context.picture_path("reconstructions"), picture_grid(torch.cat([images, decoded]), columns=10))
    names = ("mean", "sample") if isinstance(tokenizer, ImageTokenizer) else ("codes", "codes")
    return {
        **scores.as_json(),
        "from_mean": scores.reconstructions[names[0]].as_json(),
        "as_models_see": scores.reconstructions[names[1]].as_json(),
        "parameters": sum(parameters_by_part(tokenizer).values()),
    }


def held_out_loss(context: MeasureContext) -> dict[str, Any]:
    """What the trainer measured on held-out data after the last step: for choosing a learning rate.

    The only option is `names`: of the evaluation's values, by the names that the result has for them.
    """
    assert context.run_dir is not None
    if unknown := sorted(context.options.keys() - {"names"}):
        raise ValueError(f"options of {context.cell}: {', '.join(unknown)} is unknown; there is names")
    names = context.options.get("names", {"held_out_loss": "held_out_loss"})
    return {ours: last_evaluation(context.run_dir / "metrics.jsonl", theirs) for ours, theirs in names.items()}


def last_evaluation(path: Path, name: str) -> float:
    """The last value of an evaluation in a run's log.

    Raises:
        ValueError: If the run never evaluated it.
    """
    found = None
    for line in path.read_text().splitlines():
        found = json.loads(line).get("evaluation", {}).get(name, found)
    if found is None:
        raise ValueError(f"{path} has no {name}: the run held nothing out")
    return float(found)
