"""What every latent tokenizer is to the rest of the package: raw media to latent vectors and back (paper Section 2.3).

    raw ─posterior▶ mean (and log_std, where it is learned) ─sample▶ latents of unit scale ─decode▶ raw

Caches hold the posterior; models see samples, normalised to unit variance by statistics that belong to the tokenizer.

Shapes: B batch, N latents per example, C latent_dim.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Posterior(NamedTuple):
    """What the encoder says of an example, before any noise is drawn and before normalisation."""

    mean: Float[Tensor, "B N C"]
    log_std: Float[Tensor, "B N C"] | None
    """Log of the learned standard deviation (vanilla VAE); None where the tokenizer itself sets it."""


@runtime_checkable
class LatentTokenizer(Protocol):
    """A continuous modality's tokenizer. Its geometry (a grid, a frame rate) is its own business."""

    modality: str
    """Name of the modality in configs and batches, such as "image"."""

    @property
    def latent_dim(self) -> int:
        """Width C of one latent vector."""
        ...

    def posterior(self, raw: Tensor, /) -> Posterior:
        """Encode without sampling: what a cache of latents holds."""
        ...

    def sample(self, posterior: Posterior, *, generator: torch.Generator | None = None) -> Float[Tensor, "B N C"]:
        """Draw latents of unit scale, with noise from `generator` (None: the device's default)."""
        ...

    def sample_keyed(self, posterior: Posterior, seed: int, keys: Int[Tensor, "B"]) -> Float[Tensor, "B N C"]:
        """Draw latents of unit scale whose noise depends on (seed, key) alone, whatever batch surrounds them."""
        ...

    def encode(
        self, raw: Tensor, /, *, sample: bool = True, generator: torch.Generator | None = None
    ) -> Float[Tensor, "B N C"]:
        """Latents of unit scale: a sample, or the posterior's mean."""
        ...

    def decode(self, latents: Float[Tensor, "B N C"]) -> Tensor:
        """Latents of unit scale to raw media in [-1, 1]."""
        ...

    def fingerprint(self) -> str:
        """Identifies config and weights; models refuse a tokenizer that they were not trained with."""
        ...
