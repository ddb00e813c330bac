"""Trains the vocoder as a speech tokenizer is trained: the same losses, discriminators, recordings and crops.

    waveforms ─LogMel, statistics▶ frames of unit variance ─decoder▶ reconstructions
    tokenizer: the losses of `training/objectives/speech_reconstruction.py`; nothing to regularise

Frames say nothing of phases, so that `losses.waveform_weight` would only teach silence; leave it at 0.

Shapes: B clips, S samples, N frames, M num_mels.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentlm.baselines.mel_ar.vocoder import MelVocoder, MelVocoderConfig
from latentlm.tokenizers.latent_statistics import StreamingMoments
from latentlm.training.objectives.speech_reconstruction import (
    SpeechReconstructionObjective,
    SpeechReconstructionRecipe,
    SpeechTrainingPass,
    build_speech_reconstruction,
)


@dataclass(frozen=True, kw_only=True)
class MelVocoderRecipe(SpeechReconstructionRecipe):
    """A vocoder of mel frames; `losses.beta` multiplies nothing."""

    tokenizer: MelVocoderConfig
    """Sample rate, filters, sizes of the decoder."""


@dataclass(frozen=True, kw_only=True)
class MelVocoderReport:
    """What is known of the frames, on clips that were not trained on; how they sound is the evaluations' business."""

    frame_rate: float
    """Frames a second, Hz."""
    num_mels: int
    floats_per_second: float
    num_frames: int
    """On which the next two were measured."""
    normalised_mean: float
    """Of all numbers; 0 on the clips of the statistics."""
    normalised_std: float
    """Likewise; 1 there."""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def as_markdown(self) -> str:
        """For people."""
        return (
            f"# Mel frames\n\n{self.frame_rate:g} frames of {self.num_mels} filters a second, "
            f"{self.floats_per_second:g} floats per second. Normalised, {self.num_frames:,} held-out frames have mean "
            f"{self.normalised_mean:.3f} and deviation {self.normalised_std:.3f}.\n"
        )


class MelVocoderObjective(SpeechReconstructionObjective):
    """Sound from frames."""

    tokenizer: MelVocoder

    def training_pass(self, batch: Mapping[str, Any]) -> SpeechTrainingPass:
        """Reconstructions of the frames as they are; nothing is drawn."""
        waveforms = batch["audio"]
        reconstructions, frames = self.tokenizer.reconstruct_with_frames(self.tokenizer.posterior(waveforms).mean)
        return SpeechTrainingPass(reconstructions, waveforms.new_zeros(len(waveforms)), {}, frames)

    def copies(
        self, waveforms: Float[Tensor, "B S"], keys: Int[Tensor, "B"], *, seed: int
    ) -> dict[str, Float[Tensor, "B S"]]:
        """`vocoded`: there is one way."""
        return {"vocoded": self.tokenizer.decode(self._frames(waveforms), num_samples=waveforms.shape[1])}

    @torch.no_grad()
    def report(self) -> MelVocoderReport:
        """Rate and spread of the frames."""
        config = self.tokenizer.config
        moments = StreamingMoments(config.latent_dim)
        for waveforms, _ in self.clips.held_out():
            moments.update(self._frames(waveforms.to(self.device)))
        return MelVocoderReport(
            frame_rate=config.frame_rate,
            num_mels=config.latent_dim,
            floats_per_second=config.frame_rate * config.latent_dim,
            num_frames=moments.count,
            normalised_mean=moments.overall_mean,
            normalised_std=moments.overall_variance**0.5,
        )

    def _frames(self, waveforms: Float[Tensor, "B S"]) -> Float[Tensor, "B N M"]:
        return self.tokenizer.encode(waveforms, sample=False)


def build_mel_vocoder(
    recipe: MelVocoderRecipe,
) -> tuple[MelVocoderObjective, Callable[[int], Iterator[Mapping[str, Any]]], MelVocoderRecipe]:
    """Open the data, build what the recipe trains (see `build_speech_reconstruction`), and measure the statistics.

    The decoder reads normalised frames, so that they must be known before the first step.
    """
    objective, make_batches, recipe = build_speech_reconstruction(recipe, MelVocoder, MelVocoderObjective)
    objective.tokenizer.measure_statistics(objective.clips.training())
    return objective, make_batches, recipe
