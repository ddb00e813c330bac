"""Trains the discrete speech codec: residual quantization where the sigma-VAE has noise (Zeghidour et al. 2021).

    waveforms ─encoder▶ vectors ─codes of codes, gradients straight through▶ quantized ─decoder▶ reconstructions
    tokenizer: the losses of `speech_reconstruction.py` + beta · commitment to the codes in use

The codebooks are no optimizer's: they follow the vectors by moving averages (`tokenizers/quantizer.py`), also in a step
that the optimizer skips, unless its batch holds numbers that are not finite.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentlm.tokenizers.residual_code_report import ResidualCodeReport, report_residual_codes
from latentlm.tokenizers.speech import SpeechCodec, SpeechCodecConfig
from latentlm.training.objectives.speech_reconstruction import (
    SpeechLossConfig,
    SpeechReconstructionObjective,
    SpeechReconstructionRecipe,
    SpeechTrainingPass,
    build_speech_reconstruction,
)

COMMITMENT_WEIGHT = 0.25
"""DAC's beta, beside its weights of the other losses."""


@dataclass(frozen=True, kw_only=True)
class SpeechCodecRecipe(SpeechReconstructionRecipe):
    """A residual-quantized speech codec, the baseline of the paper's Section 3.3."""

    tokenizer: SpeechCodecConfig
    """Sample rate, design, sizes, codebooks."""
    losses: SpeechLossConfig = field(default_factory=lambda: SpeechLossConfig(beta=COMMITMENT_WEIGHT))
    """What is minimised."""


class SpeechCodecObjective(SpeechReconstructionObjective):
    """Reconstruction and commitment, and their companions."""

    tokenizer: SpeechCodec

    def training_pass(self, batch: Mapping[str, Any]) -> SpeechTrainingPass:
        """Reconstructions from the nearest codes; in training mode the codebooks move.

        Logged beside the losses, as means over the codebooks: `codebook_perplexity` over the last hundred or so
        batches, and the shares of the codes that this batch used and restarted.
        """
        quantized = self.tokenizer.quantize(batch["audio"], seed=batch["noise_seed"], keys=batch["key"])
        reconstructions, frames = self.tokenizer.reconstruct_with_frames(quantized.vectors)
        statistics = {
            "codebook_perplexity": self.tokenizer.quantizer.perplexities().mean(),
            "used_share": quantized.used_share.mean(),
            "restarted_share": quantized.restarted_share.mean(),
        }
        return SpeechTrainingPass(reconstructions, quantized.commitment.mean(dim=1), statistics, frames)

    def copies(
        self, waveforms: Float[Tensor, "B S"], keys: Int[Tensor, "B"], *, seed: int
    ) -> dict[str, Float[Tensor, "B S"]]:
        """`all_codes`, and `first_code`: from the first codebook alone. Nothing is drawn."""
        codes = self.tokenizer.encode(waveforms)
        num_samples = waveforms.shape[1]
        copies = {"all_codes": self.tokenizer.decode(codes, num_samples=num_samples)}
        if self.tokenizer.num_quantizers > 1:
            copies["first_code"] = self.tokenizer.decode(codes[..., :1], num_samples=num_samples)
        return copies

    @torch.no_grad()
    def report(self) -> ResidualCodeReport:
        """Use of the codebooks and rates, on clips that were not trained on."""
        batches = (self.tokenizer.encode(waveforms.to(self.device)) for waveforms, _ in self.clips.held_out())
        return report_residual_codes(
            batches,
            num_codes=self.tokenizer.num_codes,
            beta=self.loss_config.beta,
            frame_rate=self.tokenizer.config.frame_rate,
        )


def build_speech_codec(
    recipe: SpeechCodecRecipe,
) -> tuple[SpeechCodecObjective, Callable[[int], Iterator[Mapping[str, Any]]], SpeechCodecRecipe]:
    """Open the data and build what the recipe trains; see `build_speech_reconstruction`."""
    return build_speech_reconstruction(recipe, SpeechCodec, SpeechCodecObjective)
