"""What a run of MAR is made of."""

from dataclasses import dataclass, field

from latentlm.baselines.mar.model import MARConfig
from latentlm.baselines.mar.sampling import MARSamplingConfig
from latentlm.training.objectives.image_model import ImageModelRecipe


@dataclass(frozen=True, kw_only=True)
class MARRecipe(ImageModelRecipe):
    """A class-conditional MAR on the latents of pictures."""

    model: MARConfig
    """The model; `model.space` is filled in from the data and the tokenizer."""
    generation: MARSamplingConfig = field(default_factory=MARSamplingConfig)
    """How pictures are sampled; saved with the model as its default."""
