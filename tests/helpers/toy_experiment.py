"""An experiment whose trainings and measurements are counted files, for tests of the runner.

    python toy_experiment.py ROOT JOB     does one job, as `latentlm experiment FILE --cell JOB` would

Trainings take a few steps and measurements two halves; each leaves a line in ROOT/out/journal.txt, and both continue
what a killed process began. While ROOT/out/hold exists the second half of a measurement waits, to be killed there.
"""

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from latentlm.experiments import Experiment, ExperimentDefinition, MeasureContext, Tools, remembered
from latentlm.experiments.definition import MeasurementDefinition, RunDefinition


@dataclass(frozen=True, kw_only=True)
class ToyTrainer:
    """Length and habits."""

    num_steps: int = 2
    log_every: int = 10


@dataclass(frozen=True, kw_only=True)
class ToyRecipe:
    """What a toy run is made of."""

    kind: str = "toy"
    seed: int = 0
    width: float = 1.0
    tokenizer: str | None = None
    trainer: ToyTrainer = ToyTrainer()


def toy_definition(**changes: Any) -> ExperimentDefinition:
    """A tokenizer, two models on it with two seeds each, scores of both, and a floor without a run."""
    seeds = {"seed": [0, 1]}
    shared = {"recipe": "toy.yaml", "uses": {"tokenizer": "tokenizer"}, "matrix": seeds}
    definition = ExperimentDefinition(
        name="toy",
        title="A toy",
        question="Which is wider?",
        data="None.",
        budget="Two steps each.",
        runs={
            "tokenizer": RunDefinition(recipe="toy.yaml"),
            "narrow": RunDefinition(label="Narrow", set={"seed": "{seed}"}, **shared),
            "wide": RunDefinition(label="Wide", set={"width": 2.0, "seed": "{seed}"}, **shared),
        },
        measurements={
            "scores": MeasurementDefinition(of=["narrow", "wide"], protocol="toy", options={"scale": 10}),
            "floor": MeasurementDefinition(protocol="toy", label="Floor", options={"scale": 1}),
        },
    )
    return replace(definition, **changes)


def toy_tools(out: Path) -> Tools:
    """Tools that write into journal.txt what they do."""

    def journal(line: str) -> None:
        with (out / "journal.txt").open("a") as file:
            file.write(line + "\n")

    def read_recipe(name: str, flags: list[str]) -> ToyRecipe:
        values = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
        return ToyRecipe(
            seed=int(values.get("seed", 0)),
            width=float(values.get("width", 1.0)),
            tokenizer=values.get("tokenizer"),
            trainer=ToyTrainer(
                num_steps=int(values.get("trainer.num_steps", 2)), log_every=int(values.get("trainer.log_every", 10))
            ),
        )

    def train(recipe: ToyRecipe, run_dir: Path) -> int:
        if recipe.tokenizer is not None and not Path(recipe.tokenizer).exists():
            raise ValueError("the tokenizer is not trained yet")
        run_dir.mkdir(parents=True, exist_ok=True)
        for step in range(recipe.trainer.num_steps):
            if not (run_dir / str(step)).exists():
                journal(f"step {step} of {run_dir.name.rpartition('-')[0]}")
                (run_dir / str(step)).touch()
        (run_dir / "model").mkdir(exist_ok=True)
        return 0

    def measure(context: MeasureContext) -> Mapping[str, Any]:
        def half(name: str) -> int:
            journal(f"{name} half of {context.cell}")
            return context.options["scale"]

        first = remembered(context.scratch_dir, "first", lambda: half("first"))
        while (out / "hold").exists():
            time.sleep(0.01)
        second = remembered(context.scratch_dir, "second", lambda: half("second"))
        context.picture_path().write_bytes(b"not really a picture")
        width = 0.0 if context.recipe is None else context.recipe.width + context.recipe.seed / 10
        return {"width": width * (first + second) / 2}

    return Tools(
        load=lambda folder: folder,
        train=train,
        read_recipe=read_recipe,
        protocols={"toy": measure},
        cost=lambda recipe: {"steps": recipe.trainer.num_steps},
    )


def toy_experiment(root: Path, **changes: Any) -> Experiment:
    """The toy with its folders in `root`: out/ and results/."""
    (root / "out").mkdir(exist_ok=True)
    return Experiment(toy_definition(**changes), toy_tools(root / "out"), out=root / "out", results=root / "results")


def read_journal(root: Path) -> list[str]:
    """What was done, in order."""
    path = root / "out" / "journal.txt"
    return path.read_text().splitlines() if path.exists() else []


if __name__ == "__main__":
    sys.exit(toy_experiment(Path(sys.argv[1])).do(sys.argv[2]))
