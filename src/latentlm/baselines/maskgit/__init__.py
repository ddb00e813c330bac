"""Masked modelling of vector-quantized codes (MaskGIT, Chang et al. 2022)."""

from latentlm.baselines.maskgit.model import MaskGIT, MaskGITConfig
from latentlm.baselines.maskgit.recipe import MaskGITRecipe
from latentlm.baselines.maskgit.sampling import MaskGITSamplingConfig

__all__ = ["MaskGIT", "MaskGITConfig", "MaskGITRecipe", "MaskGITSamplingConfig"]
