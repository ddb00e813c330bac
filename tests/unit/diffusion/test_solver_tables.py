"""The solvers' orders of convergence, closed forms and laws, on problems whose answers are known; float64.

The test problem is a 1-D Gaussian mixture. Its denoiser E[x_0 | x_t] is known; and because the probability-flow ODE
keeps quantiles in one dimension, the exact end of a trajectory is F_end⁻¹(F_start(x)).
"""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from latentlm.diffusion import solver_tables
from latentlm.diffusion.grids import Grid, make_grid
from latentlm.diffusion.process import DiffusionConfig, DiffusionProcess
from latentlm.diffusion.solver_tables import Row
from latentlm.diffusion.solvers import Solver, SolverConfig, make_solver

WEIGHTS = torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64)
MEANS = torch.tensor([-1.2, 0.4, 1.5], dtype=torch.float64)
STDS = torch.tensor([0.5, 0.35, 0.6], dtype=torch.float64)

DDPM = DiffusionProcess(DiffusionConfig())
ZERO_SNR = DiffusionProcess(DiffusionConfig(zero_terminal_snr=True))
FLOW = DiffusionProcess(DiffusionConfig(process="flow_matching", prediction_type="velocity"))
PROCESSES = pytest.mark.parametrize("process", [DDPM, FLOW], ids=["ddpm", "flow"])

Build = Callable[[Grid], list[Row]]


def expected_sample(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """E[x_0 | alpha x_0 + sigma noise = x], what a perfect network says; for x of any shape."""
    # Components along a new first dimension: quick for many x.
    weights, means, stds = (values.to(x.dtype).reshape(-1, *[1] * x.dim()) for values in (WEIGHTS, MEANS, STDS))
    variances = alpha**2 * stds**2 + sigma**2
    offsets = x - alpha * means
    log_likelihood = weights.log() - variances.log() / 2 - offsets**2 / (2 * variances)
    by_component = means + alpha * stds**2 / variances * offsets
    return (log_likelihood.softmax(dim=0) * by_component).sum(dim=0)


def quantile(probabilities: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Inverse distribution function of the mixture diffused to (alpha, sigma), by bisection to the last bit."""
    stds = (alpha**2 * STDS**2 + sigma**2).sqrt()
    low, high = torch.full_like(probabilities, -20.0), torch.full_like(probabilities, 20.0)
    for _ in range(70):
        middle = (low + high) / 2
        distribution = (WEIGHTS * torch.special.ndtr((middle - alpha * MEANS) / stds)).sum(dim=-1, keepdim=True)
        below = distribution < probabilities
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def levels(process: DiffusionProcess, log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) of the process at any log(alpha / sigma), between timesteps too."""
    if process is FLOW:
        return torch.sigmoid(log_snr), torch.sigmoid(-log_snr)
    return torch.sigmoid(2 * log_snr).sqrt(), torch.sigmoid(-2 * log_snr).sqrt()


def log_snr_grid(process: DiffusionProcess, num_steps: int, *, bend: float = 1.0) -> Grid:
    """From very noisy (alpha / sigma = e^-5) to a noise level at which data's features show (e^1.5).

    Even in log-SNR; `bend` above 1 makes steps grow along the way. The log-SNR stands in for the timestep.
    """
    log_snr = -5 + 6.5 * torch.linspace(0, 1, num_steps + 1, dtype=torch.float64) ** bend
    alphas, sigmas = levels(process, log_snr)
    return Grid(alphas, sigmas, process.ode_variable(alphas, sigmas), log_snr)


def endpoint_error(process: DiffusionProcess, build: Build, grid: Grid) -> float:
    """Largest distance from the exact end over 19 trajectories."""
    probabilities = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)[:, None]
    start = quantile(probabilities, grid.alphas[0], grid.sigmas[0])
    exact = quantile(probabilities, grid.alphas[-1], grid.sigmas[-1])

    def denoise(x: Tensor, log_snr: Tensor) -> Tensor:
        alpha, sigma = levels(process, log_snr)
        on_noisy, on_prediction = process.sample_weights(alpha, sigma)
        return (expected_sample(x, alpha, sigma) - on_noisy * x) / on_prediction

    solver = Solver.from_rows(process, grid, build(grid), dtype=torch.float64)
    return (solver.sample(denoise, start) - exact).abs().max().item()


def convergence_order(process: DiffusionProcess, build: Build, *, bend: float = 1.0) -> float:
    """log2 of how much the error falls from 96 to 192 steps (both divisible into blocks of 2 and 3)."""
    coarse, fine = (
        endpoint_error(process, build, log_snr_grid(process, num_steps, bend=bend)) for num_steps in (96, 192)
    )
    return math.log2(coarse / fine)


def multistep(order: int) -> Build:
    return partial(solver_tables.dpm_multistep, order=order, lower_order_final=False)


def singlestep(order: int) -> Build:
    return partial(solver_tables.dpm_singlestep, order=order, lower_order_final=False)


ORDERS: dict[str, tuple[Build, int]] = {
    "ddim": (solver_tables.ddim, 1),
    "euler": (solver_tables.euler, 1),
    "heun": (solver_tables.heun, 2),
    "multistep_1": (multistep(1), 1),
    "multistep_2": (multistep(2), 2),
    "multistep_3": (multistep(3), 3),
    "singlestep_1": (singlestep(1), 1),
    "singlestep_2": (singlestep(2), 2),
    "singlestep_3": (singlestep(3), 3),
}


@PROCESSES
@pytest.mark.parametrize("name", ORDERS)
def test_order_of_convergence_is_within_a_fifth_of_nominal(process: DiffusionProcess, name: str) -> None:
    build, nominal = ORDERS[name]
    assert convergence_order(process, build) == pytest.approx(nominal, abs=0.2)


@PROCESSES
@pytest.mark.parametrize("name", ["ddim", "heun", "multistep_2", "multistep_3", "singlestep_2"])
def test_order_holds_on_uneven_grids(process: DiffusionProcess, name: str) -> None:
    build, nominal = ORDERS[name]
    assert convergence_order(process, build, bend=1.3) == pytest.approx(nominal, abs=0.2)


@PROCESSES
def test_their_third_order_form_is_of_second_order(process: DiffusionProcess) -> None:
    """Half of the second derivative (as diffusers and the DPM-Solver code have it) costs an order; ours does not."""
    halved = partial(multistep(3), second_derivative_weight=1.0)
    assert convergence_order(process, halved) == pytest.approx(2, abs=0.2)
    grid = log_snr_grid(process, 192)
    assert endpoint_error(process, multistep(3), grid) < endpoint_error(process, halved, grid) / 3


GAUSSIAN_MEAN, GAUSSIAN_STD = 0.7, 0.6


def gaussian_moment_errors(process: DiffusionProcess, build: Build, grid: Grid) -> tuple[float, float]:
    """Errors of a solver's mean and variance on data N(0.7, 0.6²), exactly, without sampling.

    The denoiser is linear in x, so the end is linear in the start and in each step's noise: run the solver once on the
    mean and once on every unit of noise.
    """
    solver = Solver.from_rows(process, grid, build(grid), dtype=torch.float64)

    def denoiser(mean: float) -> Callable[[Tensor, Tensor], Tensor]:
        def denoise(x: Tensor, log_snr: Tensor) -> Tensor:
            alpha, sigma = levels(process, log_snr)
            gain = alpha * GAUSSIAN_STD**2 / (alpha**2 * GAUSSIAN_STD**2 + sigma**2)
            on_noisy, on_prediction = process.sample_weights(alpha, sigma)
            return (mean + gain * (x - alpha * mean) - on_noisy * x) / on_prediction

        return denoise

    def moments(point: int) -> tuple[Tensor, Tensor]:
        alpha, sigma = grid.alphas[point], grid.sigmas[point]
        return alpha * GAUSSIAN_MEAN, alpha**2 * GAUSSIAN_STD**2 + sigma**2

    (start_mean, start_variance), (end_mean, end_variance) = moments(0), moments(-1)
    num_evaluations = solver.num_evaluations
    silence = torch.zeros(num_evaluations, 1, 1, dtype=torch.float64)
    mean = solver.sample(denoiser(GAUSSIAN_MEAN), start_mean.reshape(1, 1), silence)
    # Row 0 carries the starting spread, row k + 1 the noise of step k.
    units = torch.eye(num_evaluations + 1, dtype=torch.float64)[:, :, None]
    responses = solver.sample(denoiser(0.0), units[0] * start_variance.sqrt(), units[1:])
    return (mean - end_mean).abs().item(), (responses.square().sum() - end_variance).abs().item()


@PROCESSES
@pytest.mark.parametrize(
    ("build", "nominal"),
    [
        (solver_tables.ddpm, 1),
        (partial(solver_tables.ddim, eta=0.5), 1),
        (partial(solver_tables.ddim, eta=1.0), 1),
        (partial(solver_tables.dpm_sde, order=1, lower_order_final=False), 1),
        (partial(solver_tables.dpm_sde, order=2, lower_order_final=False), 2),
    ],
    ids=["ddpm", "ddim_0.5", "ddim_1", "sde_1", "sde_2"],
)
def test_weak_order_of_stochastic_solvers_is_within_a_fifth_of_nominal(
    process: DiffusionProcess, build: Build, nominal: int
) -> None:
    # Finer than above: the second order's error changes sign near 50 steps.
    coarse, fine = (
        gaussian_moment_errors(process, build, log_snr_grid(process, num_steps)) for num_steps in (192, 384)
    )
    # A start at the exact mean stays there: the network says the mean, whatever the step. float64 rounding.
    assert max(coarse[0], fine[0]) < 1e-12
    assert math.log2(coarse[1] / fine[1]) == pytest.approx(nominal, abs=0.2)


EVERY_SOLVER: dict[str, Build] = {
    "ddpm": solver_tables.ddpm,
    "ddim": solver_tables.ddim,
    "ddim_0.5": partial(solver_tables.ddim, eta=0.5),
    "ddim_1": partial(solver_tables.ddim, eta=1.0),
    "euler": solver_tables.euler,
    "heun": solver_tables.heun,
    **{f"multistep_{order}": partial(solver_tables.dpm_multistep, order=order) for order in (1, 2, 3)},
    **{f"singlestep_{order}": partial(solver_tables.dpm_singlestep, order=order) for order in (1, 2, 3)},
    **{f"sde_{order}": partial(solver_tables.dpm_sde, order=order) for order in (1, 2)},
}


@pytest.mark.parametrize("process", [DDPM, ZERO_SNR, FLOW], ids=["ddpm", "zero_snr", "flow"])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("name", EVERY_SOLVER)
def test_every_row_keeps_to_the_path(process: DiffusionProcess, name: str, num_steps: int) -> None:
    """Where the network always says the true x_0, a row takes its law at one grid point to its law at the next:
    signal alpha_s -> alpha_t and, fresh noise included, variance sigma_s² -> sigma_t²."""
    grid = make_grid(process, num_steps, "linspace")
    rows = EVERY_SOLVER[name](grid)
    points = [row.point for row in rows] + [num_steps]
    anchor = 0
    for row, target in zip(rows, points[1:], strict=True):
        source = row.point if row.x else anchor
        keep = row.x + row.anchor
        signal = keep * grid.alphas[source] + row.sample + row.previous_sample + row.older_sample
        variance = (keep * grid.sigmas[source]) ** 2 + row.noise**2
        # float64 rounding of sums of weights up to 1e2.
        assert signal.item() == pytest.approx(grid.alphas[target].item(), abs=1e-12)
        assert variance.item() == pytest.approx(grid.sigmas[target].item() ** 2, abs=1e-12)
        anchor = target if row.restart else anchor


@pytest.mark.parametrize("process", [DDPM, ZERO_SNR, FLOW], ids=["ddpm", "zero_snr", "flow"])
@pytest.mark.parametrize(
    ("one", "other"),
    [("ddpm", "ddim_1"), ("ddpm", "sde_1"), ("ddim", "euler"), ("ddim", "multistep_1")],
    ids=lambda name: name,
)
def test_first_order_solvers_are_two_algorithms_under_six_names(
    process: DiffusionProcess, one: str, other: str
) -> None:
    grid = make_grid(process, 20, "trailing")
    table, same = (torch.tensor(EVERY_SOLVER[name](grid), dtype=torch.float64) for name in (one, other))
    # The same numbers by other operations; float64.
    torch.testing.assert_close(table, same, atol=1e-12, rtol=0)


def test_euler_on_flow_matching_adds_time_step_times_velocity() -> None:
    noise = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    solver = make_solver(FLOW, SolverConfig(name="euler", num_inference_steps=10), dtype=torch.float64)
    x = noise
    for k in range(10):
        x = x + 0.1 * torch.tanh(x * (k / 10))
    # The table goes through x_0 = x + sigma v and back: float64 rounding.
    torch.testing.assert_close(solver.sample(lambda x, t: torch.tanh(x * t / 1000), noise), x, atol=1e-13, rtol=0)


def test_euler_on_ddpm_steps_in_sigma_over_alpha() -> None:
    grid = make_grid(DDPM, 10, "linspace")
    noise = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y, rho = noise / grid.alphas[0], grid.sigmas / grid.alphas
    for k in range(10):
        y = y + (rho[k + 1] - rho[k]) * (y - torch.tanh(grid.alphas[k] * y)) / rho[k]
    predict_sample = DiffusionProcess(DiffusionConfig(prediction_type="sample"))
    solver = Solver.from_rows(predict_sample, grid, solver_tables.euler(grid), dtype=torch.float64)
    # y starts at 2e4 (alpha 5e-5), which costs five of float64's digits.
    torch.testing.assert_close(solver.sample(lambda x, t: torch.tanh(x), noise), y, atol=1e-10, rtol=0)


def test_orders_are_lowered_at_both_ends_of_short_runs() -> None:
    def history(rows: list[Row]) -> list[int]:
        return [1 + (row.previous_sample != 0) + (row.older_sample != 0) for row in rows]

    assert history(solver_tables.dpm_multistep(make_grid(DDPM, 6, "linspace"), order=3)) == [1, 2, 3, 3, 2, 1]
    assert history(solver_tables.dpm_multistep(make_grid(DDPM, 15, "linspace"), order=3)) == [1, 2] + [3] * 12 + [1]
    kept = solver_tables.dpm_multistep(make_grid(DDPM, 6, "linspace"), order=3, lower_order_final=False)
    assert history(kept) == [1, 2, 3, 3, 3, 1]
    # From pure noise the first step says nothing of the slope: the second has to be of first order, in effect.
    assert history(solver_tables.dpm_multistep(make_grid(FLOW, 5, "linspace"), order=2)) == [1, 1, 2, 2, 1]


def test_singlestep_blocks_keep_pure_noise_and_data_to_themselves() -> None:
    def restarts(process: DiffusionProcess, num_steps: int, order: int) -> list[bool]:
        return [
            row.restart for row in solver_tables.dpm_singlestep(make_grid(process, num_steps, "linspace"), order=order)
        ]

    assert restarts(DDPM, 5, 2) == [False, True, False, True, True]
    assert restarts(DDPM, 4, 2) == [False, True, True, True]
    assert restarts(DDPM, 7, 3) == [False, False, True, False, False, True, True]
    assert restarts(FLOW, 6, 2) == [True, False, True, False, True, True]


# Steps enough for each solver's own error to be well under a standard error of 100,000 samples. Euler and the other
# first-order forms are ddim's or ddpm's tables (see above). Karras' Heun wants steps even in log(sigma / alpha): the
# cosine schedule's first timesteps are too far apart for it.
MOMENT_CASES = [
    SolverConfig(name="ddpm", num_inference_steps=1000, spacing="trailing"),
    SolverConfig(name="ddim", num_inference_steps=500),
    SolverConfig(name="ddim", num_inference_steps=500, eta=0.5),
    SolverConfig(name="heun", num_inference_steps=100, spacing="logsnr"),
    SolverConfig(name="dpm_multistep", num_inference_steps=50, order=2),
    SolverConfig(name="dpm_multistep", num_inference_steps=50, order=3),
    SolverConfig(name="dpm_singlestep", num_inference_steps=100, order=2),
    SolverConfig(name="dpm_singlestep", num_inference_steps=51, order=3, spacing="logsnr"),
    SolverConfig(name="dpm_sde", num_inference_steps=100, order=2),
]


@PROCESSES
@pytest.mark.parametrize("config", MOMENT_CASES, ids=lambda config: f"{config.name}_{config.order}_{config.eta}")
def test_a_hundred_thousand_samples_have_the_mixtures_moments(process: DiffusionProcess, config: SolverConfig) -> None:
    count, generator = 100_000, torch.Generator().manual_seed(0)
    solver = make_solver(process, config)
    state = solver.initial_state(torch.randn(count, 1, generator=generator))
    for k in range(solver.num_evaluations):
        alpha, sigma = process.signal_and_noise(solver.timesteps[k])
        sample = expected_sample(state.noisy_latents, alpha, sigma)
        prediction = process.from_sample(sample, state.noisy_latents, solver.timesteps[k])
        noise = torch.randn(count, 1, generator=generator) if solver.needs_noise else None
        state = solver.step(k, prediction, state, noise)
    samples = state.noisy_latents.double()

    mean = (WEIGHTS * MEANS).sum()
    offsets = MEANS - mean
    variance = (WEIGHTS * (STDS**2 + offsets**2)).sum()
    fourth = (WEIGHTS * (offsets**4 + 6 * offsets**2 * STDS**2 + 3 * STDS**4)).sum()
    # Standard errors of a mean and of a variance over `count` independent samples.
    assert abs(samples.mean() - mean) < 3 * (variance / count).sqrt()
    assert abs(samples.var() - variance) < 3 * ((fourth - variance**2) / count).sqrt()
