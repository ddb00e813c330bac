"""Trains a LatentLM on labelled pictures: encode, drop conditions, lay out `[label, latents]`, next-token diffusion."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from latentlm.data import ImageDataConfig, LatentDataset, loader_factory, make_loader, open_images
from latentlm.generation.pipeline import LatentLMPipeline, check_tokenizers
from latentlm.generation.requests import LatentSamplingConfig
from latentlm.models.latentlm import LatentLM, LatentLMConfig
from latentlm.nn.keyed_noise import combine_keys, keyed_uniform
from latentlm.pictures import picture_grid
from latentlm.sequence import Document, LabelPart, LatentPart, PackedBatch, SequenceBuilder
from latentlm.tokenizers.base import Posterior
from latentlm.tokenizers.image import ImageTokenizer
from latentlm.tokenizers.text import ByteTokenizer
from latentlm.training.objective import Objective
from latentlm.training.optim import OptimConfig, OptimizerGroups, parameter_groups
from latentlm.training.trainer import TrainerConfig

# Streams of the keyed noise of one step.
LATENT_STREAM = 11
DROPOUT_STREAM = 12
DIFFUSION_STREAM = 13

HELD_OUT_SEED = -1
"""Of the held-out loss's noise; the seeds of runs are not negative."""
NUM_HELD_OUT_DRAWS = 4
NUM_HELD_OUT_EXAMPLES = 2048
"""Held-out pictures that are looked at, four noises and timesteps for each of their latents and draws."""


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
        if "image" not in self.model.modalities:
            raise ValueError("model.modalities has no 'image', but this kind of recipe trains on pictures")


class LatentLMObjective(Objective):
    """Losses of Section 2.2 on documents of one label and one picture.

    Args:
        model: What is trained.
        tokenizer: Frozen; encodes pictures and decodes samples.
        optim: AdamW and its schedule.
        drop_cond_prob: Share of dropped labels.
        sampling: For sample grids, and saved with the model.
        label_names: Name of every class, saved with the model; may be empty.
        held_out: Opens batches that are not trained on, for the held-out loss; None for none.

    Raises:
        ValueError: If the model was not built for this tokenizer.
    """

    kind = "latentlm"
    frozen_children: ClassVar[tuple[str, ...]] = ("tokenizer",)

    def __init__(
        self,
        model: LatentLM,
        tokenizer: ImageTokenizer,
        *,
        optim: OptimConfig,
        drop_cond_prob: float,
        sampling: LatentSamplingConfig,
        label_names: Sequence[str] = (),
        held_out: Callable[[], Iterable[Mapping[str, Any]]] | None = None,
    ) -> None:
        super().__init__()
        check_tokenizers(model, {"image": tokenizer})
        self.model = model
        self.tokenizer = tokenizer.requires_grad_(False).eval()
        self.optim = optim
        self.drop_cond_prob = drop_cond_prob
        self.sampling = sampling
        self.label_names = tuple(label_names)
        self.held_out = held_out
        vocabulary = model.config.vocabulary
        self.builder = SequenceBuilder(
            vocabulary, list(model.config.modalities), ByteTokenizer() if vocabulary.num_text_ids else None
        )

    def optimizer_groups(self) -> dict[str, OptimizerGroups]:
        """One AdamW over the whole model."""
        return {"model": OptimizerGroups(self.optim, parameter_groups([self.model], self.optim))}

    def ema_modules(self) -> dict[str, nn.Module]:
        """The model."""
        return {"model": self.model}

    def enable_activation_checkpointing(self) -> None:
        """Recompute the backbone's layers in the backward pass."""
        self.model.transformer.activation_checkpointing = True

    @torch.no_grad()
    def prepare(self, raw_batch: Mapping[str, Any], *, step: int, seed: int) -> tuple[PackedBatch, int]:
        """Latents, freshly sampled from the tokenizer's posterior, in packed sequences; and the step's noise seed.

        Args:
            raw_batch: `image` [B, C, H, W] in [-1, 1], or `latent_mean` [B, N, C] from the cache; `label`, `key` [B].
            step: From 0.
            seed: The run's.

        Raises:
            ValueError: If a label is none of the model's classes.
        """
        self._check_labels(raw_batch["label"])
        batch = super().prepare(raw_batch, step=step, seed=seed)
        keys, labels = batch["key"], batch["label"]
        if "image" in batch:
            # float32 even inside autocast: the tokenizer is small next to the model, and its latents are targets.
            with torch.autocast(self.device.type, enabled=False):
                posterior = self.tokenizer.posterior(batch["image"])
        else:
            posterior = Posterior(batch["latent_mean"].float(), batch.get("latent_log_std"))
        step_seed = int(combine_keys(seed, step))
        latents = self.tokenizer.sample_keyed(posterior, _stream_seed(step_seed, LATENT_STREAM), keys)
        dropped = keyed_uniform(step_seed, keys, stream=DROPOUT_STREAM) < self.drop_cond_prob
        return self._lay_out(labels, dropped, latents, keys), _stream_seed(step_seed, DIFFUSION_STREAM)

    def _check_labels(self, labels: Tensor) -> None:
        """Refuse foreign labels while they are on the host; as ids they would be something else, or crash a GPU."""
        num_classes = self.model.config.vocabulary.num_classes
        if ((labels < 0) | (labels >= num_classes)).any():
            raise ValueError(
                f"the data has labels from {int(labels.min())} to {int(labels.max())} but the model was built for "
                f"classes 0 to {num_classes - 1}"
            )

    def _lay_out(self, labels: Tensor, dropped: Tensor, latents: Tensor, keys: Tensor) -> PackedBatch:
        vocabulary = self.model.config.vocabulary
        if not vocabulary.switch_tokens:
            class_ids = torch.where(dropped, vocabulary.class_id(None), labels + vocabulary.class_id(0))
            return self.builder.collate_labelled(class_ids, "image", latents, keys)
        documents = [
            Document((LabelPart(None if drop else label), LatentPart("image", picture)), key)
            for label, drop, picture, key in zip(
                labels.tolist(), dropped.tolist(), latents.cpu(), keys.tolist(), strict=True
            )
        ]
        return self.builder.collate([[self.builder.build(document)] for document in documents]).to(self.device)

    def counts(self, batch: tuple[PackedBatch, int]) -> dict[str, Tensor | float]:
        """Discrete targets and latents."""
        return {name: float(count) for name, count in self.model.loss_counts(batch[0]).items()}

    def losses(
        self, batch: tuple[PackedBatch, int], *, step: int, totals: Mapping[str, Tensor | float]
    ) -> dict[str, dict[str, Tensor]]:
        """`LatentLM.forward`."""
        packed, noise_seed = batch
        return {"model": self.model(packed, noise_seed=noise_seed, totals=totals)}

    def evaluations(self) -> Sequence[Callable[[Objective, int], Mapping[str, float]]]:
        """The held-out loss, where there is held-out data."""
        return () if self.held_out is None else (self._held_out_loss,)

    @torch.no_grad()
    def _held_out_loss(self, objective: Objective, step: int) -> dict[str, float]:
        """Mean training loss on held-out examples, with the same noise at every call, so that calls compare."""
        assert self.held_out is not None
        total, count = 0.0, 0
        for draw in range(NUM_HELD_OUT_DRAWS):
            for raw_batch in self.held_out():
                packed, noise_seed = self.prepare(raw_batch, step=draw, seed=HELD_OUT_SEED)
                num_examples = len(raw_batch["label"])
                total += num_examples * float(self.model(packed, noise_seed=noise_seed)["total"])
                count += num_examples
        return {"held_out_loss": total / count}

    def pipeline(self) -> LatentLMPipeline:
        """Model and tokenizer as users will hold them."""
        return LatentLMPipeline(
            self.model, {"image": self.tokenizer}, {"image": self.sampling}, label_names=self.label_names
        )

    @torch.no_grad()
    def sample_grid(self, *, seed: int) -> Tensor:
        """Up to ten classes in columns, eight pictures each."""
        training = self.model.training
        columns = min(self.model.config.vocabulary.num_classes, 10)
        labels = [label for _ in range(8) for label in range(columns)]
        pictures = self.pipeline().generate_images(labels, seed=seed)
        self.model.train(training)
        return picture_grid(pictures, columns=columns)

    def save_pretrained(self, folder: Path) -> None:
        """A pipeline folder: model, tokenizer and sampling defaults."""
        training = self.model.training
        self.pipeline().save_pretrained(folder)
        self.model.train(training)


def _stream_seed(step_seed: int, stream: int) -> int:
    return int(combine_keys(step_seed, stream))


def build_latentlm(recipe: LatentLMRecipe) -> tuple[LatentLMObjective, Any, LatentLMRecipe]:
    """Open the data and build what the recipe trains.

    Returns:
        The objective; a loader factory, start batch to iterator; and the recipe with what the data filled in.

    Raises:
        ValueError: If data, tokenizer and model do not fit together; the message names the flag that mends it.
    """
    if recipe.tokenizer is None:
        raise ValueError(
            "the recipe names no tokenizer; train one first (latentlm train recipes/..._tokenizer.yaml --out RUN) and "
            "pass --tokenizer RUN/model"
        )
    tokenizer = ImageTokenizer.from_pretrained(recipe.tokenizer)
    fingerprint = tokenizer.fingerprint()
    dataset = (
        open_images(recipe.data, part="train")
        if recipe.latents is None
        else LatentDataset(Path(recipe.latents), tokenizer_fingerprint=fingerprint)
    )
    recipe = replace(recipe, model=_fit_to_data(recipe.model, dataset.num_classes, tokenizer, fingerprint))
    with torch.random.fork_rng(devices=[]):  # the run's seed decides the initial weights, nothing else
        torch.manual_seed(recipe.trainer.seed)
        model = LatentLM(recipe.model)
    objective = LatentLMObjective(
        model,
        tokenizer,
        optim=recipe.optim,
        drop_cond_prob=recipe.drop_cond_prob,
        sampling=recipe.generation,
        label_names=dataset.label_names,
        held_out=_held_out(recipe),
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


def _held_out(recipe: LatentLMRecipe) -> Callable[[], Iterable[Mapping[str, Any]]] | None:
    """The validation part of the pictures, up to a bound; a cache of latents has none."""
    if recipe.latents is not None or recipe.data.validation_ratio == 0:
        return None
    dataset = open_images(recipe.data, part="validation")
    if len(dataset) == 0:
        return None
    batch_size = min(recipe.trainer.batch_size, len(dataset))
    num_batches = max(1, min(len(dataset), NUM_HELD_OUT_EXAMPLES) // batch_size)
    return lambda: itertools.islice(make_loader(dataset, batch_size=batch_size, seed=0), num_batches)
