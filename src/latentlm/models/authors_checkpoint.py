"""Reads the authors' class-conditional image checkpoints (microsoft/unilm, folder LatentLM) into a `LatentLM`.

Their model is ours with other names and four habits, none of which needs code of its own:

- norms without weights equal norms whose weights are ones;
- rotary pairs are interleaved (2i, 2i+1): a permutation of the query and key rows gives our rotate-half layout;
- rotary exponents run over 0..1 inclusive: `rope_inclusive`;
- the "condition layer" (norm, then linear) is our final norm and the head's projection of the hidden state.
"""

import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from latentlm.diffusion.process import DiffusionConfig
from latentlm.models.diffusion_head import DiffusionHeadConfig
from latentlm.models.latentlm import LatentLM, LatentLMConfig, ModalityConfig
from latentlm.models.transformer import TransformerConfig
from latentlm.sequence import VocabularyConfig

_RENAMED = {
    "y_embedder.embedding_table.weight": "embed_tokens.weight",
    "x_embedder.weight": "input_projs.image.weight",
    "noisy_x_embedder.weight": "diffusion_heads.image.latent_proj.weight",
    "t_embedder.mlp.0.weight": "diffusion_heads.image.timestep_embedding.in_proj.weight",
    "t_embedder.mlp.2.weight": "diffusion_heads.image.timestep_embedding.out_proj.weight",
    "condition_layer.linear.weight": "diffusion_heads.image.hidden_proj.weight",
    "final_layer.adaLN_modulation.1.weight": "diffusion_heads.image.final_layer.modulation.linear.weight",
    "final_layer.linear.weight": "diffusion_heads.image.final_layer.linear.weight",
}
_FEEDFORWARD = {"fc1": "gate_proj", "gate": "up_proj", "fc2": "down_proj"}


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    return len({match[1] for name in weights if (match := re.match(pattern, name))})


def _rotate_half_rows(weight: Tensor, num_heads: int) -> Tensor:
    """Reorder each head's rows from interleaved pairs to first halves, then second halves."""
    return weight.unflatten(0, (num_heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def load_authors_checkpoint(
    weights: Mapping[str, Tensor],
    *,
    num_heads: int,
    prediction_type: Literal["epsilon", "v_prediction"] = "v_prediction",
) -> LatentLM:
    """A `LatentLM` with the weights of the authors' image model (the variant with flattened input).

    Args:
        weights: Their state dict. Depths and widths are read off the shapes.
        num_heads: Query heads, which no shape tells.
        prediction_type: What the checkpoint was trained to predict.

    Raises:
        ValueError: If a tensor is missing or left over.
    """
    needed = ("y_embedder.embedding_table.weight", "x_embedder.weight")
    needed += ("blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight")
    if missing := [name for name in needed if name not in weights]:
        raise ValueError(f"not a checkpoint of the authors' flattened-input image model: {missing=}")
    classes, hidden_size = weights["y_embedder.embedding_table.weight"].shape
    dtype = weights["x_embedder.weight"].dtype
    kv_size = (weights["blocks.0.attn.qkv.weight"].shape[0] - hidden_size) // 2
    num_kv_heads = kv_size * num_heads // hidden_size
    config = LatentLMConfig(
        vocabulary=VocabularyConfig(num_classes=classes - 1),
        transformer=TransformerConfig(
            hidden_size=hidden_size,
            num_layers=_count(weights, r"blocks\.(\d+)\."),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            intermediate_size=weights["blocks.0.mlp.fc1.weight"].shape[0],
            rope_inclusive=True,
        ),
        modalities={
            "image": ModalityConfig(
                latent_dim=weights["x_embedder.weight"].shape[1],
                head=DiffusionHeadConfig(num_layers=_count(weights, r"diffusion_blocks\.(\d+)\.")),
                diffusion=DiffusionConfig(prediction_type=prediction_type),
            )
        },
        lm_head=False,
    )
    with torch.device("meta"):
        model = LatentLM(config)
    expected = set(model.state_dict())
    converted: dict[str, Tensor] = {name: torch.ones(hidden_size, dtype=dtype) for name in expected if "norm" in name}
    for name, weight in weights.items():
        converted |= _convert(name, weight, num_heads, num_kv_heads, hidden_size, kv_size)
    if expected != set(converted):
        missing, extra = sorted(expected - set(converted)), sorted(set(converted) - expected)
        raise ValueError(f"not a checkpoint of the authors' flattened-input image model: {missing=}, {extra=}")
    model.load_state_dict(converted, assign=True)
    return model


def _convert(
    name: str, weight: Tensor, num_heads: int, num_kv_heads: int, hidden_size: int, kv_size: int
) -> dict[str, Tensor]:
    if name in _RENAMED:
        return {_RENAMED[name]: weight}
    if match := re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.weight", name):
        q, k, v = weight.split([hidden_size, kv_size, kv_size])
        prefix = f"transformer.layers.{match[1]}.self_attn"
        return {
            f"{prefix}.q_proj.weight": _rotate_half_rows(q, num_heads),
            f"{prefix}.k_proj.weight": _rotate_half_rows(k, num_kv_heads),
            f"{prefix}.v_proj.weight": v.clone(),
        }
    if match := re.fullmatch(r"blocks\.(\d+)\.attn\.proj\.weight", name):
        return {f"transformer.layers.{match[1]}.self_attn.o_proj.weight": weight}
    if match := re.fullmatch(r"blocks\.(\d+)\.mlp\.(fc1|gate|fc2)\.weight", name):
        return {f"transformer.layers.{match[1]}.mlp.{_FEEDFORWARD[match[2]]}.weight": weight}
    if match := re.fullmatch(r"diffusion_blocks\.(\d+)\.mlp\.(fc1|gate|fc2)\.weight", name):
        return {f"diffusion_heads.image.blocks.{match[1]}.mlp.{_FEEDFORWARD[match[2]]}.weight": weight}
    if match := re.fullmatch(r"diffusion_blocks\.(\d+)\.adaLN_modulation\.1\.weight", name):
        return {f"diffusion_heads.image.blocks.{match[1]}.modulation.linear.weight": weight}
    return {name: weight}
