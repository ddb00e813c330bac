"""What a run of MaskGIT is made of."""

from dataclasses import dataclass, field

from latentlm.baselines.maskgit.model import MaskGITConfig
from latentlm.baselines.maskgit.sampling import MaskGITSamplingConfig
from latentlm.training.objectives.image_model import ImageModelRecipe


@dataclass(frozen=True, kw_only=True)
class MaskGITRecipe(ImageModelRecipe):
    """Masked modelling of the codes of a vector-quantized image tokenizer."""

    model: MaskGITConfig
    """The model. Its `space` is taken from data and tokenizer."""
    generation: MaskGITSamplingConfig = field(default_factory=MaskGITSamplingConfig)
    """How pictures are sampled; saved with the model as its default."""
