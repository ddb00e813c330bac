"""Guidance scales over rows, steps and positions, and the formula."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from latentlm.diffusion.guidance import GuidanceConfig, guidance_scales, guide

RAMPS = ["constant", "linear_increasing", "linear_decreasing", "cosine_increasing"]
TIMESTEPS = torch.tensor([999.0, 750.0, 500.0, 250.0])


def scales_of(cfg_scale: list[float], timesteps: Tensor = TIMESTEPS, **kwargs: Any) -> Tensor:
    where = {name: kwargs.pop(name) for name in ("position", "num_positions") if name in kwargs}
    return guidance_scales(GuidanceConfig(**kwargs), torch.tensor(cfg_scale), timesteps, **where)


@given(
    step_schedule=st.sampled_from(RAMPS),
    position_schedule=st.sampled_from(RAMPS),
    position=st.integers(0, 15),
    interval=st.none() | st.tuples(st.floats(0, 400), st.floats(500, 1000)),
    num_steps=st.integers(1, 30),
)
@settings(max_examples=50, deadline=None)
def test_scale_one_is_exactly_the_conditional_prediction(
    step_schedule: str, position_schedule: str, position: int, interval: Any, num_steps: int
) -> None:
    scales = scales_of(
        [1.0, 1.0],
        torch.linspace(999, 0, num_steps),
        step_schedule=step_schedule,
        position_schedule=position_schedule,
        interval=interval,
        position=position,
        num_positions=16,
    )
    cond, uncond = torch.randn(2, 2, 5, generator=torch.Generator().manual_seed(0))
    for scale in scales:
        assert torch.equal(guide(cond, uncond, scale), cond)


def test_guidance_moves_from_uncond_through_cond() -> None:
    cond, uncond = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    guided = guide(cond, uncond, torch.tensor([0.0, 2.0, 4.0]))
    expected = torch.stack([u + s * (c - u) for c, u, s in zip(cond, uncond, (0.0, 2.0, 4.0), strict=True)])
    torch.testing.assert_close(guided, expected)  # the formula in another order of float32 operations


def test_half_precision_predictions_are_guided_in_float32() -> None:
    cond, uncond = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    guided = guide(cond, uncond, torch.tensor([3.0, 3.0, 3.0]))
    assert guided.dtype == torch.float32
    torch.testing.assert_close(guided, uncond.float() + 3 * (cond.float() - uncond.float()))  # float32's tolerance


def test_constant_guidance_keeps_every_rows_scale() -> None:
    assert torch.equal(scales_of([1.0, 1.65, 4.0]), torch.tensor([1.0, 1.65, 4.0]).expand(4, 3))


def test_interval_guides_only_its_timesteps() -> None:
    assert scales_of([3.0], interval=(250.0, 750.0))[:, 0].tolist() == [1.0, 3.0, 3.0, 3.0]
    assert scales_of([3.0], interval=(300.0, 600.0))[:, 0].tolist() == [1.0, 1.0, 3.0, 1.0]


def test_schedules_over_steps_reach_their_ends() -> None:
    timesteps = torch.linspace(999, 0, 5)
    assert scales_of([3.0], timesteps, step_schedule="linear_increasing")[:, 0].tolist() == [1.0, 1.5, 2.0, 2.5, 3.0]
    assert scales_of([3.0], timesteps, step_schedule="linear_decreasing")[:, 0].tolist() == [3.0, 2.5, 2.0, 1.5, 1.0]
    cosine = scales_of([3.0], timesteps, step_schedule="cosine_increasing")[:, 0]
    # float32 cosines: 2 sin²(progress pi / 2) + 1.
    torch.testing.assert_close(cosine[[0, 2, 4]], torch.tensor([1.0, 2.0, 3.0]))
    assert cosine[1] < 1.5


def test_a_single_step_of_an_increasing_schedule_is_fully_guided() -> None:
    assert scales_of([3.0], torch.tensor([999.0]), step_schedule="linear_increasing").item() == 3.0
    assert scales_of([3.0], position_schedule="linear_increasing", position=0, num_positions=1)[0].item() == 3.0


def test_schedule_over_positions_follows_every_rows_own_position_and_length() -> None:
    scales = scales_of(
        [3.0, 3.0, 5.0],
        position_schedule="linear_increasing",
        position=torch.tensor([0, 4, 2]),
        num_positions=torch.tensor([5, 5, 3]),
    )
    assert scales[0].tolist() == [1.0, 3.0, 5.0]
    assert torch.equal(scales, scales[:1].expand(4, 3))


def test_an_empty_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="is empty: give the lower timestep first"):
        GuidanceConfig(interval=(700.0, 100.0))
