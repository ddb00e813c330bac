"""Decoded pictures -> tensors of one size: orientation, colours, resizing, the [-1, 1] range, flips.

Shapes: B batch, C channels (1 or 3), H height, W width; arrays from files are channels-last uint8.
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped, UInt8
from PIL import Image
from torch import Tensor

from latentlm.data.decode import MAX_IMAGE_PIXELS, decode_image, image_dimensions
from latentlm.data.records import BadRecord
from latentlm.nn.keyed_noise import combine_keys, keyed_uniform

Resize = Literal["center_crop", "stretch"]
"""`center_crop` keeps the aspect ratio and takes the central square; `stretch` keeps all and distorts."""

_FLIP_STREAM = 0xF11B  # keeps the flips apart from other keyed draws with the same seed


def load_image(
    image: bytes | np.ndarray,
    name: str,
    *,
    image_size: int,
    num_channels: int,
    resize: Resize,
    max_pixels: int = MAX_IMAGE_PIXELS,
) -> UInt8[np.ndarray, "image_size image_size num_channels"]:
    """One picture as a record holds it, decoded, upright, in `num_channels` colours and `image_size` squared.

    Args:
        image: An encoded file, or a uint8 array [H, W] or [H, W, C] with C in (1, 3, 4).
        name: For the error message.
        image_size: Side of the result, pixels.
        num_channels: 1 (grey) or 3 (RGB); transparent parts are laid on white.
        resize: How a picture of another shape is fitted.
        max_pixels: Largest picture that is decoded.

    Raises:
        BadRecord: If it cannot be decoded or is no picture.
    """
    if isinstance(image, np.ndarray):
        picture = _from_array(image, name, max_pixels)
    else:
        picture = decode_image(image, name, max_pixels=max_pixels)
    picture = fit(to_channels(picture, num_channels), image_size, resize)
    return np.asarray(picture).reshape(image_size, image_size, num_channels)


def fitted_size(width: int, height: int, *, max_side: int, multiple: int) -> tuple[int, int]:
    """Width and height of a picture that keeps its shape: sides are multiples, the longer one at most `max_side`.

    A picture is never enlarged by more than what rounding to the multiple does.

    Args:
        width: Of the picture, pixels.
        height: Likewise.
        max_side: A multiple of `multiple`.
        multiple: The patch size of the tokenizer.
    """
    scale = min(1.0, max_side / max(width, height))
    sides = (max(multiple, round(side * scale / multiple) * multiple) for side in (width, height))
    new_width, new_height = (min(side, max_side) for side in sides)
    return new_width, new_height


def load_image_of_any_shape(
    image: bytes | np.ndarray,
    name: str,
    *,
    max_side: int,
    multiple: int,
    num_channels: int,
    max_pixels: int = MAX_IMAGE_PIXELS,
) -> UInt8[np.ndarray, "height width num_channels"]:
    """One picture in its own shape, resized to `fitted_size`; otherwise as `load_image`."""
    if isinstance(image, np.ndarray):
        picture = _from_array(image, name, max_pixels)
    else:
        picture = decode_image(image, name, max_pixels=max_pixels)
    size = fitted_size(*picture.size, max_side=max_side, multiple=multiple)
    picture = to_channels(picture, num_channels)
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    return np.asarray(picture).reshape(size[1], size[0], num_channels)


def image_shape(image: bytes | np.ndarray, name: str, *, max_pixels: int = MAX_IMAGE_PIXELS) -> tuple[int, int]:
    """Width and height of a picture as a record holds it, without decoding it.

    Raises:
        BadRecord: If it is no picture, or too large.
    """
    if isinstance(image, np.ndarray):
        return _from_array(image, name, max_pixels).size
    return image_dimensions(image, name, max_pixels=max_pixels)


def _from_array(array: Shaped[np.ndarray, "..."], name: str, max_pixels: int) -> Image.Image:
    if array.dtype != np.uint8:
        raise BadRecord(name, f"image array of type {array.dtype}, expected uint8 (0 to 255)")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))) or array.size == 0:
        raise BadRecord(name, f"image array of shape {array.shape}, expected [H, W] or [H, W, 1, 3 or 4]")
    if array.shape[0] * array.shape[1] > max_pixels:
        raise BadRecord(name, f"{array.shape[1]} x {array.shape[0]} pixels, above the limit of {max_pixels:,}")
    return Image.fromarray(np.ascontiguousarray(array))


def to_channels(image: Image.Image, num_channels: int) -> Image.Image:
    """Any Pillow mode to 8-bit grey (1) or RGB (3); transparency is laid on white, 16 bits keep their high byte."""
    mode = "L" if num_channels == 1 else "RGB"
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip at 255 instead of scaling
        wide = np.asarray(image).astype(np.int64)
        image = Image.fromarray((wide.clip(0, 65535) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image if image.mode == mode else image.convert(mode)


def fit(image: Image.Image, image_size: int, resize: Resize) -> Image.Image:
    """Resize to a square by Lanczos, after an exact box reduction when the picture is much larger (as ADM does).

    The central square is cut *by the resize itself*: scaling a 1 x 10000 picture first would take gigabytes.
    """
    if image.size == (image_size, image_size):
        return image
    width, height = image.size
    if resize == "stretch":
        box = (0.0, 0.0, float(width), float(height))
    else:
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
    return image.resize((image_size, image_size), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)


def to_unit_range(pixels: UInt8[Tensor, "*batch H W C"]) -> Float[Tensor, "*batch C H W"]:
    """uint8, channels last -> float32 in [-1, 1], channels first."""
    return pixels.movedim(-1, -3).float().div_(127.5).sub_(1.0)


def flip_keyed(
    images: Float[Tensor, "B C H W"], *, seed: int, epochs: Int[Tensor, "B"], keys: Int[Tensor, "B"]
) -> Float[Tensor, "B C H W"]:
    """Mirror about half of the pictures left to right; which ones depends on (seed, epoch, key) alone."""
    mirrored = keyed_uniform(seed, combine_keys(epochs, keys), stream=_FLIP_STREAM) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)
