"""Exponential moving average of weights: what a run samples with and exports.

The half-life is a share of the run, so that one number suits a run of any length; the paper does not state an average
(docs/decisions.md). Averages are float32 whatever the weights are.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

# Early on the half-life is at most this share of the updates so far, so that the initial weights are soon forgotten:
# after t updates they weigh about t^-7. Close to the customary decay (1 + t) / (10 + t).
WARMUP_RATIO = 0.1


def ema_decay(update: int, half_life_steps: float) -> float:
    """The decay of update number `update` (from 0): 2^(-1 / half-life), the half-life shortened during warm-up."""
    half_life = min(half_life_steps, WARMUP_RATIO * (update + 1))
    return 0.5 ** (1 / half_life) if half_life > 0 else 0.0


class ExponentialMovingAverage:
    """Float32 averages of the trainable parameters of some modules.

    Args:
        modules: By name; a parameter is known as "name.its.own.path". Shared parameters are followed once.
        half_life_steps: Updates after which a past value weighs half; 0 copies the weights.
    """

    def __init__(self, modules: Mapping[str, nn.Module], half_life_steps: float) -> None:
        self.half_life_steps = half_life_steps
        # A ModuleDict names them and lists a shared parameter once.
        named = nn.ModuleDict(modules).named_parameters()
        self._parameters = {name: parameter for name, parameter in named if parameter.requires_grad}
        self._averages = {name: p.detach().float().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int, skip: Tensor) -> None:
        """Move the averages towards the weights.

        Args:
            step: Number of the update, from 0.
            skip: 0-dim float tensor on the weights' device; 1 leaves the averages as they are, without a branch that
                would make the host wait for the device.
        """
        weight = (1 - ema_decay(step, self.half_life_steps)) * (1 - skip)
        for average, parameter in zip(self._averages.values(), self._parameters.values(), strict=True):
            average.lerp_(parameter.detach().float(), weight)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Within the context the modules hold the averages; afterwards their own weights again, bit for bit."""
        weights = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self._write(self._averages)
        try:
            yield
        finally:
            self._write(weights)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by parameter name."""
        return dict(self._averages)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over saved averages.

        Raises:
            ValueError: Naming a parameter that is missing, unknown or of another shape.
        """
        for name in self._averages.keys() ^ state.keys():
            raise ValueError(f"the moving average of {name} is " + ("missing" if name not in state else "unknown"))
        for name, average in self._averages.items():
            if average.shape != state[name].shape:
                raise ValueError(f"the moving average of {name} has shape {tuple(state[name].shape)}")
            average.copy_(state[name])

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])
