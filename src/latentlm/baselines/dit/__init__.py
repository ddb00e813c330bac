"""DiT (Peebles & Xie 2023) with RMSNorm and SwiGLU: the image-level diffusion model that LatentLM is compared with."""

from latentlm.baselines.dit.authors_checkpoint import load_authors_checkpoint
from latentlm.baselines.dit.model import DiT, DiTConfig
from latentlm.baselines.dit.recipe import DiTRecipe
from latentlm.generation.requests import LatentSamplingConfig

__all__ = ["DiT", "DiTConfig", "DiTRecipe", "LatentSamplingConfig", "load_authors_checkpoint"]
