"""LatentLM: multimodal latent language modeling with next-token diffusion (arXiv 2412.08635).

The public names load on first use, so that `import latentlm` costs nothing, touches no GPU and prints nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentlm.catalog import load
    from latentlm.generation.generator import Generator
    from latentlm.generation.pipeline import LatentLMPipeline
    from latentlm.generation.requests import GenerationRequest, LatentSpan
    from latentlm.models.latentlm import LatentLM, LatentLMConfig
    from latentlm.sequence import Document
    from latentlm.tokenizers.image import ImageTokenizer, ImageTokenizerConfig

__version__ = "0.1.0"

_HOMES = {
    "Document": "latentlm.sequence",
    "GenerationRequest": "latentlm.generation.requests",
    "Generator": "latentlm.generation.generator",
    "ImageTokenizer": "latentlm.tokenizers.image",
    "ImageTokenizerConfig": "latentlm.tokenizers.image",
    "LatentLM": "latentlm.models.latentlm",
    "LatentLMConfig": "latentlm.models.latentlm",
    "LatentLMPipeline": "latentlm.generation.pipeline",
    "LatentSpan": "latentlm.generation.requests",
    "load": "latentlm.catalog",
}

__all__ = [
    "Document",
    "GenerationRequest",
    "Generator",
    "ImageTokenizer",
    "ImageTokenizerConfig",
    "LatentLM",
    "LatentLMConfig",
    "LatentLMPipeline",
    "LatentSpan",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'latentlm' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
