"""How much of a picture survives a tokenizer: PSNR and SSIM.

Shapes: N images, C channels, H height, W width. Pixels lie in [-1, 1].
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

_PEAK_TO_PEAK = 2.0  # pixels lie in [-1, 1]

# Wang et al. 2004, Section III-B: an 11 x 11 circular-symmetric Gaussian window of standard deviation 1.5 samples, and
# C1 = (K1 L)², C2 = (K2 L)² with these K and the range L of the pixels.
_WINDOW_SIDE = 11
_WINDOW_STD = 1.5
_K1, _K2 = 0.01, 0.03
_CHUNK = 512


def psnr(reconstructions: Float[Tensor, "N C H W"], images: Float[Tensor, "N C H W"]) -> float:
    """Peak signal-to-noise ratio in dB, of the mean squared error over all images; infinite for equal ones.

    Args:
        reconstructions: Pixels around [-1, 1]; clipped to it, as a picture file would.
        images: Pixels in [-1, 1].
    """
    error = (reconstructions.double().clamp(-1, 1) - images.double()).square().mean()
    return (10 * (_PEAK_TO_PEAK**2 / error).log10()).item()


def ssim(reconstructions: Float[Tensor, "N C H W"], images: Float[Tensor, "N C H W"]) -> float:
    """Mean structural similarity (Wang et al. 2004, Eq. 13 and 17): over windows that lie inside, channels and images.

    Pictures narrower than the paper's window of 11 pixels get the largest odd window that fits.

    Args:
        reconstructions: Pixels around [-1, 1]; clipped to it.
        images: Pixels in [-1, 1].
    """
    values = []
    for ours, real in zip(reconstructions.split(_CHUNK), images.split(_CHUNK), strict=True):
        # The measure is of intensities from 0 up: with pixels around 0, means of opposite sign would make it negative.
        values.append(_ssim_per_image(ours.double().clamp(-1, 1) + 1, real.double() + 1))
    return torch.cat(values).mean().item()


def _ssim_per_image(a: Tensor, b: Tensor) -> Float[Tensor, " N"]:
    height, width = a.shape[-2:]
    fitting = min(height, width)
    window = _gaussian_window(min(_WINDOW_SIDE, fitting - (fitting + 1) % 2))
    mean_a, mean_b = _blur(a, window), _blur(b, window)
    variance_a = _blur(a * a, window) - mean_a**2
    variance_b = _blur(b * b, window) - mean_b**2
    covariance = _blur(a * b, window) - mean_a * mean_b
    c1, c2 = (_K1 * _PEAK_TO_PEAK) ** 2, (_K2 * _PEAK_TO_PEAK) ** 2
    likeness = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    likeness = likeness / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))
    return likeness.flatten(1).mean(dim=1)


def _gaussian_window(side: int) -> Tensor:
    """One-dimensional factor of the window; sums to 1."""
    offsets = torch.arange(side, dtype=torch.float64) - side // 2
    window = (-offsets.square() / (2 * _WINDOW_STD**2)).exp()
    return window / window.sum()


def _blur(images: Tensor, window: Tensor) -> Tensor:
    """Weighted mean over every window that lies inside the picture, channel by channel."""
    single = images.flatten(0, 1)[:, None]  # (N C, 1, H, W)
    across = F.conv2d(F.conv2d(single, window.view(1, 1, 1, -1)), window.view(1, 1, -1, 1))
    return across.unflatten(0, images.shape[:2])[:, :, 0]
