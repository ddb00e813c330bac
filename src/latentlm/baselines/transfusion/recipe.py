"""What `kind: transfusion` in a recipe may say, and how it is built."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from latentlm.baselines.transfusion.model import Transfusion, TransfusionConfig
from latentlm.baselines.transfusion.objective import TransfusionObjective
from latentlm.generation.requests import LatentSamplingConfig, TextSamplingConfig
from latentlm.tokenizers.image import ImageTokenizer
from latentlm.tokenizers.text import StoredTextTokenizer
from latentlm.training.objectives.documents import (
    DocumentRecipe,
    make_document_loader,
    objective_options,
    open_recipe_documents,
)
from latentlm.training.random_state import seeded_weights


@dataclass(frozen=True, kw_only=True)
class TransfusionRecipe(DocumentRecipe):
    """A Transfusion that reads and writes text and pictures in any order (LatentLM paper, Section 3.2)."""

    model: TransfusionConfig
    """The model. `vocabulary.num_text_ids: 0` takes the number of ids from the text tokenizer."""
    generation: LatentSamplingConfig = field(default_factory=LatentSamplingConfig)
    """How pictures are sampled; saved with the model as its default."""
    text_generation: TextSamplingConfig = field(default_factory=TextSamplingConfig)
    """How text is sampled; likewise."""


def build_transfusion(
    recipe: TransfusionRecipe,
) -> tuple[TransfusionObjective, Callable[[int], Iterator[Mapping[str, Any]]], TransfusionRecipe]:
    """Open the data and build what the recipe trains.

    Returns:
        The objective; a loader factory, start batch to iterator; and the recipe with what the data filled in.

    Raises:
        ValueError: If data, tokenizers and model do not fit together; the message names the flag that mends it.
    """
    if recipe.tokenizer is None:
        raise ValueError(
            "Transfusion diffuses latents of pictures, but the recipe names no tokenizer; train one first (latentlm "
            "train recipes/..._tokenizer.yaml --out RUN) and pass --tokenizer RUN/model"
        )
    opened = open_recipe_documents(recipe)
    tokenizer = opened.tokenizer
    if not isinstance(tokenizer, ImageTokenizer):
        kind = None if tokenizer is None else tokenizer.kind
        raise ValueError(f"Transfusion diffuses latents, but the tokenizer in {recipe.tokenizer} is a '{kind}'")
    recipe = replace(recipe, model=_fitted(recipe.model, opened.text_tokenizer, tokenizer))
    with seeded_weights(recipe.trainer.seed):
        model = Transfusion(recipe.model)
    objective = TransfusionObjective(
        model,
        tokenizer,
        opened.text_tokenizer,
        sampling=recipe.generation,
        text_sampling=recipe.text_generation,
        **objective_options(recipe, opened),
    )
    return objective, make_document_loader(opened.batches, recipe.trainer), recipe


def _fitted(
    config: TransfusionConfig, text_tokenizer: StoredTextTokenizer, tokenizer: ImageTokenizer
) -> TransfusionConfig:
    """The model's config with what the tokenizers say."""
    vocabulary, image = config.vocabulary, config.image
    if vocabulary.num_text_ids == 0:
        vocabulary = replace(vocabulary, num_text_ids=text_tokenizer.num_ids)
    if image.latent_dim != tokenizer.latent_dim:
        raise ValueError(
            f"the tokenizer gives latents of {tokenizer.latent_dim} dimensions but the model was configured for "
            f"{image.latent_dim}; pass --model.image.latent_dim {tokenizer.latent_dim}"
        )
    return replace(config, vocabulary=vocabulary, image=replace(image, tokenizer_fingerprint=tokenizer.fingerprint()))
