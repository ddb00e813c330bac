"""The loop that runs solver tables, and what configs refuse."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from latentlm.diffusion.grids import Grid
from latentlm.diffusion.process import DiffusionConfig, DiffusionProcess
from latentlm.diffusion.solver_tables import Row
from latentlm.diffusion.solvers import Solver, SolverConfig, make_solver

DIFFUSION_CONFIGS = [
    DiffusionConfig(prediction_type="epsilon"),
    DiffusionConfig(prediction_type="sample", beta_schedule="linear"),
    DiffusionConfig(prediction_type="v_prediction"),
    DiffusionConfig(prediction_type="v_prediction", zero_terminal_snr=True),
    DiffusionConfig(process="flow_matching", prediction_type="velocity"),
]


def every_solver(num_steps: int) -> list[SolverConfig]:
    named: list[dict[str, Any]] = [{"name": name} for name in ("ddpm", "ddim", "euler", "heun")]
    named += [{"name": "ddim", "eta": eta} for eta in (0.5, 1.0)]
    named += [{"name": name, "order": order} for name in ("dpm_multistep", "dpm_singlestep") for order in (1, 2, 3)]
    named += [{"name": "dpm_sde", "order": order} for order in (1, 2)]
    return [SolverConfig(num_inference_steps=num_steps, **kwargs) for kwargs in named]


def network(x: Tensor, timestep: Tensor) -> Tensor:
    return torch.tanh(x / 2) * torch.cos(timestep / 1000)


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@given(
    diffusion=st.sampled_from(DIFFUSION_CONFIGS),
    solver_index=st.integers(0, len(every_solver(1)) - 1),
    num_steps=st.integers(1, 25),
    spacing=st.sampled_from(["linspace", "trailing", "logsnr"]),
)
@settings(max_examples=150, deadline=None)
def test_with_an_oracle_denoiser_every_solver_lands_on_the_clean_latents(
    diffusion: DiffusionConfig, solver_index: int, num_steps: int, spacing: Any
) -> None:
    config = every_solver(num_steps)[solver_index]
    config = SolverConfig(**{**vars(config), "spacing": spacing})
    process = DiffusionProcess(diffusion)
    solver = make_solver(process, config, dtype=torch.float64)
    latents, noise = draw(0, 2, 3, 4, dtype=torch.float64)
    step_noise = draw(1, solver.num_evaluations, 3, 4, dtype=torch.float64)
    landed = solver.sample(lambda x, timestep: process.from_sample(latents, x, timestep), noise, step_noise)
    # float64 rounding through at most 49 evaluations, times the 2e4 by which ε-prediction divides at the start.
    torch.testing.assert_close(landed, latents, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    "diffusion", DIFFUSION_CONFIGS, ids=lambda config: f"{config.process}_{config.prediction_type}"
)
def test_float32_tables_follow_float64_tables(diffusion: DiffusionConfig) -> None:
    for config in every_solver(20):
        process = DiffusionProcess(diffusion)
        single, double = (make_solver(process, config, dtype=dtype) for dtype in (torch.float32, torch.float64))
        noise, step_noise = draw(0, 3, 4), draw(1, single.num_evaluations, 3, 4)
        mine = single.sample(network, noise, step_noise)
        exact = double.sample(network, noise.double(), step_noise.double())
        scale = max(1.0, exact.abs().max().item())
        # float32 rounding; relative because ε-prediction at alpha = 5e-5 makes states of 5e4. Karras' Heun weighs two
        # slopes by 1/2q = 350 on the cosine schedule's first step and loses two digits more.
        tolerance = 2e-3 if config.name == "heun" else 1e-5
        torch.testing.assert_close(mine.double(), exact, atol=tolerance * scale, rtol=0)


def test_number_of_evaluations_is_the_number_of_steps_except_for_heun() -> None:
    for diffusion in DIFFUSION_CONFIGS:
        for config in every_solver(6):
            solver = make_solver(DiffusionProcess(diffusion), config)
            # The last step of heun, and its first from ddpm's pure noise, stay Euler's.
            expected = {False: 11, True: 10}[diffusion.zero_terminal_snr] if config.name == "heun" else 6
            assert solver.num_evaluations == len(solver.timesteps) == expected


def test_only_stochastic_solvers_need_noise() -> None:
    process = DiffusionProcess(DiffusionConfig())
    stochastic = {config for config in every_solver(6) if make_solver(process, config).needs_noise}
    assert stochastic == {c for c in every_solver(6) if c.name in ("ddpm", "dpm_sde") or c.eta > 0}


def test_a_stochastic_solver_without_noise_is_refused() -> None:
    solver = make_solver(DiffusionProcess(DiffusionConfig()), SolverConfig(name="ddpm"))
    with pytest.raises(ValueError, match="adds fresh noise at every step"):
        solver.sample(network, draw(0, 3, 4))


def test_half_precision_predictions_do_not_lower_the_states_precision() -> None:
    solver = make_solver(DiffusionProcess(DiffusionConfig()), SolverConfig(num_inference_steps=5))
    noise = draw(0, 3, 4)
    half = solver.sample(lambda x, t: network(x, t).bfloat16(), noise.bfloat16())
    full = solver.sample(lambda x, t: network(x, t).bfloat16().float(), noise.bfloat16().float())
    assert half.dtype == torch.float32
    assert torch.equal(half, full)


def test_every_row_of_a_batch_equals_its_solo_run() -> None:
    for config in every_solver(6):
        solver = make_solver(DiffusionProcess(DiffusionConfig()), config)
        noise, step_noise = draw(0, 3, 4), draw(1, solver.num_evaluations, 3, 4)
        together = solver.sample(network, noise, step_noise)
        alone = solver.sample(network, noise[1:2], step_noise[:, 1:2])
        # Element-wise arithmetic; vectorised tanh may differ in the last bit between sizes.
        torch.testing.assert_close(together[1:2], alone, atol=1e-6, rtol=1e-6)


def test_a_solver_moves_to_a_device_with_its_tensors() -> None:
    solver = make_solver(DiffusionProcess(DiffusionConfig()), SolverConfig(name="ddpm")).to("meta")
    assert solver.needs_noise
    noise = torch.empty(2, 3, device="meta")
    assert solver.sample(network, noise, torch.empty(20, 2, 3, device="meta")).shape == (2, 3)


def test_a_grid_out_of_the_parameterisations_reach_is_refused() -> None:
    process = DiffusionProcess(DiffusionConfig(prediction_type="epsilon"))
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    grid = Grid(ends, 1 - ends, process.ode_variable(ends, 1 - ends), 999 * (1 - ends))
    with pytest.raises(
        ValueError, match="evaluation 0 of this solver has an infinite weight: prediction_type 'epsilon'"
    ):
        Solver.from_rows(process, grid, [Row(point=0, sample=1.0)])


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"num_inference_steps": 0}, "at least one step"),
        ({"order": 4}, "order is 4 but dpm_multistep has orders 1 to 3"),
        ({"name": "dpm_sde", "order": 3}, "order is 3 but dpm_sde has orders 1 to 2"),
        ({"min_log_snr": float("-inf")}, "min_log_snr is -inf; it must be a finite number, or null"),
        ({"name": "ddim", "eta": 1.5}, "lies between 0"),
        ({"name": "ddpm", "eta": 0.5}, "eta is a setting of ddim"),
    ],
    ids=str,
)
def test_configs_that_cannot_work_are_refused(kwargs: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SolverConfig(**kwargs)
