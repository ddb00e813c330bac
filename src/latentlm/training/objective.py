"""What the trainer knows of what it trains: batches in, named losses out, and whose parameters each optimizer owns.

A σ-VAE with its discriminator, LatentLM and every baseline are objectives under one trainer. Per optimizer step:

    raw batches ─prepare▶ batches ─counts▶ summed over micro-steps and ranks = totals
    each batch, totals ─losses▶ {optimizer: {"total": ..., other named losses}} ─trainer▶ backward, clip, step, EMA
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentlm.training.optim import OptimizerGroups

Counts = Mapping[str, Tensor | float | int]
"""How many things each loss averages over (targets, latents, images), by name: numbers, or 0-dim tensors."""


class Objective(nn.Module, ABC):
    """A trainable thing. Its parameters, buffers and children are what a checkpoint holds (`frozen_children` aside)."""

    kind: str
    """The recipe kind it belongs to, such as "latentlm"."""

    frozen_children: tuple[str, ...] = ()
    """Names of child modules that never change and are loaded from elsewhere: checkpoints leave them out."""

    @property
    def device(self) -> torch.device:
        """Where the parameters are, and where `prepare` must put a batch."""
        return next(self.parameters()).device

    @abstractmethod
    def optimizer_groups(self) -> dict[str, OptimizerGroups]:
        """The optimizers by name, each with its settings and parameter groups (see `optim.parameter_groups`).

        Every parameter that requires a gradient belongs to exactly one group of one optimizer.
        """

    def prepare(self, raw_batch: Mapping[str, Any], *, step: int, seed: int) -> Any:
        """Turn what the loader gave into what `losses` takes: move it to `device`, encode it, draw its noise.

        Args:
            raw_batch: One micro-batch from the loader.
            step: The optimizer step that this batch belongs to, from 0.
            seed: The run's seed. Noise drawn from (seed, step, key of the item) is the same after a resume.
        """
        return {name: x.to(self.device) if isinstance(x, Tensor) else x for name, x in raw_batch.items()}

    @abstractmethod
    def counts(self, batch: Any) -> Counts:
        """What this micro-batch adds to the normaliser of each loss."""

    @abstractmethod
    def losses(self, batch: Any, *, step: int, totals: Counts) -> dict[str, dict[str, Tensor]]:
        """One forward pass: optimizer name to its named losses, of which "total" is differentiated.

        Each loss is a sum over this micro-batch divided by its entry of `totals`, so that micro-batches, and ranks,
        simply add up. The trainer differentiates a total with respect to its own optimizer's parameters only; an
        optimizer left out of the result takes no step. Runs under the trainer's autocast.

        Args:
            batch: From `prepare`.
            step: From 0.
            totals: `counts` summed over all micro-batches and ranks of this step; an entry may be 0.
        """

    @abstractmethod
    def ema_modules(self) -> dict[str, nn.Module]:
        """The modules whose trainable parameters the moving average follows."""

    def sample_grid(self, *, seed: int) -> Tensor | None:
        """A picture for the log, uint8 [3, H, W], drawn with whatever weights the modules hold; None for no picture."""
        return None

    def sample_files(self, *, seed: int) -> Mapping[str, bytes]:
        """Files beside `sample_grid`'s picture, by name: sounds, for example. Nothing by default."""
        return {}

    def evaluations(self) -> Sequence[Callable[["Objective", int], Mapping[str, float | int]]]:
        """What the trainer measures every so often, with the averaged weights; see `Trainer`. Nothing by default."""
        return ()

    @abstractmethod
    def save_pretrained(self, folder: Path) -> None:
        """Write what users load, with whatever weights the modules hold. Replaces a folder that exists."""

    def enable_activation_checkpointing(self) -> None:
        """Recompute activations in the backward pass instead of keeping them. Does nothing by default."""
