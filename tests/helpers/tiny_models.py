"""Tiny models that the tests share."""

from typing import TypeVar

import torch
from torch import nn

from latentlm.diffusion.process import DiffusionConfig
from latentlm.models.diffusion_head import DiffusionHeadConfig
from latentlm.models.latentlm import LatentLMConfig, ModalityConfig
from latentlm.models.transformer import TransformerConfig
from latentlm.sequence import VocabularyConfig
from latentlm.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from latentlm.tokenizers.quantizer import QuantizerConfig
from latentlm.tokenizers.vit import ViTConfig
from latentlm.tokenizers.vq_image import VQImageTokenizer, VQImageTokenizerConfig

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def randomise(module: ModuleT, *, std: float = 0.15, seed: int = 0) -> ModuleT:
    """Every weight normal, so that layers that start at zero do something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return module


def tiny_class_config(*, num_kv_heads: int | None = None, latent_dim: int = 6) -> LatentLMConfig:
    """The paper's class-conditional layout in small: [label, latents], no text, no softmax head."""
    return LatentLMConfig(
        vocabulary=VocabularyConfig(num_classes=10),
        transformer=TransformerConfig(
            hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=num_kv_heads, intermediate_size=64
        ),
        modalities={"image": ModalityConfig(latent_dim=latent_dim, head=DiffusionHeadConfig(num_layers=2))},
        lm_head=False,
    )


def tiny_mixed_config() -> LatentLMConfig:
    """Text, labels and two continuous modalities of different widths and processes."""
    return LatentLMConfig(
        vocabulary=VocabularyConfig(num_text_ids=257, switch_tokens=True, num_classes=5),
        transformer=TransformerConfig(hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=64),
        modalities={
            "image": ModalityConfig(latent_dim=6, head=DiffusionHeadConfig(num_layers=2)),
            "speech": ModalityConfig(
                latent_dim=3,
                head=DiffusionHeadConfig(num_layers=1, hidden_size=24, intermediate_size=48),
                diffusion=DiffusionConfig(process="flow_matching", prediction_type="velocity"),
            ),
        },
    )


def tiny_image_tokenizer(*, seed: int = 0) -> ImageTokenizer:
    """Pictures of 8 x 8 grey pixels to four latents of six numbers; random weights, statistics measured."""
    vit = ViTConfig(hidden_size=32, num_layers=1, num_heads=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = ImageTokenizer(
            ImageTokenizerConfig(image_size=8, num_channels=1, patch_size=4, latent_dim=6, encoder=vit, decoder=vit)
        )
    tokenizer.measure_statistics([(tiny_pictures(12), torch.arange(12))])
    return tokenizer.eval()


def tiny_vq_image_tokenizer(*, seed: int = 0) -> VQImageTokenizer:
    """Pictures of 8 x 8 grey pixels to four codes out of 16; random weights, codes placed among what they encode."""
    vit = ViTConfig(hidden_size=32, num_layers=1, num_heads=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = VQImageTokenizer(
            VQImageTokenizerConfig(
                image_size=8,
                num_channels=1,
                patch_size=4,
                encoder=vit,
                decoder=vit,
                quantizer=QuantizerConfig(num_codes=16, code_dim=4),
            )
        )
    tokenizer.quantize(tiny_pictures(12), seed=0)
    return tokenizer.eval()


def tiny_pictures(count: int, *, seed: int = 1) -> torch.Tensor:
    """Noise in [-1, 1] of the size that `tiny_image_tokenizer` takes."""
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1
