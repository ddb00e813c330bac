"""Next-token prediction of vector-quantized codes (VQGAN, Esser et al. 2021; LlamaGen, Sun et al. 2024)."""

from latentlm.baselines.vq_ar.model import VQAR, VQARConfig
from latentlm.baselines.vq_ar.recipe import VQARRecipe
from latentlm.baselines.vq_ar.sampling import CodeSamplingConfig

__all__ = ["VQAR", "CodeSamplingConfig", "VQARConfig", "VQARRecipe"]
