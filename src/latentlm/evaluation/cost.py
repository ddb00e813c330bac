"""What a model costs, counted on the meta device, without weights in memory: parameters, and FLOPs of a tokenizer."""

import torch
from torch import nn

from latentlm.nn.flops import count_flops
from latentlm.tokenizers.image import ImageTokenizer


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
