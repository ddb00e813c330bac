"""Trains the sigma-VAE image tokenizer (paper Section 2.3, Eq. 6), a vanilla VAE or an autoencoder.

    images ─posterior▶ mu ─+ s eps▶ z ─decoder▶ reconstructions
    tokenizer: mean (x̂ - x)² + beta · mean mu², and the companions in `reconstruction.py`

Eq. 6 writes sums over pixels and over latent elements; these are means. Its beta is therefore ours times
(channels · H · W) / (N · C).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from latentlm.pictures import picture_grid
from latentlm.tokenizers.bottleneck import draw_keyed_noise
from latentlm.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from latentlm.tokenizers.report import TokenizerReport, report_tokenizer
from latentlm.training.objectives.reconstruction import (
    ReconstructionObjective,
    ReconstructionRecipe,
    TrainingPass,
    build_reconstruction,
)


@dataclass(frozen=True, kw_only=True)
class ImageTokenizerRecipe(ReconstructionRecipe):
    """A sigma-VAE image tokenizer, a vanilla VAE or an autoencoder (paper Sections 2.3 and 3.1)."""

    tokenizer: ImageTokenizerConfig
    """Geometry, encoder, decoder, bottleneck."""


class ImageTokenizerObjective(ReconstructionObjective):
    """Eq. 6 and its companions."""

    tokenizer: ImageTokenizer

    def training_pass(self, batch: Mapping[str, Any]) -> TrainingPass:
        """Reconstructions of noisy latents, the noise hanging on step and key."""
        images = batch["image"]
        posterior = self.tokenizer.posterior(images)
        noise = draw_keyed_noise(posterior, batch["noise_seed"], batch["key"])
        latents = self.tokenizer.bottleneck.sample(posterior, noise)  # (B, N, C), Eq. 5
        reconstructions = self.tokenizer.reconstruct(latents, self.tokenizer.grid(*images.shape[2:]))
        return TrainingPass(reconstructions, self.tokenizer.bottleneck.regularizer(posterior), {})

    @torch.no_grad()
    def sample_grid(self, *, seed: int) -> UInt8[Tensor, "3 height width"]:
        """Three rows: pictures, their reconstructions from the mean, and from a sample as models see it."""
        images = self.pictures.preview.to(self.device)
        posterior = self.tokenizer.posterior(images)
        noise = draw_keyed_noise(posterior, seed, torch.arange(len(images), device=images.device))
        grid = self.tokenizer.grid(*images.shape[2:])
        from_mean = self.tokenizer.reconstruct(posterior.mean, grid)
        from_sample = self.tokenizer.reconstruct(self.tokenizer.bottleneck.sample(posterior, noise), grid)
        return picture_grid(torch.cat([images, from_mean, from_sample]), columns=len(images))

    def measure_statistics(self) -> None:
        """Measure the tokenizer's latent bias and scale with the weights it now holds."""
        self.tokenizer.measure_statistics(
            (images.to(self.device), keys.to(self.device)) for images, keys in self.pictures.training()
        )

    @torch.no_grad()
    def report(self) -> TokenizerReport:
        """Spread of the means against sigma, dead channels and rate, on pictures that were not trained on."""
        posteriors = (self.tokenizer.posterior(images.to(self.device)) for images, _ in self.pictures.held_out())
        return report_tokenizer(posteriors, self.tokenizer.config.bottleneck, beta=self.loss_config.beta)

    def save_pretrained(self, folder: Path) -> None:
        """Measure the latent statistics, then write the tokenizer and its report (JSON and Markdown)."""
        self.measure_statistics()
        super().save_pretrained(folder)


def build_image_tokenizer(
    recipe: ImageTokenizerRecipe,
) -> tuple[ImageTokenizerObjective, Callable[[int], Iterator[Mapping[str, Any]]], ImageTokenizerRecipe]:
    """Open the data and build what the recipe trains; see `build_reconstruction`."""
    return build_reconstruction(recipe, ImageTokenizer, ImageTokenizerObjective)
