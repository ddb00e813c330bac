"""Image tensors to pictures that a person can look at: 8-bit pixels, grids, PNG files.

Shapes: N images, C channels (1 or 3), H height, W width. Image tensors hold pixels in [-1, 1].
"""

import math
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

_BACKGROUND = 255
_NOT_FINITE = (255, 0, 255)
"""Magenta: a diverged model shows as such instead of as plausible black."""


def to_uint8(images: Float[Tensor, "N C H W"]) -> UInt8[Tensor, "N 3 H W"]:
    """8-bit RGB pixels of images in [-1, 1]; values outside are clipped, pixels that are not finite become magenta.

    Raises:
        ValueError: If the images have neither 1 nor 3 channels.
    """
    if images.shape[1] not in (1, 3):
        raise ValueError(f"a picture has 1 or 3 channels, but the images have {images.shape[1]}")
    images = images.detach().float().cpu()
    finite = images.isfinite().all(dim=1, keepdim=True)  # (N, 1, H, W)
    pixels = ((images.nan_to_num().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).expand(-1, 3, -1, -1)
    return torch.where(finite, pixels, torch.tensor(_NOT_FINITE, dtype=torch.uint8).view(1, 3, 1, 1))


def picture_grid(
    images: Float[Tensor, "N C H W"], *, columns: int | None = None, margin: int = 4, min_side: int = 64
) -> UInt8[Tensor, "3 height width"]:
    """All images in reading order on one white sheet, tiny ones enlarged by an integer factor.

    Args:
        images: Pixels in [-1, 1].
        columns: Images per row; by default the sheet is about square.
        margin: White pixels between and around images.
        min_side: Images whose shorter side is below this many pixels are repeated pixel by pixel until it is not, so
            that an 8 x 8 digit can be read.

    Raises:
        ValueError: If there is no image or the images have neither 1 nor 3 channels.
    """
    if len(images) == 0:
        raise ValueError("a grid needs at least one image")
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    rows = math.ceil(len(images) / columns)
    tiles = to_uint8(images)
    factor = math.ceil(min_side / min(tiles.shape[-2:]))
    if factor > 1:
        tiles = tiles.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)
    missing = rows * columns - len(tiles)
    tiles = torch.cat([tiles, torch.full((missing, *tiles.shape[1:]), _BACKGROUND, dtype=torch.uint8)])
    tiles = F.pad(tiles, (margin, 0, margin, 0), value=_BACKGROUND)  # each tile brings its left and upper margin
    height, width = tiles.shape[-2:]
    sheet = tiles.view(rows, columns, 3, height, width).permute(2, 0, 3, 1, 4).reshape(3, rows * height, -1)
    return F.pad(sheet, (0, margin, 0, margin), value=_BACKGROUND)


def save_picture(path: str | Path, picture: UInt8[Tensor, "3 height width"]) -> None:
    """Write one RGB picture as a PNG file."""
    Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(path, format="PNG")
