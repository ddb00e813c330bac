"""Trains any `ImageModel`: DiT, MAR, GIVT, MaskGIT, a language model of codes.

A model brings a recipe dataclass that adds its `model` and `generation` fields to `ImageModelRecipe`; nothing here
knows which one it is.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from latentlm.data import ImageDataConfig, loader_factory
from latentlm.generation.image_pipeline import ImageModelPipeline
from latentlm.models.image_model import ImageModel, LabelledTokens
from latentlm.training.objective import Counts
from latentlm.training.objectives.labelled_images import (
    LabelledImageObjective,
    held_out_batches,
    open_training_data,
    token_space,
    tokenizer_of_recipe,
)
from latentlm.training.optim import OptimConfig
from latentlm.training.random_state import seeded_weights
from latentlm.training.trainer import TrainerConfig


@dataclass(frozen=True, kw_only=True)
class ImageModelRecipe:
    """A class-conditional generator of pictures; the recipe of each model adds `model` and `generation`."""

    kind: str
    """Which model."""
    data: ImageDataConfig
    """The pictures and their labels."""
    tokenizer: str | None = None
    """Folder of the trained image tokenizer (its run's `model` folder); usually given on the command line."""
    latents: str | None = None
    """Folder written by `latentlm encode`; null encodes pictures on the fly."""
    drop_cond_prob: float = 0.1
    """Share of examples whose label is replaced by the null class, for classifier-free guidance."""
    optim: OptimConfig
    """AdamW and its schedule."""
    trainer: TrainerConfig
    """Steps, batch, precision, checkpoints."""

    def __post_init__(self) -> None:
        if not 0 <= self.drop_cond_prob < 1:
            raise ValueError(f"drop_cond_prob is {self.drop_cond_prob}; it must lie in [0, 1)")


class ImageModelObjective(LabelledImageObjective):
    """The losses that an `ImageModel` defines, on the tokens of labelled pictures."""

    model: ImageModel

    def enable_activation_checkpointing(self) -> None:
        """Recompute the activations of the model's layers in the backward pass."""
        self.model.enable_activation_checkpointing()

    def lay_out(self, batch: LabelledTokens) -> LabelledTokens:
        """As it is."""
        return batch

    def loss_counts(self, batch: LabelledTokens) -> Counts:
        """The model's."""
        return self.model.loss_counts(batch)

    def model_losses(self, batch: LabelledTokens, totals: Counts | None) -> dict[str, Tensor]:
        """The model's."""
        return self.model.losses(batch, totals=totals)

    def pipeline(self) -> ImageModelPipeline:
        """Model and tokenizer as users will hold them."""
        return ImageModelPipeline(self.model, self.tokenizer, self.sampling, label_names=self.label_names)


def build_image_model(
    recipe: Any, model_class: type[ImageModel]
) -> tuple[ImageModelObjective, Callable[[int], Iterator[Mapping[str, Any]]], Any]:
    """Open the data and build what the recipe trains.

    Args:
        recipe: Of a subclass of `ImageModelRecipe` with the fields `model` and `generation`.
        model_class: What `recipe.model` configures.

    Returns:
        The objective; a loader factory, start batch to iterator; and the recipe with what the data filled in.

    Raises:
        ValueError: If data, tokenizer and model do not fit together; the message names the flag that mends it.
    """
    tokenizer = tokenizer_of_recipe(recipe.tokenizer, recipe.data)
    dataset = open_training_data(recipe.data, recipe.latents, tokenizer.fingerprint())
    space = recipe.model.space.filled_from(token_space(tokenizer, num_classes=dataset.num_classes))
    if (space.latent_dim > 0) != (model_class.token_kind == "latents"):
        raise ValueError(
            f"a '{model_class.kind}' models {model_class.token_kind}, but the tokenizer in {recipe.tokenizer} is a "
            f"'{tokenizer.kind}'"
        )
    recipe = replace(recipe, model=replace(recipe.model, space=space))
    with seeded_weights(recipe.trainer.seed):
        model = model_class(recipe.model)
    objective = ImageModelObjective(
        model,
        tokenizer,
        num_classes=dataset.num_classes,
        optim=recipe.optim,
        drop_cond_prob=recipe.drop_cond_prob,
        sampling=recipe.generation,
        label_names=dataset.label_names,
        held_out=held_out_batches(recipe.data, recipe.latents, recipe.trainer.batch_size),
    )
    trainer = recipe.trainer
    make_batches = loader_factory(
        dataset, batch_size=trainer.batch_size, seed=trainer.seed, num_workers=trainer.num_workers
    )
    return objective, make_batches, recipe
