"""Where solvers step."""

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from latentlm.diffusion.grids import MAX_LOG_SNR, make_grid
from latentlm.diffusion.process import DiffusionConfig, DiffusionProcess

DDPM = DiffusionProcess(DiffusionConfig())
ZERO_SNR = DiffusionProcess(DiffusionConfig(zero_terminal_snr=True, beta_schedule="linear"))
FLOW = DiffusionProcess(DiffusionConfig(process="flow_matching", prediction_type="velocity"))


@given(
    process=st.sampled_from([DDPM, ZERO_SNR, FLOW]),
    num_steps=st.integers(1, 200),
    spacing=st.sampled_from(["linspace", "leading", "trailing", "logsnr"]),
)
@settings(max_examples=100, deadline=None)
def test_every_grid_falls_in_noise_and_ends_at_data(process: DiffusionProcess, num_steps: int, spacing: Any) -> None:
    assume(process is not FLOW or spacing != "leading")
    grid = make_grid(process, num_steps, spacing)
    assert grid.num_steps == num_steps
    assert (torch.tensor(grid.log_snr).diff() > 0).all()
    assert grid.ends_at_data
    assert grid.alphas[-1] == 1
    alphas, sigmas = process.signal_and_noise(grid.timesteps[:-1], dtype=torch.float64)
    assert torch.equal(alphas, grid.alphas[:-1])
    assert torch.equal(sigmas, grid.sigmas[:-1])


def test_linspace_drops_the_cleanest_timestep_and_trailing_counts_down_from_the_noisiest() -> None:
    # As the authors' sampler with five steps; the others as in Lin et al. 2023, Table 2.
    assert make_grid(DDPM, 5, "linspace").timesteps[:-1].tolist() == [999, 799, 599, 400, 200]
    assert make_grid(DDPM, 5, "trailing").timesteps[:-1].tolist() == [999, 799, 599, 399, 199]
    assert make_grid(DDPM, 5, "leading").timesteps[:-1].tolist() == [800, 600, 400, 200, 0]
    assert make_grid(FLOW, 5, "linspace").timesteps[:-1].tolist() == [0, 200, 400, 600, 800]


@pytest.mark.parametrize("process", [DDPM, ZERO_SNR, FLOW], ids=["ddpm", "zero_snr", "flow"])
def test_logsnr_starts_at_the_noisiest_timestep_and_is_even_after_it(process: DiffusionProcess) -> None:
    grid = make_grid(process, 20, "logsnr")
    assert grid.timesteps[0] == (0 if process is FLOW else 999)
    gaps = torch.tensor(grid.log_snr[1:-1], dtype=torch.float64).diff()
    # float64 rounding, enlarged where 1 - a_t is small.
    torch.testing.assert_close(gaps, gaps[:1].expand(18), atol=1e-9, rtol=0)
    assert abs(grid.log_snr[1]) < MAX_LOG_SNR


def test_a_thousand_ancestral_steps_visit_every_timestep() -> None:
    assert make_grid(DDPM, 1000, "trailing").timesteps[:-1].tolist() == list(range(999, -1, -1))


@pytest.mark.parametrize(("num_steps", "spacing"), [(1000, "linspace"), (1001, "trailing"), (1001, "leading")])
def test_grids_that_repeat_timesteps_are_refused(num_steps: int, spacing: Any) -> None:
    with pytest.raises(ValueError, match="repeats timesteps of a schedule of 1000"):
        make_grid(DDPM, num_steps, spacing)


def test_leading_flow_matching_is_refused() -> None:
    with pytest.raises(ValueError, match="short of pure noise"):
        make_grid(FLOW, 10, "leading")


@pytest.mark.parametrize(
    ("process", "spacing"),
    [
        (process, spacing)
        for process in (DDPM, ZERO_SNR, FLOW)
        for spacing in ("linspace", "leading", "trailing", "logsnr")
        if process is not FLOW or spacing != "leading"
    ],
)
@pytest.mark.parametrize("num_steps", [1, 7, 20])
def test_a_bound_on_the_log_snr_cuts_the_noisy_end_and_nothing_else(
    process: DiffusionProcess, spacing: Any, num_steps: int
) -> None:
    grid = make_grid(process, num_steps, spacing, min_log_snr=-3.0)
    assert grid.num_steps == num_steps
    assert grid.ends_at_data
    assert (torch.tensor(grid.log_snr).diff() > 0).all()
    assert grid.log_snr[0] >= -3.0 - 1e-12  # flow matching starts there exactly, up to float64 rounding
    if spacing != "leading":  # which starts short of the noisiest timestep that is allowed
        noisier = grid.timesteps[:1] + (-1e-6 if process is FLOW else 1.0)
        alpha, sigma = process.signal_and_noise(noisier, dtype=torch.float64)
        assert (alpha.log() - sigma.log()).item() < -3.0


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing", "logsnr"])
def test_a_bound_below_the_schedule_changes_nothing(spacing: Any) -> None:
    grids = make_grid(DDPM, 20, spacing), make_grid(DDPM, 20, spacing, min_log_snr=-50.0)
    assert all(torch.equal(*pair) for pair in zip(*grids, strict=True))


def test_a_bound_that_leaves_too_few_timesteps_is_refused() -> None:
    with pytest.raises(ValueError, match=r"min_log_snr=50\.0 leaves no timestep"):
        make_grid(DDPM, 1, "linspace", min_log_snr=50.0)
    with pytest.raises(ValueError, match=r"schedule of 1000, of which \d+ have a log-SNR of 3\.0 or more"):
        make_grid(DDPM, 100, "linspace", min_log_snr=3.0)
