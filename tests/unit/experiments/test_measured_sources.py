"""A run measured on other sources than it was trained on: what fine-tuning has left of what was learned before."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from document_pipelines import DIGIT_POOL, NAMES
from tiny_documents import tiny_multimodal_recipe

from latentlm.catalog import build, load
from latentlm.config import from_mapping, to_mapping
from latentlm.data.documents.composed import ComposedDataConfig
from latentlm.experiments.document_options import DocumentModelOptions
from latentlm.experiments.document_run import DocumentRun
from latentlm.experiments.protocol import MeasureContext
from latentlm.training.objectives.documents import DocumentSourceConfig

SHOUTED = [name.upper() + "!" for name in NAMES]


def composed(**pools: Any) -> DocumentSourceConfig:
    return DocumentSourceConfig(composed=ComposedDataConfig(pools=pools, num_documents=50, num_held_out_documents=50))


@pytest.fixture
def context(tmp_path: Path) -> MeasureContext:
    recipe = replace(tiny_multimodal_recipe(tmp_path), sources={"shouts": composed(shout=DIGIT_POOL)}, max_length=160)
    objective, _, recipe = build(recipe)
    objective.save_pretrained(tmp_path / "run" / "model")
    return MeasureContext(
        cell="cell",
        axes={},
        run_dir=tmp_path / "run",
        recipe=recipe,
        options={},
        scratch_dir=tmp_path / "scratch",
        cache_dir=tmp_path / "cache",
        assets_dir=tmp_path / "assets",
        load=load,
        progress=False,
    )


def test_documents_and_names_are_those_of_the_sources_in_the_options(context: MeasureContext) -> None:
    other = composed(number=replace(DIGIT_POOL, names=SHOUTED))
    options = from_mapping(DocumentModelOptions, {"sources": {"all": to_mapping(other)}})
    run = DocumentRun(context, options, build)
    assert run.names == {"number": tuple(SHOUTED)}
    assert {one.fields["pools"][0] for one in run.documents("image_to_caption", 5)} == {"number"}
    assert run.objective.group_names == ("all",)
    assert run.objective.model is run.pipeline.model


def test_without_them_they_are_those_of_the_recipe(context: MeasureContext) -> None:
    run = DocumentRun(context, DocumentModelOptions(), build)
    assert run.names == {"shout": tuple(NAMES)}
    assert run.recipe is context.recipe
