"""LatentLM: multimodal latent language modeling with next-token diffusion (arXiv 2412.08635)."""

__version__ = "0.1.0"
