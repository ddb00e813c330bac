"""Solvers: from noise to a latent in a few evaluations of `denoise(noisy_latents, timesteps) -> prediction`.

A solver is a table (solver_tables.py), computed once in float64; running it is the same tensor arithmetic for all of
them, without branches on data or reads to the host, so that the loop can be compiled or captured whole.

Shapes: K network evaluations, batch any leading dimensions, C latent_dim.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from latentlm.diffusion import solver_tables
from latentlm.diffusion.grids import Grid, Spacing, make_grid
from latentlm.diffusion.process import DiffusionProcess
from latentlm.diffusion.solver_tables import Row

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(noisy_latents [*batch, C], one timestep []) -> prediction [*batch, C]."""


@dataclass(frozen=True, kw_only=True)
class SolverConfig:
    """Which solver and how many steps; the default is the paper's (DPM-Solver++ 2M, 20 steps)."""

    name: Literal["ddpm", "ddim", "dpm_multistep", "dpm_singlestep", "dpm_sde", "euler", "heun"] = "dpm_multistep"
    num_inference_steps: int = 20
    """Grid intervals. Each costs one network evaluation; heun costs two, but one at the last."""
    order: int = 2
    """Of the dpm solvers: 1 to 3, dpm_sde 1 or 2."""
    spacing: Spacing = "linspace"
    min_log_snr: float | None = None
    """Start at the noisiest timestep whose log(alpha / sigma) is at least this; null starts at the noisiest of all. The
    cosine schedule begins at -9.9, where x_0 = (x - sigma epsilon) / alpha multiplies an error of epsilon by 2e4; with
    -5.1, which is customary there, by 160."""
    eta: float = 0.0
    """Noise of ddim: 0 deterministic, 1 ancestral."""
    lower_order_final: bool = True
    """dpm solvers: end with lower orders when steps are few (under 15)."""

    def __post_init__(self) -> None:
        if self.min_log_snr is not None and not math.isfinite(self.min_log_snr):
            raise ValueError(f"min_log_snr is {self.min_log_snr}; it must be a finite number, or null for no bound")
        if self.num_inference_steps < 1:
            raise ValueError(f"num_inference_steps is {self.num_inference_steps} but sampling takes at least one step")
        highest = 2 if self.name == "dpm_sde" else 3
        if self.name.startswith("dpm_") and not 1 <= self.order <= highest:
            raise ValueError(f"order is {self.order} but {self.name} has orders 1 to {highest}")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta is {self.eta} but lies between 0 (deterministic) and 1 (ancestral)")
        if self.eta > 0 and self.name != "ddim":
            raise ValueError(f"eta is a setting of ddim, not of {self.name}; for noise use ddpm or dpm_sde")


class SolverState(NamedTuple):
    """What a solver remembers between evaluations."""

    noisy_latents: Float[Tensor, "*batch C"]
    """x, the network's next input."""
    anchor: Float[Tensor, "*batch C"]
    """x at the start of the current step."""
    previous_sample: Float[Tensor, "*batch C"]
    """The last prediction of x_0."""
    older_sample: Float[Tensor, "*batch C"]
    """The one before."""


class Solver:
    """A table of weights and the loop that applies it; immutable.

    Args:
        table: One row per evaluation: x_0 from x, x_0 from the prediction, then `Row`'s weights in order.
        timesteps: What the network is told at each evaluation.
        needs_noise: Whether any row adds fresh noise.
    """

    def __init__(self, table: Float[Tensor, "K 9"], timesteps: Float[Tensor, "K"], *, needs_noise: bool) -> None:
        self.table = table
        self.timesteps = timesteps
        self.needs_noise = needs_noise

    @classmethod
    def from_rows(
        cls, process: DiffusionProcess, grid: Grid, rows: list[Row], *, dtype: torch.dtype = torch.float32
    ) -> "Solver":
        """Join a solver's rows with the process's map from predictions to x_0.

        Args:
            process: Supplies `sample_weights`.
            grid: The grid the rows were made for.
            rows: From a function of solver_tables.py.
            dtype: The loop's; the table is computed in float64 and rounded once.

        Raises:
            ValueError: If a weight is not finite: the parameterisation or a custom grid does not reach that far.
        """
        points = torch.tensor([row.point for row in rows])
        on_noisy, on_prediction = process.sample_weights(grid.alphas[points], grid.sigmas[points])
        weights = torch.tensor([row[1:] for row in rows], dtype=torch.float64)
        table = torch.cat([on_noisy[:, None], on_prediction[:, None], weights], dim=1)
        if not table.isfinite().all():
            bad = int((~table.isfinite()).any(dim=1).nonzero()[0, 0])
            raise ValueError(
                f"evaluation {bad} of this solver has an infinite weight: prediction_type "
                f"{process.config.prediction_type!r} at alpha={grid.alphas[points[bad]]:.3g}, "
                f"sigma={grid.sigmas[points[bad]]:.3g}; only the ends of a grid may be pure noise or data"
            )
        needs_noise = any(row.noise != 0 for row in rows)
        return cls(table.to(dtype), grid.timesteps[points].to(dtype), needs_noise=needs_noise)

    @property
    def num_evaluations(self) -> int:
        """K: how often the network is called."""
        return self.table.shape[0]

    def to(self, device: torch.device | str) -> "Solver":
        """The same solver with its tensors on `device`."""
        return Solver(self.table.to(device), self.timesteps.to(device), needs_noise=self.needs_noise)

    def initial_state(self, noise: Float[Tensor, "*batch C"]) -> SolverState:
        """The state before the first evaluation: x is standard normal noise."""
        x = noise.to(self.table.dtype)
        return SolverState(x, x, torch.zeros_like(x), torch.zeros_like(x))

    def step(
        self,
        k: int,
        prediction: Float[Tensor, "*batch C"],
        state: SolverState,
        noise: Float[Tensor, "*batch C"] | None = None,
    ) -> SolverState:
        """Take in evaluation k.

        Args:
            k: 0 to `num_evaluations` - 1, in order.
            prediction: The network's (guided) output at (state.noisy_latents, timesteps[k]).
            state: From `initial_state` or the step before.
            noise: Standard normal; required where `needs_noise`, unused otherwise.
        """
        dtype = self.table.dtype
        weights = self.table[k].unbind()
        on_noisy, on_prediction, on_x, on_anchor, on_sample, on_previous, on_older, on_noise, restart = weights
        # The cast matters: a half-precision prediction times a float32 scalar tensor would stay in half precision.
        sample = on_noisy * state.noisy_latents + on_prediction * prediction.to(dtype)
        x = on_x * state.noisy_latents + on_anchor * state.anchor + on_sample * sample
        x = x + on_previous * state.previous_sample + on_older * state.older_sample
        if self.needs_noise:
            if noise is None:
                raise ValueError("this solver adds fresh noise at every step: give `noise` (`step_noise` of sample)")
            x = x + on_noise * noise.to(dtype)
        anchor = torch.where(restart > 0, x, state.anchor)
        return SolverState(x, anchor, sample, state.previous_sample)

    def sample(
        self,
        denoise: Denoise,
        noise: Float[Tensor, "*batch C"],
        step_noise: Float[Tensor, "K *batch C"] | None = None,
    ) -> Float[Tensor, "*batch C"]:
        """Run the whole loop.

        Args:
            denoise: The network with its condition and guidance inside.
            noise: Standard normal starting point.
            step_noise: Standard normal, one per evaluation; required where `needs_noise`.

        Returns:
            Clean latents, in the table's type.
        """
        state = self.initial_state(noise)
        for k in range(self.num_evaluations):
            prediction = denoise(state.noisy_latents, self.timesteps[k])
            state = self.step(k, prediction, state, None if step_noise is None else step_noise[k])
        return state.noisy_latents


def make_solver(process: DiffusionProcess, config: SolverConfig, *, dtype: torch.dtype = torch.float32) -> Solver:
    """The solver that `config` names, for `process`, on the CPU (see `Solver.to`)."""
    grid = make_grid(process, config.num_inference_steps, config.spacing, min_log_snr=config.min_log_snr)
    order = {"order": config.order, "lower_order_final": config.lower_order_final}
    match config.name:
        case "ddpm":
            rows = solver_tables.ddpm(grid)
        case "ddim":
            rows = solver_tables.ddim(grid, eta=config.eta)
        case "euler":
            rows = solver_tables.euler(grid)
        case "heun":
            rows = solver_tables.heun(grid)
        case "dpm_multistep":
            rows = solver_tables.dpm_multistep(grid, **order)
        case "dpm_singlestep":
            rows = solver_tables.dpm_singlestep(grid, **order)
        case "dpm_sde":
            rows = solver_tables.dpm_sde(grid, **order)
    return Solver.from_rows(process, grid, rows, dtype=dtype)
