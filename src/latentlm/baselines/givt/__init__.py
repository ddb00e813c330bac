"""GIVT (Tschannen et al. 2024): next-latent prediction with a mixture of Gaussians; see README.md."""

from latentlm.baselines.givt.mixture import GaussianMixture, sample_guided
from latentlm.baselines.givt.model import GIVT, GIVTConfig
from latentlm.baselines.givt.recipe import GIVTRecipe
from latentlm.baselines.givt.sampling import GIVTSamplingConfig

__all__ = ["GIVT", "GIVTConfig", "GIVTRecipe", "GIVTSamplingConfig", "GaussianMixture", "sample_guided"]
