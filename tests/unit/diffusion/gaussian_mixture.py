"""A 1-D Gaussian mixture diffused along any path: its denoiser, its marginals and its exact ODE solution, float64."""

import torch
from torch import Tensor

WEIGHTS = torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64)
MEANS = torch.tensor([-1.2, 0.4, 1.5], dtype=torch.float64)
STDS = torch.tensor([0.5, 0.35, 0.6], dtype=torch.float64)

MEAN = (WEIGHTS * MEANS).sum()
VARIANCE = (WEIGHTS * (STDS**2 + MEANS**2)).sum() - MEAN**2
FOURTH_CENTRAL_MOMENT = (
    WEIGHTS * ((MEANS - MEAN) ** 4 + 6 * (MEANS - MEAN) ** 2 * STDS**2 + 3 * STDS**4)
).sum()


def expected_sample(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """E[x_0 | alpha x_0 + sigma noise = x]: what a perfectly trained network says; x has any shape."""
    means, variances = alpha * MEANS, alpha**2 * STDS**2 + sigma**2
    log_likelihood = WEIGHTS.log() - variances.log() / 2 - (x[..., None] - means) ** 2 / (2 * variances)
    by_component = MEANS + alpha * STDS**2 / variances * (x[..., None] - means)
    return (log_likelihood.softmax(dim=-1) * by_component).sum(dim=-1)


def quantile_function(probabilities: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Inverse of the marginal's distribution function, by bisection to the last bit."""
    low, high = torch.full_like(probabilities, -20.0), torch.full_like(probabilities, 20.0)
    for _ in range(70):
        middle = (low + high) / 2
        below = distribution_function(middle, alpha, sigma) < probabilities
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def distribution_function(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """P(alpha x_0 + sigma noise <= x)."""
    stds = (alpha**2 * STDS**2 + sigma**2).sqrt()
    return (WEIGHTS * torch.special.ndtr((x[..., None] - alpha * MEANS) / stds)).sum(dim=-1)
