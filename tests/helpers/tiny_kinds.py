"""A tiny instance of every kind of generator in the catalog, for contracts and commands to be tested on.

Pictures are the embedded digits, 8 x 8; a tokenizer makes four tokens of each. A new kind adds its sizes to `SIZES`.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from tiny_models import randomise, tiny_image_tokenizer, tiny_vq_image_tokenizer

from latentlm.catalog import KINDS, build
from latentlm.config import from_mapping
from latentlm.generation.image_pipeline import ImagePipeline
from latentlm.generation.pipeline_folder import TOKENIZER_CLASSES
from latentlm.training.objectives.documents import DocumentRecipe

_TRANSFORMER = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 24}
_HEAD = {"num_layers": 1}
_SOLVER = {"num_inference_steps": 2}

SIZES: dict[str, dict[str, Any]] = {
    "latentlm": {
        "model": {
            "vocabulary": {"num_classes": 0},
            "transformer": _TRANSFORMER,
            "modalities": {"image": {"latent_dim": 6, "head": _HEAD}},
            "lm_head": False,
        },
        "generation": {"cfg_scale": 1.5, "solver": _SOLVER},
    },
    "dit": {"model": _TRANSFORMER, "generation": {"cfg_scale": 1.5, "solver": _SOLVER}},
    "mar": {
        "model": {
            "hidden_size": 16,
            "num_encoder_layers": 1,
            "num_decoder_layers": 1,
            "num_heads": 2,
            "intermediate_size": 24,
            "num_buffer_tokens": 2,
            "head": _HEAD,
        },
        "generation": {"cfg_scale": 1.5, "num_iterations": 2, "solver": _SOLVER},
    },
    "givt": {
        "model": {"transformer": _TRANSFORMER, "num_components": 2},
        "generation": {"cfg_scale": 1.5, "num_candidates": 4},
    },
    "vq_ar": {"model": {"transformer": _TRANSFORMER}, "generation": {"cfg_scale": 1.5}},
    "maskgit": {"model": {"transformer": _TRANSFORMER}, "generation": {"cfg_scale": 1.5, "num_iterations": 2}},
}
"""The `model:` and `generation:` of a recipe, by kind."""

GENERATORS = tuple(
    name
    for name, kind in KINDS.items()
    if not issubclass(kind.model_class, (*TOKENIZER_CLASSES.values(),))
    and not issubclass(kind.recipe_class, DocumentRecipe)
)
"""Every kind that draws pictures of labels."""


def token_kind(kind: str) -> str:
    """What a kind of generator models: "latents" (LatentLM too) or "codes"."""
    return getattr(KINDS[kind].model_class, "token_kind", "latents")


def save_tiny_tokenizers(root: Path) -> dict[str, Path]:
    """Folders of a continuous and of a vector-quantized tokenizer, under "latents" and "codes"."""
    folders = {"latents": root / "latents_tokenizer", "codes": root / "codes_tokenizer"}
    tiny_image_tokenizer().save_pretrained(folders["latents"])
    tiny_vq_image_tokenizer().save_pretrained(folders["codes"])
    return folders


def tiny_recipe(kind: str, tokenizer: Path, **changes: Any) -> Any:
    """A recipe of two steps on four digits each.

    Args:
        kind: In `SIZES`.
        tokenizer: A folder.
        changes: Fields of the recipe; those of `trainer` are given as a mapping of what differs.
    """
    trainer = {"num_steps": 2, "batch_size": 4, "checkpoint_every": 1, "device": "cpu", "tensorboard": False}
    mapping = {
        "kind": kind,
        "data": {"source": "digits", "image_size": 8, "num_channels": 1},
        "tokenizer": str(tokenizer),
        "optim": {"lr": 1e-3, "num_warmup_steps": 0},
        "trainer": {**trainer, **changes.pop("trainer", {})},
        **SIZES[kind],
    }
    return replace(from_mapping(KINDS[kind].recipe_class, mapping), **changes)


def tiny_pipeline(kind: str, tokenizer: Path) -> ImagePipeline:
    """What users hold, with random weights: nothing was trained."""
    objective, _, _ = build(tiny_recipe(kind, tokenizer))
    randomise(objective.model)
    return objective.pipeline()  # pyright: ignore[reportAttributeAccessIssue]
