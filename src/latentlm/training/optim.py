"""AdamW as the paper sets it (Section 3.1: betas 0.9 and 0.98, cosine with warm-up), and which weights it decays.

The learning rate of a parameter group at a step is `lr · schedule_factor(step) · lr_scale`; `lr_scale` carries
layer-wise decay (`layer_lr_scale`). The update is PyTorch's fused AdamW: one kernel, and the only form that can skip a
bad step on the device by a flag, without waiting for the host.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypedDict

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and its schedule."""

    lr: float
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    weight_decay: float = 0.1
    """Decoupled decay of matrices; `is_decayed` says what counts as one."""
    schedule: Literal["cosine", "constant"] = "cosine"
    num_warmup_steps: int = 100
    """Steps of linear warm-up from lr / num_warmup_steps."""
    min_lr_ratio: float = 0.0
    """Where the cosine ends, as a share of `lr`."""
    grad_clip: float | None = 1.0
    """Largest gradient norm over all parameters of this optimizer; null for no limit."""

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"lr must be positive, but is {self.lr}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), but are {self.betas}")
        if self.weight_decay < 0 or self.num_warmup_steps < 0:
            raise ValueError("weight_decay and num_warmup_steps cannot be negative")
        if not 0 <= self.min_lr_ratio <= 1:
            raise ValueError(f"min_lr_ratio must lie in [0, 1], but is {self.min_lr_ratio}")
        if self.grad_clip is not None and self.grad_clip <= 0:
            raise ValueError(f"grad_clip must be positive, or null for none, but is {self.grad_clip}")


class ParameterGroup(TypedDict):
    """Parameters that share a learning rate and a weight decay."""

    params: list[nn.Parameter]
    lr_scale: float
    weight_decay: float


class OptimizerGroups(NamedTuple):
    """One optimizer: its settings, and what it owns."""

    config: OptimConfig
    groups: list[ParameterGroup]


# A parameter whose own name holds one of these is a table looked up by index, or a single learned vector, not a map
# from features to features: decaying it would shrink rare entries towards zero.
_UNDECAYED_NAMES = ("embedding", "position", "token")


def is_decayed(name: str, parameter: nn.Parameter, owner: nn.Module) -> bool:
    """Whether weight decay acts: on matrices only, that is two or more axes, but not embeddings and positions.

    Args:
        name: The parameter's own name inside `owner`, such as "weight".
        parameter: Biases and norm weights have one axis and are not decayed.
        owner: The module that holds it; nothing of an `nn.Embedding` is decayed.
    """
    is_table = isinstance(owner, nn.Embedding) or any(word in name for word in _UNDECAYED_NAMES)
    return parameter.ndim >= 2 and not is_table


def parameter_groups(
    modules: Iterable[nn.Module], config: OptimConfig, *, lr_scale: Callable[[str], float] = lambda name: 1.0
) -> list[ParameterGroup]:
    """Group the trainable parameters of `modules` by (lr_scale, decayed or not), each parameter once.

    Args:
        modules: Modules that one optimizer owns; shared parameters count once.
        config: Gives the weight decay.
        lr_scale: Full name of a parameter inside its module of `modules` to the factor on its learning rate.
    """
    groups: dict[tuple[float, bool], ParameterGroup] = {}
    seen: set[nn.Parameter] = set()
    for module in modules:
        for prefix, owner in module.named_modules():
            for name, parameter in owner.named_parameters(recurse=False):
                if parameter in seen or not parameter.requires_grad:
                    continue
                seen.add(parameter)
                decayed = is_decayed(name, parameter, owner)
                scale = lr_scale(f"{prefix}.{name}" if prefix else name)
                empty = ParameterGroup(params=[], lr_scale=scale, weight_decay=config.weight_decay if decayed else 0.0)
                groups.setdefault((scale, decayed), empty)["params"].append(parameter)
    return list(groups.values())


def layer_lr_scale(layer: int, num_layers: int, decay: float) -> float:
    """Layer-wise learning-rate decay (BEiT): decay^(num_layers + 1 - layer).

    Args:
        layer: 0 for the patch embedding and positions, 1..num_layers for the blocks, num_layers + 1 for what follows.
        num_layers: Blocks of the encoder.
        decay: 0.65 for the paper's image tokenizer.
    """
    return decay ** (num_layers + 1 - layer)


def schedule_factor(config: OptimConfig, step: int, num_steps: int) -> float:
    """The learning rate of step `step` (from 0) of `num_steps`, as a share of the peak.

    Linear warm-up (step + 1) / num_warmup_steps, then constant, or half a cosine that reaches `min_lr_ratio` at
    `num_steps`, one step after the last.
    """
    if step < config.num_warmup_steps:
        return (step + 1) / config.num_warmup_steps
    if config.schedule == "constant":
        return 1.0
    progress = (step - config.num_warmup_steps) / max(1, num_steps - config.num_warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * cosine


def make_optimizer(owned: OptimizerGroups) -> torch.optim.AdamW:
    """Fused AdamW over an optimizer's groups. Its learning rates are set by `set_learning_rate` before each step."""
    config = owned.config
    groups = [dict(group) for group in owned.groups if group["params"]]
    if not groups:
        raise ValueError("an optimizer owns no trainable parameter; leave it out of optimizer_groups()")
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, config: OptimConfig, step: int, num_steps: int) -> float:
    """Set every group's learning rate for `step`; returns the one of a group whose `lr_scale` is 1."""
    lr = config.lr * schedule_factor(config, step, num_steps)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
    return lr
