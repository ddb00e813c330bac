"""Captions after noised pictures: what is measured at every level, by both kinds of model that read latents."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from document_pipelines import DIGIT_POOL
from experiment_paths import shown_paths
from tiny_documents import tiny_multimodal_recipe
from tiny_models import tiny_vq_image_tokenizer

from latentlm.catalog import KINDS, build, load
from latentlm.cli.protocols import PROTOCOLS
from latentlm.config import from_mapping, to_mapping
from latentlm.experiments.document_noise import DocumentNoiseOptions
from latentlm.experiments.protocol import MeasureContext
from latentlm.experiments.results import look_up

POOL = {name: value for name, value in to_mapping(DIGIT_POOL).items() if value is not None}
SOURCES = {"digits": {"composed": {"pools": {"digit": POOL}, "num_documents": 50, "num_held_out_documents": 50}}}
SIZES: dict[str, Any] = {
    "vocabulary": {"switch_tokens": True},
    "transformer": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 24},
}
MODELS = {
    "multimodal": SIZES | {"modalities": {"image": {"latent_dim": 6, "head": {"num_layers": 1}}}},
    "transfusion": SIZES | {"image": {"latent_dim": 6}},
    "vq_mllm": SIZES,
}
SMALL = {"percents": [0, 50, 100], "num_captions": 6, "num_classified": 3}

Measure = Callable[..., dict[str, Any]]


@pytest.fixture
def measure(tmp_path: Path) -> Measure:
    """The protocol on an untrained model of a kind."""

    def run(kind: str, options: dict[str, Any], name: str = "cell") -> dict[str, Any]:
        given = tiny_multimodal_recipe(tmp_path)
        if kind == "vq_mllm":
            tiny_vq_image_tokenizer().save_pretrained(tmp_path / "tokenizer")
        shared = {key: to_mapping(given)[key] for key in ("tokenizer", "optim", "trainer")}
        mapping = {**shared, "kind": kind, "sources": SOURCES, "max_length": 160, "model": MODELS[kind]}
        objective, _, recipe = build(from_mapping(KINDS[kind].recipe_class, mapping))
        objective.save_pretrained(tmp_path / kind / "model")
        context = MeasureContext(
            cell=name,
            axes={},
            run_dir=tmp_path / kind,
            recipe=recipe,
            options=options,
            scratch_dir=tmp_path / "scratch" / name,
            cache_dir=tmp_path / "cache",
            assets_dir=tmp_path / "assets",
            load=load,
            progress=False,
        )
        return dict(PROTOCOLS["document_noise"](context))

    return run


@pytest.mark.parametrize("kind", ["multimodal", "transfusion"])
def test_every_level_has_captions_and_classes_and_a_place_on_the_curve(measure: Measure, kind: str) -> None:
    result = measure(kind, SMALL)
    json.dumps(result, allow_nan=False)
    assert list(result["at"]) == ["0", "50", "100"]
    for scores in result["at"].values():
        assert scores["image_to_text"]["num_documents"] == result["blind"]["num_documents"] == 6
        assert scores["classified"]["num"] == 3
        assert scores["classified"]["chance_nats"] == pytest.approx(math.log(10))
    assert result["curve"]["percents"] == [0, 50, 100]
    assert result["curve"]["nats"] == [scores["classified"]["nats"] for scores in result["at"].values()]
    # The same captions after other pictures: an untrained model reads pictures too.
    perplexities = result["curve"]["perplexity"]
    assert len(set(perplexities)) == 3


def test_what_the_page_of_the_experiment_shows_is_measured(measure: Measure) -> None:
    result = measure("multimodal", {name: SMALL[name] for name in ("num_captions", "num_classified")})
    paths = shown_paths("documents_noise", "document_noise")
    assert len(paths) > 20
    assert [path for path in paths if look_up(result, path) is None] == []


def test_clean_pictures_are_those_that_models_are_scored_with_everywhere(measure: Measure) -> None:
    clean = measure("transfusion", {**SMALL, "percents": [0]}, name="clean")
    noised = measure("transfusion", SMALL, name="noised")
    assert clean["at"]["0"] == noised["at"]["0"]
    assert clean["blind"] == noised["blind"]


def test_codes_cannot_be_noised(measure: Measure) -> None:
    with pytest.raises(ValueError, match="pictures of a VQ-MLLM are codes, to which no noise can be added"):
        measure("vq_mllm", {**SMALL, "percents": [50]})


@pytest.mark.parametrize("percents", [[], [50, 0], [0, 0], [-1, 50], [0, 101]])
def test_levels_that_make_no_sense_are_refused(percents: list[int]) -> None:
    with pytest.raises(ValueError, match="percents is"):
        DocumentNoiseOptions(percents=percents)
