"""One optimizer step: micro-batches in, weights moved (or, if a number went bad, not moved by a single bit).

Nothing here waits for the device: losses, norms and the verdict stay tensors until the log fetches them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from latentlm.nn.precision import Precision, autocast
from latentlm.training import distributed
from latentlm.training.ema import ExponentialMovingAverage
from latentlm.training.objective import Counts, Objective
from latentlm.training.optim import make_optimizer, set_learning_rate


@dataclass(frozen=True)
class StepResult:
    """What one step did. All tensors are 0-dim float32 on the device."""

    values: dict[str, Tensor]
    """"<optimizer>/<loss>" summed over micro-steps and ranks, "<optimizer>/grad_norm" before clipping."""
    learning_rates: dict[str, float]
    skipped: Tensor
    """1 if the step was not applied."""
    bad: Tensor
    """1 if it was skipped for a reason that a smaller loss scale does not mend."""


@dataclass(frozen=True)
class StepRecord:
    """A `StepResult` as numbers on the host."""

    step: int
    """From 1: how many steps were done after it."""
    values: dict[str, float]
    """Losses, gradient norms and learning rates."""
    skipped: bool
    bad: bool


def fetch(results: Sequence[tuple[int, StepResult]]) -> list[StepRecord]:
    """Bring the results of some steps to the host, with one transfer for all of them."""
    vectors = [torch.stack([*result.values.values(), result.skipped, result.bad]) for _, result in results]
    numbers = iter(torch.cat(vectors).tolist()) if vectors else iter(())
    records = []
    for step, result in results:
        values = {name: next(numbers) for name in result.values}
        skipped, bad = bool(next(numbers)), bool(next(numbers))
        records.append(StepRecord(step=step, values={**values, **result.learning_rates}, skipped=skipped, bad=bad))
    return records


class OptimizationStep:
    """The optimizers, loss scale and moving average of a run, and how one step changes them.

    Args:
        objective: On its device already.
        num_steps: Length of the run, for the schedule.
        precision: "float32", "bfloat16" or "float16" (which adds dynamic loss scaling).
        ema: Updated after every step.
        seed: Handed to `objective.prepare`.

    Raises:
        ValueError: If a trainable parameter belongs to no optimizer, or to two.
    """

    def __init__(
        self, objective: Objective, *, num_steps: int, precision: Precision, ema: ExponentialMovingAverage, seed: int
    ) -> None:
        self.objective = objective
        self.num_steps = num_steps
        self.ema = ema
        self.seed = seed
        self.precision: Precision = precision
        self.scaler = torch.amp.GradScaler(objective.device.type, enabled=precision == "float16")
        owned = objective.optimizer_groups()
        self.configs = {name: groups.config for name, groups in owned.items()}
        self.parameters = {
            name: [p for group in groups.groups for p in group["params"]] for name, groups in owned.items()
        }
        _check_ownership(objective, self.parameters)
        self.optimizers = {name: make_optimizer(groups) for name, groups in owned.items()}

    def __call__(self, raw_batches: Sequence[Mapping[str, Any]], step: int) -> StepResult:
        """Take step number `step` (from 0) on the micro-batches of this rank."""
        batches = [self.objective.prepare(raw, step=step, seed=self.seed) for raw in raw_batches]
        # Counted before the first forward pass, so that micro-batches with few targets do not weigh more than others.
        totals = _sum_counts([self.objective.counts(batch) for batch in batches], self.objective.device)
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        values: dict[str, Tensor] = {}
        active: dict[str, None] = {}
        for batch in batches:
            with autocast(self.objective.device, self.precision):
                losses = self.objective.losses(batch, step=step, totals=totals)
            self._backward({name: named["total"] for name, named in losses.items()})
            active.update(dict.fromkeys(losses))
            for name, named in losses.items():
                for loss_name, loss in named.items():
                    key = f"{name}/{loss_name}"
                    values[key] = values.get(key, 0) + loss.detach().float()
        summed = distributed.sum_over_ranks(torch.stack(list(values.values())))
        values = dict(zip(values, summed.unbind(), strict=True))
        return self._apply(list(active), values, step)

    def _backward(self, totals: dict[str, Tensor]) -> None:
        """Differentiate each optimizer's total with respect to its own parameters.

        A generator's loss runs through the discriminator and must leave no gradient there: with several optimizers the
        parameters are named, and the graph that their losses share is kept until the last one.
        """
        last = list(totals)[-1]
        for name, total in totals.items():
            inputs = self.parameters[name] if len(self.optimizers) > 1 else None
            self.scaler.scale(total).backward(inputs=inputs, retain_graph=name != last)

    def _apply(self, active: list[str], values: dict[str, Tensor], step: int) -> StepResult:
        loss_is_finite = torch.stack([values[f"{name}/total"] for name in active]).isfinite().all()
        is_finite = loss_is_finite
        learning_rates = {}
        for name in active:
            optimizer, config, parameters = self.optimizers[name], self.configs[name], self.parameters[name]
            distributed.sum_gradients(parameters)
            self.scaler.unscale_(optimizer)
            norm = get_total_norm([p.grad for p in parameters if p.grad is not None]).float()
            values[f"{name}/grad_norm"] = norm
            is_finite = is_finite & norm.isfinite()
            if config.grad_clip is not None:
                clip_grads_with_norm_(parameters, config.grad_clip, norm)
            learning_rates[f"{name}/lr"] = set_learning_rate(optimizer, config, step, self.num_steps)
        skipped = 1 - is_finite.float()
        for name in active:
            # The fused kernel leaves weights and state alone where this flag, otherwise GradScaler's, is 1.
            self.optimizers[name].found_inf = skipped  # pyright: ignore[reportAttributeAccessIssue]
            self.optimizers[name].step()
        self.ema.update(step, skipped)
        # In float16 gradients overflow now and then by design; that is bad only once the scale has nowhere to fall.
        may_rescale = self.scaler.is_enabled() and self.scaler.get_scale() > 1
        bad = skipped * (1 - loss_is_finite.float()) if may_rescale else skipped
        self.scaler.update()
        return StepResult(values=values, learning_rates=learning_rates, skipped=skipped, bad=bad)


def _sum_counts(counts: Sequence[Counts], device: torch.device) -> dict[str, Tensor | float]:
    """Sum each count over micro-batches and ranks; numbers stay numbers, tensors stay on their device."""
    totals: dict[str, Tensor | float] = {}
    for name in counts[0]:
        total = sum(count[name] for count in counts)
        if distributed.world_size() > 1:
            is_number = not isinstance(total, Tensor)
            total = distributed.sum_over_ranks(torch.as_tensor(total, dtype=torch.float64, device=device))
            total = total.item() if is_number else total
        totals[name] = total if isinstance(total, Tensor) else float(total)
    return totals


def _check_ownership(objective: nn.Module, owned: Mapping[str, list[nn.Parameter]]) -> None:
    names = {parameter: name for name, parameter in objective.named_parameters()}
    owners: dict[nn.Parameter, str] = {}
    for optimizer, parameters in owned.items():
        for parameter in parameters:
            if parameter not in names:
                raise ValueError(f"optimizer {optimizer!r} owns a parameter that the objective does not hold")
            if parameter in owners:
                raise ValueError(
                    f"{names[parameter]} belongs to two optimizer groups, of {owners[parameter]!r} and {optimizer!r}"
                )
            owners[parameter] = optimizer
    orphans = [name for parameter, name in names.items() if parameter.requires_grad and parameter not in owners]
    if orphans:
        raise ValueError(f"no optimizer owns {', '.join(orphans[:5])}; freeze what is not trained")
