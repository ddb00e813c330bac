"""The schedule's closed forms, and which parameters are decayed at which learning rate."""

import math

import pytest
import torch
from torch import nn

from latentlm.training.optim import (
    OptimConfig,
    OptimizerGroups,
    layer_lr_scale,
    make_optimizer,
    parameter_groups,
    schedule_factor,
    set_learning_rate,
)


def test_warmup_is_linear_and_reaches_the_peak_at_its_last_step() -> None:
    config = OptimConfig(lr=1.0, num_warmup_steps=4)
    assert [schedule_factor(config, step, 100) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("min_lr_ratio", [0.0, 0.1])
def test_the_cosine_starts_at_the_peak_is_half_way_in_the_middle_and_ends_at_its_minimum(min_lr_ratio: float) -> None:
    config = OptimConfig(lr=1.0, num_warmup_steps=10, min_lr_ratio=min_lr_ratio)
    assert schedule_factor(config, 10, 110) == 1.0
    assert schedule_factor(config, 60, 110) == pytest.approx((1 + min_lr_ratio) / 2)
    assert schedule_factor(config, 85, 110) == pytest.approx(
        min_lr_ratio + (1 - min_lr_ratio) * (1 - math.sqrt(0.5)) / 2
    )
    assert schedule_factor(config, 110, 110) == pytest.approx(min_lr_ratio)


def test_the_constant_schedule_stays_and_a_run_shorter_than_its_warmup_just_ends_early() -> None:
    config = OptimConfig(lr=1.0, schedule="constant", num_warmup_steps=2)
    assert {schedule_factor(config, step, 50) for step in range(2, 60)} == {1.0}
    assert schedule_factor(OptimConfig(lr=1.0, num_warmup_steps=100), 49, 50) == 0.5


class Parts(nn.Module):
    """One of everything that the decay rule tells apart."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.patch_embedding = nn.Conv2d(3, 4, 2)
        self.table = nn.Embedding(7, 3)
        self.norm = nn.LayerNorm(3)
        self.position_embedding = nn.Parameter(torch.zeros(1, 5, 3))
        self.class_token = nn.Parameter(torch.zeros(1, 1, 3))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.tied = nn.Linear(3, 3, bias=False)
        self.tied.weight = self.linear.weight


def test_only_matrices_are_decayed_and_shared_parameters_count_once() -> None:
    module = Parts()
    names = {parameter: name for name, parameter in module.named_parameters()}
    groups = parameter_groups([module], OptimConfig(lr=1.0, weight_decay=0.3))
    found = {names[p]: group["weight_decay"] for group in groups for p in group["params"]}
    assert found == {
        "linear.weight": 0.3,
        "patch_embedding.weight": 0.3,
        "linear.bias": 0.0,
        "patch_embedding.bias": 0.0,
        "table.weight": 0.0,
        "norm.weight": 0.0,
        "norm.bias": 0.0,
        "position_embedding": 0.0,
        "class_token": 0.0,
    }
    assert sum(len(group["params"]) for group in groups) == len(found)


def test_layerwise_decay_gives_every_layer_its_own_learning_rate() -> None:
    module = nn.Sequential(*(nn.Linear(2, 2) for _ in range(3)))
    config = OptimConfig(lr=0.8, num_warmup_steps=0, schedule="constant")
    groups = parameter_groups([module], config, lr_scale=lambda name: layer_lr_scale(int(name[0]), 2, 0.5))
    optimizer = make_optimizer(OptimizerGroups(config, groups))
    assert set_learning_rate(optimizer, config, 0, 10) == 0.8
    names = {parameter: name for name, parameter in module.named_parameters()}
    rates = {names[p]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: rate for name, rate in rates.items() if name.endswith("weight")} == {
        "0.weight": pytest.approx(0.1),
        "1.weight": pytest.approx(0.2),
        "2.weight": pytest.approx(0.4),
    }


def test_a_step_is_adamw_with_decoupled_decay() -> None:
    weight = nn.Parameter(torch.tensor([[2.0, -1.0]], dtype=torch.float64))
    module = nn.Module()
    module.weight = weight
    config = OptimConfig(lr=0.1, num_warmup_steps=0, schedule="constant", weight_decay=0.5)
    optimizer = make_optimizer(OptimizerGroups(config, parameter_groups([module], config)))
    weight.grad = torch.tensor([[3.0, -0.2]], dtype=torch.float64)
    set_learning_rate(optimizer, config, 0, 10)
    optimizer.step()
    # First step of Adam: both bias-corrected moments are those of one gradient, so the step is lr * sign(gradient).
    expected = torch.tensor([[2.0 * (1 - 0.1 * 0.5) - 0.1, -1.0 * (1 - 0.1 * 0.5) + 0.1]], dtype=torch.float64)
    torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=1e-8)  # eps 1e-8 against gradients of 0.2


@pytest.mark.parametrize(
    "bad",
    [
        {"lr": 0.0},
        {"betas": (0.9, 1.0)},
        {"weight_decay": -1.0},
        {"num_warmup_steps": -1},
        {"min_lr_ratio": 2.0},
        {"grad_clip": 0.0},
    ],
)
def test_nonsense_settings_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError):
        OptimConfig(**{"lr": 1.0, **bad})
