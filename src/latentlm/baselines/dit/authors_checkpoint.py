"""Reads the DiT checkpoints of the authors' image code (microsoft/unilm, folder LatentLM) into a `DiT`.

Only names differ, and queries, keys and values are one matrix there. Their checkpoints hold the table of positions: if
it is one that we compute, it is left out, otherwise it becomes a learned one.
"""

import math
import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from latentlm.baselines.dit.model import DiT, DiTConfig
from latentlm.baselines.dit.positions import sincos_1d, sincos_2d
from latentlm.diffusion.process import DiffusionConfig
from latentlm.models.image_model import TokenSpace

_RENAMED = {
    "x_embedder.weight": "latent_proj.weight",
    "y_embedder.embedding_table.weight": "label_embedding.weight",
    "t_embedder.mlp.0.weight": "timestep_embedding.in_proj.weight",
    "t_embedder.mlp.2.weight": "timestep_embedding.out_proj.weight",
    "final_layer.adaLN_modulation.1.weight": "final_layer.modulation.linear.weight",
    "final_layer.linear.weight": "final_layer.linear.weight",
}
_RENAMED_IN_BLOCK = {
    "attn.proj": "self_attn.o_proj",
    "mlp.fc1": "mlp.gate_proj",
    "mlp.gate": "mlp.up_proj",
    "mlp.fc2": "mlp.down_proj",
    "adaLN_modulation.1": "modulation.linear",
}
_NEEDED = (*_RENAMED, "pos_embed", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight")

POSITION_TOLERANCE = 1e-5
"""Largest difference between their table, rounded from float64, and ours in float32: a few last bits of an angle."""


def load_authors_checkpoint(
    weights: Mapping[str, Tensor],
    *,
    num_heads: int,
    prediction_type: Literal["epsilon", "v_prediction"] = "v_prediction",
) -> DiT:
    """A `DiT` with the weights of the authors' (the variant with flattened input).

    Args:
        weights: Their state dict. Depths and widths are read off the shapes; the grid is taken to be square.
        num_heads: Query heads, which no shape tells.
        prediction_type: What the checkpoint was trained to predict.

    Raises:
        ValueError: If a tensor is missing or left over, or the grid is not square.
    """
    if missing := [name for name in _NEEDED if name not in weights]:
        raise ValueError(f"not a checkpoint of the authors' flattened-input DiT: {missing=}")
    hidden_size, latent_dim = weights["x_embedder.weight"].shape
    table = weights["pos_embed"].squeeze(0)  # (N, D)
    side = math.isqrt(table.shape[0])
    if side**2 != table.shape[0]:
        raise ValueError(f"the checkpoint has positions of {table.shape[0]} tokens, which is no square grid")
    kv_size = (weights["blocks.0.attn.qkv.weight"].shape[0] - hidden_size) // 2
    encoding = _position_encoding(table, side)
    config = DiTConfig(
        space=TokenSpace(
            num_classes=weights["y_embedder.embedding_table.weight"].shape[0] - 1,
            rows=side,
            columns=side,
            latent_dim=latent_dim,
        ),
        hidden_size=hidden_size,
        num_layers=len({name.split(".")[1] for name in weights if name.startswith("blocks.")}),
        num_heads=num_heads,
        num_kv_heads=kv_size * num_heads // hidden_size,
        intermediate_size=weights["blocks.0.mlp.fc1.weight"].shape[0],
        position_encoding=encoding,
        diffusion=DiffusionConfig(prediction_type=prediction_type),
    )
    with torch.device("meta"):
        model = DiT(config)
    converted = {"position_embedding": table} if encoding == "learned" else {}
    for name, weight in weights.items():
        if name != "pos_embed":
            converted |= _convert(name, weight, hidden_size, kv_size)
    expected = set(model.state_dict())
    if expected != set(converted):
        missing, extra = sorted(expected - set(converted)), sorted(set(converted) - expected)
        raise ValueError(f"not a checkpoint of the authors' flattened-input DiT: {missing=}, {extra=}")
    model.load_state_dict(converted, assign=True)
    return model


def _position_encoding(table: Tensor, side: int) -> Literal["sincos_2d", "sincos_1d", "learned"]:
    """Which table of positions a checkpoint holds."""
    num_tokens, hidden_size = table.shape
    if torch.allclose(table.float(), sincos_1d(torch.arange(num_tokens), hidden_size), atol=POSITION_TOLERANCE, rtol=0):
        return "sincos_1d"
    if torch.allclose(table.float(), sincos_2d(side, side, hidden_size), atol=POSITION_TOLERANCE, rtol=0):
        return "sincos_2d"
    return "learned"


def _convert(name: str, weight: Tensor, hidden_size: int, kv_size: int) -> dict[str, Tensor]:
    if name in _RENAMED:
        return {_RENAMED[name]: weight}
    if match := re.fullmatch(r"(blocks\.\d+)\.attn\.qkv\.weight", name):
        q, k, v = weight.split([hidden_size, kv_size, kv_size])
        parts = {"q_proj": q, "k_proj": k, "v_proj": v}
        return {f"{match[1]}.self_attn.{part}.weight": rows.clone() for part, rows in parts.items()}
    if (match := re.fullmatch(r"(blocks\.\d+)\.(.+)\.weight", name)) and match[2] in _RENAMED_IN_BLOCK:
        return {f"{match[1]}.{_RENAMED_IN_BLOCK[match[2]]}.weight": weight}
    return {name: weight}
