"""Trains the vector-quantized image tokenizer (VQ-VAE, van den Oord et al. 2017; VQGAN, Esser et al. 2021).

    images ─encoder▶ vectors ─nearest code, gradients straight through▶ quantized ─decoder▶ reconstructions
    tokenizer: mean (x̂ - x)² + beta · mean (vector - code)², and the companions in `reconstruction.py`

The codebook is no optimizer's: it follows the vectors by moving averages (`tokenizers/quantizer.py`), also in a step
that the optimizer skips, unless its batch holds numbers that are not finite.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from latentlm.pictures import picture_grid
from latentlm.tokenizers.code_report import CodeReport, report_codes
from latentlm.tokenizers.vq_image import VQImageTokenizer, VQImageTokenizerConfig
from latentlm.training.objectives.reconstruction import (
    ReconstructionObjective,
    ReconstructionRecipe,
    TokenizerLossConfig,
    TrainingPass,
    build_reconstruction,
)

COMMITMENT_WEIGHT = 0.25
"""beta of the VQ-VAE and VQGAN papers."""


@dataclass(frozen=True, kw_only=True)
class VQImageTokenizerRecipe(ReconstructionRecipe):
    """A vector-quantized image tokenizer, the baseline of the paper's Section 3.1."""

    tokenizer: VQImageTokenizerConfig
    """Geometry, encoder, decoder, codebook."""
    losses: TokenizerLossConfig = field(default_factory=lambda: TokenizerLossConfig(beta=COMMITMENT_WEIGHT))
    """What is minimised."""


class VQImageTokenizerObjective(ReconstructionObjective):
    """Reconstruction and commitment, and their companions."""

    tokenizer: VQImageTokenizer

    def training_pass(self, batch: Mapping[str, Any]) -> TrainingPass:
        """Reconstructions from the nearest codes; in training mode the codebook moves.

        Logged beside the losses: `codebook_perplexity` over the last hundred or so batches, and the shares of the
        codebook that this batch used and restarted.
        """
        images = batch["image"]
        quantized = self.tokenizer.quantize(images, seed=batch["noise_seed"])
        reconstructions = self.tokenizer.reconstruct(quantized.vectors, self.tokenizer.grid(*images.shape[2:]))
        statistics = {
            "codebook_perplexity": self.tokenizer.quantizer.perplexity(),
            "used_share": quantized.used_share,
            "restarted_share": quantized.restarted_share,
        }
        return TrainingPass(reconstructions, quantized.commitment.mean(dim=1), statistics)

    @torch.no_grad()
    def sample_grid(self, *, seed: int) -> UInt8[Tensor, "3 height width"]:
        """Two rows: pictures over their reconstructions. Nothing is drawn, so the seed does not matter."""
        images = self.pictures.preview.to(self.device)
        decoded = self.tokenizer.decode(self.tokenizer.encode(images), grid=self.tokenizer.grid(*images.shape[2:]))
        return picture_grid(torch.cat([images, decoded]), columns=len(images))

    @torch.no_grad()
    def report(self) -> CodeReport:
        """Use of the codebook and rate, on pictures that were not trained on."""
        batches = (self.tokenizer.encode(images.to(self.device)) for images, _ in self.pictures.held_out())
        return report_codes(batches, num_codes=self.tokenizer.num_codes, beta=self.loss_config.beta)


def build_vq_image_tokenizer(
    recipe: VQImageTokenizerRecipe,
) -> tuple[VQImageTokenizerObjective, Callable[[int], Iterator[Mapping[str, Any]]], VQImageTokenizerRecipe]:
    """Open the data and build what the recipe trains; see `build_reconstruction`."""
    return build_reconstruction(recipe, VQImageTokenizer, VQImageTokenizerObjective)
