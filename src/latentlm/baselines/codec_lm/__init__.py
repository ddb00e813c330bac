"""A language model of a speech codec's codes (VALL-E, Wang et al. 2023; VALL-E 2, Chen et al. 2024)."""

from latentlm.baselines.codec_lm.model import CodecLM, CodecLMConfig
from latentlm.baselines.codec_lm.objective import CodecLMObjective
from latentlm.baselines.codec_lm.pipeline import CodecLMPipeline
from latentlm.baselines.codec_lm.recipe import CodecLMRecipe, build_codec_lm
from latentlm.baselines.codec_lm.sampling import CodecSamplingConfig

__all__ = [
    "CodecLM",
    "CodecLMConfig",
    "CodecLMObjective",
    "CodecLMPipeline",
    "CodecLMRecipe",
    "CodecSamplingConfig",
    "build_codec_lm",
]
