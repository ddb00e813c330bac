"""The image encoder started from a pretrained Vision Transformer: ViT-B by timm or Hugging Face, or BEiT-3 base.

The paper's tokenizer starts from BEiT-3. All three name the same function differently; this file is their key maps.

- The key's bias is dropped: it adds the same number to all scores of a query, and softmax does not see that.
- Positions of another grid are interpolated bicubically. A patch kernel of another size too, then divided by the growth
  of its area, so that a patch of one colour keeps its projection; for another number of channels its mean over channels
  is repeated and scaled, so that a grey picture keeps its projection.
- All of these were trained on pixels in [-1, 1] (mean and deviation 0.5), as ours are. timm's and Google's files expect
  layer_norm_eps 1e-6 and 1e-12, BEiT-3's 1e-5 and sub_layer_norm: true.
"""

import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from latentlm.foreign_weights import read_foreign_weights
from latentlm.tokenizers.image_autoencoder import ImageAutoencoderConfig
from latentlm.tokenizers.vit import ViT, resize_positions

logger = logging.getLogger(__name__)

MIN_MATCHED_RATIO = 0.9
"""Share of the encoder's numbers that a checkpoint must fill; one that fills fewer is another architecture."""

# Per naming: pattern of a checkpoint's name -> ours, `{}` standing for what the pattern's group caught. "input.weight"
# and the two "input.*" tables are reshaped on the way in. None: known, and rightly unused.
_BEIT3_LAYER = r"(?:beit3\.)?encoder\.layers\.(\d+)\."
_HF_LAYER = r"(?:vit\.)?(?:encoder\.layer|layers)\.(\d+)\."
_HF_TOP = r"(?:vit\.)?"
_WB = r"(weight|bias)"

_KEY_MAPS: dict[str, tuple[tuple[str, str | None], ...]] = {
    "timm": (
        (r"cls_token", "class_token"),
        (r"pos_embed", "positions"),
        (rf"patch_embed\.proj\.{_WB}", "input_projection.{}"),
        (rf"blocks\.(\d+)\.norm1\.{_WB}", "blocks.{}.attention_norm.{}"),
        (rf"blocks\.(\d+)\.attn\.(query|value)\.{_WB}", "blocks.{}.attention.{}.{}"),
        (r"blocks\.(\d+)\.attn\.key\.weight", "blocks.{}.attention.key.weight"),
        (r"blocks\.(\d+)\.attn\.key\.bias", None),
        (rf"blocks\.(\d+)\.attn\.proj\.{_WB}", "blocks.{}.attention.output.{}"),
        (rf"blocks\.(\d+)\.norm2\.{_WB}", "blocks.{}.mlp_norm.{}"),
        (rf"blocks\.(\d+)\.mlp\.fc1\.{_WB}", "blocks.{}.mlp.input.{}"),
        (rf"blocks\.(\d+)\.mlp\.fc2\.{_WB}", "blocks.{}.mlp.output.{}"),
        (rf"norm\.{_WB}", "final_norm.{}"),
    ),
    "huggingface": (
        (rf"{_HF_TOP}embeddings\.cls_token", "class_token"),
        (rf"{_HF_TOP}embeddings\.position_embeddings", "positions"),
        (rf"{_HF_TOP}embeddings\.patch_embeddings\.projection\.{_WB}", "input_projection.{}"),
        (rf"{_HF_LAYER}layernorm_before\.{_WB}", "blocks.{}.attention_norm.{}"),
        (rf"{_HF_LAYER}attention\.(?:attention\.query|q_proj)\.{_WB}", "blocks.{}.attention.query.{}"),
        (rf"{_HF_LAYER}attention\.(?:attention\.key|k_proj)\.weight", "blocks.{}.attention.key.weight"),
        (rf"{_HF_LAYER}attention\.(?:attention\.key|k_proj)\.bias", None),
        (rf"{_HF_LAYER}attention\.(?:attention\.value|v_proj)\.{_WB}", "blocks.{}.attention.value.{}"),
        (rf"{_HF_LAYER}attention\.(?:output\.dense|o_proj)\.{_WB}", "blocks.{}.attention.output.{}"),
        (rf"{_HF_LAYER}layernorm_after\.{_WB}", "blocks.{}.mlp_norm.{}"),
        (rf"{_HF_LAYER}(?:intermediate\.dense|mlp\.fc1)\.{_WB}", "blocks.{}.mlp.input.{}"),
        (rf"{_HF_LAYER}(?:output\.dense|mlp\.fc2)\.{_WB}", "blocks.{}.mlp.output.{}"),
        (rf"{_HF_TOP}layernorm\.{_WB}", "final_norm.{}"),
    ),
    # Multiway: ".A." is the vision expert, ".B." the language expert, which pictures do not use.
    "beit3": (
        (r"(?:beit3\.)?vision_embed\.cls_token", "class_token"),
        (r"(?:beit3\.)?encoder\.embed_positions\.A\.weight", "positions"),
        (rf"(?:beit3\.)?vision_embed\.proj\.{_WB}", "input_projection.{}"),
        (rf"{_BEIT3_LAYER}self_attn_layer_norm\.A\.{_WB}", "blocks.{}.attention_norm.{}"),
        (rf"{_BEIT3_LAYER}self_attn\.q_proj\.A\.{_WB}", "blocks.{}.attention.query.{}"),
        (rf"{_BEIT3_LAYER}self_attn\.k_proj\.A\.weight", "blocks.{}.attention.key.weight"),
        (rf"{_BEIT3_LAYER}self_attn\.k_proj\.A\.bias", None),
        (rf"{_BEIT3_LAYER}self_attn\.v_proj\.A\.{_WB}", "blocks.{}.attention.value.{}"),
        (rf"{_BEIT3_LAYER}self_attn\.inner_attn_ln\.A\.{_WB}", "blocks.{}.attention.inner_norm.{}"),
        (rf"{_BEIT3_LAYER}self_attn\.out_proj\.A\.{_WB}", "blocks.{}.attention.output.{}"),
        (rf"{_BEIT3_LAYER}final_layer_norm\.A\.{_WB}", "blocks.{}.mlp_norm.{}"),
        (rf"{_BEIT3_LAYER}ffn\.A\.fc1\.{_WB}", "blocks.{}.mlp.input.{}"),
        (rf"{_BEIT3_LAYER}ffn\.A\.ffn_layernorm\.{_WB}", "blocks.{}.mlp.inner_norm.{}"),
        (rf"{_BEIT3_LAYER}ffn\.A\.fc2\.{_WB}", "blocks.{}.mlp.output.{}"),
        (rf"(?:beit3\.)?encoder\.layer_norm\.A\.{_WB}", "final_norm.{}"),
    ),
}

# torchscale, like fairseq before it, numbers positions from 2.
_BEIT3_POSITION_OFFSET = 2


@dataclass(frozen=True)
class LoadedEncoder:
    """What became of a checkpoint."""

    naming: str
    """"timm", "huggingface" or "beit3"."""
    loaded: tuple[str, ...]
    """Our tensors that got a value."""
    missing: tuple[str, ...]
    """Our tensors that kept their initial value."""
    unused: tuple[str, ...]
    """Tensors of the checkpoint that nothing of ours corresponds to; key biases are not counted."""


def load_encoder(
    encoder: ViT, source: str | Path | Mapping[str, Tensor], config: ImageAutoencoderConfig
) -> LoadedEncoder:
    """Fill an image encoder from a checkpoint, in place; what did not match is logged and returned.

    Args:
        encoder: The tokenizer's.
        source: A weight file (safetensors, or PyTorch's read with weights_only), or its state dict.
        config: The tokenizer's: patch size and number of channels of our input.

    Raises:
        ValueError: If the names are of no kind known, a shape does not fit, the checkpoint and the encoder disagree on
            sub-layer norms, or less than `MIN_MATCHED_RATIO` of the encoder is filled.
    """
    where = "the checkpoint" if isinstance(source, Mapping) else str(source)
    tensors = source if isinstance(source, Mapping) else read_foreign_weights(source)
    naming, found, unused = _translate(tensors, where)
    own = dict(encoder.named_parameters())
    too_many = sorted(name for name in found if name not in own)
    if any("inner_norm" in name for name in own.keys() ^ found.keys()):
        has = "has" if any("inner_norm" in name for name in found) else "does not have"
        raise ValueError(
            f"{where} {has} LayerNorms inside its layers, which changes what its weights mean; set "
            f"tokenizer.encoder.sub_layer_norm to {'true' if has == 'has' else 'false'}"
        )
    found = {name: tensor.float() for name, tensor in found.items() if name in own}
    if "positions" in found:
        offset = _BEIT3_POSITION_OFFSET if naming == "beit3" else 0
        found["positions"] = _fit_positions(found["positions"].flatten(0, -2)[offset:], encoder.grid, where)
    if "class_token" in found:
        found["class_token"] = found["class_token"].reshape(1, -1)
    if "input_projection.weight" in found:
        kernel = found["input_projection.weight"]
        found["input_projection.weight"] = _fit_kernel(kernel, config.patch_size, config.num_channels).flatten(1)
    for name, tensor in found.items():
        if tensor.shape != own[name].shape:
            raise ValueError(
                f"{where} gives {name} the shape {tuple(tensor.shape)} but the encoder's is {tuple(own[name].shape)}; "
                "check tokenizer.encoder.hidden_size and mlp_ratio"
            )
    missing = tuple(name for name in own if name not in found)
    matched = sum(tensor.numel() for tensor in found.values()) / sum(parameter.numel() for parameter in own.values())
    if matched < MIN_MATCHED_RATIO:
        raise ValueError(
            f"{where} fills only {matched:.0%} of the encoder and misses {', '.join(missing[:5])}; is its size another?"
        )
    with torch.no_grad():
        for name, tensor in found.items():
            own[name].copy_(tensor)
    result = LoadedEncoder(naming, tuple(found), missing, (*unused, *too_many))
    logger.info(
        "encoder from %s (%s names): %d tensors loaded; missing: %s; unused: %s",
        where,
        naming,
        len(found),
        ", ".join(missing) or "none",
        _shorten(result.unused),
    )
    return result


def _translate(tensors: Mapping[str, Tensor], where: str) -> tuple[str, dict[str, Tensor], list[str]]:
    """The naming that explains most tensors, what it makes of them under our names, and the names it cannot explain."""
    best: tuple[str, dict[str, Tensor], list[str]] = ("", {}, [])
    for naming, key_map in _KEY_MAPS.items():
        candidates = _split_fused(tensors) if naming == "timm" else tensors
        found: dict[str, Tensor] = {}
        unused: list[str] = []
        for name, tensor in candidates.items():
            match, target = _match(name, key_map)
            if match is None:
                unused.append(name)
            elif target is not None:
                found[target.format(*match.groups())] = tensor
        if len(found) > len(best[1]):
            best = naming, found, unused
    if not best[1]:
        shown = ", ".join(list(tensors)[:3])
        raise ValueError(
            f"{where} holds no Vision Transformer under names of {', '.join(_KEY_MAPS)}; it has {shown}, ..."
        )
    return best


def _match(name: str, key_map: tuple[tuple[str, str | None], ...]) -> tuple[re.Match[str] | None, str | None]:
    for pattern, target in key_map:
        if match := re.fullmatch(pattern, name):
            return match, target
    return None, None


def _split_fused(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm fuses query, key and value into one linear layer, in this order."""
    split: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(blocks\.\d+\.attn\.)qkv\.(weight|bias)", name)
        if match is None or len(tensor) % 3:
            split[name] = tensor
            continue
        for part, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
            split[f"{match[1]}{part}.{match[2]}"] = piece
    return split


def _fit_positions(positions: Tensor, grid: tuple[int, int], where: str) -> Tensor:
    """[1 + side², D], the class token's first, to our grid."""
    side = math.isqrt(len(positions) - 1)
    if side * side != len(positions) - 1:
        raise ValueError(f"{where} has {len(positions)} positions, which are not a class token and a square grid")
    if (side, side) == grid:
        return positions
    return torch.cat([positions[:1], resize_positions(positions[1:], (side, side), grid)])


def _fit_kernel(kernel: Tensor, patch_size: int, num_channels: int) -> Tensor:
    """[D, channels, P, P] to our patch size and number of channels, by the rules in the module's docstring."""
    old_channels, old_size = kernel.shape[1:3]
    if num_channels != old_channels:
        kernel = kernel.mean(dim=1, keepdim=True).expand(-1, num_channels, -1, -1) * (old_channels / num_channels)
    if patch_size != old_size:
        resized = F.interpolate(kernel, (patch_size, patch_size), mode="bicubic", antialias=patch_size < old_size)
        resized = resized * (old_size / patch_size) ** 2
        # Interpolation keeps a kernel's mean but for the border; what is left of the difference is spread evenly.
        difference = kernel.sum(dim=(2, 3), keepdim=True) - resized.sum(dim=(2, 3), keepdim=True)
        kernel = resized + difference / patch_size**2
    return kernel


def _shorten(names: tuple[str, ...], limit: int = 8) -> str:
    shown = ", ".join(names[:limit])
    return (f"{shown} and {len(names) - limit} more" if len(names) > limit else shown) or "none"
