"""Trains the sigma-VAE speech tokenizer (paper Sections 2.3 and 3.3.1), a vanilla VAE or an autoencoder of sound.

    waveforms ─posterior▶ mu ─+ s eps▶ z ─decoder▶ reconstructions
    tokenizer: the losses of `speech_reconstruction.py` + beta · mean mu²

Eq. 6 writes sums over latent elements; this is a mean, whose beta means the same at every rate and width.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentlm.tokenizers.bottleneck import draw_keyed_noise
from latentlm.tokenizers.report import TokenizerReport, report_tokenizer
from latentlm.tokenizers.speech import SpeechTokenizer, SpeechTokenizerConfig
from latentlm.training.objectives.speech_reconstruction import (
    SpeechReconstructionObjective,
    SpeechReconstructionRecipe,
    SpeechTrainingPass,
    build_speech_reconstruction,
)


@dataclass(frozen=True, kw_only=True)
class SpeechTokenizerRecipe(SpeechReconstructionRecipe):
    """A sigma-VAE speech tokenizer, a vanilla VAE or an autoencoder (paper Section 3.3.1)."""

    tokenizer: SpeechTokenizerConfig
    """Sample rate, design, sizes, bottleneck."""


class SpeechTokenizerObjective(SpeechReconstructionObjective):
    """Eq. 6 for sound."""

    tokenizer: SpeechTokenizer

    def training_pass(self, batch: Mapping[str, Any]) -> SpeechTrainingPass:
        """Reconstructions of noisy latents, the noise hanging on step and key."""
        posterior = self.tokenizer.posterior(batch["audio"])
        noise = draw_keyed_noise(posterior, batch["noise_seed"], batch["key"])
        latents = self.tokenizer.bottleneck.sample(posterior, noise)  # (B, N, C), Eq. 5
        reconstructions, frames = self.tokenizer.reconstruct_with_frames(latents)
        statistics = {"mean_std": posterior.mean.detach().std()}
        regularizer = self.tokenizer.bottleneck.regularizer(posterior)
        return SpeechTrainingPass(reconstructions, regularizer, statistics, frames)

    def copies(
        self, waveforms: Float[Tensor, "B S"], keys: Int[Tensor, "B"], *, seed: int
    ) -> dict[str, Float[Tensor, "B S"]]:
        """`mean`: without noise; `sample`: from latents as models see them."""
        posterior = self.tokenizer.posterior(waveforms)
        latents = self.tokenizer.bottleneck.sample(posterior, draw_keyed_noise(posterior, seed, keys))
        return {
            name: self.tokenizer.reconstruct(vectors)[:, : waveforms.shape[1]].clamp(-1, 1)
            for name, vectors in {"mean": posterior.mean, "sample": latents}.items()
        }

    def measure_statistics(self) -> None:
        """Measure the tokenizer's latent bias and scale with the weights it now holds."""
        self.tokenizer.measure_statistics(
            (waveforms.to(self.device), keys.to(self.device)) for waveforms, keys in self.clips.training()
        )

    @torch.no_grad()
    def report(self) -> TokenizerReport:
        """Spread of the means against sigma, dead channels and rates, on clips that were not trained on."""
        posteriors = (self.tokenizer.posterior(waveforms.to(self.device)) for waveforms, _ in self.clips.held_out())
        config = self.tokenizer.config
        return report_tokenizer(posteriors, config.bottleneck, beta=self.loss_config.beta, frame_rate=config.frame_rate)

    def save_pretrained(self, folder: Path) -> None:
        """Measure the latent statistics, then write the tokenizer and its report (JSON and Markdown)."""
        self.measure_statistics()
        super().save_pretrained(folder)


def build_speech_tokenizer(
    recipe: SpeechTokenizerRecipe,
) -> tuple[SpeechTokenizerObjective, Callable[[int], Iterator[Mapping[str, Any]]], SpeechTokenizerRecipe]:
    """Open the data and build what the recipe trains; see `build_speech_reconstruction`."""
    return build_speech_reconstruction(recipe, SpeechTokenizer, SpeechTokenizerObjective)
