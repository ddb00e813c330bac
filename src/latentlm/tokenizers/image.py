"""The image tokenizer: pictures to a grid of latent vectors and back (paper Section 2.3).

    images [B, channels, H, W] ─patchify▶ (B, N, patch pixels) ─encoder ViT, linear▶ posterior
      ─bottleneck: + s eps▶ z (B, N, C) ─(z + bias) · scale▶ latents of unit variance: what models see

    latents ─/ scale - bias▶ z ─decoder ViT, linear, tanh, linear▶ (B, N, patch pixels) ─unpatchify▶ images

Any height and width that the patch divides can be encoded and decoded; positions are interpolated from the training
size. Pixels lie in [-1, 1].

Shapes: B batch, N latents (rows · columns, reading order), C latent_dim, P patch_size, H height, W width.
"""

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor, nn

from latentlm.tokenizers.base import Posterior
from latentlm.tokenizers.bottleneck import BottleneckConfig, make_bottleneck
from latentlm.tokenizers.image_autoencoder import ImageAutoencoder, ImageAutoencoderConfig, ImageDecoder
from latentlm.tokenizers.latent_sampling import LatentSampling
from latentlm.tokenizers.latent_statistics import LatentStatistics
from latentlm.tokenizers.vit import initialise_linear


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


class ImageTokenizer(LatentSampling, ImageAutoencoder):
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
