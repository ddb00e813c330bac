"""The whole path on handwritten digits: train a tokenizer, train a LatentLM, draw, score. A few minutes on two cores.

Writes samples.png, report.md and report.json, and leaves both runs beside them (tokenizer/, model/), so that
`latentlm generate DIR/model/model --labels 3,7 --out pictures` works afterwards. Interrupted, it goes on where it
stopped when called again. The digits ship inside scikit-learn: nothing is downloaded.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from latentlm.data.datasets import Part
    from latentlm.evaluation.digits_report import DigitsReport
    from latentlm.evaluation.image_scores import LabelledImages

TAKES_RECIPE = False

_SEEDS_PER_RUN = 10_000
_SAMPLE_BATCH = 128
_ROWS_SHOWN = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where everything goes."""
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), metavar="DIR", help="default: runs/demo")
    parser.add_argument("--seed", type=int, default=0, help="of both trainings and of the samples (default: 0)")


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Train, draw, score, report."""
    stages = _Stages(total=4)
    out: Path = arguments.out
    stopped_by = _train(out, arguments.seed, stages)
    if stopped_by:
        print("latentlm: stopped; the same command goes on from there", file=sys.stderr)
        return 128 + stopped_by
    report = _draw_and_score(out, arguments.seed * _SEEDS_PER_RUN, stages)
    from latentlm.storage import write_file_atomically, write_json

    write_json(out / "report.json", report.as_json())
    write_file_atomically(out / "report.md", report.as_markdown().encode())
    print(f"\n{report.as_markdown()}\nThe digits are in {out / 'samples.png'}, the report in {out / 'report.md'}.")
    return 0


def _train(out: Path, seed: int, stages: "_Stages") -> int:
    """Train tokenizer and model in `out`; returns the number of the signal that stopped it, or 0."""
    from latentlm.cli.recipes import packaged_recipe, read_recipe
    from latentlm.cli.train import train_recipe

    seed_flags = ["--trainer.seed", str(seed)]
    tokenizer_recipe = read_recipe(packaged_recipe("image_digits_tokenizer.yaml"), seed_flags)
    tokenizer_flags = ["--tokenizer", str(out / "tokenizer" / "model")]
    model_recipe = read_recipe(packaged_recipe("image_digits.yaml"), tokenizer_flags + seed_flags)
    for name, recipe, what in (
        ("tokenizer", tokenizer_recipe, "the sigma-VAE tokenizer: an 8 x 8 digit becomes a few latent vectors"),
        ("model", model_recipe, "LatentLM: a causal Transformer draws those vectors one by one, each by diffusion"),
    ):
        stages.seeds[name] = recipe.trainer.seed
        with stages.stage(name, what, run_dir=out / name):
            if stopped_by := train_recipe(recipe, out / name, show_recipe=False):
                return stopped_by
    return 0


def _draw_and_score(out: Path, first_seed: int, stages: "_Stages") -> "DigitsReport":
    """As many digits as there are real test digits, one per test label; both judged in the same way."""
    import torch

    from latentlm.cli.generate import draw
    from latentlm.cli.recipes import packaged_recipe, read_recipe
    from latentlm.data import open_images
    from latentlm.evaluation.classifier import ClassifierConfig
    from latentlm.evaluation.digits_report import DigitsReport
    from latentlm.evaluation.image_scores import LabelledImages, compare_with_real
    from latentlm.evaluation.reconstruction import psnr
    from latentlm.generation.pipeline import LatentLMPipeline
    from latentlm.pictures import picture_grid, save_picture
    from latentlm.tokenizers.image import ImageTokenizer

    data = read_recipe(packaged_recipe("image_digits.yaml"), []).data

    def read(part: "Part") -> LabelledImages:
        dataset = open_images(data, part=part)
        batch = dataset.take(range(len(dataset)))
        assert batch is not None, "the digits are in memory"
        return LabelledImages(images=batch["image"], labels=batch["label"])

    train, test = read("train"), read("test")
    pipeline = LatentLMPipeline.from_pretrained(out / "model" / "model")
    tokenizer, sampling = pipeline.tokenizers["image"], pipeline.sampling["image"]
    assert isinstance(tokenizer, ImageTokenizer)
    with stages.stage("samples", f"{len(test)} digits, as many of each class as among the real test digits"):
        stages.seeds["first_sample"] = first_seed
        seeds = list(range(first_seed, first_seed + len(test)))
        images = draw(pipeline, test.labels.tolist(), seeds, sampling, batch_size=_SAMPLE_BATCH)
        samples = LabelledImages(images=images, labels=test.labels)
        save_picture(out / "samples.png", picture_grid(_by_class(samples), columns=len(test.labels.unique())))
    with stages.stage("scores", "a classifier trained on real digits alone judges samples and real test digits"):
        comparison = compare_with_real(samples, train, test, judge=ClassifierConfig(), progress=True)
        with torch.inference_mode():
            decoded = tokenizer.decode(tokenizer.encode(test.images, sample=False))
    return DigitsReport(
        comparison=comparison,
        cfg_scale=sampling.cfg_scale,
        num_inference_steps=sampling.solver.num_inference_steps,
        solver=sampling.solver.name,
        tokenizer_psnr=psnr(decoded, test.images),
        num_train=len(train),
        seconds=stages.total_seconds(),
        stage_seconds=stages.seconds,
        reused=tuple(stages.reused),
        seeds=stages.seeds,
        parameters={
            "tokenizer": sum(parameter.numel() for parameter in tokenizer.parameters()),
            "model": sum(parameter.numel() for parameter in pipeline.model.parameters()),
        },
    )


class _Stages:
    """Announces and times the stages of the demo, and keeps their seeds."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.seconds: dict[str, float] = {}
        self.reused: list[str] = []
        self.seeds: dict[str, int] = {}
        self._start = time.perf_counter()

    def total_seconds(self) -> float:
        """Since the demo began, imports included."""
        return time.perf_counter() - self._start

    @contextmanager
    def stage(self, name: str, what: str, *, run_dir: Path | None = None) -> Iterator[None]:
        """Time what happens inside, as the stage `name`; a `run_dir` that exists was begun by an earlier run."""
        if run_dir is not None and run_dir.exists():
            self.reused.append(name)
        print(f"[{len(self.seconds) + 1}/{self.total}] {name}: {what}", flush=True)
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start


def _by_class(samples: "LabelledImages") -> "Tensor":
    """The first samples of each class in reading order: one column per class."""
    import torch

    columns = [samples.images[samples.labels == label][:_ROWS_SHOWN] for label in samples.labels.unique()]
    rows = min(len(column) for column in columns)
    return torch.stack([column[:rows] for column in columns], dim=1).flatten(0, 1)
