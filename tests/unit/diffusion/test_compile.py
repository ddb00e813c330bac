"""Noising, the whole sampling loop and guidance are one graph for torch.compile: nothing is read back to the host.

The checks run in a process of their own, without the run-time shape checks that this suite switches on: those are
Python that the compiler cannot trace.
"""

import subprocess
import sys

import torch
from torch import Tensor

from latentlm.diffusion.guidance import GuidanceConfig, guidance_scales, guide
from latentlm.diffusion.process import DiffusionConfig, DiffusionProcess
from latentlm.diffusion.solvers import SolverConfig, make_solver

CONFIGS = [
    DiffusionConfig(zero_terminal_snr=True),
    DiffusionConfig(timestep_distribution="logit_normal"),
    DiffusionConfig(process="flow_matching", prediction_type="velocity"),
]
SOLVERS = [
    SolverConfig(name="ddpm", num_inference_steps=3),
    SolverConfig(name="ddim", num_inference_steps=3, eta=0.5),
    SolverConfig(name="dpm_multistep", num_inference_steps=5, order=3),
    SolverConfig(name="dpm_singlestep", num_inference_steps=5, order=3),
    SolverConfig(name="dpm_sde", num_inference_steps=3),
    SolverConfig(name="euler", num_inference_steps=3),
    SolverConfig(name="heun", num_inference_steps=3),
]


def test_training_and_sampling_compile_without_graph_breaks() -> None:
    finished = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def check_noising(config: DiffusionConfig) -> None:
    process = DiffusionProcess(config)
    latents, noise = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))

    def loss(uniform: Tensor) -> Tensor:
        timesteps = process.timesteps_from_uniform(uniform)
        noisy = process.add_noise(latents, noise, timesteps)
        return (process.training_target(latents, noise, timesteps) - noisy).square().mean()

    uniform = torch.tensor([0.1, 0.5, 0.9])
    torch.testing.assert_close(torch.compile(loss, fullgraph=True, backend="eager")(uniform), loss(uniform))


def check_guided_sampling(config: DiffusionConfig, solver_config: SolverConfig) -> None:
    solver = make_solver(DiffusionProcess(config), solver_config)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3, 4, generator=generator)
    step_noise = torch.randn(solver.num_evaluations, 3, 4, generator=generator)
    guidance = GuidanceConfig(step_schedule="cosine_increasing", interval=(0.0, 900.0))

    def sample(noise: Tensor, cfg_scale: Tensor, position: Tensor) -> Tensor:
        scales = guidance_scales(guidance, cfg_scale, solver.timesteps, position=position, num_positions=4)
        state = solver.initial_state(noise)
        for k in range(solver.num_evaluations):
            x, t = state.noisy_latents, solver.timesteps[k] / 1000
            guided = guide(torch.tanh(x) * t.cos(), torch.tanh(x / 2) * t.cos(), scales[k])
            state = solver.step(k, guided, state, step_noise[k])
        return state.noisy_latents + solver.sample(lambda x, t: torch.tanh(x), noise, step_noise)

    arguments = noise, torch.tensor([1.0, 1.5, 4.0]), torch.tensor([0, 1, 3])
    compiled = torch.compile(sample, fullgraph=True, backend="eager")(*arguments)
    torch.testing.assert_close(compiled, sample(*arguments))
    assert compiled.isfinite().all()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for diffusion_config in CONFIGS:
        check_noising(diffusion_config)
    for each_solver in SOLVERS:
        check_guided_sampling(CONFIGS[0], each_solver)
    check_guided_sampling(CONFIGS[2], SOLVERS[2])
