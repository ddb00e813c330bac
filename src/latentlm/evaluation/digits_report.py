"""The report of `latentlm demo`: what the numbers are, beside what real digits score, as JSON and as Markdown."""

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy
import torch

from latentlm import __version__
from latentlm.evaluation.image_scores import ImageComparison


@dataclass(frozen=True, kw_only=True)
class DigitsReport:
    """Everything the demo measured; `config.to_mapping` makes it JSON."""

    comparison: ImageComparison
    cfg_scale: float
    """Guidance of the samples: the recipe's, fixed beforehand on validation images, never chosen by the judge."""
    num_inference_steps: int
    solver: str
    tokenizer_psnr: float
    """Of test images, encoded to the posterior's mean and decoded, in dB; pixels in [-1, 1] have a peak of 2."""
    num_train: int
    seconds: float
    """Wall-clock time of everything, from the start of the command."""
    stage_seconds: Mapping[str, float]
    """Of each stage."""
    reused: tuple[str, ...]
    """Stages that an earlier run in the same folder had finished, or begun: their seconds are not all of their work."""
    seeds: Mapping[str, int]
    parameters: Mapping[str, int]
    software: Mapping[str, str] = field(default_factory=lambda: software_versions())

    def as_json(self) -> dict:
        """Flat headline numbers first, then all the rest."""
        samples, real_test = self.comparison.samples, self.comparison.real_test
        headline = {
            "accuracy": samples.accuracy,
            "accuracy_real_test": real_test.accuracy,
            "frechet_samples": samples.frechet,
            "frechet_real_test": real_test.frechet,
            "cfg_scale": self.cfg_scale,
            "nearest_train_share": samples.nearest_train_share,
            "nearest_train_share_real_test": real_test.nearest_train_share,
            "seconds": round(self.seconds, 1),
        }
        second_space = {
            "frechet_pixels_samples": samples.frechet_second_space,
            "frechet_pixels_real_test": real_test.frechet_second_space,
            "kernel_samples": samples.kernel,
            "kernel_real_test": real_test.kernel,
            "precision_samples": samples.precision,
            "precision_real_test": real_test.precision,
            "recall_samples": samples.recall,
            "recall_real_test": real_test.recall,
            "tokenizer_psnr": self.tokenizer_psnr,
        }
        protocol = {
            "num_samples": self.comparison.num_samples,
            "num_real_test": self.comparison.num_real_test,
            "num_train": self.num_train,
            "num_reference": self.comparison.num_reference,
            "num_judge_train": self.comparison.num_judge_train,
            "seeds": {**self.seeds, "judge": self.comparison.judge_seed, "judge_split": self.comparison.split_seed},
            "solver": self.solver,
            "num_inference_steps": self.num_inference_steps,
            "parameters": dict(self.parameters),
            "stage_seconds": {name: round(seconds, 1) for name, seconds in self.stage_seconds.items()},
            "reused_stages": list(self.reused),
            "software": dict(self.software),
        }
        return {**headline, **second_space, **protocol}

    def as_markdown(self) -> str:
        """The same for reading."""
        report, samples, real = self.as_json(), self.comparison.samples, self.comparison.real_test
        rows = [
            ("accuracy of the judge", f"{samples.accuracy:.1%}", f"{real.accuracy:.1%}"),
            ("Fréchet distance, judge's features", f"{samples.frechet:.2f}", f"{real.frechet:.2f}"),
            ("Fréchet distance, pixels", f"{samples.frechet_second_space:.2f}", f"{real.frechet_second_space:.2f}"),
            ("kernel distance (unbiased)", f"{samples.kernel:.3f}", f"{real.kernel:.3f}"),
            ("precision", f"{samples.precision:.2f}", f"{real.precision:.2f}"),
            ("recall", f"{samples.recall:.2f}", f"{real.recall:.2f}"),
            ("close to a training image", f"{samples.nearest_train_share:.1%}", f"{real.nearest_train_share:.1%}"),
        ]
        table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        stages = ", ".join(f"{name} {seconds} s" for name, seconds in report["stage_seconds"].items())
        reused = (
            f"\nStages taken over from an earlier run in this folder, at least in part: {', '.join(self.reused)}.\n"
            if self.reused
            else ""
        )
        parameters = ", ".join(f"{name} {count:,}" for name, count in self.parameters.items())
        software = ", ".join(f"{name} {version}" for name, version in self.software.items())
        seeds = ", ".join(f"{name} {seed}" for name, seed in report["seeds"].items())
        return f"""# Handwritten digits by next-token diffusion

![samples](samples.png)

One column per class, drawn at guidance {self.cfg_scale} with {self.solver} in {self.num_inference_steps} steps.

| | samples | real test digits |
|---|---|---|
{table}

{report["num_samples"]} samples against {report["num_real_test"]} real test digits, both judged the same way; the
right-hand column is what a perfect model would reach at this count.

- The judge is a small classifier trained on one half of the {self.num_train} training digits
  ({report["num_judge_train"]}); the other half ({report["num_reference"]}) is the reference of the distances. Neither
  it nor the models saw the test digits, and nothing was chosen by it: guidance was fixed beforehand.
- Its features have few dimensions and are its own: the distances compare with nothing but the other column.
- Close to a training image: nearer, in pixels, than 99% of the training digits are to each other. A model that copies
  shows a share well above that of real digits.
- Tokenizer: {self.tokenizer_psnr:.1f} dB PSNR on test digits, from the posterior's mean.

Work: {report["seconds"]} s in all ({stages}) on {platform.machine()} with {os.cpu_count()} logical cores.
{reused}
Parameters: {parameters}. Seeds: {seeds}. Software: {software}.
"""


def software_versions() -> dict[str, str]:
    """Versions that numbers may depend on."""
    return {
        "latentlm": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
    }
