"""Every image model of the paper, built on the meta device, has the paper's number of parameters."""

from pathlib import Path

import pytest
import torch

from latentlm.catalog import RECIPE_CLASSES
from latentlm.config import load_recipe
from latentlm.models.latentlm import LatentLM
from latentlm.tokenizers.image import ImageTokenizer

RECIPES = Path(__file__).parents[2] / "recipes"

MILLIONS = {
    "image_table1_l": 479,  # Table 1
    "image_scaling_m": 455,  # Table 7
    "image_scaling_l": 1030,
    "image_scaling_xl": 1820,
    "image_scaling_3b": 3680,
    "image_table2_384": 1820,  # Table 2: the XL model
    "image_figure11_9b": 9350,  # Figure 11
    "image_figure11_18b": 17960,
    "image_tokenizer_analysis": 455,  # Appendix B: the size of Table 7's Medium
    "image_tokenizer_172m": 172,  # Section 3.1.3
}


def count_millions(name: str, overrides: list[str] = []) -> float:  # noqa: B006
    recipe = load_recipe(RECIPES / "paper" / f"{name}.yaml", overrides, RECIPE_CLASSES)
    with torch.device("meta"):
        model = LatentLM(recipe.model) if recipe.kind == "latentlm" else ImageTokenizer(recipe.tokenizer)
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


@pytest.mark.parametrize("name", MILLIONS)
def test_parameters_agree_with_the_paper_within_two_percent(name: str) -> None:
    assert count_millions(name) == pytest.approx(MILLIONS[name], rel=0.02)


def test_the_multimodal_backbone_and_vocabulary_are_the_papers() -> None:
    recipe = load_recipe(RECIPES / "paper" / "multimodal_table8.yaml", [], RECIPE_CLASSES)
    assert recipe.model.vocabulary.size == 100_288
    with torch.device("meta"):
        model = LatentLM(recipe.model)
    backbone = sum(parameter.numel() for parameter in model.transformer.parameters())
    assert backbone / 1e6 == pytest.approx(1300, rel=0.02)  # Section 3.2: "a 1.3B-size Transformer"
    assert recipe.trainer.batch_size * recipe.max_length == 2**22
    weights = {name: source.weight for name, source in recipe.sources.items()}
    assert weights == {"text": 2, "pairs": 1, "interleaved": 1}


def test_every_paper_recipe_of_a_model_is_counted() -> None:
    files = {path.stem for path in (RECIPES / "paper").glob("image_*.yaml")} - {"image_base"}
    assert files == set(MILLIONS)


def test_grouped_query_attention_saves_key_and_value_weights() -> None:
    saved = count_millions("image_figure11_9b") - count_millions(
        "image_figure11_9b", ["--model.transformer.num_kv_heads", "8"]
    )
    # 32 layers, keys and values, 24 of 32 heads of width 128 gone.
    assert saved == pytest.approx(32 * 2 * 4096 * 24 * 128 / 1e6)


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_loads(path: Path) -> None:
    recipe = load_recipe(path, [], RECIPE_CLASSES)
    assert recipe.kind in RECIPE_CLASSES
