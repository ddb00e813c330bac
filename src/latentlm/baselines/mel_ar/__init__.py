"""Autoregression over mel frames, MELLE's way: what LatentLM's speech is compared with beside codes."""

from latentlm.baselines.mel_ar.features import MelConfig
from latentlm.baselines.mel_ar.generator import MelSamplingConfig
from latentlm.baselines.mel_ar.model import MelAR, MelARConfig
from latentlm.baselines.mel_ar.objective import MelARLossConfig, MelARObjective
from latentlm.baselines.mel_ar.pipeline import MelARPipeline
from latentlm.baselines.mel_ar.recipe import MelARRecipe, build_mel_ar
from latentlm.baselines.mel_ar.vocoder import MelVocoder, MelVocoderConfig
from latentlm.baselines.mel_ar.vocoder_objective import MelVocoderObjective, MelVocoderRecipe, build_mel_vocoder

__all__ = [
    "MelAR",
    "MelARConfig",
    "MelARLossConfig",
    "MelARObjective",
    "MelARPipeline",
    "MelARRecipe",
    "MelConfig",
    "MelSamplingConfig",
    "MelVocoder",
    "MelVocoderConfig",
    "MelVocoderObjective",
    "MelVocoderRecipe",
    "build_mel_ar",
    "build_mel_vocoder",
]
