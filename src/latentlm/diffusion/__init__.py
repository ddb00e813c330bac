"""The diffusion process, its solvers and guidance; knows no network, only `denoise(noisy_latents, timesteps)`."""
