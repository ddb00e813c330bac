"""What a model costs: parameters per part and FLOPs per image, counted on the meta device, without weights in memory.

FLOPs are those of matrix products and attention, a multiplication and an addition each, as PyTorch's own counter sees
them. Attention is counted over all pairs of positions although a causal mask or a cache needs only half of them. A
backward pass costs twice its forward pass.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from latentlm.models.latentlm import LatentLM
from latentlm.tokenizers.image import ImageTokenizer


@dataclass(frozen=True, kw_only=True)
class LatentLMFlops:
    """FLOPs of a LatentLM for one image."""

    backbone: int
    """One pass of the Transformer over the condition and all latents."""
    head_evaluation: int
    """One evaluation of the diffusion head on every latent of the image."""
    training: int
    """Forward and backward, with the several noises per latent of the recipe."""
    generation: int
    """All latents, every solver step, both streams where guidance is on; the decoder of the tokenizer not included."""


def parameters_by_part(module: nn.Module) -> dict[str, int]:
    """Number of parameters of each child of a module, by the child's name, shared ones counted once."""
    counts: dict[str, int] = {}
    seen: set[int] = set()
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if id(parameter) not in seen:
            seen.add(id(parameter))
            part = name.partition(".")[0]
            counts[part] = counts.get(part, 0) + parameter.numel()
    return counts


def count_flops(function: Callable[..., Any], *inputs: Any) -> int:
    """FLOPs of one call; a module on the meta device takes meta tensors and computes nothing."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        function(*inputs)
    return counter.get_total_flops()


def latentlm_flops(
    model: LatentLM, *, num_latents: int, num_evaluations: int, guided: bool, modality: str = "image"
) -> LatentLMFlops:
    """FLOPs for one example of a condition token and a span of latents.

    Args:
        model: On the meta device.
        num_latents: Latents per image.
        num_evaluations: Head evaluations per latent in generation (the solver's steps; twice that for Heun).
        guided: Whether classifier-free guidance doubles the work of generation.
        modality: Which of the model's modalities the latents are.
    """
    config, device = model.config, model.device
    hidden_size, latent_dim = config.transformer.hidden_size, config.modalities[modality].latent_dim
    sequence = torch.zeros(1, 1 + num_latents, hidden_size, device=device)
    positions = torch.arange(1 + num_latents, device=device)[None]
    latents = torch.zeros(num_latents, latent_dim, device=device)
    backbone = count_flops(model.transformer, sequence, positions)
    backbone += count_flops(model.input_projs[modality], latents)
    timesteps, hidden_states = torch.zeros(num_latents, device=device), sequence[0, 1:]
    head = count_flops(model.diffusion_heads[modality], latents, timesteps, hidden_states)
    num_noises = config.modalities[modality].num_noises_per_latent
    num_streams = 2 if guided else 1
    return LatentLMFlops(
        backbone=backbone,
        head_evaluation=head,
        training=3 * (backbone + num_noises * head),
        generation=num_streams * (backbone + num_evaluations * head),
    )


def image_tokenizer_flops(tokenizer: ImageTokenizer) -> tuple[int, int]:
    """FLOPs of encoding and of decoding one image of the training size.

    Args:
        tokenizer: On the meta device.
    """
    config = tokenizer.config
    side, device = config.image_size, next(tokenizer.parameters()).device
    rows, columns = tokenizer.grid(side, side)
    images = torch.zeros(1, config.num_channels, side, side, device=device)
    latents = torch.zeros(1, rows * columns, config.latent_dim, device=device)
    return count_flops(tokenizer.posterior, images), count_flops(tokenizer.reconstruct, latents, (rows, columns))
