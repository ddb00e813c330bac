"""The moving average: half-life, warm-up, swapping and restoring."""

import pytest
import torch
from torch import nn

from latentlm.training.ema import ExponentialMovingAverage, ema_decay

APPLIED, SKIPPED = torch.tensor(0.0), torch.tensor(1.0)


def single_weight(value: float) -> nn.Linear:
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, value)
    return module


def test_after_one_half_life_a_past_value_weighs_half() -> None:
    module = single_weight(1.0)
    ema = ExponentialMovingAverage({"m": module}, half_life_steps=20.0)
    nn.init.constant_(module.weight, 0.0)
    # Far beyond the warm-up, where the half-life is the asked one.
    for step in range(1000, 1020):
        ema.update(step, APPLIED)
    assert ema.state_dict()["m.weight"].item() == pytest.approx(0.5, abs=1e-6)  # 20 roundings of float32


def test_the_half_life_is_at_most_a_tenth_of_the_updates_so_far() -> None:
    assert ema_decay(9, 50.0) == pytest.approx(0.5)  # ten updates: a half-life of one
    assert ema_decay(499, 50.0) == ema_decay(10_000, 50.0) == pytest.approx(0.5 ** (1 / 50))
    initial_weight = 1.0
    for step in range(30):
        initial_weight *= ema_decay(step, 1e9)
    assert initial_weight < 1e-9  # so even a run of thirty steps is rid of its initial weights


def test_a_half_life_of_zero_copies_the_weights() -> None:
    module = single_weight(1.0)
    ema = ExponentialMovingAverage({"m": module}, half_life_steps=0.0)
    nn.init.constant_(module.weight, 5.0)
    ema.update(0, APPLIED)
    assert ema.state_dict()["m.weight"].item() == 5.0


def test_a_skipped_step_leaves_the_averages_bit_equal() -> None:
    module = single_weight(0.3)
    ema = ExponentialMovingAverage({"m": module}, half_life_steps=7.0)
    nn.init.constant_(module.weight, 0.7)
    before = ema.state_dict()["m.weight"].clone()
    ema.update(100, SKIPPED)
    assert torch.equal(ema.state_dict()["m.weight"], before)


def test_within_the_swap_the_module_holds_the_averages_and_afterwards_its_own_weights_even_after_an_error() -> None:
    module = single_weight(0.1)
    ema = ExponentialMovingAverage({"m": module}, half_life_steps=7.0)
    nn.init.constant_(module.weight, 0.7)
    with ema.swapped():
        assert module.weight.item() == pytest.approx(0.1)
    assert module.weight.item() == torch.tensor(0.7).item()
    with pytest.raises(KeyError), ema.swapped():
        raise KeyError
    assert module.weight.item() == torch.tensor(0.7).item()


def test_averages_are_float32_follow_trainable_parameters_and_name_shared_ones_once() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)).bfloat16()
    module[1].weight = module[0].weight
    averages = ExponentialMovingAverage({"m": module}, half_life_steps=1.0).state_dict()
    assert sorted(averages) == ["m.0.bias", "m.0.weight", "m.1.bias"]
    assert {tensor.dtype for tensor in averages.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "missing"),
        ({"m.weight": torch.zeros(1, 1), "x": torch.zeros(1)}, "x is unknown"),
        ({"m.weight": torch.zeros(2)}, "shape"),
    ],
)
def test_averages_of_another_model_are_refused(state: dict, message: str) -> None:
    ema = ExponentialMovingAverage({"m": single_weight(1.0)}, half_life_steps=1.0)
    with pytest.raises(ValueError, match=message):
        ema.load_state_dict(state)
