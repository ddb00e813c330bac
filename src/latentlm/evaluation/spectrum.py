"""Are samples as sharp as real images? Energy in the upper half of the spatial frequencies.

Blurred samples have too little of it, noisy ones too much; classifier features hardly see either.

Shapes: N images, C channels, H height, W width.
"""

import torch
from jaxtyping import Float
from torch import Tensor

_HALF_NYQUIST = 0.25
"""Cycles per pixel; Nyquist is 0.5."""
_CHUNK = 1024


def high_frequency_energy(images: Float[Tensor, "N C H W"]) -> float:
    """Mean energy per image at frequencies above half of Nyquist, in any direction: the sum of the squared pixels of
    the image with everything slower taken away.

    Raises:
        ValueError: If the images are too small (below 4 pixels) to have such frequencies apart from others.
    """
    height, width = images.shape[-2:]
    if min(height, width) < 4:
        raise ValueError(f"images of {height} x {width} pixels have too few frequencies to tell high from low")
    vertical, horizontal = torch.fft.fftfreq(height), torch.fft.fftfreq(width)
    fast = (vertical.square()[:, None] + horizontal.square()).sqrt() > _HALF_NYQUIST  # (H, W)
    total = 0.0
    for chunk in images.split(_CHUNK):
        spectrum = torch.fft.fft2(chunk.double().cpu(), norm="ortho")  # orthonormal: energies are those of pixels
        total += spectrum.abs().square()[..., fast].sum().item()
    return total / len(images)
