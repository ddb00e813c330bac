"""The authors' schedule, noising, v-target and sampler, from numbers that their released code computed in float32.

microsoft/unilm, folder LatentLM, revision 768a3c8. The sampler is multistep DPM-Solver++ of order 2 with the stand-in
network tanh(x / 2) · cos(t / 1000).
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from latentlm.diffusion.process import DiffusionConfig, DiffusionProcess
from latentlm.diffusion.solvers import SolverConfig, make_solver


@pytest.fixture(scope="module")
def values() -> dict[str, Tensor]:
    return load_file(Path(__file__).parent / "data" / "schedule_and_solver_values.safetensors")


@pytest.mark.parametrize("beta_schedule", ["cosine", "linear"])
def test_alphas_cumprod_are_the_authors(values: dict[str, Tensor], beta_schedule: str) -> None:
    process = DiffusionProcess(DiffusionConfig(beta_schedule=beta_schedule))  # pyright: ignore[reportArgumentType]
    assert process.alphas_cumprod is not None
    # Theirs is a product of 1000 factors accumulated in float32.
    torch.testing.assert_close(
        process.alphas_cumprod.float(), values[f"alphas_cumprod_{beta_schedule}"], atol=1e-6, rtol=0
    )


def test_noisy_latents_and_velocity_are_the_authors(values: dict[str, Tensor]) -> None:
    process = DiffusionProcess(DiffusionConfig())
    clean, noise, timesteps = values["x0"], values["noise"], values["timesteps"]
    # One multiplication and addition on schedules that agree to 1e-6.
    close = {"atol": 1e-5, "rtol": 0}
    torch.testing.assert_close(process.add_noise(clean, noise, timesteps), values["noisy"], **close)
    torch.testing.assert_close(process.training_target(clean, noise, timesteps), values["velocity"], **close)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 5, 10, 20, 50])
@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon"])
def test_every_step_of_the_sampler_is_the_authors(
    values: dict[str, Tensor], prediction_type: str, num_steps: int
) -> None:
    process = DiffusionProcess(DiffusionConfig(prediction_type=prediction_type))  # pyright: ignore[reportArgumentType]
    solver = make_solver(process, SolverConfig(num_inference_steps=num_steps))
    assert solver.timesteps.tolist() == values[f"timesteps_{prediction_type}_{num_steps}"].tolist()
    state = solver.initial_state(values["x_T"])
    for k in range(num_steps):
        prediction = torch.tanh(state.noisy_latents / 2) * torch.cos(solver.timesteps[k] / 1000)
        state = solver.step(k, prediction, state)
        expected = values[f"trajectory_{prediction_type}_{num_steps}"][k]
        # float32 rounding; relative, because ε-prediction divides by alpha = 5e-5 at the first step: states reach 5e4.
        scale = max(1.0, expected.abs().max().item())
        torch.testing.assert_close(state.noisy_latents, expected, atol=1e-5 * scale, rtol=0)
