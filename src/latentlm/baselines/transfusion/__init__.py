"""Transfusion (Zhou et al. 2024): text by next-token prediction, pictures by diffusion, one Transformer for both."""

from latentlm.baselines.transfusion.model import Transfusion, TransfusionConfig, TransfusionImageConfig
from latentlm.baselines.transfusion.objective import TransfusionObjective
from latentlm.baselines.transfusion.pipeline import TransfusionPipeline
from latentlm.baselines.transfusion.recipe import TransfusionRecipe, build_transfusion

__all__ = [
    "Transfusion",
    "TransfusionConfig",
    "TransfusionImageConfig",
    "TransfusionObjective",
    "TransfusionPipeline",
    "TransfusionRecipe",
    "build_transfusion",
]
