"""MAR (Li et al. 2024): masked latents in random order, each by a diffusion head; see README.md."""

from latentlm.baselines.mar.model import MAR, MARConfig
from latentlm.baselines.mar.recipe import MARRecipe
from latentlm.baselines.mar.sampling import MARSamplingConfig

__all__ = ["MAR", "MARConfig", "MARRecipe", "MARSamplingConfig"]
