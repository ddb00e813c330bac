"""What `kind: dit` in a recipe may say."""

from dataclasses import dataclass, field

from latentlm.baselines.dit.model import DiTConfig
from latentlm.generation.requests import LatentSamplingConfig
from latentlm.training.objectives.image_model import ImageModelRecipe


@dataclass(frozen=True, kw_only=True)
class DiTRecipe(ImageModelRecipe):
    """A class-conditional DiT on the latents of pictures (LatentLM paper, Section 3.1)."""

    model: DiTConfig
    """The model; its `space` is filled in from the data and the tokenizer."""
    generation: LatentSamplingConfig = field(default_factory=LatentSamplingConfig)
    """How pictures are sampled; saved with the model as its default."""
