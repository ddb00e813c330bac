"""The vector-quantized image tokenizer: pictures to a grid of code numbers and back (VQGAN, Esser et al. 2021).

    images [B, channels, H, W] ─patchify, encoder ViT▶ (B, N, D) ─linear▶ vectors (B, N, C) ─nearest code▶ codes [B, N]
    codes ─codebook▶ (B, N, C) ─decoder ViT, linear, tanh, linear▶ (B, N, patch pixels) ─unpatchify▶ images

Encoder and decoder are those of the sigma-VAE (`image.py`); the two tokenizers differ in the bottleneck alone.

Shapes: B batch, N codes of a picture (rows · columns, reading order), D hidden_size, C code_dim, H height, W width.
"""

from dataclasses import dataclass, field

from jaxtyping import Float, Int
from torch import Tensor, nn

from latentlm.tokenizers.image_autoencoder import ImageAutoencoder, ImageAutoencoderConfig, ImageDecoder
from latentlm.tokenizers.quantizer import Quantized, QuantizerConfig, VectorQuantizer
from latentlm.tokenizers.vit import initialise_linear


@dataclass(frozen=True, kw_only=True)
class VQImageTokenizerConfig(ImageAutoencoderConfig):
    """Geometry, sizes and codebook of a vector-quantized image tokenizer."""

    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)


class VQImageTokenizer(ImageAutoencoder):
    """Pictures as sequences of numbers in 0 … num_codes - 1."""

    kind = "vq_image_tokenizer"
    config_class = VQImageTokenizerConfig

    def __init__(self, config: VQImageTokenizerConfig) -> None:
        super().__init__(config)
        self.config = config
        code_dim = config.quantizer.code_dim
        self.to_code = nn.Linear(config.encoder.hidden_size, code_dim)
        initialise_linear(self.to_code)
        self.quantizer = VectorQuantizer(config.quantizer)
        self.decoder = ImageDecoder(config, latent_dim=code_dim, grid=self.encoder.grid)

    @property
    def num_codes(self) -> int:
        """Size of the codebook."""
        return self.config.quantizer.num_codes

    def quantize(self, images: Float[Tensor, "B channels H W"], *, seed: int) -> Quantized:
        """Encode for training: codes as vectors that let gradients through; in training mode the codebook moves.

        Args:
            images: Pixels in [-1, 1].
            seed: Of this step, for the restarts of dead codes.

        Raises:
            ValueError: If the pictures have another number of channels, or the patch does not divide their size.
        """
        return self.quantizer(self.to_code(self.hidden_states(images)), seed=seed)

    def encode(self, images: Float[Tensor, "B channels H W"]) -> Int[Tensor, "B N"]:
        """Codes of pictures, in reading order; changes nothing, in training mode neither.

        Args:
            images: Pixels in [-1, 1].

        Raises:
            ValueError: If the pictures have another number of channels, or the patch does not divide their size.
        """
        return self.quantizer.nearest(self.to_code(self.hidden_states(images)))

    def decode(
        self, codes: Int[Tensor, "B N"], *, grid: tuple[int, int] | None = None
    ) -> Float[Tensor, "B channels H W"]:
        """Pictures of codes, clipped to [-1, 1].

        Args:
            codes: In reading order.
            grid: Rows and columns; None is the grid of the training size.

        Raises:
            ValueError: If the codes do not fill the grid, or are none of the codebook's.
        """
        grid = self._filled_grid(codes.shape[1], grid)
        return self.reconstruct(self.quantizer.lookup(codes), grid).clamp(-1, 1)
