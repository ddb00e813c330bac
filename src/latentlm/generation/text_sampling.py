"""Choosing the next discrete token from logits: Sample(P_d(x_i | x_<i)) of Eq. 1."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from latentlm.generation.requests import TextSamplingConfig


def sample_token(
    logits: Float[Tensor, "V"], allowed: Bool[Tensor, "V"], config: TextSamplingConfig, uniform: Float[Tensor, ""]
) -> int:
    """Draw one id.

    Args:
        logits: Of the position, float32.
        allowed: Ids that may follow.
        config: Temperature and truncation.
        uniform: The random number in (0, 1) that decides, through the inverse of the cumulative distribution.

    Raises:
        ValueError: If a logit is NaN.
    """
    if logits.isnan().any():
        raise ValueError("the logits hold NaN: the weights are damaged, or overflow in this precision")
    logits = logits.masked_fill(~allowed, -torch.inf)
    if config.temperature == 0:
        return int(logits.argmax())
    probabilities, ids = (logits / config.temperature).softmax(-1).sort(descending=True, stable=True)
    if config.top_k is not None:
        probabilities[config.top_k :] = 0
    # The id that crosses p stays in: the set must reach p.
    before = probabilities.cumsum(-1) - probabilities
    probabilities = probabilities.masked_fill(before >= config.top_p, 0)
    cumulative = probabilities.cumsum(-1)
    choice = torch.searchsorted(cumulative, uniform * cumulative[-1], right=True)
    return int(ids[min(int(choice), int((probabilities > 0).sum()) - 1)])
