"""What is committed as results is what its records say, and what its experiment file asks for."""

from pathlib import Path

import pytest

from latentlm.cli.recipes import read_recipe
from latentlm.experiments import expand, page_text, read_experiment
from latentlm.experiments.definition import ExperimentDefinition
from latentlm.experiments.plots import series_of
from latentlm.experiments.rendering import plot_path, read_records
from latentlm.experiments.resolution import Resolver
from latentlm.experiments.results import definition_hash

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
FILES = sorted((ROOT / "experiments").glob("*.yaml"))
RENDERED = [path for path in FILES if (RESULTS / f"{path.stem}.md").exists()]


def names(paths: list[Path]) -> list[str]:
    return [path.stem for path in paths]


@pytest.mark.parametrize("path", FILES, ids=names(FILES))
def test_every_experiment_fits_its_recipes(path: Path) -> None:
    expansion = expand(read_experiment(path))
    resolver = Resolver(expansion.runs, read_recipe, Path("nowhere"))
    for run in expansion.runs.values():
        resolver.resolve(run)


@pytest.mark.parametrize("path", RENDERED, ids=names(RENDERED))
def test_every_page_is_what_its_records_give(path: Path) -> None:
    definition = read_experiment(path)
    assert (RESULTS / f"{path.stem}.md").read_text(encoding="utf-8") == page_text(definition, RESULTS)
    for plot in shown_plots(definition):
        assert (RESULTS / plot_path(definition, plot)).is_file()


@pytest.mark.parametrize("path", RENDERED, ids=names(RENDERED))
def test_every_record_is_of_a_cell_and_has_the_hash_of_its_definition(path: Path) -> None:
    definition = read_experiment(path)
    records = read_records(definition, expand(definition), RESULTS)
    on_disk = {file.stem for file in (RESULTS / path.stem / "cells").glob("*.json")}
    assert on_disk == set(records), "records of cells that the experiment no longer has"
    for name, record in records.items():
        assert record["cell"] == name
        assert record["definition_hash"] == definition_hash(record["definition"])


def test_every_page_of_results_belongs_to_an_experiment() -> None:
    pages = {page.stem for page in RESULTS.glob("*.md") if not page.name.endswith(".notes.md")}
    assert pages - {"README"} <= {path.stem for path in FILES}


def test_the_index_of_results_names_every_experiment_and_links_every_page() -> None:
    index = (RESULTS / "README.md").read_text(encoding="utf-8")
    assert [path.stem for path in FILES if f"`{path.stem}`" not in index] == []
    assert [path.stem for path in RENDERED if f"({path.stem}.md)" not in index] == []


def shown_plots(definition: ExperimentDefinition) -> list[str]:
    expansion = expand(definition)
    records = read_records(definition, expansion, RESULTS)
    return [plot.name for plot in definition.plots if series_of(plot, expansion.cells_of(plot.of, plot.where), records)]
