"""What a run of the VQ-MLLM is made of, and how it is built."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from latentlm.baselines.vq_ar.sampling import CodeSamplingConfig
from latentlm.baselines.vq_mllm.model import VQMLLM, VQMLLMConfig
from latentlm.baselines.vq_mllm.objective import VQMLLMObjective
from latentlm.generation.requests import TextSamplingConfig
from latentlm.tokenizers.text import StoredTextTokenizer
from latentlm.tokenizers.vq_image import VQImageTokenizer
from latentlm.training.objectives.documents import (
    DocumentRecipe,
    make_document_loader,
    objective_options,
    open_recipe_documents,
)
from latentlm.training.random_state import seeded_weights


@dataclass(frozen=True, kw_only=True)
class VQMLLMRecipe(DocumentRecipe):
    """A language model of text and of the codes of pictures."""

    model: VQMLLMConfig
    """The model. The sizes of its vocabulary are taken from the tokenizers."""
    generation: CodeSamplingConfig = field(default_factory=CodeSamplingConfig)
    """How codes are sampled; saved with the model as its default."""
    text_generation: TextSamplingConfig = field(default_factory=TextSamplingConfig)
    """How text is sampled; likewise."""


def build_vq_mllm(
    recipe: VQMLLMRecipe,
) -> tuple[VQMLLMObjective, Callable[[int], Iterator[Mapping[str, Any]]], VQMLLMRecipe]:
    """Open the data and build what the recipe trains.

    Returns:
        The objective; a loader factory, start batch to iterator; and the recipe with what the tokenizers filled in.

    Raises:
        ValueError: If data, tokenizers and model do not fit together; the message names the flag that mends it.
    """
    if recipe.tokenizer is None:
        raise ValueError(
            "the recipe names no image tokenizer; train one first (latentlm train recipes/vq_..._tokenizer.yaml --out "
            "RUN) and pass --tokenizer RUN/model"
        )
    opened = open_recipe_documents(recipe, max_grid_side=recipe.model.vocabulary.max_grid_side or None)
    tokenizer = opened.tokenizer
    if not isinstance(tokenizer, VQImageTokenizer):
        kind = None if tokenizer is None else tokenizer.kind
        raise ValueError(f"a 'vq_mllm' models codes, but the tokenizer in {recipe.tokenizer} is a '{kind}'")
    recipe = replace(recipe, model=_fitted(recipe.model, opened.text_tokenizer, tokenizer))
    with seeded_weights(recipe.trainer.seed):
        model = VQMLLM(recipe.model)
    objective = VQMLLMObjective(
        model,
        tokenizer,
        opened.text_tokenizer,
        sampling=recipe.generation,
        text_sampling=recipe.text_generation,
        **objective_options(recipe, opened),
    )
    return objective, make_document_loader(opened.batches, recipe.trainer), recipe


def _fitted(config: VQMLLMConfig, text_tokenizer: StoredTextTokenizer, tokenizer: VQImageTokenizer) -> VQMLLMConfig:
    """The model's config with what the tokenizers say; its own numbers stay, and are refused later if they differ."""
    vocabulary = replace(
        config.vocabulary,
        num_text_ids=config.vocabulary.num_text_ids or text_tokenizer.num_ids,
        num_codes=config.vocabulary.num_codes or tokenizer.num_codes,
    )
    return replace(config, vocabulary=vocabulary, tokenizer_fingerprint=tokenizer.fingerprint())
