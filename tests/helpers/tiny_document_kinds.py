"""A tiny recipe of every kind of model of documents, on the same sources."""

from pathlib import Path
from typing import Any

from tiny_models import tiny_image_tokenizer, tiny_vq_image_tokenizer

from latentlm.catalog import KINDS
from latentlm.config import from_mapping, to_mapping

DOCUMENT_KINDS = ("multimodal", "transfusion", "vq_mllm")

_SHARED = ("sources", "text_tokenizer", "max_length", "optim", "trainer")
_MODEL: dict[str, Any] = {
    "vocabulary": {"switch_tokens": True},
    "transformer": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 24},
}
_OWN: dict[str, dict[str, Any]] = {
    "vq_mllm": {"model": _MODEL},
    "transfusion": {
        "model": {**_MODEL, "image": {"latent_dim": 6}},
        "generation": {"solver": {"num_inference_steps": 2}},
    },
}


def recipe_of_kind(kind: str, recipe: Any, folder: Path) -> Any:
    """A recipe of LatentLM's, or one of another kind that shares its data and training.

    Args:
        kind: In `DOCUMENT_KINDS`.
        recipe: A `multimodal` one.
        folder: The tokenizer of another kind is written into it.
    """
    if kind == recipe.kind:
        return recipe
    tokenizer = tiny_vq_image_tokenizer() if kind == "vq_mllm" else tiny_image_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    shared = {name: value for name, value in to_mapping(recipe).items() if name in _SHARED}
    mapping = {**shared, **_OWN[kind], "kind": kind, "tokenizer": str(folder / "tokenizer")}
    return from_mapping(KINDS[kind].recipe_class, mapping)
