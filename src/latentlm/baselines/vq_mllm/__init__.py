"""A language model of text and of the codes of pictures (VQ-MLLM in Section 3.2 of the paper)."""

from latentlm.baselines.vq_mllm.generator import CodeGenerator
from latentlm.baselines.vq_mllm.model import VQMLLM, VQMLLMConfig
from latentlm.baselines.vq_mllm.objective import VQMLLMObjective
from latentlm.baselines.vq_mllm.pipeline import VQMLLMPipeline
from latentlm.baselines.vq_mllm.recipe import VQMLLMRecipe, build_vq_mllm

__all__ = [
    "VQMLLM",
    "CodeGenerator",
    "VQMLLMConfig",
    "VQMLLMObjective",
    "VQMLLMPipeline",
    "VQMLLMRecipe",
    "build_vq_mllm",
]
