"""The table of kinds: what a recipe's `kind:` means, how to build what it trains, how to load what it saved.

A new kind of recipe or model is one row here.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from latentlm.generation.pipeline import LatentLMPipeline
from latentlm.pretrained import read_model_config, resolve_folder
from latentlm.tokenizers.image import ImageTokenizer
from latentlm.training.objective import Objective
from latentlm.training.objectives.image_tokenizer import ImageTokenizerRecipe, build_image_tokenizer
from latentlm.training.objectives.latentlm import LatentLMRecipe, build_latentlm

MakeLoader = Callable[[int], Iterator[Mapping[str, Any]]]
"""Number of the first batch to endless batches."""


class Kind(NamedTuple):
    """One row of the table."""

    recipe_class: type
    """The dataclass that a recipe of this kind is parsed into."""
    build: Callable[[Any], tuple[Objective, MakeLoader, Any]]
    """Recipe to objective, loader factory, and the recipe with what the data filled in."""
    load: Callable[..., Any]
    """Folder or hub id to the trained thing, as users hold it."""


KINDS: dict[str, Kind] = {
    "image_tokenizer": Kind(ImageTokenizerRecipe, build_image_tokenizer, ImageTokenizer.from_pretrained),
    "latentlm": Kind(LatentLMRecipe, build_latentlm, LatentLMPipeline.from_pretrained),
}

RECIPE_CLASSES: dict[str, type] = {name: kind.recipe_class for name, kind in KINDS.items()}


def build(recipe: Any) -> tuple[Objective, MakeLoader, Any]:
    """Open a recipe's data and build what it trains.

    Returns:
        The objective; a loader factory; and the recipe with what the data filled in, which is the one to save.
    """
    return KINDS[recipe.kind].build(recipe)


def load(
    source: str | Path,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    device: str | torch.device = "cpu",
) -> Any:
    """Load whatever a folder or hub repository holds: an `ImageTokenizer`, a `LatentLMPipeline`, …

    Args:
        source: Local folder or hub id.
        revision: Commit, branch or tag of a hub repository.
        local_files_only: Never touch the network.
        device: Where to put the weights.

    Raises:
        ValueError: If its kind is unknown.
    """
    folder = resolve_folder(source, revision=revision, local_files_only=local_files_only, verify=False)
    name = read_model_config(folder)["kind"]
    if name not in KINDS:
        raise ValueError(f"{source} holds a '{name}', which this version does not know; known: {', '.join(KINDS)}")
    return KINDS[name].load(folder, device=device)
