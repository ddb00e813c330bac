"""FLOPs of a LatentLM, counted on its parts without computing anything."""

from dataclasses import dataclass

import torch

from latentlm.models.latentlm import LatentLM
from latentlm.nn.flops import ImageFlops, count_flops


@dataclass(frozen=True, kw_only=True)
class RowFlops:
    """FLOPs of a LatentLM for training on one row of documents, forward and backward."""

    text: int
    """A row of text alone: Transformer and softmax head at every position."""
    latents: dict[str, int]
    """What a latent of each modality adds, with the several noises of the recipe; it spares its position's softmax head
    nothing."""


def row_flops(model: LatentLM, *, num_tokens: int) -> RowFlops:
    """FLOPs for one row.

    Args:
        model: On the meta device, or any other; with a softmax head.
        num_tokens: Positions of the row.
    """
    config, device = model.config, model.device
    sequence = torch.zeros(1, num_tokens, config.transformer.hidden_size, device=device)
    positions = torch.arange(num_tokens, device=device)[None]
    backbone = count_flops(model.transformer, sequence, positions)
    softmax = 2 * num_tokens * config.transformer.hidden_size * config.vocabulary.size
    latents = {}
    for name, modality in config.modalities.items():
        one = torch.zeros(1, modality.latent_dim, device=device)
        head = count_flops(model.diffusion_heads[name], one, torch.zeros(1, device=device), sequence[0, :1])
        projection = count_flops(model.input_projs[name], one)
        latents[name] = 3 * (projection + modality.num_noises_per_latent * head)
    return RowFlops(text=3 * (backbone + softmax), latents=latents)


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

    @property
    def per_image(self) -> ImageFlops:
        """The two numbers by which models of pictures are compared."""
        return ImageFlops(training=self.training, generation=self.generation)


def latentlm_flops(
    model: LatentLM, *, num_latents: int, num_evaluations: int, guided: bool, modality: str = "image", num_read: int = 1
) -> LatentLMFlops:
    """FLOPs for one example of a condition and a span of latents.

    Args:
        model: On the meta device, or any other.
        num_latents: Latents per image.
        num_evaluations: Head evaluations per latent in generation (the solver's steps; twice that for Heun).
        guided: Whether classifier-free guidance doubles the work of generation.
        modality: Which of the model's modalities the latents are.
        num_read: Positions of the condition: a class, or what is read of text and voice.
    """
    config, device = model.config, model.device
    hidden_size, latent_dim = config.transformer.hidden_size, config.modalities[modality].latent_dim
    sequence = torch.zeros(1, num_read + num_latents, hidden_size, device=device)
    positions = torch.arange(num_read + num_latents, device=device)[None]
    latents = torch.zeros(num_latents, latent_dim, device=device)
    backbone = count_flops(model.transformer, sequence, positions)
    backbone += count_flops(model.input_projs[modality], latents)
    timesteps, hidden_states = torch.zeros(num_latents, device=device), sequence[0, num_read:]
    head = count_flops(model.diffusion_heads[modality], latents, timesteps, hidden_states)
    num_noises = config.modalities[modality].num_noises_per_latent
    num_streams = 2 if guided else 1
    return LatentLMFlops(
        backbone=backbone,
        head_evaluation=head,
        training=3 * (backbone + num_noises * head),
        generation=num_streams * (backbone + num_evaluations * head),
    )
