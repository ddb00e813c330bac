"""Train what a recipe describes. An interrupted run continues when the same command is given again.

The run folder gets recipe.yaml, metrics.jsonl, tensorboard/, samples/, checkpoints/ and, at the end, model/: the
averaged weights, for `latentlm generate` and `from_pretrained`.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from latentlm.cli.recipes import read_recipe

TAKES_RECIPE = True
EXAMPLE_FIELD = "--optim.lr 2e-4"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the run goes."""
    parser.add_argument("--out", type=Path, metavar="DIR", help="the run folder; needed unless --print-recipe is given")
    parser.add_argument("--print-recipe", action="store_true", help="print the resolved recipe and stop")


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Print the resolved recipe, then train; the exit code is 128 + signal if one stopped the run."""
    recipe = read_recipe(arguments.recipe, overrides)
    if arguments.print_recipe:
        from latentlm.config import dump_recipe

        print(dump_recipe(recipe), end="")
        return 0
    if arguments.out is None:
        raise ValueError("--out DIR is missing: the folder for checkpoints, logs and the trained model")
    stopped_by = train_recipe(recipe, arguments.out)
    if stopped_by:
        print(f"latentlm: stopped; the same command continues from the checkpoint in {arguments.out}", file=sys.stderr)
        return 128 + stopped_by
    print(f"the trained model is in {arguments.out / 'model'}")
    return 0


def train_recipe(recipe: Any, run_dir: Path, *, show_recipe: bool = True) -> int:
    """Train a recipe in a run folder, with the log's messages above the progress bar.

    Returns:
        0, or the number of the signal that stopped the run.

    Raises:
        ValueError: If the recipe does not fit its data, or training failed in a way the user can mend.
    """
    from tqdm.contrib.logging import logging_redirect_tqdm

    from latentlm.catalog import build
    from latentlm.config import dump_recipe
    from latentlm.data import WorkerFailure
    from latentlm.training.trainer import TooManyBadStepsError, Trainer

    objective, make_loader, recipe = build(recipe)
    if show_recipe:
        print(dump_recipe(recipe), flush=True)
    with logging_redirect_tqdm():
        try:
            trainer = Trainer(
                objective, make_loader, recipe.trainer, run_dir, recipe=recipe, evaluations=objective.evaluations()
            )
            outcome = trainer.fit()
        except (TooManyBadStepsError, WorkerFailure) as error:
            raise ValueError(str(error)) from error
    return outcome.stopped_by or 0
