"""The image tokenizer: pictures to a grid of latent vectors and back (paper Section 2.3).

    images [B, channels, H, W] ─patchify▶ (B, N, patch pixels) ─encoder ViT, linear▶ posterior
      ─bottleneck: + s eps▶ z (B, N, C) ─(z + bias) · scale▶ latents of unit variance: what models see

    latents ─/ scale - bias▶ z ─decoder ViT, linear, tanh, linear▶ (B, N, patch pixels) ─unpatchify▶ images

Any height and width that the patch divides can be encoded and decoded; positions are interpolated from the training
size. Pixels lie in [-1, 1].

Shapes: B batch, N latents (rows · columns, reading order), C latent_dim, P patch_size, H height, W width.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from latentlm.tokenizers.base import Posterior
from latentlm.tokenizers.bottleneck import BottleneckConfig, draw_keyed_noise, draw_noise, make_bottleneck
from latentlm.tokenizers.image_autoencoder import ImageAutoencoder, ImageAutoencoderConfig, ImageDecoder
from latentlm.tokenizers.latent_statistics import LatentStatistics, StreamingMoments
from latentlm.tokenizers.vit import initialise_linear

# The noise of the samples on which statistics are measured: fixed, so that the same weights get the same numbers.
_STATISTICS_SEED = 0


@dataclass(frozen=True, kw_only=True)
class ImageTokenizerConfig(ImageAutoencoderConfig):
    """Geometry, sizes and bottleneck of an image tokenizer."""

    latent_dim: int = 16
    """C, width of a latent."""
    bottleneck: BottleneckConfig = field(default_factory=BottleneckConfig)
    per_channel_statistics: bool = False
    """Normalise each channel of the latents by its own bias and scale instead of all by one pair."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.latent_dim < 1:
            raise ValueError(f"latent_dim is {self.latent_dim}; a latent has at least one number")


class ImageTokenizer(ImageAutoencoder):
    """A `LatentTokenizer` for pictures: sigma-VAE, vanilla VAE or autoencoder over Vision Transformers."""

    kind = "image_tokenizer"
    config_class = ImageTokenizerConfig

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__(config)
        self.config = config
        self.bottleneck = make_bottleneck(config.bottleneck)
        num_outputs = config.latent_dim * self.bottleneck.outputs_per_channel
        self.to_posterior = nn.Linear(config.encoder.hidden_size, num_outputs)
        initialise_linear(self.to_posterior)
        self.decoder = ImageDecoder(config, latent_dim=config.latent_dim, grid=self.encoder.grid)
        self.statistics = LatentStatistics(config.latent_dim, per_channel=config.per_channel_statistics)

    @property
    def latent_dim(self) -> int:
        """Width C of one latent vector."""
        return self.config.latent_dim

    def posterior(self, images: Float[Tensor, "B channels H W"]) -> Posterior:
        """Encode pictures in [-1, 1]; the result is neither sampled nor normalised (Eq. 5, first line).

        Raises:
            ValueError: If the pictures have another number of channels, or the patch does not divide their size.
        """
        return self.bottleneck.posterior(self.to_posterior(self.hidden_states(images)))

    def sample(self, posterior: Posterior, *, generator: torch.Generator | None = None) -> Float[Tensor, "B N C"]:
        """Draw latents of unit variance, with noise from `generator` (None: the device's default).

        Raises:
            ValueError: If the latent statistics were never measured.
        """
        return self.statistics.normalize(self.bottleneck.sample(posterior, draw_noise(posterior, generator=generator)))

    def sample_keyed(self, posterior: Posterior, seed: int, keys: Int[Tensor, "B"]) -> Float[Tensor, "B N C"]:
        """Draw latents of unit variance whose noise depends on (seed, key) alone.

        Args:
            posterior: Fresh, or from a cache.
            seed: For example the hash of run seed and step.
            keys: One per example.

        Raises:
            ValueError: If the latent statistics were never measured.
        """
        noise = draw_keyed_noise(posterior, seed, keys)
        return self.statistics.normalize(self.bottleneck.sample(posterior, noise))

    def encode(
        self,
        images: Float[Tensor, "B channels H W"],
        *,
        sample: bool = True,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "B N C"]:
        """Latents of unit variance, in reading order.

        Args:
            images: Pixels in [-1, 1].
            sample: Draw from the posterior, as models are trained; otherwise its mean.
            generator: For the noise of the sample.

        Raises:
            ValueError: If the patch does not divide the pictures, or the statistics were never measured.
        """
        posterior = self.posterior(images)
        return self.sample(posterior, generator=generator) if sample else self.statistics.normalize(posterior.mean)

    def decode(
        self, latents: Float[Tensor, "B N C"], *, grid: tuple[int, int] | None = None
    ) -> Float[Tensor, "B channels H W"]:
        """Pictures of latents of unit variance, clipped to [-1, 1].

        Args:
            latents: In reading order.
            grid: Rows and columns; None is the grid of the training size.

        Raises:
            ValueError: If the latents do not fill the grid, or the statistics were never measured.
        """
        grid = self._filled_grid(latents.shape[1], grid)
        return self.reconstruct(self.statistics.denormalize(latents), grid).clamp(-1, 1)

    @torch.no_grad()
    def measure_statistics(self, batches: Iterable[tuple[Float[Tensor, "B channels H W"], Int[Tensor, "B"]]]) -> None:
        """Measure bias and scale on one sample of each picture; needed once, after training and before `encode`.

        Args:
            batches: Pictures and their keys. Their noise hangs on the keys, so the result does not depend on batching.

        Raises:
            ValueError: If there are no pictures, or their latents do not vary.
        """
        moments = StreamingMoments(self.latent_dim)
        for images, keys in batches:
            posterior = self.posterior(images)
            moments.update(self.bottleneck.sample(posterior, draw_keyed_noise(posterior, _STATISTICS_SEED, keys)))
        self.statistics.set_from(moments)
