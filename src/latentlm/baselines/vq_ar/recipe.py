"""What a run of the language model of codes is made of."""

from dataclasses import dataclass, field

from latentlm.baselines.vq_ar.model import VQARConfig
from latentlm.baselines.vq_ar.sampling import CodeSamplingConfig
from latentlm.training.objectives.image_model import ImageModelRecipe


@dataclass(frozen=True, kw_only=True)
class VQARRecipe(ImageModelRecipe):
    """Next-token prediction of the codes of a vector-quantized image tokenizer."""

    model: VQARConfig
    """The model. Its `space` is taken from data and tokenizer."""
    generation: CodeSamplingConfig = field(default_factory=CodeSamplingConfig)
    """How pictures are sampled; saved with the model as its default."""
