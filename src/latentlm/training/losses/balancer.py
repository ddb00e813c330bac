"""The loss balancer of Encodec (Défossez et al. 2022, Section 3.4): weights say shares of the gradient, not units.

    each loss ─d / d waveform▶ gradient ─/ moving average of its norm, times its share▶ sum ─back into the decoder▶

    g = Σ_i (w_i / Σ_j w_j) · g_i / <|g_i|>,   g_i = d loss_i / d x̂,   <|g_i|> the norm per clip, averaged over steps

A loss whose scale drifts, as an adversarial one does, keeps its share. Only losses of the output can be balanced; the
bottleneck's regularizer stands beside them with its own weight.

The averages used within a step are those of the steps before it: the same for every micro-batch and rank, which
therefore add up to the batch. In the step in which a loss appears first it is only measured, and moves nothing.

Shapes: B batch, S samples.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from latentlm.training import distributed

# Losses are differentiated this much larger: means over many samples would vanish in float16's backward pass.
_GRADIENT_SCALE = 2.0**12

# Below this norm a loss says nothing, and is not raised to its share.
_SMALLEST_NORM = 1e-8


@dataclass(frozen=True, kw_only=True)
class BalancerConfig:
    """Pace and total of the balanced gradient."""

    ema_decay: float = 0.999
    """Of the moving average of the norms, per step; Encodec's. Early steps are averaged evenly."""
    total_norm: float = 1.0
    """R: norm per clip of all shares together, if they agreed; what the regularizer's beta is to be seen against."""

    def __post_init__(self) -> None:
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}; it must lie in [0, 1)")
        if self.total_norm <= 0:
            raise ValueError(f"total_norm is {self.total_norm}, but must be positive")


class LossBalancer(nn.Module):
    """Moving averages of gradient norms, in buffers: checkpoints hold them.

    Args:
        config: Pace and total.
        weights: Loss name to its weight; only their ratios count.
    """

    norm_sum: Tensor
    norm_weight: Tensor
    pending_norm: Tensor
    pending_share: Tensor

    def __init__(self, config: BalancerConfig, weights: Mapping[str, float]) -> None:
        super().__init__()
        self.config = config
        self.weights = dict(weights)
        # The average is norm_sum / norm_weight; `pending` is what the current step has brought so far.
        for name in ("norm_sum", "norm_weight", "pending_norm", "pending_share"):
            self.register_buffer(name, torch.zeros(len(self.weights)))
        # Not saved: checkpoints lie between steps, so a resumed run begins by taking in what is pending.
        self._step: int | None = None

    def forward(
        self,
        losses: Mapping[str, Float[Tensor, "B"]],
        outputs: Float[Tensor, "B S"],
        *,
        num_clips: Tensor | float,
        step: int,
    ) -> Float[Tensor, ""]:
        """A scalar whose gradient with respect to `outputs` is the balanced one, and whose value is the weighted sum.

        In training mode the norms of this micro-batch are taken down for the steps to come.

        Args:
            losses: Per clip, each a function of `outputs`; any of the names this was built with.
            outputs: What the losses compare: the reconstructions. Must have a graph to the decoder.
            num_clips: Of the whole step, over all micro-batches and ranks.
            step: Tells when a new step begins.

        Raises:
            ValueError: If a loss has no weight.
        """
        if unknown := losses.keys() - self.weights.keys():
            raise ValueError(f"the balancer was built for {', '.join(self.weights)}, not for {', '.join(unknown)}")
        if self.training and step != self._step:
            self._take_in_pending()
            self._step = step
        names = list(self.weights)
        averages = self._averages()
        shares = {name: self.weights[name] / sum(self.weights[other] for other in losses) for name in losses}
        balanced = torch.zeros_like(outputs)
        norms = torch.zeros_like(self.pending_norm)
        present = torch.zeros_like(self.pending_share)
        for name, values in losses.items():
            # Clips do not meet in any loss, so this is each clip's own gradient.
            (scaled,) = torch.autograd.grad(values.sum() * _GRADIENT_SCALE, outputs, retain_graph=True)
            gradient = scaled.float() / _GRADIENT_SCALE
            number = names.index(name)
            average = averages[number]
            factor = torch.where(average > _SMALLEST_NORM, self.config.total_norm * shares[name] / average, 0.0)
            balanced = balanced + factor * gradient
            norms[number] = gradient.norm(dim=1).sum() / num_clips
            present[number] = len(values) / num_clips
        if self.training:
            self.pending_norm += distributed.sum_over_ranks(norms)
            self.pending_share += distributed.sum_over_ranks(present)
        pull = (outputs.float() * balanced.detach()).sum() / num_clips
        value = torch.stack([self.weights[name] * values.sum() for name, values in losses.items()]).sum() / num_clips
        return value.detach() + pull - pull.detach()

    def average_norms(self) -> dict[str, Float[Tensor, ""]]:
        """<|g_i|> of each loss, as of the last step; 0 where none was measured yet."""
        return dict(zip(self.weights, self._averages(), strict=True))

    def _averages(self) -> Tensor:
        return (self.norm_sum / self.norm_weight).nan_to_num(0.0)  # 0 / 0: not measured yet

    @torch.no_grad()
    def _take_in_pending(self) -> None:
        """Move the averages by the norms of the last step, where it had any and they are finite."""
        present = (self.pending_share > 0) & self.pending_norm.isfinite()
        decay = self.config.ema_decay
        # A loss may have been missing from some micro-batches: the mean is over the clips that it saw.
        mean = torch.where(present, self.pending_norm / self.pending_share, 0.0)
        self.norm_sum.copy_(torch.where(present, decay * self.norm_sum + mean, self.norm_sum))
        self.norm_weight.copy_(torch.where(present, decay * self.norm_weight + 1, self.norm_weight))
        self.pending_norm.zero_()
        self.pending_share.zero_()
