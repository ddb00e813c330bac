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
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from latentlm.config import to_mapping
from latentlm.pretrained import Pretrained
from latentlm.tokenizers.base import Posterior, fingerprint_of
from latentlm.tokenizers.bottleneck import BottleneckConfig, draw_keyed_noise, draw_noise, make_bottleneck
from latentlm.tokenizers.latent_statistics import LatentStatistics, StreamingMoments
from latentlm.tokenizers.vit import ViT, ViTConfig, initialise_linear

# The noise of the samples on which statistics are measured: fixed, so that the same weights get the same numbers.
_STATISTICS_SEED = 0


@dataclass(frozen=True, kw_only=True)
class ImageTokenizerConfig:
    """Geometry, sizes and bottleneck of an image tokenizer."""

    image_size: int
    """Side of the square training pictures, pixels; other sizes work too."""
    num_channels: int = 3
    patch_size: int
    """Side of the square of pixels that becomes one latent."""
    latent_dim: int = 16
    encoder: ViTConfig
    decoder: ViTConfig
    bottleneck: BottleneckConfig = field(default_factory=BottleneckConfig)
    per_channel_statistics: bool = False
    """Normalise each channel of the latents by its own bias and scale instead of all by one pair."""

    def __post_init__(self) -> None:
        if min(self.image_size, self.num_channels, self.patch_size, self.latent_dim) < 1:
            raise ValueError("image_size, num_channels, patch_size and latent_dim must be at least 1")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}")

    @property
    def patch_features(self) -> int:
        """Numbers per patch: P · P · channels."""
        return self.patch_size**2 * self.num_channels


class ImageDecoder(nn.Module):
    """A ViT on the latent grid, then linear, tanh and linear to the pixels of each patch."""

    def __init__(self, config: ImageTokenizerConfig, grid: tuple[int, int]) -> None:
        super().__init__()
        hidden_size = config.decoder.hidden_size
        self.vit = ViT(config.decoder, num_features=config.latent_dim, grid=grid)
        self.head = nn.Linear(hidden_size, hidden_size)
        self.pixels = nn.Linear(hidden_size, config.patch_features)
        initialise_linear(self.head)
        initialise_linear(self.pixels)

    def forward(self, latents: Float[Tensor, "B N C"], grid: tuple[int, int]) -> Float[Tensor, "B N patch"]:
        hidden_states = self.vit(latents, grid)  # (B, N, D)
        return self.pixels(self.head(hidden_states).tanh())


class ImageTokenizer(Pretrained, nn.Module):
    """A `LatentTokenizer` for pictures: sigma-VAE, vanilla VAE or autoencoder over Vision Transformers."""

    kind = "image_tokenizer"
    config_class = ImageTokenizerConfig
    modality = "image"

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.bottleneck = make_bottleneck(config.bottleneck)
        grid = self.grid(config.image_size, config.image_size)
        self.encoder = ViT(config.encoder, num_features=config.patch_features, grid=grid)
        num_outputs = config.latent_dim * self.bottleneck.outputs_per_channel
        self.to_posterior = nn.Linear(config.encoder.hidden_size, num_outputs)
        initialise_linear(self.to_posterior)
        self.decoder = ImageDecoder(config, grid)
        self.statistics = LatentStatistics(config.latent_dim, per_channel=config.per_channel_statistics)
        self._fingerprint: tuple[Any, str] | None = None

    @property
    def latent_dim(self) -> int:
        """Width C of one latent vector."""
        return self.config.latent_dim

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of latents of a picture of `height` x `width` pixels.

        Raises:
            ValueError: If the patch does not divide them.
        """
        patch_size = self.config.patch_size
        if height < 1 or width < 1 or height % patch_size or width % patch_size:
            raise ValueError(
                f"a picture of {height} x {width} pixels cannot be cut into patches of {patch_size} pixels"
            )
        return height // patch_size, width // patch_size

    def posterior(self, images: Float[Tensor, "B channels H W"]) -> Posterior:
        """Encode pictures in [-1, 1]; the result is neither sampled nor normalised (Eq. 5, first line).

        Raises:
            ValueError: If the pictures have another number of channels, or the patch does not divide their size.
        """
        if images.shape[1] != self.config.num_channels:
            raise ValueError(
                f"the pictures have {images.shape[1]} channels but this tokenizer was built for "
                f"num_channels={self.config.num_channels}"
            )
        grid = self.grid(*images.shape[2:])
        hidden_states = self.encoder(patchify(images, self.config.patch_size), grid)  # (B, N, D)
        return self.bottleneck.posterior(self.to_posterior(hidden_states))

    def reconstruct(
        self, unnormalised_latents: Float[Tensor, "B N C"], grid: tuple[int, int]
    ) -> Float[Tensor, "B channels H W"]:
        """Decoder(z) of Eq. 5, for training: takes z as the bottleneck samples it, and does not clip the pixels."""
        return unpatchify(self.decoder(unnormalised_latents, grid), grid, self.config.patch_size)

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
        rows, columns = grid or self.encoder.grid
        if latents.shape[1] != rows * columns:
            raise ValueError(
                f"{latents.shape[1]} latents do not fill a grid of {rows} x {columns}; pass grid=(rows, columns)"
            )
        return self.reconstruct(self.statistics.denormalize(latents), (rows, columns)).clamp(-1, 1)

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

    def fingerprint(self) -> str:
        """SHA-256 over config, weights and statistics; recomputed only after one of the tensors changed."""
        tensors = self.state_dict()
        if any(tensor.is_inference() for tensor in tensors.values()):  # these do not tell whether they changed
            return fingerprint_of(to_mapping(self.config), tensors)
        state = [(name, tensor.data_ptr(), tensor._version) for name, tensor in tensors.items()]
        if self._fingerprint is None or self._fingerprint[0] != state:
            self._fingerprint = state, fingerprint_of(to_mapping(self.config), tensors)
        return self._fingerprint[1]


def patchify(images: Float[Tensor, "B channels H W"], patch_size: int) -> Float[Tensor, "B N patch"]:
    """Cut pictures into patches in reading order; a patch is flattened as (channel, row, column)."""
    batch, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    patches = images.reshape(batch, channels, rows, patch_size, columns, patch_size).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(batch, rows * columns, channels * patch_size**2)


def unpatchify(
    patches: Float[Tensor, "B N patch"], grid: tuple[int, int], patch_size: int
) -> Float[Tensor, "B channels H W"]:
    """Put patches back in place; undoes `patchify`."""
    rows, columns = grid
    pixels = patches.unflatten(1, grid).unflatten(
        -1, (-1, patch_size, patch_size)
    )  # (B, rows, columns, channels, P, P)
    return pixels.permute(0, 3, 1, 4, 2, 5).reshape(len(patches), -1, rows * patch_size, columns * patch_size)
