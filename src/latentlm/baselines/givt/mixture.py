"""What GIVT's head says of the next latent: a mixture of Gaussians with diagonal covariance (Section 3.2).

    p(x) = sum_k softmax(logits)_k prod_c N(x_c; means_kc, scales_kc²)

Shapes: "*n" any leading axes, K components, C latent_dim, S candidates.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

_MAX_ELEMENTS = 2**22
"""Numbers in one temporary tensor of guidance, pictures · candidates · K · C: 16 MB, however many
candidates."""


class GaussianMixture(NamedTuple):
    """One mixture for every item of the leading axes, in float32."""

    logits: Float[Tensor, "*n K"]
    """Of the components' weights."""
    means: Float[Tensor, "*n K C"]
    scales: Float[Tensor, "*n K C"]
    """Standard deviations."""

    @classmethod
    def from_outputs(
        cls, outputs: Float[Tensor, "*n P"], *, num_components: int, min_scale: float
    ) -> "GaussianMixture":
        """Read a mixture from the P = K + 2 K C numbers that a linear layer gives.

        Args:
            outputs: K logits, K C means, K C numbers whose softplus are the scales.
            num_components: K.
            min_scale: Added to every scale. A floor without a dead gradient: without one the likelihood of a training
                set is unbounded, because a component can shrink onto a single latent.
        """
        outputs = outputs.float()
        logits = outputs[..., :num_components]
        means, scales = outputs[..., num_components:].unflatten(-1, (2, num_components, -1)).unbind(-3)
        return cls(logits, means, F.softplus(scales) + min_scale)

    def tempered(self, temperature: float) -> "GaussianMixture":
        """The mixture with all standard deviations multiplied by `temperature`; the weights stay."""
        return self._replace(scales=self.scales * temperature)

    def log_prob(self, latents: Float[Tensor, "*n C"]) -> Float[Tensor, "*n"]:
        """log p(x) in nats, summed over dimensions.

        Args:
            latents: x; leading axes of size 1 in the mixture broadcast.
        """
        deviations = (latents.float()[..., None, :] - self.means) / self.scales  # (*n, K, C)
        log_densities = -0.5 * (deviations.square() + math.log(2 * math.pi)) - self.scales.log()
        return torch.logsumexp(self.logits.log_softmax(dim=-1) + log_densities.sum(dim=-1), dim=-1)

    def sample(self, uniform: Float[Tensor, "*n"], normal: Float[Tensor, "*n C"]) -> Float[Tensor, "*n C"]:
        """x from given randomness: the component by the inverse of its distribution function, then its Gaussian.

        Args:
            uniform: In (0, 1), decides the component.
            normal: Standard normal.
        """
        cumulative = self.logits.softmax(dim=-1).cumsum(dim=-1)  # (*n, K)
        # The last edge is left out: it may round below 1, and there is no component behind it.
        component = (uniform[..., None] > cumulative[..., :-1]).sum(dim=-1)
        chosen = F.one_hot(component, self.logits.shape[-1]).to(normal.dtype)[..., None]  # (*n, K, 1)
        return (chosen * self.means).sum(dim=-2) + (chosen * self.scales).sum(dim=-2) * normal


def sample_guided(
    cond: GaussianMixture,
    uncond: GaussianMixture,
    cfg_scale: float,
    *,
    uniform: Float[Tensor, "B S"],
    normal: Float[Tensor, "B S C"],
    selection: Float[Tensor, "B S"],
) -> Float[Tensor, "B C"]:
    """Draw from density-based guidance, p ∝ p_cond (p_cond / p_uncond)^(cfg_scale - 1) (Section 3.4, CFG).

    Sampling importance resampling (Rubin 1988): S candidates from p_cond, of which one is kept with probability
    proportional to the remaining factor. As S grows the draw follows p itself; with few candidates it lies between
    p_cond and p. The official sampler rejects instead, per dimension, within one component of p_cond that it pairs with
    the component of p_uncond of the same number.

    Args:
        cond: Mixtures [B] given the class.
        uncond: Mixtures [B] without it.
        cfg_scale: 1 is no guidance; the paper's w is cfg_scale - 1.
        uniform: Decides the candidates' components.
        normal: The candidates' Gaussians.
        selection: In (0, 1), decides which candidate is kept (Gumbel-max).
    """
    cond, uncond = (GaussianMixture(*(part[:, None] for part in mixture)) for mixture in (cond, uncond))
    chunk = max(1, _MAX_ELEMENTS // cond.means.numel())
    drawn, log_ratios = [], []
    for part, part_normal in zip(uniform.split(chunk, dim=1), normal.split(chunk, dim=1), strict=True):
        drawn.append(cond.sample(part, part_normal))
        log_ratios.append(cond.log_prob(drawn[-1]) - uncond.log_prob(drawn[-1]))
    candidates = torch.cat(drawn, dim=1)  # (B, S, C)
    log_weights = (cfg_scale - 1) * torch.cat(log_ratios, dim=1)  # (B, S)
    gumbel = -torch.log(-torch.log(selection))
    kept = (log_weights + gumbel).argmax(dim=-1)  # (B,)
    return candidates.take_along_dim(kept[:, None, None], dim=1)[:, 0]
