"""What a run of GIVT is made of."""

from dataclasses import dataclass, field

from latentlm.baselines.givt.model import GIVTConfig
from latentlm.baselines.givt.sampling import GIVTSamplingConfig
from latentlm.training.objectives.image_model import ImageModelRecipe


@dataclass(frozen=True, kw_only=True)
class GIVTRecipe(ImageModelRecipe):
    """A class-conditional GIVT on the latents of pictures."""

    model: GIVTConfig
    """The model; `model.space` is filled in from the data and the tokenizer."""
    generation: GIVTSamplingConfig = field(default_factory=GIVTSamplingConfig)
    """How pictures are sampled; saved with the model as its default."""
