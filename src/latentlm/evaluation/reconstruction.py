"""How much of a picture survives a tokenizer."""

from jaxtyping import Float
from torch import Tensor

_PEAK_TO_PEAK = 2.0  # pixels lie in [-1, 1]


def psnr(reconstructions: Float[Tensor, "N C H W"], images: Float[Tensor, "N C H W"]) -> float:
    """Peak signal-to-noise ratio in dB, of the mean squared error over all images; infinite for equal ones.

    Args:
        reconstructions: Pixels around [-1, 1]; clipped to it, as a picture file would.
        images: Pixels in [-1, 1].
    """
    error = (reconstructions.double().clamp(-1, 1) - images.double()).square().mean()
    return (10 * (_PEAK_TO_PEAK**2 / error).log10()).item()
