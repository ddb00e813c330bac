"""What the training of all class-conditional image generators shares: tokens, dropped labels, held-out loss.

    pictures (or cached posteriors), labels ─prepare▶ LabelledTokens ─lay_out▶ the model's own batch ─losses▶ loss

LatentLM and each model it is compared with differ in `lay_out` and `model_losses` alone.

Shapes: B batch, N tokens of a picture, C latent_dim.
"""

import itertools
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentlm.data import ImageDataConfig, ImageDataset, LatentDataset, PictureGroups, make_loader, open_images
from latentlm.generation.image_pipeline import ImagePipeline
from latentlm.generation.pipeline_folder import AnyImageTokenizer, load_image_tokenizer
from latentlm.models.image_model import LabelledTokens, TokenSpace
from latentlm.nn.keyed_noise import combine_keys, keyed_uniform
from latentlm.pictures import picture_grid
from latentlm.tokenizers.base import Posterior
from latentlm.tokenizers.vq_image import VQImageTokenizer
from latentlm.training.objective import Counts, Objective
from latentlm.training.optim import OptimConfig, OptimizerGroups, parameter_groups

# Streams of the keyed noise of one step.
LATENT_STREAM = 11
DROPOUT_STREAM = 12
MODEL_STREAM = 13

HELD_OUT_SEED = -1
"""Of the held-out loss's noise; the seeds of runs are not negative."""
NUM_HELD_OUT_DRAWS = 4
NUM_HELD_OUT_EXAMPLES = 2048
"""Held-out pictures that are looked at, with as many draws of noise and timesteps each."""

Batches = Callable[[], Iterable[Mapping[str, Any]]]


class LabelledImageObjective(Objective):
    """Labels and pictures to losses.

    Args:
        model: What is trained.
        tokenizer: Frozen; encodes pictures and decodes samples.
        num_classes: Labels lie in 0 … num_classes - 1.
        optim: AdamW and its schedule.
        drop_cond_prob: Share of examples whose label becomes the null class, for classifier-free guidance.
        sampling: For sample grids, and saved with the model.
        label_names: Name of every class, saved with the model; may be empty.
        held_out: Opens batches that are not trained on, for the held-out loss; None for none.
    """

    frozen_children: tuple[str, ...] = ("tokenizer",)

    def __init__(
        self,
        model: Any,
        tokenizer: AnyImageTokenizer,
        *,
        num_classes: int,
        optim: OptimConfig,
        drop_cond_prob: float,
        sampling: Any,
        label_names: Sequence[str] = (),
        held_out: Batches | None = None,
    ) -> None:
        super().__init__()
        self.kind = model.kind
        self.model = model
        self.tokenizer = tokenizer.requires_grad_(False).eval()
        self.num_classes = num_classes
        self.optim = optim
        self.drop_cond_prob = drop_cond_prob
        self.sampling = sampling
        self.label_names = tuple(label_names)
        self.held_out = held_out

    @abstractmethod
    def lay_out(self, batch: LabelledTokens) -> Any:
        """The batch as the model takes it; called without gradients."""

    @abstractmethod
    def loss_counts(self, batch: Any) -> Counts:
        """Of a batch from `lay_out`; see `Objective.counts`."""

    @abstractmethod
    def model_losses(self, batch: Any, totals: Counts | None) -> dict[str, Tensor]:
        """Named losses of a batch from `lay_out`, `total` among them; None as totals means the batch's own counts."""

    @abstractmethod
    def pipeline(self) -> ImagePipeline:
        """Model and tokenizer as users will hold them."""

    def optimizer_groups(self) -> dict[str, OptimizerGroups]:
        """One AdamW over the whole model."""
        return {"model": OptimizerGroups(self.optim, parameter_groups([self.model], self.optim))}

    def ema_modules(self) -> dict[str, nn.Module]:
        """The model."""
        return {"model": self.model}

    @torch.no_grad()
    def prepare(self, raw_batch: Mapping[str, Any], *, step: int, seed: int) -> Any:
        """Tokens of the pictures, latents freshly sampled from the tokenizer's posterior; labels dropped at random.

        Args:
            raw_batch: `image` [B, C, H, W] in [-1, 1], or `latent_mean` [B, N, C] from the cache; `label`, `key` [B].
                Groups of K pictures have `image` [B, K, C, H, W] and `key` [B, K].
            step: From 0.
            seed: The run's.

        Raises:
            ValueError: If a label is none of the model's classes.
        """
        self._check_labels(raw_batch["label"])
        batch = super().prepare(raw_batch, step=step, seed=seed)
        step_seed, is_group = int(combine_keys(seed, step)), batch["key"].dim() == 2
        if is_group:  # pictures of one class that make one document: their tokens follow one another
            shape = batch["key"].shape
            batch["image"], batch["key"] = batch["image"].flatten(0, 1), batch["key"].flatten()
        tokens = self._tokens(batch, _stream_seed(step_seed, LATENT_STREAM))
        keys = batch["key"]
        if is_group:
            tokens, keys = tokens.unflatten(0, shape).flatten(1, 2), keys.unflatten(0, shape)[:, 0]
        dropped = keyed_uniform(step_seed, keys, stream=DROPOUT_STREAM) < self.drop_cond_prob
        labels = batch["label"].masked_fill(dropped, self.num_classes)
        return self.lay_out(LabelledTokens(labels, tokens, keys, _stream_seed(step_seed, MODEL_STREAM)))

    def _check_labels(self, labels: Tensor) -> None:
        """Refuse foreign labels while they are on the host; as ids they would be something else, or crash a GPU."""
        if ((labels < 0) | (labels >= self.num_classes)).any():
            raise ValueError(
                f"the data has labels from {int(labels.min())} to {int(labels.max())} but the model was built for "
                f"classes 0 to {self.num_classes - 1}"
            )

    def _tokens(self, batch: Mapping[str, Any], seed: int) -> Tensor:
        # float32 even inside autocast: the tokenizer is small next to the model, and its latents are targets.
        with torch.autocast(self.device.type, enabled=False):
            if isinstance(self.tokenizer, VQImageTokenizer):
                return self.tokenizer.encode(batch["image"])
            if "image" in batch:
                posterior = self.tokenizer.posterior(batch["image"])
            else:
                posterior = Posterior(batch["latent_mean"].float(), batch.get("latent_log_std"))
            return self.tokenizer.sample_keyed(posterior, seed, batch["key"])

    def counts(self, batch: Any) -> Counts:
        """What each loss of the model is a mean over."""
        return self.loss_counts(batch)

    def losses(self, batch: Any, *, step: int, totals: Counts) -> dict[str, dict[str, Tensor]]:
        """The model's losses."""
        return {"model": self.model_losses(batch, totals)}

    def evaluations(self) -> Sequence[Callable[[Objective, int], Mapping[str, float | int]]]:
        """`held_out_loss`, where there are held-out pictures: it turns when a model begins to learn by heart."""
        return () if self.held_out is None else (self._held_out_loss,)

    @torch.no_grad()
    def _held_out_loss(self, objective: Objective, step: int) -> dict[str, float]:
        """Mean training loss on held-out examples, with the same noise at every call, so that calls compare."""
        assert self.held_out is not None
        total, count = 0.0, 0
        for draw in range(NUM_HELD_OUT_DRAWS):
            for raw_batch in self.held_out():
                batch = self.prepare(raw_batch, step=draw, seed=HELD_OUT_SEED)
                num_examples = len(raw_batch["label"])
                total += num_examples * float(self.model_losses(batch, None)["total"])
                count += num_examples
        return {"held_out_loss": total / count}

    @torch.no_grad()
    def sample_grid(self, *, seed: int) -> Tensor:
        """Up to ten classes in columns, eight pictures each."""
        training = self.model.training
        columns = min(self.num_classes, 10)
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


def open_training_data(
    data: ImageDataConfig, latents: str | None, fingerprint: str, *, group_size: int = 1
) -> ImageDataset | LatentDataset | PictureGroups:
    """The data set to train on: pictures, or the cache of their latents.

    Args:
        data: The pictures.
        latents: Folder written by `latentlm encode`, or None.
        fingerprint: Of the tokenizer; a cache made by another one is refused.
        group_size: Pictures of one class that make one document.

    Raises:
        ValueError: If the cache does not fit, or groups are asked of one.
    """
    if latents is not None and group_size > 1:
        raise ValueError("documents of several pictures are encoded on the fly: leave `latents` out")
    if latents is not None:
        return LatentDataset(Path(latents), tokenizer_fingerprint=fingerprint)
    pictures = open_images(data, part="train")
    return pictures if group_size == 1 else PictureGroups(pictures, group_size)


def held_out_batches(
    data: ImageDataConfig, latents: str | None, batch_size: int, *, group_size: int = 1
) -> Batches | None:
    """Opens the validation part of the pictures, up to a bound; a cache of latents has none."""
    if latents is not None or data.validation_ratio == 0:
        return None
    pictures = open_images(data, part="validation")
    dataset = pictures if group_size == 1 else PictureGroups(pictures, group_size)
    batch_size = min(batch_size, len(dataset))
    num_batches = max(1, min(len(dataset), NUM_HELD_OUT_EXAMPLES // group_size) // batch_size)
    return lambda: itertools.islice(make_loader(dataset, batch_size=batch_size, seed=0), num_batches)


def tokenizer_of_recipe(folder: str | None, data: ImageDataConfig) -> AnyImageTokenizer:
    """The image tokenizer that a recipe names, continuous or vector-quantized.

    Args:
        folder: Of the tokenizer.
        data: The pictures it is to encode. Of another size they would give a grid that is not the one models draw.

    Raises:
        ValueError: If none is named, the folder holds something else, or it was trained on pictures of another size.
    """
    if folder is None:
        raise ValueError(
            "the recipe names no tokenizer; train one first (latentlm train recipes/..._tokenizer.yaml --out RUN) and "
            "pass --tokenizer RUN/model"
        )
    tokenizer = load_image_tokenizer(folder)
    size = tokenizer.config.image_size
    if data.image_size != size:
        raise ValueError(
            f"the tokenizer in {folder} was trained on pictures of {size} x {size} but the data have "
            f"{data.image_size} x {data.image_size}; pass --data.image_size {size}, or train a tokenizer for this size"
        )
    return tokenizer


def token_space(tokenizer: AnyImageTokenizer, *, num_classes: int) -> TokenSpace:
    """What a model of this tokenizer's tokens reads and writes."""
    size = tokenizer.config.image_size
    rows, columns = tokenizer.grid(size, size)
    is_discrete = isinstance(tokenizer, VQImageTokenizer)
    return TokenSpace(
        num_classes=num_classes,
        rows=rows,
        columns=columns,
        latent_dim=0 if is_discrete else tokenizer.latent_dim,
        num_codes=tokenizer.num_codes if is_discrete else 0,
        tokenizer_fingerprint=tokenizer.fingerprint(),
    )
