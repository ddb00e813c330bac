"""LPIPS, the perceptual distance of Zhang et al. 2018 (VGG-16 form), optional beside Eq. 6's reconstruction term.

    both pictures ─VGG-16▶ five feature maps ─unit length per pixel, difference²▶ ─learned weight per channel▶ mean over
    pixels, summed over the five

Its weights are other people's and not in this package: two files that the user brings, read without running any code.
They are buffers that no checkpoint of ours holds.

Shapes: B batch, H height, W width.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from latentlm.foreign_weights import read_foreign_weights

# VGG-16 (configuration D): convolutions as (index in torchvision's `features`, in, out), by block; a 2 x 2 maximum pool
# between blocks. LPIPS compares the last map of each block.
_VGG16_BLOCKS = (
    ((0, 3, 64), (2, 64, 64)),
    ((5, 64, 128), (7, 128, 128)),
    ((10, 128, 256), (12, 256, 256), (14, 256, 256)),
    ((17, 256, 512), (19, 512, 512), (21, 512, 512)),
    ((24, 512, 512), (26, 512, 512), (28, 512, 512)),
)
_MIN_IMAGE_SIZE = 16  # four pools halve it to one pixel

# LPIPS' own normalisation of pixels in [-1, 1]: ImageNet's mean and deviation, moved to that range.
_PIXEL_SHIFT = (-0.030, -0.088, -0.188)
_PIXEL_SCALE = (0.458, 0.448, 0.450)

_HOW_TO_GET_THE_WEIGHTS = (
    "The perceptual loss needs two weight files that are not part of this package: (1) VGG-16 for ImageNet as "
    "torchvision publishes it (vgg16-397923af.pth), (2) the linear heads of LPIPS 0.1 for VGG (weights/v0.1/vgg.pth of "
    "the `lpips` package). Pass their places as --losses.perceptual.vgg16_path and --losses.perceptual.lpips_path, or "
    "train without: --losses.perceptual null"
)


@dataclass(frozen=True, kw_only=True)
class PerceptualConfig:
    """Weight of the perceptual loss, and the user's files for it."""

    weight: float = 1.0
    """Times LPIPS, beside a mean squared error of weight 1."""
    vgg16_path: str | None = None
    """VGG-16's state dict in torchvision's names, .safetensors or .pth."""
    lpips_path: str | None = None
    """LPIPS' linear heads, named lin0.model.1.weight to lin4.model.1.weight, .safetensors or .pth."""

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise ValueError(f"the perceptual loss has weight {self.weight}; leave it out (null) rather than at zero")


class PerceptualDistance(nn.Module):
    """LPIPS with frozen weights.

    Args:
        vgg16: State dict with torchvision's names; the classifier's part is not needed.
        heads: State dict with the names of the `lpips` package.

    Raises:
        ValueError: If a tensor is missing or has another shape.
    """

    def __init__(self, vgg16: dict[str, Tensor], heads: dict[str, Tensor]) -> None:
        super().__init__()
        for block, convolutions in enumerate(_VGG16_BLOCKS):
            for index, num_in, num_out in convolutions:
                self._keep(f"weight_{index}", vgg16, f"features.{index}.weight", (num_out, num_in, 3, 3))
                self._keep(f"bias_{index}", vgg16, f"features.{index}.bias", (num_out,))
            num_channels = convolutions[-1][2]
            self._keep(f"head_{block}", heads, f"lin{block}.model.1.weight", (1, num_channels, 1, 1))
        self._keep_constant("pixel_shift", _PIXEL_SHIFT)
        self._keep_constant("pixel_scale", _PIXEL_SCALE)

    def _keep(self, name: str, tensors: dict[str, Tensor], key: str, shape: tuple[int, ...]) -> None:
        found = tensors.get(key)
        if found is None or tuple(found.shape) != shape:
            what = "is missing" if found is None else f"has shape {tuple(found.shape)}"
            raise ValueError(f"{key} {what}, expected {shape}; are these the right files? {_HOW_TO_GET_THE_WEIGHTS}")
        self.register_buffer(name, found.detach().float().clone(), persistent=False)

    def _keep_constant(self, name: str, values: tuple[float, ...]) -> None:
        self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)

    def forward(self, first: Float[Tensor, "B C H W"], second: Float[Tensor, "B C H W"]) -> Float[Tensor, "B"]:
        """Distance of each pair of pictures in [-1, 1]; grey ones are seen as RGB.

        Raises:
            ValueError: If the pictures are smaller than VGG's pools need, or have neither 1 nor 3 channels.
        """
        if first.shape[1] not in (1, 3) or min(first.shape[2:]) < _MIN_IMAGE_SIZE:
            raise ValueError(
                f"LPIPS compares pictures of 1 or 3 channels and at least {_MIN_IMAGE_SIZE} pixels a side, but these "
                f"are {tuple(first.shape[1:])}; train without it: --losses.perceptual null"
            )
        distance = first.new_zeros(len(first))
        pairs = zip(self._feature_maps(first), self._feature_maps(second), strict=True)
        for block, (one, other) in enumerate(pairs):
            difference = (_unit_length(one) - _unit_length(other)).square()
            distance = distance + F.conv2d(difference, self.get_buffer(f"head_{block}")).mean(dim=(1, 2, 3))
        return distance

    def _feature_maps(self, images: Tensor) -> list[Tensor]:
        x = (images.expand(-1, 3, -1, -1) - self.get_buffer("pixel_shift")) / self.get_buffer("pixel_scale")
        maps = []
        for block, convolutions in enumerate(_VGG16_BLOCKS):
            if block > 0:
                x = F.max_pool2d(x, 2)
            for index, _, _ in convolutions:
                x = F.conv2d(x, self.get_buffer(f"weight_{index}"), self.get_buffer(f"bias_{index}"), padding=1).relu()
            maps.append(x)
        return maps


def _unit_length(features: Tensor) -> Tensor:
    """Each pixel's feature vector divided by its length."""
    # LPIPS adds its 1e-10 outside of the root, where a vector of zeros has no gradient.
    return features * (features.square().sum(dim=1, keepdim=True) + 1e-10).rsqrt()


def load_perceptual_distance(config: PerceptualConfig) -> PerceptualDistance:
    """Read the user's two files.

    Raises:
        ValueError: If a path is not given, does not exist, or holds something else; the message says where to get it.
    """
    if config.vgg16_path is None or config.lpips_path is None:
        raise ValueError(_HOW_TO_GET_THE_WEIGHTS)
    return PerceptualDistance(_read_weights(Path(config.vgg16_path)), _read_weights(Path(config.lpips_path)))


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"{path} does not exist. {_HOW_TO_GET_THE_WEIGHTS}")
    return read_foreign_weights(path)
