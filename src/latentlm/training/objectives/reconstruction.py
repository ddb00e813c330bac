"""What training an image tokenizer of any kind has in common: likeness of the pictures, and a pull on the bottleneck.

    images ─the tokenizer's training pass▶ reconstructions, regularizer
    tokenizer:      mean (x̂ - x)² + beta · regularizer  [+ w_p LPIPS(x̂, x)]  [+ w_a · adaptive · adversarial(x̂)]
    discriminator:  hinge(real x, fake x̂), on x̂ cut off from the tokenizer

A tokenizer brings its training pass, its sample grid and its report; `image_tokenizer.py` and `vq_image_tokenizer.py`.

Shapes: B batch, C channels, H height, W width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from latentlm.data import ImageDataConfig, ImageDataset, loader_factory, make_loader, open_images
from latentlm.nn.keyed_noise import combine_keys
from latentlm.pretrained import Pretrained
from latentlm.storage import publish_folder, write_file_atomically, write_json
from latentlm.tokenizers.image_autoencoder import ImageAutoencoder, ImageAutoencoderConfig
from latentlm.tokenizers.pretrained_encoders import load_encoder
from latentlm.training.losses.adversarial import (
    AdversarialConfig,
    PatchDiscriminator,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
)
from latentlm.training.losses.perceptual import PerceptualConfig, PerceptualDistance, load_perceptual_distance
from latentlm.training.objective import Objective
from latentlm.training.optim import OptimConfig, OptimizerGroups, layer_lr_scale, parameter_groups
from latentlm.training.random_state import seeded_weights
from latentlm.training.trainer import TrainerConfig

NUM_MEASURED_IMAGES = 10_000
"""Pictures on which statistics and reports are measured; 256 latents of 16 numbers each make 41 million numbers."""

_MEASURE_BATCH_SIZE = 64
_NUM_PREVIEW_IMAGES = 10

Pictures = Iterable[tuple[Float[Tensor, "B C H W"], Int[Tensor, "B"]]]
"""Batches of pictures in [-1, 1] and their keys."""


@dataclass(frozen=True, kw_only=True)
class TokenizerLossConfig:
    """Weights of the losses; the squared error has weight 1."""

    beta: float = 0.01
    """Of the regularizer: Eq. 6's mean mu², the VAE's KL per element, or the commitment to the codebook."""
    perceptual: PerceptualConfig | None = None
    """LPIPS; needs weight files of others."""
    adversarial: AdversarialConfig | None = None
    """A patch discriminator; needs `discriminator_optim`."""

    def __post_init__(self) -> None:
        if self.beta < 0:
            raise ValueError(f"beta is {self.beta}, but a regularizer's weight cannot be negative")


@dataclass(frozen=True, kw_only=True)
class ReconstructionRecipe:
    """A tokenizer trained to give pictures back; the recipe of each tokenizer narrows `tokenizer`."""

    kind: str
    """Which tokenizer."""
    data: ImageDataConfig
    """The pictures; labels are not used."""
    tokenizer: ImageAutoencoderConfig
    """Geometry, encoder, decoder, bottleneck."""
    losses: TokenizerLossConfig = field(default_factory=TokenizerLossConfig)
    """What is minimised."""
    encoder_checkpoint: str | None = None
    """File of a pretrained encoder (ViT by timm or Hugging Face, BEiT-3); null starts from scratch."""
    encoder_lr_decay: float = 1.0
    """Layer-wise learning-rate decay of the encoder: each layer below the last learns by this factor more slowly."""
    optim: OptimConfig
    """AdamW of encoder and decoder."""
    discriminator_optim: OptimConfig | None = None
    """AdamW of the discriminator; given exactly if there is one."""
    trainer: TrainerConfig
    """Steps, batch, precision, checkpoints."""

    def __post_init__(self) -> None:
        data, tokenizer, adversarial = self.data, self.tokenizer, self.losses.adversarial
        if data.num_channels != tokenizer.num_channels:
            raise ValueError(
                f"data.num_channels is {data.num_channels} but tokenizer.num_channels is {tokenizer.num_channels}"
            )
        if data.image_size % tokenizer.patch_size:
            raise ValueError(
                f"data.image_size {data.image_size} is no multiple of tokenizer.patch_size {tokenizer.patch_size}"
            )
        if not 0 < self.encoder_lr_decay <= 1:
            raise ValueError(f"encoder_lr_decay is {self.encoder_lr_decay}; it must lie in (0, 1]")
        if (adversarial is None) != (self.discriminator_optim is None):
            raise ValueError("losses.adversarial and discriminator_optim belong together: give both or neither")
        if adversarial is not None and data.image_size < adversarial.min_image_size:
            raise ValueError(
                f"a discriminator of {adversarial.num_layers} layers needs pictures of {adversarial.min_image_size} "
                f"pixels but data.image_size is {data.image_size}; lower losses.adversarial.num_layers"
            )


class PictureSources(NamedTuple):
    """The pictures an objective looks at outside its training steps."""

    preview: Float[Tensor, "B C H W"]
    """A few for `sample_grid`."""
    training: Callable[[], Pictures]
    """Opens up to `NUM_MEASURED_IMAGES` that are trained on."""
    held_out: Callable[[], Pictures]
    """Opens up to `NUM_MEASURED_IMAGES` that are not, where the data have such a part."""


class TrainingPass(NamedTuple):
    """What a tokenizer makes of a batch."""

    reconstructions: Float[Tensor, "B C H W"]
    """Not clipped."""
    regularizer: Float[Tensor, "B"]
    """What beta multiplies."""
    statistics: dict[str, Float[Tensor, ""]]
    """Further numbers for the log, by name; means over the batch."""


@runtime_checkable
class Report(Protocol):
    """Measurements of a tokenizer, saved beside it."""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        ...

    def as_markdown(self) -> str:
        """For people."""
        ...


class ReconstructionObjective(Objective, ABC):
    """The losses above, for one or two optimizers.

    Args:
        tokenizer: What is trained.
        losses: Their weights.
        optim: For the tokenizer.
        pictures: For samples, statistics and the report.
        discriminator_optim: For the discriminator, if `losses` has one.
        encoder_lr_decay: Layer-wise decay; 1 for none.
        perceptual: Built from the user's files, if `losses` asks for it.
    """

    tokenizer: ImageAutoencoder

    def __init__(
        self,
        tokenizer: ImageAutoencoder,
        *,
        losses: TokenizerLossConfig,
        optim: OptimConfig,
        pictures: PictureSources,
        discriminator_optim: OptimConfig | None = None,
        encoder_lr_decay: float = 1.0,
        perceptual: PerceptualDistance | None = None,
    ) -> None:
        super().__init__()
        self.kind = tokenizer.kind
        self.tokenizer = tokenizer
        self.loss_config = losses
        self.optim = optim
        self.pictures = pictures
        self.discriminator_optim = discriminator_optim
        self.encoder_lr_decay = encoder_lr_decay
        self.perceptual = perceptual
        self.discriminator = (
            PatchDiscriminator(losses.adversarial, num_channels=tokenizer.config.num_channels)
            if losses.adversarial is not None
            else None
        )

    @abstractmethod
    def training_pass(self, batch: Mapping[str, Any]) -> TrainingPass:
        """Encode and decode a batch from `prepare` as in training."""

    @abstractmethod
    def report(self) -> Report:
        """Measure the tokenizer on `pictures.held_out`; called without gradients."""

    def optimizer_groups(self) -> dict[str, OptimizerGroups]:
        """AdamW over encoder and decoder, its rate decayed by the encoder's layers; another over the discriminator."""
        groups = parameter_groups([self.tokenizer], self.optim, lr_scale=self._lr_scale)
        owned = {"tokenizer": OptimizerGroups(self.optim, groups)}
        if self.discriminator is not None:
            assert self.discriminator_optim is not None
            own_groups = parameter_groups([self.discriminator], self.discriminator_optim)
            owned["discriminator"] = OptimizerGroups(self.discriminator_optim, own_groups)
        return owned

    def _lr_scale(self, name: str) -> float:
        part, _, rest = name.partition(".")
        if part != "encoder":
            return 1.0
        num_layers = self.tokenizer.config.encoder.num_layers
        if rest.startswith("blocks."):
            layer = 1 + int(rest.split(".")[1])
        else:
            layer = num_layers + 1 if rest.startswith("final_norm") else 0
        return layer_lr_scale(layer, num_layers, self.encoder_lr_decay)

    def ema_modules(self) -> dict[str, nn.Module]:
        """Encoder and decoder."""
        return {"tokenizer": self.tokenizer}

    def enable_activation_checkpointing(self) -> None:
        """Recompute the blocks of both ViTs in the backward pass."""
        self.tokenizer.encoder.activation_checkpointing = True
        self.tokenizer.decoder.vit.activation_checkpointing = True

    def prepare(self, raw_batch: Mapping[str, Any], *, step: int, seed: int) -> dict[str, Any]:
        """`image` [B, C, H, W] and `key` [B] on the device, and `noise_seed` for the bottleneck.

        Args:
            raw_batch: From the loader.
            step: From 0.
            seed: The run's.
        """
        batch = super().prepare(raw_batch, step=step, seed=seed)
        return {"image": batch["image"], "key": batch["key"], "noise_seed": int(combine_keys(seed, step))}

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Tensor | float]:
        """Pictures; every loss is a mean over them."""
        return {"images": float(len(batch["image"]))}

    def losses(
        self, batch: Mapping[str, Any], *, step: int, totals: Mapping[str, Tensor | float]
    ) -> dict[str, dict[str, Tensor]]:
        """All losses from one reconstruction.

        `tokenizer`: total, reconstruction (mean squared error), regularizer (before beta), the statistics of the
        training pass, and, where they take part, perceptual, adversarial (before their weights) and adaptive_weight.
        `discriminator`: total, and the mean verdicts on real and fake pictures; from `start_step` on.
        """
        images, num_images = batch["image"], totals["images"]
        # Logged values are summed over micro-batches, so a mean over this one brings in its share alone.
        share = len(images) / num_images
        reconstructions, regularizers, statistics = self.training_pass(batch)
        reconstructions = reconstructions.float()

        reconstruction = (reconstructions - images).square().mean(dim=(1, 2, 3)).sum() / num_images
        regularizer = regularizers.sum() / num_images
        named = {"reconstruction": reconstruction, "regularizer": regularizer}
        named |= {name: value * share for name, value in statistics.items()}
        likeness = reconstruction
        if self.perceptual is not None:
            assert self.loss_config.perceptual is not None
            named["perceptual"] = self.perceptual(reconstructions, images).sum() / num_images
            likeness = likeness + self.loss_config.perceptual.weight * named["perceptual"]
        total = likeness + self.loss_config.beta * regularizer
        results = {"tokenizer": named}
        adversarial = self.loss_config.adversarial
        if self.discriminator is not None and adversarial is not None and step >= adversarial.start_step:
            named["adversarial"] = generator_loss(self.discriminator.judge(reconstructions)).sum() / num_images
            weight = adaptive_weight(likeness, named["adversarial"], self.tokenizer.decoder.pixels.weight)
            total = total + adversarial.weight * weight * named["adversarial"]
            named["adaptive_weight"] = weight * share
            results["discriminator"] = self._discriminator_losses(images, reconstructions.detach(), num_images)
        named["total"] = total
        return results

    def _discriminator_losses(
        self, images: Tensor, reconstructions: Tensor, num_images: Tensor | float
    ) -> dict[str, Tensor]:
        assert self.discriminator is not None
        real, fake = self.discriminator(images), self.discriminator(reconstructions)
        return {
            "total": discriminator_loss(real, fake).sum() / num_images,
            "verdict_real": real.float().mean(dim=1).sum() / num_images,
            "verdict_fake": fake.float().mean(dim=1).sum() / num_images,
        }

    @torch.no_grad()
    def save_pretrained(self, folder: Path) -> None:
        """Write the tokenizer and its report (JSON and Markdown)."""
        publish_with_report(folder, self.tokenizer, self.report())


def publish_with_report(folder: Path, tokenizer: Pretrained, report: Report) -> None:
    """Write a tokenizer and its report (JSON and Markdown) into one folder; replaces one that exists."""

    def write(staging: Path) -> None:
        tokenizer.write_files(staging)
        write_json(staging / "tokenizer_report.json", report.as_json())
        write_file_atomically(staging / "tokenizer_report.md", report.as_markdown().encode())

    publish_folder(folder, write, replace=True)


RecipeT = TypeVar("RecipeT", bound=ReconstructionRecipe)
ObjectiveT = TypeVar("ObjectiveT", bound=ReconstructionObjective)


def build_reconstruction(
    recipe: RecipeT,
    tokenizer_class: Callable[[Any], ImageAutoencoder],
    objective_class: Callable[..., ObjectiveT],
) -> tuple[ObjectiveT, Callable[[int], Iterator[Mapping[str, Any]]], RecipeT]:
    """Open the data and build what the recipe trains.

    Args:
        recipe: The recipe.
        tokenizer_class: What `recipe.tokenizer` configures.
        objective_class: A `ReconstructionObjective`.

    Returns:
        The objective; a loader factory, start batch to iterator; and the recipe.

    Raises:
        ValueError: If data, checkpoint or loss weights cannot be used; the message names the flag that mends it.
    """
    perceptual = None if recipe.losses.perceptual is None else load_perceptual_distance(recipe.losses.perceptual)
    train = open_images(recipe.data, part="train")
    held_out = open_images(recipe.data, part="validation") if recipe.data.validation_ratio > 0 else train
    with seeded_weights(recipe.trainer.seed):
        objective = objective_class(
            tokenizer_class(recipe.tokenizer),
            losses=recipe.losses,
            optim=recipe.optim,
            pictures=PictureSources(
                preview=next(_pictures(held_out, _NUM_PREVIEW_IMAGES))[0],
                training=lambda: _pictures(train, NUM_MEASURED_IMAGES),
                held_out=lambda: _pictures(held_out, NUM_MEASURED_IMAGES),
            ),
            discriminator_optim=recipe.discriminator_optim,
            encoder_lr_decay=recipe.encoder_lr_decay,
            perceptual=perceptual,
        )
    if recipe.encoder_checkpoint is not None:
        load_encoder(objective.tokenizer.encoder, recipe.encoder_checkpoint, recipe.tokenizer)
    trainer = recipe.trainer
    make_batches = loader_factory(
        train, batch_size=trainer.batch_size, seed=trainer.seed, num_workers=trainer.num_workers
    )
    return objective, make_batches, recipe


def _pictures(dataset: ImageDataset, limit: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Up to `limit` readable pictures and their keys, in an order that mixes classes (folders are sorted by class)."""
    remaining = min(limit, len(dataset))
    batches = make_loader(dataset, batch_size=min(_MEASURE_BATCH_SIZE, remaining), seed=0)
    while remaining > 0:
        batch = next(batches)
        yield batch["image"][:remaining], batch["key"][:remaining]
        remaining -= len(batch["image"])
