"""Every experiment file holds together: its runs resolve to recipes, its options are those of their protocols."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from latentlm.catalog import KINDS
from latentlm.cli.protocols import PROTOCOLS, cost_of_recipe
from latentlm.cli.recipes import read_recipe
from latentlm.config import from_mapping
from latentlm.experiments import Experiment, Tools, read_experiment
from latentlm.experiments.captioned_options import CaptionedOptions, EditedOptions
from latentlm.experiments.document_options import DocumentModelOptions
from latentlm.experiments.image_protocols import ImageGeneratorOptions
from latentlm.experiments.speech_drift import SpeechDriftOptions
from latentlm.experiments.speech_synthesis import TextToSpeechOptions
from latentlm.experiments.speech_tokenizers import SpeechTokenizerOptions
from latentlm.experiments.tables import rows_of

EXPERIMENTS = sorted((Path(__file__).parents[2] / "experiments").glob("*.yaml"))
OPTIONS = {
    "captioned_pictures": CaptionedOptions,
    "document_model": DocumentModelOptions,
    "edited_pictures": EditedOptions,
    "image_generator": ImageGeneratorOptions,
    "speech_drift": SpeechDriftOptions,
    "speech_tokenizer": SpeechTokenizerOptions,
    "text_to_speech": TextToSpeechOptions,
}


NUM_BYTE_IDS, NUM_CODES = 257, 4096
"""What text tokenizer and vector-quantized tokenizer fill in."""


def refuse(*_: Any) -> Any:
    raise AssertionError("nothing is trained or loaded")


@pytest.fixture(scope="module", params=EXPERIMENTS, ids=lambda path: path.stem)
def experiment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    folder = tmp_path_factory.mktemp("experiment")
    tools = Tools(train=refuse, read_recipe=read_recipe, protocols=PROTOCOLS, load=refuse, cost=cost_of_recipe)
    return Experiment(read_experiment(request.param), tools, out=folder / "out", results=folder / "results")


def test_every_run_resolves_to_a_recipe_of_its_own(experiment: Experiment) -> None:
    folders = [experiment.resolve(run).folder for run in experiment.expansion.runs.values()]
    assert len(set(folders)) == len(folders)
    for run in experiment.expansion.runs.values():
        recipe = experiment.resolve(run).recipe
        assert recipe.kind in KINDS
        for target, used in run.uses.items():
            assert getattr(recipe, target) == str(experiment.resolve(experiment.expansion.runs[used]).folder / "model")


def test_every_cell_is_a_job_with_options_that_its_protocol_knows(experiment: Experiment) -> None:
    cells = experiment.select([])
    names = [job.name for job in experiment.jobs(cells)]
    assert {cell.name for cell in cells} <= set(names)
    for cell in cells:
        if cell.protocol in OPTIONS:
            from_mapping(OPTIONS[cell.protocol], cell.options, where=cell.name)


def test_every_table_has_rows_of_seeds_alone(experiment: Experiment) -> None:
    for table in experiment.definition.tables:
        assert rows_of(table, experiment.expansion.cells_of(table.of, table.where))


def test_models_of_documents_that_are_measured_together_are_of_one_size_within_two_percent(
    experiment: Experiment,
) -> None:
    for name in experiment.definition.measurements:
        runs = {cell.run.name: cell.run for cell in experiment.expansion.cells_of(name, {}) if cell.run is not None}
        recipes = [experiment.resolve(run).recipe for run in runs.values()]
        sizes = [millions(recipe) for recipe in recipes if recipe.kind in ("multimodal", "transfusion", "vq_mllm")]
        if sizes:
            assert max(sizes) < 1.02 * min(sizes), dict(zip(runs, sizes, strict=True))


def millions(recipe: Any) -> float:
    vocabulary = replace(recipe.model.vocabulary, num_text_ids=NUM_BYTE_IDS)
    if recipe.kind == "vq_mllm":
        vocabulary = replace(vocabulary, num_codes=NUM_CODES)
    with torch.device("meta"):
        model = KINDS[recipe.kind].model_class(replace(recipe.model, vocabulary=vocabulary))  # pyright: ignore[reportCallIssue]
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6
