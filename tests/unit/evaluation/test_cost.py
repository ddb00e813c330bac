"""Parameters and FLOPs on the meta device against counts by hand."""

import pytest
import torch
from torch import nn

from latentlm.evaluation.cost import image_tokenizer_flops, parameters_by_part
from latentlm.models.cost import latentlm_flops
from latentlm.models.diffusion_head import DiffusionHeadConfig
from latentlm.models.latentlm import LatentLM, LatentLMConfig, ModalityConfig
from latentlm.models.transformer import TransformerConfig
from latentlm.nn.flops import count_flops
from latentlm.sequence import VocabularyConfig
from latentlm.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from latentlm.tokenizers.vit import ViTConfig


def test_parameters_are_counted_per_part_and_shared_ones_once():
    module = nn.ModuleDict({"first": nn.Linear(3, 4), "second": nn.Linear(4, 5, bias=False)})
    module["tied"] = module["second"]
    assert parameters_by_part(module) == {"first": 16, "second": 20}


def test_a_linear_layer_costs_two_flops_per_weight_and_row():
    layer = nn.Linear(3, 4, device="meta")
    assert count_flops(layer, torch.zeros(5, 3, device="meta")) == 2 * 3 * 4 * 5


def test_flops_of_a_large_model_follow_from_its_weights():
    # 4.0 B parameters: far more than this test could hold in memory as weights.
    config = LatentLMConfig(
        vocabulary=VocabularyConfig(num_classes=1000),
        transformer=TransformerConfig(hidden_size=4096, num_layers=16, num_heads=32, intermediate_size=16384),
        modalities={"image": ModalityConfig(latent_dim=16, head=DiffusionHeadConfig(num_layers=3))},
        lm_head=False,
    )
    with torch.device("meta"):
        model = LatentLM(config)
    flops = latentlm_flops(model, num_latents=256, num_evaluations=20, guided=True)
    parts = parameters_by_part(model)
    attention = 4 * 257**2 * 4096 * 16  # two products of 257 x 257 pairs in every layer
    # Norms have weights but no products: less than 0.1% of either part.
    assert flops.backbone == pytest.approx(2 * 257 * parts["transformer"] + attention, rel=1e-3)
    assert flops.head_evaluation == pytest.approx(2 * 256 * parts["diffusion_heads"], rel=1e-3)
    assert flops.generation == 2 * (flops.backbone + 20 * flops.head_evaluation)
    assert flops.training == 3 * (flops.backbone + 4 * flops.head_evaluation)


def test_flops_of_a_tokenizer_follow_from_its_weights():
    vit = ViTConfig(hidden_size=512, num_layers=2, num_heads=8)
    config = ImageTokenizerConfig(image_size=64, patch_size=8, encoder=vit, decoder=vit)
    with torch.device("meta"):
        tokenizer = ImageTokenizer(config)
    encode, decode = image_tokenizer_flops(tokenizer)
    parts = parameters_by_part(tokenizer)
    attention = 4 * 64**2 * 512 * 2  # 64 patches, two layers
    # Biases, norms and position embeddings have weights but no products: about 1% at this width.
    assert encode == pytest.approx(2 * 64 * (parts["encoder"] + parts["to_posterior"]) + attention, rel=0.02)
    assert decode == pytest.approx(2 * 64 * parts["decoder"] + attention, rel=0.02)
