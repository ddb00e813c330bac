"""Trains a LatentLM on labelled pictures: encode, drop conditions, lay out `[label, latents]`, next-token diffusion."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from latentlm.data import ImageDataConfig, loader_factory
from latentlm.generation.pipeline import LatentLMPipeline, check_tokenizers
from latentlm.generation.requests import LatentSamplingConfig
from latentlm.models.image_model import LabelledTokens
from latentlm.models.latentlm import LatentLM, LatentLMConfig
from latentlm.sequence import Document, LabelPart, LatentPart, PackedBatch, SequenceBuilder
from latentlm.tokenizers.image import ImageTokenizer
from latentlm.tokenizers.text import ByteTokenizer
from latentlm.training.objective import Counts
from latentlm.training.objectives.labelled_images import (
    Batches,
    LabelledImageObjective,
    held_out_batches,
    open_training_data,
    tokenizer_of_recipe,
)
from latentlm.training.optim import OptimConfig
from latentlm.training.random_state import seeded_weights
from latentlm.training.trainer import TrainerConfig


@dataclass(frozen=True, kw_only=True)
class LatentLMRecipe:
    """A class-conditional LatentLM on pictures (paper Section 3.1)."""

    kind: str
    """latentlm"""
    data: ImageDataConfig
    """The pictures and their labels."""
    tokenizer: str | None = None
    """Folder of the trained image tokenizer (its run's `model` folder); usually given on the command line."""
    latents: str | None = None
    """Folder written by `latentlm encode`; null encodes pictures on the fly."""
    model: LatentLMConfig
    """The model. `vocabulary.num_classes: 0` takes the number of classes from the data."""
    pictures_per_document: int = 1
    """Pictures of one class that follow one another, each behind its label: 64 of 16 latents are 1,024 in a row."""
    drop_cond_prob: float = 0.1
    """Share of examples whose label is replaced by the null class, for classifier-free guidance."""
    generation: LatentSamplingConfig = field(default_factory=LatentSamplingConfig)
    """How pictures are sampled; saved with the model as its default."""
    optim: OptimConfig
    """AdamW and its schedule."""
    trainer: TrainerConfig
    """Steps, batch, precision, checkpoints."""

    def __post_init__(self) -> None:
        if not 0 <= self.drop_cond_prob < 1:
            raise ValueError(f"drop_cond_prob is {self.drop_cond_prob}; it must lie in [0, 1)")
        if self.pictures_per_document < 1:
            raise ValueError(f"pictures_per_document is {self.pictures_per_document}; it must be at least 1")
        if "image" not in self.model.modalities:
            raise ValueError("model.modalities has no 'image', but this kind of recipe trains on pictures")


class LatentLMObjective(LabelledImageObjective):
    """Losses of Section 2.2 on documents of a label and a picture, or of several.

    Args:
        model: What is trained.
        tokenizer: Frozen; encodes pictures and decodes samples.
        optim: AdamW and its schedule.
        drop_cond_prob: Share of dropped labels.
        sampling: For sample grids, and saved with the model.
        label_names: Name of every class, saved with the model; may be empty.
        held_out: Opens batches that are not trained on, for the held-out loss; None for none.
        pictures_per_document: Of one class, the label before each.

    Raises:
        ValueError: If the model was not built for this tokenizer.
    """

    model: LatentLM

    def __init__(
        self,
        model: LatentLM,
        tokenizer: ImageTokenizer,
        *,
        optim: OptimConfig,
        drop_cond_prob: float,
        sampling: LatentSamplingConfig,
        label_names: Sequence[str] = (),
        held_out: Batches | None = None,
        pictures_per_document: int = 1,
    ) -> None:
        check_tokenizers(model, {"image": tokenizer})
        vocabulary = model.config.vocabulary
        super().__init__(
            model,
            tokenizer,
            num_classes=vocabulary.num_classes,
            optim=optim,
            drop_cond_prob=drop_cond_prob,
            sampling=sampling,
            label_names=label_names,
            held_out=held_out,
        )
        self.pictures_per_document = pictures_per_document
        self.builder = SequenceBuilder(
            vocabulary, list(model.config.modalities), ByteTokenizer() if vocabulary.num_text_ids else None
        )

    def enable_activation_checkpointing(self) -> None:
        """Recompute the backbone's layers in the backward pass."""
        self.model.transformer.activation_checkpointing = True

    def lay_out(self, batch: LabelledTokens) -> tuple[PackedBatch, int]:
        """`[label, latents]` for each picture in packed sequences, and the step's noise seed."""
        vocabulary, num_pictures = self.model.config.vocabulary, self.pictures_per_document
        dropped = batch.labels == vocabulary.num_classes
        if not vocabulary.switch_tokens:
            class_ids = torch.where(dropped, vocabulary.class_id(None), batch.labels + vocabulary.class_id(0))
            packed = self.builder.collate_labelled(class_ids, "image", batch.tokens, batch.keys, num_spans=num_pictures)
            return packed, batch.noise_seed
        spans = batch.tokens.cpu().unflatten(1, (num_pictures, -1))  # (B, K, N, C)
        documents = []
        for label, drop, pictures, key in zip(
            batch.labels.tolist(), dropped.tolist(), spans, batch.keys.tolist(), strict=True
        ):
            told = LabelPart(None if drop else label)
            parts = (part for picture in pictures for part in (told, LatentPart("image", picture)))
            documents.append(Document(tuple(parts), key))
        packed = self.builder.collate([[self.builder.build(document)] for document in documents]).to(self.device)
        return packed, batch.noise_seed

    def loss_counts(self, batch: tuple[PackedBatch, int]) -> Counts:
        """Latents, and, with switch tokens, discrete targets; see `LatentLM.loss_counts`."""
        return self.model.loss_counts(batch[0])

    def model_losses(self, batch: tuple[PackedBatch, int], totals: Counts | None) -> dict[str, Tensor]:
        """`diffusion/image`, and, with switch tokens, `lm` and `continue/image`; see `LatentLM.forward`."""
        packed, noise_seed = batch
        return self.model(packed, noise_seed=noise_seed, totals=totals)

    def pipeline(self) -> LatentLMPipeline:
        """Model and tokenizer as users will hold them."""
        assert isinstance(self.tokenizer, ImageTokenizer)
        return LatentLMPipeline(
            self.model, {"image": self.tokenizer}, {"image": self.sampling}, label_names=self.label_names
        )


def build_latentlm(
    recipe: LatentLMRecipe,
) -> tuple[LatentLMObjective, Callable[[int], Iterator[Mapping[str, Any]]], LatentLMRecipe]:
    """Open the data and build what the recipe trains.

    Returns:
        The objective; a loader factory, start batch to iterator; and the recipe with what the data filled in.

    Raises:
        ValueError: If data, tokenizer and model do not fit together; the message names the flag that mends it.
    """
    tokenizer = tokenizer_of_recipe(recipe.tokenizer, recipe.data)
    if not isinstance(tokenizer, ImageTokenizer):
        raise ValueError(f"LatentLM models latents, but the tokenizer in {recipe.tokenizer} is a '{tokenizer.kind}'")
    fingerprint = tokenizer.fingerprint()
    group_size = recipe.pictures_per_document
    dataset = open_training_data(recipe.data, recipe.latents, fingerprint, group_size=group_size)
    recipe = replace(recipe, model=_fit_to_data(recipe.model, dataset.num_classes, tokenizer, fingerprint))
    with seeded_weights(recipe.trainer.seed):
        model = LatentLM(recipe.model)
    objective = LatentLMObjective(
        model,
        tokenizer,
        optim=recipe.optim,
        drop_cond_prob=recipe.drop_cond_prob,
        sampling=recipe.generation,
        label_names=dataset.label_names,
        held_out=held_out_batches(recipe.data, recipe.latents, recipe.trainer.batch_size, group_size=group_size),
        pictures_per_document=group_size,
    )
    trainer = recipe.trainer
    make_batches = loader_factory(
        dataset, batch_size=trainer.batch_size, seed=trainer.seed, num_workers=trainer.num_workers
    )
    return objective, make_batches, recipe


def _fit_to_data(
    config: LatentLMConfig, num_classes: int, tokenizer: ImageTokenizer, fingerprint: str
) -> LatentLMConfig:
    vocabulary, image = config.vocabulary, config.modalities["image"]
    if vocabulary.num_classes == 0:
        vocabulary = replace(vocabulary, num_classes=num_classes)
    elif vocabulary.num_classes != num_classes:
        raise ValueError(
            f"the data has {num_classes} classes but the model was configured for {vocabulary.num_classes}; "
            f"pass --model.vocabulary.num_classes {num_classes}"
        )
    if image.latent_dim != tokenizer.latent_dim:
        raise ValueError(
            f"the tokenizer gives latents of {tokenizer.latent_dim} dimensions but the model was configured for "
            f"{image.latent_dim}; pass --model.modalities.image.latent_dim {tokenizer.latent_dim}"
        )
    modalities = config.modalities | {"image": replace(image, tokenizer_fingerprint=fingerprint)}
    return replace(config, vocabulary=vocabulary, modalities=modalities)
