"""MELLE's losses (Meng et al. 2024, Section 3.3), one number per frame or per step, not yet averaged.

The paper writes norms over the M channels of a frame; ours are means over them, so that its weights stay in proportion
and a loss does not grow with the number of filters.

Shapes: N frames of all utterances in order of time, M num_mels, n steps (groups of frames).
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F


def regression_loss(prediction: Float[Tensor, "N M"], target: Float[Tensor, "N M"]) -> Float[Tensor, "N"]:
    """|y - y'| + (y - y')²: one half of Eq. 6, which takes the sum of it before and behind the post-net."""
    difference = prediction - target
    return (difference.abs() + difference.square()).mean(dim=-1)


def divergence_from_frames(
    mean: Float[Tensor, "N M"], log_variance: Float[Tensor, "N M"], target: Float[Tensor, "N M"]
) -> Float[Tensor, "N"]:
    """KL[N(mean, variance) ‖ N(target, 1)] in nats per channel (Eq. 7): the prior stands on the true frame."""
    return 0.5 * (log_variance.exp() + (mean - target).square() - 1 - log_variance).mean(dim=-1)


def spectrogram_flux(mean: Float[Tensor, "N M"], previous: Float[Tensor, "N M"]) -> Float[Tensor, "N"]:
    """-|mean - previous|: rewards frames that differ from the true frame before them (Eq. 8).

    Args:
        mean: Of the latent of each frame.
        previous: The true frame before it.
    """
    return -(mean - previous).abs().mean(dim=-1)


def stop_loss(logits: Float[Tensor, "n"], is_last: Bool[Tensor, "n"], *, positive_weight: float) -> Float[Tensor, "n"]:
    """Cross-entropy of "the utterance ends here", the one last step of each counting `positive_weight` times."""
    weight = torch.tensor(positive_weight, device=logits.device)
    return F.binary_cross_entropy_with_logits(logits, is_last.to(logits.dtype), pos_weight=weight, reduction="none")
