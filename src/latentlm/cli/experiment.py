"""Run an experiment file: train what is missing, measure what is missing, write the page of results.

    latentlm experiment experiments/NAME.yaml --out runs/experiments --jobs 2
    latentlm experiment experiments/NAME.yaml --list
    latentlm experiment experiments/NAME.yaml --render

Cells of a measurement that says `alone: true` come last, one at a time; with --cell, quiet is up to the caller.
An interrupted experiment continues when the same command is given again. Every measured cell is one JSON file under
RESULTS/NAME/cells; the page RESULTS/NAME.md and its plots are made of those files alone.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentlm.experiments import Experiment, ExperimentDefinition

TAKES_RECIPE = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which cells, where, and how many at a time."""
    parser.add_argument("file", metavar="EXPERIMENT", help="YAML file, here or among those that come with latentlm")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/experiments"),
        metavar="DIR",
        help="runs, logs and partial results; experiments that share it share equal runs (default: %(default)s)",
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("docs/results"),
        metavar="DIR",
        help="records, pictures and pages, to be kept (default: %(default)s)",
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="K", help="trainings and measurements at a time")
    parser.add_argument("--compile", action="store_true", help="train with compiled layers, see trainer.compile")
    parser.add_argument("--only", nargs="+", default=[], metavar="PATTERN", help="cells whose name fits: '*seed=0*'")
    parser.add_argument("--redo", nargs="+", default=[], metavar="CELL", help="measure again and replace the record")
    parser.add_argument("--list", action="store_true", help="print every cell with its state and seconds, and stop")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done, in order, and stop")
    parser.add_argument("--render", action="store_true", help="write the page from the records there are, and stop")
    parser.add_argument("--cell", metavar="NAME", help="do one cell, or train one run, in this process; no page")


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """0 if all is done, 1 if a job failed, 128 + signal if one stopped it."""
    if arguments.jobs < 1:
        raise ValueError(f"--jobs is {arguments.jobs}; it must be at least 1")
    path = find_experiment(arguments.file)
    from latentlm.experiments import read_experiment, render

    definition = read_experiment(path)
    if arguments.render:
        print(f"the page is {render(definition, arguments.results)}")
        return 0
    experiment = _experiment(definition, arguments)
    if arguments.list:
        _print_cells(experiment, arguments.only)
        return 0
    if arguments.dry_run:
        _print_jobs(experiment, arguments)
        return 0
    if arguments.cell is not None:
        stopped_by = experiment.do(arguments.cell, redo=arguments.cell in arguments.redo)
        return 128 + stopped_by if stopped_by else 0
    return _run_all(experiment, arguments)


def find_experiment(name: str) -> Path:
    """The experiment file of this name: a path, or else one of those that come with the package.

    Raises:
        ValueError: If it is neither.
    """
    in_wheel = Path(str(resources.files("latentlm"))) / "experiment_files"
    in_clone = Path(__file__).parents[3] / "experiments"
    packaged = name.removeprefix("experiments/")
    for path in (Path(name), in_wheel / packaged, in_clone / packaged):
        if path.is_file():
            return path
    raise ValueError(f"there is no experiment {name}, neither here nor among those that come with latentlm")


def _experiment(definition: "ExperimentDefinition", arguments: argparse.Namespace) -> "Experiment":
    import dataclasses

    from latentlm.catalog import load
    from latentlm.cli.protocols import PROTOCOLS, cost_of_recipe
    from latentlm.cli.recipes import read_recipe
    from latentlm.cli.train import train_recipe
    from latentlm.experiments import Experiment, Tools

    def train(recipe: Any, run_dir: Path) -> int:
        compile_ = arguments.compile or recipe.trainer.compile
        return train_recipe(
            dataclasses.replace(recipe, trainer=dataclasses.replace(recipe.trainer, compile=compile_)), run_dir
        )

    tools = Tools(train=train, read_recipe=read_recipe, protocols=PROTOCOLS, load=load, cost=cost_of_recipe)
    return Experiment(definition, tools, out=arguments.out, results=arguments.results)


def _run_all(experiment: "Experiment", arguments: argparse.Namespace) -> int:
    from latentlm.experiments import render, run_experiment

    outcome = run_experiment(
        experiment, _command(arguments), num_parallel=arguments.jobs, only=arguments.only, redo=arguments.redo
    )
    print(f"the page is {render(experiment.definition, arguments.results)}")
    for name, reason in outcome.failed.items():
        print(f"\nlatentlm: {name} failed: {reason}", file=sys.stderr)
    if outcome.stopped_by:
        print("latentlm: stopped; the same command goes on from here", file=sys.stderr)
        return 128 + outcome.stopped_by
    return 1 if outcome.failed else 0


def _command(arguments: argparse.Namespace) -> Callable[[str], Sequence[str]]:
    """The command line of one job; --debug, so that its log has the traceback of an error."""

    def command(job: str) -> list[str]:
        redo = ["--redo", job] if job in arguments.redo else []
        how = ["--compile"] if arguments.compile else []
        folders = ["--out", str(arguments.out), "--results", str(arguments.results)]
        program = [sys.executable, "-m", "latentlm", "experiment", arguments.file]
        return [*program, *folders, "--cell", job, *redo, *how, "--debug"]

    return command


def _print_cells(experiment: "Experiment", only: Sequence[str]) -> None:
    cells = experiment.select(only)
    width = max(len(cell.name) for cell in cells)
    for cell in cells:
        seconds = ", ".join(f"{part} {value:,.0f} s" for part, value in experiment.seconds(cell).items())
        print(f"{cell.name:{width}}  {experiment.state(cell):8}  {seconds}".rstrip())


def _print_jobs(experiment: "Experiment", arguments: argparse.Namespace) -> None:
    jobs = experiment.jobs(experiment.select(arguments.only), redo=arguments.redo)
    for job in jobs:
        needs = f"  after {', '.join(job.needs)}" if job.needs else ""
        needs += "  alone" if job.alone else ""
        run = experiment.expansion.runs.get(job.name)
        folder = "" if run is None else f"  in {experiment.resolve(run).folder}"
        print(f"{'measure' if run is None else 'train  '}  {job.name}{folder}{needs}")
    print(f"{len(jobs)} jobs")
