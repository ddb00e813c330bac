"""What a model costs, counted on the meta device, without weights in memory: parameters, and FLOPs of a tokenizer."""

import torch
from torch import nn

from latentlm.nn.flops import count_flops
from latentlm.tokenizers.image import ImageTokenizer
from latentlm.tokenizers.speech.autoencoder import SpeechAutoencoder

_COUNTED_SECONDS = 10
"""Long enough for whole latents at any rate."""


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


def speech_tokenizer_flops(tokenizer: SpeechAutoencoder) -> tuple[float, float]:
    """FLOPs of encoding and of decoding a second of sound, without those of a Fourier transform or of a quantizer.

    Args:
        tokenizer: On the meta device.
    """
    config, device = tokenizer.config, next(tokenizer.parameters()).device
    num_frames = round(_COUNTED_SECONDS * config.frame_rate)
    seconds = num_frames / config.frame_rate
    waveforms = torch.zeros(1, num_frames * config.hop_length, device=device)
    vectors = torch.zeros(1, num_frames, tokenizer.decoder.latent_dim, device=device)
    encode, decode = count_flops(tokenizer.encoder_outputs, waveforms), count_flops(tokenizer.reconstruct, vectors)
    return encode / seconds, decode / seconds
