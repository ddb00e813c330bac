"""Confidence intervals by the bootstrap (Efron 1979): what else the same experiment might have said."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

_CONFIDENCE = 0.95
_NUM_RESAMPLES = 2000
"""The ends of a 95% interval then move by a tenth of its width from seed to seed."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate and its 95% interval."""

    estimate: float
    low: float
    high: float
    num: int
    """Trials."""

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def as_percent(self) -> str:
        """For shares and rates."""
        return f"{self.estimate:.1%} [{self.low:.1%}, {self.high:.1%}]"

    def as_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return asdict(self)


def bootstrap_ratio(
    numerators: Sequence[float | int], denominators: Sequence[float | int] | None = None, *, seed: int = 0
) -> Interval:
    """Interval of sum(numerators) / sum(denominators) over trials drawn with replacement, by percentiles.

    Trials count as independent. Those of one speaker are not quite: between speakers of a handful no method sees much.

    Args:
        numerators: Of each trial, such as its errors.
        denominators: Such as its words; None are ones, which makes it the interval of a mean.
        seed: Of the draws.

    Raises:
        ValueError: If there are no trials, or the denominators sum to zero.
    """
    if not numerators:
        raise ValueError("an interval of no trials means nothing; measure at least one")
    top = torch.tensor([float(value) for value in numerators], dtype=torch.float64)
    bottom = torch.ones_like(top)
    if denominators is not None:
        bottom = torch.tensor([float(value) for value in denominators], dtype=torch.float64)
    if bottom.sum() == 0:
        raise ValueError("a ratio to nothing means nothing: the denominators sum to zero")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(top), (_NUM_RESAMPLES, len(top)), generator=generator)
    totals = bottom[drawn].sum(dim=1)
    ratios = top[drawn].sum(dim=1)[totals > 0] / totals[totals > 0]
    low, high = ratios.quantile(torch.tensor([(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2], dtype=torch.float64))
    return Interval(estimate=(top.sum() / bottom.sum()).item(), low=low.item(), high=high.item(), num=len(numerators))
