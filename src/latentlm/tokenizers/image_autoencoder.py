"""What the image tokenizers share: Vision Transformers over patches, whatever lies between them.

    images [B, channels, H, W] ─patchify▶ (B, N, patch pixels) ─encoder ViT▶ hidden_states (B, N, D)
      ─the tokenizer's own bottleneck▶ vectors (B, N, C)
    vectors ─decoder ViT, linear, tanh, linear▶ (B, N, patch pixels) ─unpatchify▶ images

Any height and width that the patch divides can be encoded and decoded; positions are interpolated from the training
size. Pixels lie in [-1, 1].

Shapes: B batch, N patches (rows · columns, reading order), D hidden_size, C width of a bottleneck vector, H height,
W width.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from latentlm.tokenizers.fingerprint import Fingerprinted
from latentlm.tokenizers.vit import ViT, ViTConfig, initialise_linear


@dataclass(frozen=True, kw_only=True)
class ImageAutoencoderConfig:
    """Geometry and sizes of encoder and decoder; the bottleneck's settings are added by each tokenizer."""

    image_size: int
    """Side of the square training pictures, pixels; other sizes work too."""
    num_channels: int = 3
    patch_size: int
    """Side of the square of pixels that becomes one token."""
    encoder: ViTConfig
    decoder: ViTConfig

    def __post_init__(self) -> None:
        if min(self.image_size, self.num_channels, self.patch_size) < 1:
            raise ValueError("image_size, num_channels and patch_size must be at least 1")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}")

    @property
    def patch_features(self) -> int:
        """Numbers per patch: P · P · channels, P the patch size."""
        return self.patch_size**2 * self.num_channels


class ImageDecoder(nn.Module):
    """A ViT on the grid of bottleneck vectors, then linear, tanh and linear to the pixels of each patch.

    Args:
        config: Sizes.
        latent_dim: C, width of a bottleneck vector.
        grid: Rows and columns of the training pictures.
    """

    def __init__(self, config: ImageAutoencoderConfig, *, latent_dim: int, grid: tuple[int, int]) -> None:
        super().__init__()
        hidden_size = config.decoder.hidden_size
        self.vit = ViT(config.decoder, num_features=latent_dim, grid=grid)
        self.head = nn.Linear(hidden_size, hidden_size)
        self.pixels = nn.Linear(hidden_size, config.patch_features)
        initialise_linear(self.head)
        initialise_linear(self.pixels)

    def forward(self, latents: Float[Tensor, "B N C"], grid: tuple[int, int]) -> Float[Tensor, "B N patch"]:
        hidden_states = self.vit(latents, grid)  # (B, N, D)
        return self.pixels(self.head(hidden_states).tanh())


class ImageAutoencoder(Fingerprinted):
    """Encoder and geometry; a tokenizer adds its bottleneck, then its `decoder`.

    Args:
        config: The tokenizer's.
    """

    modality = "image"
    decoder: ImageDecoder

    def __init__(self, config: ImageAutoencoderConfig) -> None:
        super().__init__(config)
        grid = self.grid(config.image_size, config.image_size)
        self.encoder = ViT(config.encoder, num_features=config.patch_features, grid=grid)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens of a picture of `height` x `width` pixels.

        Raises:
            ValueError: If the patch does not divide them.
        """
        patch_size = self.config.patch_size
        if height < 1 or width < 1 or height % patch_size or width % patch_size:
            raise ValueError(
                f"a picture of {height} x {width} pixels cannot be cut into patches of {patch_size} pixels"
            )
        return height // patch_size, width // patch_size

    def hidden_states(self, images: Float[Tensor, "B channels H W"]) -> Float[Tensor, "B N D"]:
        """The encoder's view of every patch of pictures in [-1, 1].

        Raises:
            ValueError: If the pictures have another number of channels, or the patch does not divide their size.
        """
        if images.shape[1] != self.config.num_channels:
            raise ValueError(
                f"the pictures have {images.shape[1]} channels but this tokenizer was built for "
                f"num_channels={self.config.num_channels}"
            )
        grid = self.grid(*images.shape[2:])
        return self.encoder(patchify(images, self.config.patch_size), grid)

    def reconstruct(self, vectors: Float[Tensor, "B N C"], grid: tuple[int, int]) -> Float[Tensor, "B channels H W"]:
        """The decoder, for training: takes vectors as the bottleneck gives them, and does not clip the pixels."""
        return unpatchify(self.decoder(vectors, grid), grid, self.config.patch_size)

    def _filled_grid(self, num_tokens: int, grid: tuple[int, int] | None) -> tuple[int, int]:
        """`grid`, by default that of the training size.

        Raises:
            ValueError: If this many tokens do not fill it.
        """
        rows, columns = grid or self.encoder.grid
        if num_tokens != rows * columns:
            raise ValueError(f"{num_tokens} tokens do not fill a grid of {rows} x {columns}; pass grid=(rows, columns)")
        return rows, columns


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
