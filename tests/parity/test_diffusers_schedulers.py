"""Our solvers against diffusers' schedulers: same schedule, stand-in network, starting noise and injected noise.

diffusers writes flow-matching time the other way round: its t is 1 - t of ours and its velocity the negative of ours
(noise - x_0). `clip_sample=False` everywhere: latents are not pictures in [-1, 1]. Where a scheduler's own spacing
differs from ours it is given our timesteps.
"""

from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from latentlm.diffusion import solver_tables
from latentlm.diffusion.grids import Grid, make_grid
from latentlm.diffusion.process import DiffusionConfig, DiffusionProcess
from latentlm.diffusion.solvers import Solver, SolverConfig, make_solver

# Their code under numpy 2; nothing of ours.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SHAPE = (4, 8)
# float32 rounding through 20 steps of different, algebraically equal formulas; relative to the largest number seen,
# because ε-prediction divides by alpha = 5e-5 at the cosine schedule's first step and the state grows to 1e4.
TOLERANCE = 1e-5
SCHEDULES = {"cosine": "squaredcos_cap_v2", "linear": "linear"}
DDPM_PREDICTIONS = ["epsilon", "sample", "v_prediction"]


def network(x: Tensor, timestep: Tensor) -> Tensor:
    """A stand-in that is smooth, bounded and depends on both arguments."""
    return torch.tanh(x / 2) * torch.cos(timestep / 1000)


def starting_noise() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


def process_of(prediction_type: str, beta_schedule: str = "cosine", **kwargs: Any) -> DiffusionProcess:
    kwargs["process"] = "flow_matching" if prediction_type == "velocity" else "ddpm"
    return DiffusionProcess(
        DiffusionConfig(prediction_type=prediction_type, beta_schedule=beta_schedule, **kwargs)  # pyright: ignore
    )


def scheduler_of(kind: str, prediction_type: str, beta_schedule: str = "cosine", **kwargs: Any) -> Any:
    schedule = {"beta_schedule": SCHEDULES[beta_schedule], "beta_start": 1e-4, "beta_end": 0.02}
    return getattr(diffusers, kind)(prediction_type=prediction_type, **schedule, **kwargs)


def trajectory(solver: Solver, step_noise: Tensor | None = None) -> list[Tensor]:
    """x after every evaluation of our solver."""
    state, states = solver.initial_state(starting_noise()), []
    for k in range(solver.num_evaluations):
        prediction = network(state.noisy_latents, solver.timesteps[k])
        state = solver.step(k, prediction, state, None if step_noise is None else step_noise[k])
        states.append(state.noisy_latents)
    return states


def their_trajectory(scheduler: Any, step: Callable[[int, Tensor, Tensor, Tensor], Tensor]) -> list[Tensor]:
    """x after every evaluation of theirs; `step(k, prediction, timestep, x)` calls the scheduler."""
    x, states = starting_noise(), []
    for k, timestep in enumerate(scheduler.timesteps):
        x = step(k, network(x, timestep), timestep, x)
        states.append(x)
    return states


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs)
    for k, (mine, reference) in enumerate(zip(ours, theirs, strict=True)):
        scale = max(1.0, reference.abs().max().item())
        difference = (mine - reference).abs().max().item() / scale
        assert difference < TOLERANCE, f"evaluation {k} differs by {difference:.2g}"


def noise_for(num_steps: int) -> Tensor:
    return torch.randn((num_steps, *SHAPE), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("beta_schedule", ["cosine", "linear"])
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_alphas_cumprod_equal_theirs(beta_schedule: str, zero_terminal_snr: bool) -> None:
    process = process_of("v_prediction", beta_schedule, zero_terminal_snr=zero_terminal_snr)
    theirs = scheduler_of(
        "DDPMScheduler", "v_prediction", beta_schedule, rescale_betas_zero_snr=zero_terminal_snr
    ).alphas_cumprod
    assert process.alphas_cumprod is not None
    # Their product of 1000 factors is accumulated in float32.
    torch.testing.assert_close(process.alphas_cumprod.float(), theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("beta_schedule", ["cosine", "linear"])
def test_noisy_latents_and_velocity_equal_theirs(beta_schedule: str) -> None:
    process, scheduler = (
        process_of("v_prediction", beta_schedule),
        scheduler_of("DDPMScheduler", "epsilon", beta_schedule),
    )
    generator = torch.Generator().manual_seed(2)
    latents, noise = torch.randn(2, 16, 8, generator=generator)
    timesteps = torch.randint(1000, (16,), generator=generator)
    # One multiplication and addition on schedules that agree to 1e-6.
    close = {"atol": 1e-5, "rtol": 0}
    torch.testing.assert_close(
        process.add_noise(latents, noise, timesteps), scheduler.add_noise(latents, noise, timesteps), **close
    )
    torch.testing.assert_close(
        process.training_target(latents, noise, timesteps), scheduler.get_velocity(latents, noise, timesteps), **close
    )


@pytest.mark.parametrize("num_steps", [1, 20])
@pytest.mark.parametrize("prediction_type", DDPM_PREDICTIONS)
@pytest.mark.parametrize("beta_schedule", ["cosine", "linear"])
def test_ancestral_sampling_equals_theirs(num_steps: int, prediction_type: str, beta_schedule: str) -> None:
    solver = make_solver(
        process_of(prediction_type, beta_schedule), SolverConfig(name="ddpm", num_inference_steps=num_steps)
    )
    scheduler = scheduler_of("DDPMScheduler", prediction_type, beta_schedule, clip_sample=False)
    scheduler.set_timesteps(timesteps=solver.timesteps.long().tolist())
    # Their scheduler draws its own noise: draw the same numbers from an equal generator.
    ours, theirs = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    step_noise = torch.stack([torch.randn(SHAPE, generator=ours) for _ in range(num_steps)])
    assert_same(
        trajectory(solver, step_noise),
        their_trajectory(
            scheduler, lambda k, out, timestep, x: scheduler.step(out, timestep, x, generator=theirs).prev_sample
        ),
    )


@pytest.mark.parametrize("num_steps", [1, 20])
@pytest.mark.parametrize("prediction_type", DDPM_PREDICTIONS)
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_ddim_equals_theirs(num_steps: int, prediction_type: str, spacing: str, eta: float) -> None:
    scheduler = scheduler_of("DDIMScheduler", prediction_type, clip_sample=False, timestep_spacing=spacing)
    scheduler.set_timesteps(num_steps)
    process = process_of(prediction_type)
    # Their coefficients in float64, from our schedule (compared above): in float32 their a_999 = 2e-9 is off by 3e-5 of
    # itself, which ε-prediction hands on in full, and at eta 1 their 1 - a_t - spread² cancels to a few digits.
    scheduler.alphas_cumprod = process.alphas_cumprod
    config = SolverConfig(name="ddim", num_inference_steps=num_steps, spacing=spacing, eta=eta)  # pyright: ignore
    solver = make_solver(process, config)
    assert solver.timesteps.tolist() == scheduler.timesteps.tolist()
    step_noise = noise_for(num_steps)
    assert_same(
        trajectory(solver, step_noise),
        their_trajectory(
            scheduler,
            lambda k, out, timestep, x: (
                scheduler.step(out, timestep, x, eta=eta, variance_noise=step_noise[k]).prev_sample
            ),
        ),
    )


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
def test_ddim_from_pure_noise_equals_theirs(prediction_type: str) -> None:
    config = SolverConfig(name="ddim", spacing="trailing")
    solver = make_solver(process_of(prediction_type, "linear", zero_terminal_snr=True), config)
    scheduler = scheduler_of(
        "DDIMScheduler",
        prediction_type,
        "linear",
        clip_sample=False,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )
    scheduler.set_timesteps(20)
    assert_same(
        trajectory(solver),
        their_trajectory(scheduler, lambda k, out, timestep, x: scheduler.step(out, timestep, x).prev_sample),
    )


@pytest.mark.parametrize("num_steps", [1, 2, 3, 10, 20])
@pytest.mark.parametrize("prediction_type", DDPM_PREDICTIONS)
@pytest.mark.parametrize("beta_schedule", ["cosine", "linear"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_multistep_dpm_solver_equals_theirs(
    num_steps: int, prediction_type: str, beta_schedule: str, order: int
) -> None:
    process = process_of(prediction_type, beta_schedule)
    grid = make_grid(process, num_steps, "linspace")
    # Weight 1 reproduces their third order; ours is 2 (see test_their_third_order_form_is_of_second_order).
    rows = solver_tables.dpm_multistep(grid, order=order, second_derivative_weight=1.0)
    scheduler = scheduler_of("DPMSolverMultistepScheduler", prediction_type, beta_schedule, solver_order=order)
    scheduler.set_timesteps(num_steps)
    solver = Solver.from_rows(process, grid, rows)
    assert solver.timesteps.tolist() == scheduler.timesteps.tolist()
    assert_same(
        trajectory(solver),
        their_trajectory(scheduler, lambda k, out, timestep, x: scheduler.step(out, timestep, x).prev_sample),
    )


@pytest.mark.parametrize("num_steps", [1, 2, 20, 40])
@pytest.mark.parametrize("prediction_type", DDPM_PREDICTIONS)
@pytest.mark.parametrize("order", [1, 2])
def test_multistep_dpm_solver_with_a_bound_on_the_log_snr_equals_theirs(
    num_steps: int, prediction_type: str, order: int
) -> None:
    scheduler = scheduler_of(
        "DPMSolverMultistepScheduler", prediction_type, solver_order=order, lambda_min_clipped=-5.1
    )
    scheduler.set_timesteps(num_steps)
    config = SolverConfig(num_inference_steps=num_steps, order=order, min_log_snr=-5.1)
    solver = make_solver(process_of(prediction_type), config)
    assert solver.timesteps.tolist() == scheduler.timesteps.tolist()
    assert solver.timesteps[0] < 999
    assert_same(
        trajectory(solver),
        their_trajectory(scheduler, lambda k, out, timestep, x: scheduler.step(out, timestep, x).prev_sample),
    )


@pytest.mark.parametrize("num_steps", [1, 20])
@pytest.mark.parametrize("prediction_type", DDPM_PREDICTIONS)
@pytest.mark.parametrize("order", [1, 2])
def test_sde_dpm_solver_equals_theirs(num_steps: int, prediction_type: str, order: int) -> None:
    config = SolverConfig(name="dpm_sde", num_inference_steps=num_steps, order=order)
    scheduler = scheduler_of(
        "DPMSolverMultistepScheduler", prediction_type, solver_order=order, algorithm_type="sde-dpmsolver++"
    )
    scheduler.set_timesteps(num_steps)
    step_noise = noise_for(num_steps)
    assert_same(
        trajectory(make_solver(process_of(prediction_type), config), step_noise),
        their_trajectory(
            scheduler,
            lambda k, out, timestep, x: scheduler.step(out, timestep, x, variance_noise=step_noise[k]).prev_sample,
        ),
    )


@pytest.mark.parametrize("num_steps", [1, 2, 3, 6, 7, 8, 20])
@pytest.mark.parametrize("prediction_type", DDPM_PREDICTIONS)
@pytest.mark.parametrize("order", [2, 3])
def test_singlestep_dpm_solver_equals_theirs(num_steps: int, prediction_type: str, order: int) -> None:
    config = SolverConfig(name="dpm_singlestep", num_inference_steps=num_steps, order=order)
    scheduler = scheduler_of("DPMSolverSinglestepScheduler", prediction_type, solver_order=order)
    scheduler.set_timesteps(num_steps)
    assert_same(
        trajectory(make_solver(process_of(prediction_type), config)),
        their_trajectory(scheduler, lambda k, out, timestep, x: scheduler.step(out, timestep, x).prev_sample),
    )


@pytest.mark.parametrize("num_steps", [1, 20])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_heun_equals_theirs(num_steps: int, prediction_type: str) -> None:
    # On the linear schedule: theirs keeps y = x / alpha, which starts at 2e4 on the cosine schedule, and float32 then
    # leaves too few digits to compare.
    solver = make_solver(
        process_of(prediction_type, "linear"), SolverConfig(name="heun", num_inference_steps=num_steps)
    )
    scheduler = scheduler_of("HeunDiscreteScheduler", prediction_type, "linear")
    scheduler.set_timesteps(timesteps=[int(timestep) for timestep in dict.fromkeys(solver.timesteps.tolist())])
    # y starts at 157 and ends at 1: theirs runs in float64 so that the digits lost on the way are not theirs.
    scheduler.sigmas = scheduler.sigmas.double()
    y = starting_noise().double() * (scheduler.sigmas[0] ** 2 + 1).sqrt()
    theirs = []
    for k, timestep in enumerate(scheduler.timesteps):
        x = y / (scheduler.sigmas[k] ** 2 + 1).sqrt()
        y = scheduler.step(network(x, timestep), timestep, y).prev_sample
        # After evaluation k, y stands at the noise level of the next one; after the last, at data.
        theirs.append((y / (scheduler.sigmas[k + 1] ** 2 + 1).sqrt()).float())
    assert_same(trajectory(solver), theirs)


@pytest.mark.parametrize("num_steps", [1, 20])
def test_flow_matching_euler_equals_theirs(num_steps: int) -> None:
    solver = make_solver(process_of("velocity"), SolverConfig(name="euler", num_inference_steps=num_steps))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / num_steps, num_steps).tolist())
    theirs, x = [], starting_noise()
    for timestep in scheduler.timesteps:
        x = scheduler.step(-network(x, 1000 - timestep), timestep, x).prev_sample
        theirs.append(x)
    assert_same(trajectory(solver), theirs)


def test_flow_matching_heun_equals_theirs() -> None:
    process, scheduler = process_of("velocity"), diffusers.FlowMatchHeunDiscreteScheduler()
    scheduler.set_timesteps(20)
    # Their grid runs from sigma 1 to 0.001 and then to 0; ours would be even. Repeated points are the corrections'.
    sigmas = scheduler.sigmas.double().unique().flip(0)
    grid = Grid(1 - sigmas, sigmas, sigmas, 1000 * (1 - sigmas))
    theirs, x = [], starting_noise()
    for timestep in scheduler.timesteps:
        x = scheduler.step(-network(x, 1000 - timestep), timestep, x).prev_sample
        theirs.append(x)
    assert_same(trajectory(Solver.from_rows(process, grid, solver_tables.heun(grid))), theirs)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_multistep_dpm_solver_on_flow_matching_equals_theirs(order: int) -> None:
    process = process_of("velocity")
    grid = make_grid(process, 20, "linspace")
    rows = solver_tables.dpm_multistep(grid, order=order, second_derivative_weight=1.0)
    scheduler = diffusers.DPMSolverMultistepScheduler(
        solver_order=order, prediction_type="flow_prediction", use_flow_sigmas=True
    )
    scheduler.set_timesteps(20)
    # Their own grid stops short of both ends; ours starts from pure noise, where lambda is -inf.
    scheduler.sigmas = grid.sigmas.float()
    theirs, x = [], starting_noise()
    for k, timestep in enumerate(scheduler.timesteps):
        x = scheduler.step(-network(x, 1000 * (1 - scheduler.sigmas[k])), timestep, x).prev_sample
        theirs.append(x)
    assert_same(trajectory(Solver.from_rows(process, grid, rows)), theirs)
