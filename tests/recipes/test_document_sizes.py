"""Models of documents that are compared have the same number of parameters."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from latentlm.baselines.transfusion import Transfusion
from latentlm.baselines.vq_mllm import VQMLLM
from latentlm.catalog import RECIPE_CLASSES
from latentlm.config import load_recipe
from latentlm.models.latentlm import LatentLM

RECIPES = Path(__file__).parents[2] / "recipes"


def recipe(name: str) -> Any:
    return load_recipe(RECIPES / f"{name}.yaml", [], RECIPE_CLASSES)


def millions(module: nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


def test_the_three_models_of_digits_and_garments_are_of_one_size() -> None:
    latentlm = recipe("multimodal_digits_and_garments").model
    text = replace(latentlm.vocabulary, num_text_ids=257)  # bytes
    codes = recipe("vq_digits_and_garments_tokenizer").tokenizer.quantizer.num_codes
    with torch.device("meta"):
        sizes = [
            millions(LatentLM(replace(latentlm, vocabulary=text))),
            millions(Transfusion(replace(recipe("transfusion_digits_and_garments").model, vocabulary=text))),
            millions(
                VQMLLM(replace(recipe("vq_mllm_digits_and_garments").model, vocabulary=replace(text, num_codes=codes)))
            ),
        ]
    assert sizes == pytest.approx([5.52, 5.59, 5.56], abs=0.005)


def test_at_table_8_a_plain_vit_head_has_the_size_of_the_diffusion_head() -> None:
    table8 = recipe("paper/multimodal_table8").model
    small = recipe("transfusion_digits_and_garments").model
    heads = []
    for head_adaln in (False, True):
        image = replace(small.image, num_head_layers=6, head_adaln=head_adaln)
        config = replace(small, vocabulary=table8.vocabulary, transformer=table8.transformer, image=image)
        with torch.device("meta"):
            model = Transfusion(config)
        tables = 2 * table8.vocabulary.size * table8.transformer.hidden_size / 1e6
        heads.append(millions(model) - millions(model.transformer) - tables)
    with torch.device("meta"):
        diffusion_head = millions(LatentLM(table8).diffusion_heads)
    assert diffusion_head == pytest.approx(319, abs=1)
    assert heads == pytest.approx([336, 487], abs=5)


def test_at_table_8_the_three_models_are_of_one_size() -> None:
    with torch.device("meta"):
        sizes = [
            millions(LatentLM(recipe("paper/multimodal_table8").model)),
            millions(Transfusion(recipe("paper/transfusion_table8").model)),
            millions(VQMLLM(recipe("paper/vq_mllm_table8").model)),
        ]
    assert sizes == pytest.approx([2039, 2056, 2060], abs=5)
