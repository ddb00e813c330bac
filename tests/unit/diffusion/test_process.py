"""Noising, targets and the maps between prediction, x_0 and noise."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from latentlm.diffusion.process import DiffusionConfig, DiffusionProcess

FLOW = {"process": "flow_matching", "prediction_type": "velocity"}
PARAMETERISATIONS: list[dict[str, Any]] = [
    {"prediction_type": "epsilon"},
    {"prediction_type": "sample"},
    {"prediction_type": "v_prediction"},
    {"prediction_type": "v_prediction", "zero_terminal_snr": True},
    {"prediction_type": "sample", "beta_schedule": "linear"},
    FLOW,
]


def process_of(**kwargs: Any) -> DiffusionProcess:
    return DiffusionProcess(DiffusionConfig(**kwargs))


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("kwargs", PARAMETERISATIONS, ids=str)
@given(seed=st.integers(0, 2**31), timestep=st.integers(1, 998))
@settings(max_examples=25, deadline=None)
def test_prediction_sample_and_noise_round_trip(kwargs: dict[str, Any], seed: int, timestep: int) -> None:
    process, timesteps = process_of(**kwargs), torch.tensor([timestep, timestep])
    latents, noise = draw(seed, 2, 2, 5)
    noisy = process.add_noise(latents, noise, timesteps)
    target = process.training_target(latents, noise, timesteps)
    # float64 rounding times 1 / alpha or 1 / sigma, which reach 700 (timestep 998 of the cosine schedule).
    close = {"atol": 1e-11, "rtol": 0}
    torch.testing.assert_close(process.predict_sample(target, noisy, timesteps), latents, **close)
    torch.testing.assert_close(process.predict_noise(target, noisy, timesteps), noise, **close)
    torch.testing.assert_close(process.from_sample(latents, noisy, timesteps), target, **close)


def test_epsilon_to_sample_to_velocity_and_back_is_the_identity() -> None:
    epsilon, v = process_of(prediction_type="epsilon"), process_of(prediction_type="v_prediction")
    sample = process_of(prediction_type="sample")
    # All but the last timestep, where alpha is 5e-5 and the round trip loses 5 of 16 digits more.
    timesteps = torch.arange(999)
    predicted_noise, noisy = draw(0, 2, 999, 3)
    latents = epsilon.predict_sample(predicted_noise, noisy, timesteps)
    velocity = v.from_sample(latents, noisy, timesteps)
    again = sample.predict_noise(v.predict_sample(velocity, noisy, timesteps), noisy, timesteps)
    # 1 / alpha times 1 / sigma (700 and 160 at the ends) over float64's 1e-16.
    torch.testing.assert_close(again, predicted_noise, atol=1e-10, rtol=0)


def test_ddpm_noise_levels_keep_the_variance() -> None:
    process = process_of()
    alphas, sigmas = process.signal_and_noise(torch.arange(1000), dtype=torch.float64)
    # One rounding in float64.
    torch.testing.assert_close(alphas**2 + sigmas**2, torch.ones(1000, dtype=torch.float64), atol=1e-15, rtol=0)
    assert sigmas[0] < 0.01
    assert alphas[-1] < 1e-4


def test_flow_matching_runs_from_noise_at_zero_to_data_at_one_thousand() -> None:
    process, (latents, noise) = process_of(**FLOW), draw(0, 2, 3, 4, dtype=torch.float32)
    noisy = process.add_noise(latents, noise, torch.tensor([0.0, 250.0, 1000.0]))
    torch.testing.assert_close(noisy[0], noise[0], atol=0, rtol=0)
    torch.testing.assert_close(noisy[1], 0.25 * latents[1] + 0.75 * noise[1])  # float32's default tolerance
    torch.testing.assert_close(noisy[2], latents[2], atol=0, rtol=0)
    target = process.training_target(latents, noise, torch.tensor([0.0, 250.0, 1000.0]))
    torch.testing.assert_close(target, latents - noise, atol=0, rtol=0)


def test_flow_matching_velocity_is_the_derivative_of_the_path() -> None:
    process, (latents, noise) = process_of(**FLOW), draw(0, 2, 1, 4)
    early, late = torch.tensor([300.0], dtype=torch.float64), torch.tensor([300.5], dtype=torch.float64)
    slope = (process.add_noise(latents, noise, late) - process.add_noise(latents, noise, early)) / 0.0005
    # A straight path: the difference quotient is exact up to float64's 1e-16 over the step of 5e-4.
    torch.testing.assert_close(slope, process.training_target(latents, noise, early), atol=1e-11, rtol=0)


def test_zero_terminal_snr_makes_the_last_timestep_pure_noise() -> None:
    process, (latents, noise) = process_of(zero_terminal_snr=True), draw(0, 2, 1, 4, dtype=torch.float32)
    assert torch.equal(process.add_noise(latents, noise, torch.tensor([999])), noise)
    assert torch.equal(process.training_target(latents, noise, torch.tensor([999])), -latents)


def test_timesteps_broadcast_over_leading_dimensions() -> None:
    process, latents, noise = process_of(), draw(0, 4, 3, 2), draw(1, 4, 3, 2)
    timesteps = torch.tensor([10, 500, 900])
    together = process.add_noise(latents, noise, timesteps[None])
    for row in range(4):
        assert torch.equal(together[row], process.add_noise(latents[row], noise[row], timesteps))


def test_fractional_timesteps_lie_between_their_neighbours() -> None:
    process = process_of()
    at = [process.signal_and_noise(torch.tensor([float(t)]))[0].item() for t in (500, 500.25, 501)]
    assert at[0] > at[1] > at[2]
    whole, real = (process.signal_and_noise(torch.arange(1000).to(kind)) for kind in (torch.int64, torch.float32))
    assert torch.equal(whole[0], real[0])
    assert torch.equal(whole[1], real[1])


@pytest.mark.parametrize("kwargs", [{}, {"beta_schedule": "linear"}, {"zero_terminal_snr": True}, FLOW], ids=str)
def test_timesteps_from_log_snr_invert_the_schedule(kwargs: dict[str, Any]) -> None:
    process, log_snr = process_of(**kwargs), torch.linspace(-4.5, 4.5, 50, dtype=torch.float64)
    alphas, sigmas = process.signal_and_noise(process.timesteps_from_log_snr(log_snr), dtype=torch.float64)
    # float64 rounding; the linear interpolation is inverted exactly.
    torch.testing.assert_close(alphas.log() - sigmas.log(), log_snr, atol=1e-9, rtol=0)


def test_computation_stays_in_float32_under_autocast_and_for_half_precision_latents() -> None:
    process, (latents, noise) = process_of(), draw(0, 2, 2, 4, dtype=torch.float32)
    timesteps = torch.tensor([3, 997])
    expected = process.add_noise(latents.bfloat16().float(), noise, timesteps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        noisy = process.add_noise(latents.bfloat16(), noise, timesteps)
    assert noisy.dtype == torch.float32
    assert torch.equal(noisy, expected)


def test_ddpm_timesteps_from_uniform_numbers_are_equally_likely() -> None:
    uniform = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    timesteps = process_of().timesteps_from_uniform(uniform)
    assert timesteps.dtype == torch.int64
    assert torch.equal(timesteps.bincount(), torch.full((1000,), 10))


@pytest.mark.parametrize("kwargs", [{}, FLOW], ids=str)
def test_logit_normal_timesteps_have_the_mean_and_spread_of_the_config(kwargs: dict[str, Any]) -> None:
    process = process_of(timestep_distribution="logit_normal", logit_mean=-0.4, logit_std=0.8, **kwargs)
    uniform = (torch.arange(100_000) + 0.5) / 100_000
    time = (process.timesteps_from_uniform(uniform).double() + (0.0 if kwargs else 0.5)) / 1000
    logits = time.logit()
    # The quantile grid is a Riemann sum of the normal's moments, good to 1e-3; ddpm's whole timesteps round as much.
    assert logits.mean().item() == pytest.approx(-0.4, abs=3e-3)
    assert logits.std().item() == pytest.approx(0.8, abs=3e-3)


@pytest.mark.parametrize("distribution", ["uniform", "logit_normal"])
@pytest.mark.parametrize("kwargs", [{}, FLOW], ids=str)
def test_timesteps_stay_inside_the_schedule_for_extreme_uniform_numbers(
    kwargs: dict[str, Any], distribution: str
) -> None:
    process = process_of(timestep_distribution=distribution, logit_std=5.0, **kwargs)
    timesteps = process.timesteps_from_uniform(torch.tensor([0.0, 2.0**-24, 1 - 2.0**-24, 1.0]))
    assert timesteps.min() >= 0
    assert timesteps.max() <= (1000 if kwargs else 999)


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"prediction_type": "epsilon", "zero_terminal_snr": True}, "cannot work with zero_terminal_snr"),
        ({"prediction_type": "velocity"}, "does not belong to process 'ddpm'"),
        ({"process": "flow_matching"}, "flow_matching predicts 'velocity'"),
        ({**FLOW, "zero_terminal_snr": True}, "zero_terminal_snr belongs to ddpm"),
        ({"logit_std": 0.0}, "a spread is positive"),
        ({"num_train_timesteps": 1}, "at least 2"),
    ],
    ids=str,
)
def test_configs_that_cannot_work_are_refused(kwargs: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        DiffusionConfig(**kwargs)
