"""The solvers, one function each: a list of rows, one per network evaluation.

Every solver here is linear in what it remembers: the current x, the anchor (x at the start of the step), the last three
predictions m of x_0, and fresh noise. A row holds the weights:

    m_k = x_0 implied by the network at (x, t)
    x   = x·`x` + anchor·`anchor` + m_k·`sample` + m_{k-1}·`previous_sample` + m_{k-2}·`older_sample` + noise·`noise`
    anchor = x where `restart`

so adding a solver is adding a function, and one loop (solvers.py) runs them all.

Symbols: alpha, sigma and lambda = log(alpha / sigma) of grid points; a step goes from s to t; h = lambda_t - lambda_s;
e^-h = alpha_s sigma_t / (alpha_t sigma_s). Written this way nothing divides by alpha, so a start at pure noise
(lambda_s = -inf) is exact; and at data (sigma_t = 0, h = inf) every solver takes its first-order step, x = m.
"""

import math
from typing import NamedTuple

from latentlm.diffusion.grids import Grid

# lower_order_final acts on short runs only, as in the DPM-Solver code: with many steps the last one is short anyway.
FEW_STEPS = 15


class Row(NamedTuple):
    """Weights of one evaluation; see the module's formula."""

    point: int
    """Grid point at which the network is evaluated."""
    x: float = 0.0
    anchor: float = 0.0
    sample: float = 0.0
    previous_sample: float = 0.0
    older_sample: float = 0.0
    noise: float = 0.0
    restart: bool = True


def ddpm(grid: Grid) -> list[Row]:
    """Ancestral sampling (Ho et al. 2020, Algorithm 2, with the posterior variance), on strided grids too.

    x_t ~ q(x_t | x_s, x_0 = m), their Eq. 7 for any Gaussian path:
    mean sigma_t/sigma_s e^-h x + alpha_t (1 - e^-2h) m, variance sigma_t² (1 - e^-2h).
    The same numbers as `ddim` with eta 1 and `dpm_sde` of order 1.
    """
    alphas, sigmas = grid.alphas.tolist(), grid.sigmas.tolist()
    rows = []
    for k in range(grid.num_steps):
        keep = sigmas[k + 1] / sigmas[k]
        decay = alphas[k] / alphas[k + 1] * keep  # e^-h
        rows.append(
            Row(
                point=k,
                x=keep * decay,
                sample=alphas[k + 1] * (1 - decay**2),
                noise=sigmas[k + 1] * math.sqrt(1 - decay**2),
            )
        )
    return rows


def ddim(grid: Grid, *, eta: float = 0.0) -> list[Row]:
    """DDIM (Song et al. 2021, Eq. 12 with the spread of Eq. 16).

    x_t = alpha_t m + direction · noise_s + spread · fresh noise, where noise_s = (x - alpha_s m) / sigma_s,
    spread = eta sigma_t sqrt(1 - e^-2h) and direction² + spread² = sigma_t². eta 0 is deterministic, 1 is ancestral.
    """
    alphas, sigmas = grid.alphas.tolist(), grid.sigmas.tolist()
    rows = []
    for k in range(grid.num_steps):
        decay = alphas[k] / alphas[k + 1] * sigmas[k + 1] / sigmas[k]  # e^-h
        direction = sigmas[k + 1] * math.sqrt(1 - eta**2 + (eta * decay) ** 2)
        rows.append(
            Row(
                point=k,
                x=direction / sigmas[k],
                sample=alphas[k + 1] - alphas[k] * direction / sigmas[k],
                noise=eta * sigmas[k + 1] * math.sqrt(1 - decay**2),
            )
        )
    return rows


def euler(grid: Grid) -> list[Row]:
    """Euler's method on the probability-flow ODE dy/drho = (y - m) / rho (`DiffusionProcess.ode_variable`).

    Flow matching: x += dt · velocity. ddpm: Euler in sigma / alpha (Karras et al. 2022). Both equal DDIM with eta 0: in
    rho the ODE with m held fixed is a straight line, which Euler follows exactly.
    """
    return ddim(grid, eta=0.0)


def heun(grid: Grid) -> list[Row]:
    """Heun's method on the same ODE (Karras et al. 2022, Algorithm 1): predict with Euler, correct with the mean slope.

    Two evaluations per step. With q = rho_t / rho_s and b = alpha_t - alpha_s sigma_t / sigma_s, both steps put
    sigma_t / sigma_s on x; Euler puts b on m_s, the correction splits b into 1 - 1/2q on m_s and 1/2q on m_t. Where
    q = 0 the slope at one end is infinite and the step stays Euler's: at data, and for ddpm from pure noise. Where q is
    small the mean of the slopes is a poor one: with ddpm use spacing `logsnr`, whose q is even.
    """
    alphas, sigmas = grid.alphas.tolist(), grid.sigmas.tolist()
    variable = grid.ode_variable.tolist()
    rows = []
    for k in range(grid.num_steps):
        keep = sigmas[k + 1] / sigmas[k]
        gain = alphas[k + 1] - alphas[k] * keep
        q = variable[k + 1] / variable[k]
        rows.append(Row(point=k, anchor=keep, sample=gain, restart=q == 0))
        if q > 0:
            late = 1 / (2 * q)
            rows.append(Row(point=k + 1, anchor=keep, sample=gain * late, previous_sample=gain * (1 - late)))
    return rows


def dpm_multistep(
    grid: Grid, *, order: int = 2, lower_order_final: bool = True, second_derivative_weight: float = 2.0
) -> list[Row]:
    """DPM-Solver++ multistep (Lu et al. 2022b, arXiv 2211.01095); order 2 is Algorithm 2 (2M), the paper's sampler.

    x_t = sigma_t/sigma_s x + alpha_t ∫ e^(lambda - lambda_t) m(lambda) dlambda, m a polynomial through the last `order`
    predictions. With D1, D2 = h m', h² m'' its weights are 1 - e^-h, then 1 - (1 - e^-h)/h, then
    1/2 - (1 - (1 - e^-h)/h)/h; order 2 takes (1 - e^-h)/2 for the second, as the authors do ("midpoint").

    Args:
        grid: Where to step.
        order: 1 to 3; the first steps are of lower order, having too little history.
        lower_order_final: In runs under 15 steps, the last two steps are of order 2 and 1 at most.
        second_derivative_weight: D2 = weight · the second divided difference · h². Newton's interpolation says 2, and
            order 3 needs it; the DPM-Solver code and diffusers have 1 (but 2 in their singlestep form), which is of
            order 2. Give 1 to reproduce their numbers.
    """
    alphas, sigmas, log_snr = grid.alphas.tolist(), grid.sigmas.tolist(), grid.log_snr
    rows = []
    for k, step_order in enumerate(_multistep_orders(grid, order, lower_order_final)):
        h = log_snr[k + 1] - log_snr[k]
        phi1 = -math.expm1(-h)  # 1 - e^-h
        first = phi1 / 2 if step_order == 2 else 1 - phi1 / h
        weights = (phi1, 0.0, 0.0)  # of m_k, m_{k-1}, m_{k-2}, in units of alpha_t
        if step_order >= 2:
            h0 = log_snr[k] - log_snr[k - 1]
            slope = h / h0  # D1 = slope (m_k - m_{k-1}); 0 after a step from pure noise, where h0 = inf
            bend = older_slope = 0.0
            if step_order == 3:
                span = log_snr[k] - log_snr[k - 2]
                older_slope = h / (log_snr[k - 1] - log_snr[k - 2])
                # What the change of slope adds to D1 (m' is wanted at m_k, not half a step before) and is in D2.
                bend = first * h0 / span + (0.5 - first / h) * second_derivative_weight * h / span
            straight = first + bend
            weights = (phi1 + straight * slope, -straight * slope - bend * older_slope, bend * older_slope)
        sample, previous_sample, older_sample = (alphas[k + 1] * weight for weight in weights)
        rows.append(
            Row(
                point=k,
                x=sigmas[k + 1] / sigmas[k],
                sample=sample,
                previous_sample=previous_sample,
                older_sample=older_sample,
            )
        )
    return rows


def dpm_singlestep(grid: Grid, *, order: int = 2, lower_order_final: bool = True) -> list[Row]:
    """DPM-Solver++ singlestep (arXiv 2211.01095, Algorithm 1 (2S), and order 3 as in Lu et al. 2022a, Algorithm 2).

    Blocks of `order` grid intervals: every evaluation in a block steps from the block's start (the anchor) to the next
    grid point, with m's slope measured between the start and the latest point of the block. Order 3 is reached where a
    block's points are even in log-SNR (spacing `logsnr`), because 2/3 is the node at which that one slope suffices.

    Args:
        grid: Where to step.
        order: 1 to 3.
        lower_order_final: End with a single step of order 1 (always so at data).
    """
    alphas, sigmas, log_snr = grid.alphas.tolist(), grid.sigmas.tolist(), grid.log_snr
    rows = []
    for start, length in _singlestep_blocks(grid, order, lower_order_final):
        for j in range(length):
            point, target = start + j, start + j + 1
            h = log_snr[target] - log_snr[start]
            phi1 = -math.expm1(-h)
            # Weights of the latest prediction and the two before, in units of alpha_t; the start's is the j-th of them.
            weights = [0.0, 0.0, 0.0]
            if j > 0:
                slope = h / (log_snr[point] - log_snr[start])
                weights[0] = slope * (phi1 / 2 if j == 1 else 1 - phi1 / h)
            weights[j] += phi1 - weights[0]
            sample, previous_sample, older_sample = (alphas[target] * weight for weight in weights)
            rows.append(
                Row(
                    point=point,
                    anchor=sigmas[target] / sigmas[start],
                    sample=sample,
                    previous_sample=previous_sample,
                    older_sample=older_sample,
                    restart=j == length - 1,
                )
            )
    return rows


def dpm_sde(grid: Grid, *, order: int = 2, lower_order_final: bool = True) -> list[Row]:
    """SDE-DPM-Solver++ of order 1 and 2M (arXiv 2211.01095): the reverse SDE where `dpm_multistep` solves the ODE.

    x = sigma_t/sigma_s e^-h x + alpha_t (1 - e^-2h) (m + D1/2) + sigma_t sqrt(1 - e^-2h) noise.
    """
    alphas, sigmas, log_snr = grid.alphas.tolist(), grid.sigmas.tolist(), grid.log_snr
    rows = []
    for k, step_order in enumerate(_multistep_orders(grid, order, lower_order_final)):
        h = log_snr[k + 1] - log_snr[k]
        gain = -math.expm1(-2 * h) * alphas[k + 1]
        slope = h / (log_snr[k] - log_snr[k - 1]) if step_order == 2 else 0.0
        rows.append(
            Row(
                point=k,
                x=sigmas[k + 1] / sigmas[k] * math.exp(-h),
                sample=gain * (1 + slope / 2),
                previous_sample=-gain * slope / 2,
                noise=sigmas[k + 1] * math.sqrt(-math.expm1(-2 * h)),
            )
        )
    return rows


def _multistep_orders(grid: Grid, order: int, lower_order_final: bool) -> list[int]:
    """Order of every step: limited by the history at the start, and by stability at the end."""
    orders = [min(order, k + 1) for k in range(grid.num_steps)]
    few = lower_order_final and grid.num_steps < FEW_STEPS
    if few:
        orders[-2:] = [min(step_order, 2) for step_order in orders[-2:]]
    if few or grid.ends_at_data:
        orders[-1] = 1
    return orders


def _singlestep_blocks(grid: Grid, order: int, lower_order_final: bool) -> list[tuple[int, int]]:
    """(first point, length) of every block; pure noise at the start and data at the end are blocks of their own."""
    first = 1 if grid.alphas[0].item() == 0 else 0
    end = grid.num_steps - 1 if lower_order_final or grid.ends_at_data else grid.num_steps
    blocks = [(0, 1)] if first else []
    blocks += [(start, min(order, end - start)) for start in range(first, end, order)]
    if first < grid.num_steps and end < grid.num_steps:
        blocks.append((end, 1))
    return blocks
