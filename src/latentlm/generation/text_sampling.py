"""Choosing discrete tokens from logits: Sample(P_d(x_i | x_<i)) of Eq. 1.

All drawing inverts a cumulative distribution at a given uniform number, so that a token depends on no generator state.

Shapes: *batch any leading axes, V vocabulary (of a text, or of a codebook).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentlm.generation.requests import TextSamplingConfig


def sample_ids(
    logits: Float[Tensor, "*batch V"],
    config: TextSamplingConfig,
    uniform: Float[Tensor, "*batch"],
    *,
    allowed: Bool[Tensor, "*#batch V"] | None = None,
) -> Int[Tensor, "*batch"]:
    """Draw one id per position.

    Truncations follow each other as in transformers: temperature, `top_k`, `top_p` of what is left, `min_p`.

    Args:
        logits: Of every id.
        config: Temperature and truncation; the repetition penalty is `penalise_repetition`'s business.
        uniform: The random number in (0, 1) that decides, along the ids from the most likely one down.
        allowed: Ids that may come, one at least; None allows all.

    Raises:
        ValueError: If a logit is NaN.
    """
    _refuse_nan(logits)
    logits = logits.float()
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
    if config.temperature == 0:
        return logits.argmax(-1)
    probabilities, ids = (logits / config.temperature).softmax(-1).sort(descending=True, stable=True)
    if config.top_k is not None:
        probabilities[..., config.top_k :] = 0
    # The id that crosses p stays in: the set must reach p.
    total = probabilities.sum(-1, keepdim=True)
    before = probabilities.cumsum(-1) - probabilities
    probabilities = probabilities.masked_fill(before >= config.top_p * total, 0)
    probabilities = probabilities.masked_fill(probabilities < config.min_p * probabilities[..., :1], 0)
    return ids.gather(-1, _invert_cumulative(probabilities, uniform)[..., None])[..., 0]


def penalise_repetition(logits: Float[Tensor, "V"], seen_ids: Int[Tensor, "n"], penalty: float) -> Float[Tensor, "V"]:
    """Make ids that came before less likely (Keskar et al. 2019, Section 4.1, as transformers applies it).

    Args:
        logits: Of every id.
        seen_ids: Ids that came before, in any number.
        penalty: Above 1 discourages repetition.
    """
    if penalty == 1.0:
        return logits
    seen = logits[seen_ids]
    return logits.index_copy(0, seen_ids, torch.where(seen > 0, seen / penalty, seen * penalty))


def sample_untruncated(
    logits: Float[Tensor, "*batch V"], temperature: float, uniform: Float[Tensor, "*batch"]
) -> Int[Tensor, "*batch"]:
    """Draw one id per position from softmax(logits / temperature), without the sort that truncation needs.

    For drawing all codes of a picture at once, where a sorted codebook per position would be a good part of the cost.
    The distribution is that of `sample_ids`, but a uniform number means another id: they are counted from 0 up.

    Args:
        logits: Of every id.
        temperature: 0 takes the most likely id.
        uniform: The random number in (0, 1) that decides.

    Raises:
        ValueError: If a logit is NaN.
    """
    _refuse_nan(logits)
    if temperature == 0:
        return logits.argmax(-1)
    return _invert_cumulative((logits.float() / temperature).softmax(-1), uniform)


def _refuse_nan(logits: Tensor) -> None:
    if logits.isnan().any():
        raise ValueError("the logits hold NaN: the weights are damaged, or overflow in this precision")


def _invert_cumulative(probabilities: Float[Tensor, "*batch V"], uniform: Float[Tensor, "*batch"]) -> Tensor:
    """The place whose interval of the cumulative distribution holds `uniform`; they need not sum to 1."""
    cumulative = probabilities.cumsum(-1)
    threshold = (uniform[..., None] * cumulative[..., -1:]).contiguous()
    place = torch.searchsorted(cumulative, threshold, right=True)[..., 0]
    # The product may round up to the whole sum: not beyond the last place of any probability.
    last = probabilities.shape[-1] - 1 - (probabilities > 0).flip(-1).int().argmax(-1)
    return torch.minimum(place, last)
