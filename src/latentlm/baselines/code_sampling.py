"""Drawing codes from logits, for the models of vector-quantized tokens: truncation, then the inverse of the CDF.

Shapes: V num_codes.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def code_probabilities(
    logits: Float[Tensor, "*batch V"], *, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0
) -> Float[Tensor, "*batch V"]:
    """What codes are drawn from: softmax(logits / temperature), cut to its most likely codes and normalised again.

    Args:
        logits: Of every code.
        temperature: 0 puts everything on the most likely code.
        top_k: Keep the k most likely codes; None keeps all.
        top_p: Of what top_k left, keep the smallest set whose probability reaches p (Holtzman et al. 2020). The cuts
            follow each other in this order in LlamaGen.

    Raises:
        ValueError: If a logit is NaN.
    """
    if logits.isnan().any():
        raise ValueError("the logits hold NaN: the weights are damaged, or overflow in this precision")
    logits = logits.float()
    if temperature == 0:
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).float()
    probabilities = (logits / temperature).softmax(-1)
    if top_k is None and top_p == 1:
        return probabilities
    ranked, codes = probabilities.sort(descending=True, stable=True)
    if top_k is not None:
        ranked[..., top_k:] = 0
    ranked = ranked / ranked.sum(-1, keepdim=True)
    # The code that crosses p stays in: the set must reach p.
    before = ranked.cumsum(-1) - ranked
    ranked = ranked.masked_fill(before >= top_p, 0)
    kept = torch.zeros_like(probabilities).scatter(-1, codes, ranked)
    return kept / kept.sum(-1, keepdim=True)


def draw_codes(probabilities: Float[Tensor, "*batch V"], uniform: Float[Tensor, "*batch"]) -> Int[Tensor, "*batch"]:
    """The code whose interval of the cumulative distribution holds `uniform`.

    Args:
        probabilities: From `code_probabilities`.
        uniform: In the open interval (0, 1), from `keyed_uniform`.
    """
    # Zero where the probability is zero: the sum may round up there, but such a code must never come out.
    cumulative = probabilities.cumsum(-1).masked_fill(probabilities == 0, 0)
    threshold = uniform * cumulative.amax(-1)
    return (cumulative > threshold[..., None]).int().argmax(-1)  # argmax gives the first of equals
