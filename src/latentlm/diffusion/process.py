"""The diffusion process: how latents are noised and what the network is asked to predict (paper Section 2.1, Eq. 2).

Both processes are Gaussian paths x_t = alpha_t x_0 + sigma_t noise:

    ddpm            alpha = sqrt(a_t), sigma = sqrt(1 - a_t), integer t in 0..T-1; t = 0 is nearly clean
    flow_matching   alpha = t, sigma = 1 - t, real t in [0, 1]; t = 1 is data (others write time the other way round:
                    t -> 1 - t and velocity -> -velocity)

`timesteps` is everywhere what the network's timestep embedding sees: t itself (ddpm), 1000 t (flow matching).

Shapes: batch any leading dimensions, C latent_dim. Timesteps broadcast against `batch`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from latentlm.diffusion.schedules import make_alphas_cumprod


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """Which process a head is trained on; the defaults are the paper's tokenizer analysis."""

    process: Literal["ddpm", "flow_matching"] = "ddpm"
    prediction_type: Literal["epsilon", "sample", "v_prediction", "velocity"] = "v_prediction"
    """Training target: noise, x_0, alpha noise - sigma x_0 (ddpm), or x_0 - noise (`velocity`, flow matching)."""
    beta_schedule: Literal["cosine", "linear"] = "cosine"
    """Ignored by flow matching."""
    num_train_timesteps: int = 1000
    """T of ddpm; flow matching shows the network t times this number."""
    zero_terminal_snr: bool = False
    """Make the last ddpm timestep pure noise (Lin et al. 2023)."""
    timestep_distribution: Literal["uniform", "logit_normal"] = "uniform"
    """How training draws time; logit_normal is sigmoid(N(logit_mean, logit_std²)) (Esser et al. 2024)."""
    logit_mean: float = 0.0
    logit_std: float = 1.0

    def __post_init__(self) -> None:
        if self.num_train_timesteps < 2:
            raise ValueError(
                f"num_train_timesteps is {self.num_train_timesteps} but a process has at least 2 timesteps"
            )
        if self.logit_std <= 0:
            raise ValueError(f"logit_std is {self.logit_std} but a spread is positive")
        if (self.process == "flow_matching") != (self.prediction_type == "velocity"):
            raise ValueError(
                f"prediction_type {self.prediction_type!r} does not belong to process {self.process!r}: flow_matching "
                "predicts 'velocity', ddpm predicts 'epsilon', 'sample' or 'v_prediction'"
            )
        if self.zero_terminal_snr and self.process == "flow_matching":
            raise ValueError(
                "zero_terminal_snr belongs to ddpm; flow_matching starts at pure noise anyway: leave it out"
            )
        if self.zero_terminal_snr and self.prediction_type == "epsilon":
            raise ValueError(
                "prediction_type 'epsilon' cannot work with zero_terminal_snr: at the last timestep the input is the "
                "noise itself, so predicting it says nothing of x_0; use 'v_prediction' or 'sample'"
            )


class DiffusionProcess:
    """Noise levels, noising, targets and the maps between a prediction, x_0 and the noise; no network.

    Everything is computed in float32 whatever the inputs' or autocast's type (float64 for float64 latents), on the
    inputs' device, without synchronising with the host; `torch.compile` sees one graph.

    Timesteps outside the schedule are the caller's error; checking would stall an accelerator.
    """

    def __init__(self, config: DiffusionConfig) -> None:
        self.config = config
        self._is_flow = config.process == "flow_matching"
        self.alphas_cumprod = (
            None
            if self._is_flow
            else make_alphas_cumprod(
                config.beta_schedule, config.num_train_timesteps, zero_terminal_snr=config.zero_terminal_snr
            )
        )
        """a_t, float64 on the CPU; None for flow matching."""
        self._tables: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def signal_and_noise(
        self, timesteps: Shaped[Tensor, "*batch"], *, dtype: torch.dtype = torch.float32
    ) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
        """(alpha, sigma) at `timesteps`: x_t = alpha x_0 + sigma noise.

        Args:
            timesteps: As the network sees them. Integers look the ddpm schedule up; between them (floating-point
                timesteps, as some solver grids use) a_t is interpolated linearly.
            dtype: Of the result; float64 for solver tables.
        """
        if self._is_flow:
            alphas = timesteps.to(dtype) / self.config.num_train_timesteps
            return alphas, 1 - alphas
        table = self._variance_table(timesteps.device, dtype)
        if timesteps.is_floating_point():
            lower = timesteps.long().clamp(max=self.config.num_train_timesteps - 2)
            variances = torch.lerp(table[:, lower], table[:, lower + 1], timesteps.to(dtype) - lower)
        else:
            variances = table[:, timesteps.long()]
        alphas, sigmas = variances.sqrt().unbind(0)
        return alphas, sigmas

    def timesteps_from_uniform(self, uniform: Float[Tensor, "*batch"]) -> Shaped[Tensor, "*batch"]:
        """Training timesteps from numbers drawn from U(0, 1) (Int64 for ddpm, Float32 for flow matching)."""
        time = uniform.float()
        if self.config.timestep_distribution == "logit_normal":
            time = torch.sigmoid(self.config.logit_mean + self.config.logit_std * torch.special.ndtri(time))
        scaled = time * self.config.num_train_timesteps
        # The clamp catches a sigmoid that rounds to one.
        return scaled if self._is_flow else scaled.long().clamp(max=self.config.num_train_timesteps - 1)

    def timestep_at(self, level: float) -> float:
        """The timestep at a share of the way from data to noise, as the network sees it; whole numbers for ddpm.

        Args:
            level: 0 is the quietest timestep, 1 the noisiest.

        Raises:
            ValueError: If it lies outside [0, 1].
        """
        if not 0 <= level <= 1:
            raise ValueError(f"the noise level is {level}; it is a share of the schedule, between 0 and 1")
        if self._is_flow:
            return (1 - level) * self.config.num_train_timesteps
        return float(round(level * (self.config.num_train_timesteps - 1)))

    def add_noise(
        self,
        latents: Float[Tensor, "*batch C"],
        noise: Float[Tensor, "*batch C"],
        timesteps: Shaped[Tensor, "*#batch"],
    ) -> Float[Tensor, "*batch C"]:
        """The forward process, Eq. 2: x_t = alpha_t x_0 + sigma_t noise; in ddpm √ᾱ_t x_0 + √(1 - ᾱ_t) noise.

        Args:
            latents: Clean latents x_0, unit variance.
            noise: Standard normal.
            timesteps: As the network sees them.
        """
        alphas, sigmas, dtype = self._coefficients(latents, timesteps)
        return alphas * latents.to(dtype) + sigmas * noise.to(dtype)

    def training_target(
        self,
        latents: Float[Tensor, "*batch C"],
        noise: Float[Tensor, "*batch C"],
        timesteps: Shaped[Tensor, "*#batch"],
    ) -> Float[Tensor, "*batch C"]:
        """The target inside the norm of Eq. 3: what the network should answer at (x_t, t), by `prediction_type`."""
        alphas, sigmas, dtype = self._coefficients(latents, timesteps)
        latents, noise = latents.to(dtype), noise.to(dtype)
        match self.config.prediction_type:
            case "epsilon":
                return noise
            case "sample":
                return latents
            case "v_prediction":
                return alphas * noise - sigmas * latents  # Salimans & Ho 2022, Appendix D
            case "velocity":
                return latents - noise  # dx_t / dt of the straight path (Lipman et al. 2023; Liu et al. 2023)

    def predict_sample(
        self,
        prediction: Float[Tensor, "*batch C"],
        noisy_latents: Float[Tensor, "*batch C"],
        timesteps: Shaped[Tensor, "*#batch"],
    ) -> Float[Tensor, "*batch C"]:
        """x_0 as the network's prediction at (x_t, t) implies it; ε-prediction divides by alpha_t."""
        alphas, sigmas, dtype = self._coefficients(noisy_latents, timesteps)
        on_noisy, on_prediction = self.sample_weights(alphas, sigmas)
        return on_noisy * noisy_latents.to(dtype) + on_prediction * prediction.to(dtype)

    def predict_noise(
        self,
        prediction: Float[Tensor, "*batch C"],
        noisy_latents: Float[Tensor, "*batch C"],
        timesteps: Shaped[Tensor, "*#batch"],
    ) -> Float[Tensor, "*batch C"]:
        """The noise as the network's prediction at (x_t, t) implies it; x_0-prediction divides by sigma_t."""
        alphas, sigmas, dtype = self._coefficients(noisy_latents, timesteps)
        noisy_latents, prediction = noisy_latents.to(dtype), prediction.to(dtype)
        match self.config.prediction_type:
            case "epsilon":
                return prediction
            case "sample":
                return (noisy_latents - alphas * prediction) / sigmas
            case "v_prediction":
                return sigmas * noisy_latents + alphas * prediction
            case "velocity":
                return noisy_latents - alphas * prediction

    def from_sample(
        self,
        latents: Float[Tensor, "*batch C"],
        noisy_latents: Float[Tensor, "*batch C"],
        timesteps: Shaped[Tensor, "*#batch"],
    ) -> Float[Tensor, "*batch C"]:
        """The prediction that implies x_0 = `latents` at (x_t, t): the inverse of `predict_sample`.

        Undefined where sigma_t = 0 (the end of flow matching), unless the prediction is x_0 itself.
        """
        alphas, sigmas, dtype = self._coefficients(noisy_latents, timesteps)
        on_noisy, on_prediction = self.sample_weights(alphas, sigmas)
        return (latents.to(dtype) - on_noisy * noisy_latents.to(dtype)) / on_prediction

    def sample_weights(
        self, alphas: Float[Tensor, "*shape"], sigmas: Float[Tensor, "*shape"]
    ) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
        """(a, b) with x_0 = a x_t + b prediction: every parameterisation is linear; solvers put both in tables."""
        match self.config.prediction_type:
            case "epsilon":
                return 1 / alphas, -sigmas / alphas
            case "sample":
                return torch.zeros_like(alphas), torch.ones_like(alphas)
            case "v_prediction":
                return alphas, -sigmas  # because alpha² + sigma² = 1
            case "velocity":
                return torch.ones_like(alphas), sigmas  # because alpha + sigma = 1

    def ode_variable(self, alphas: Float[Tensor, "K"], sigmas: Float[Tensor, "K"]) -> Float[Tensor, "K"]:
        """rho in which the probability-flow ODE reads dy/drho = (y - x_0) / rho, and Euler and Heun step.

        ddpm: rho = sigma / alpha, y = x / alpha (Karras et al. 2022, Eq. 4); flow matching: rho = sigma = 1 - t, y = x.
        """
        return sigmas if self._is_flow else sigmas / alphas

    def timesteps_from_log_snr(self, log_snr: Float[Tensor, "K"]) -> Float[Tensor, "K"]:
        """Timesteps (fractions included) at which log(alpha / sigma) = `log_snr`, clipped to the schedule; float64."""
        log_snr = log_snr.double()
        if self.alphas_cumprod is None:
            return torch.sigmoid(log_snr) * self.config.num_train_timesteps  # t / (1 - t) = alpha / sigma
        increasing = self.alphas_cumprod.flip(0)
        target = torch.sigmoid(2 * log_snr).clamp(
            min=increasing[0], max=increasing[-1]
        )  # a / (1 - a) = alpha² / sigma²
        upper = torch.searchsorted(increasing, target).clamp(min=1)
        low, high = increasing[upper - 1], increasing[upper]
        return self.config.num_train_timesteps - 1 - (upper - 1 + (target - low) / (high - low))

    def _coefficients(
        self, like: Float[Tensor, "*batch C"], timesteps: Shaped[Tensor, "*#batch"]
    ) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."], torch.dtype]:
        """alpha and sigma with a channel axis to broadcast over, and the type to compute in."""
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        alphas, sigmas = self.signal_and_noise(timesteps, dtype=dtype)
        return alphas[..., None], sigmas[..., None], dtype

    def _variance_table(self, device: torch.device, dtype: torch.dtype) -> Float[Tensor, "2 T"]:
        """(a_t, 1 - a_t), subtracted in float64 (float32 would lose 1 - a_0), kept once per device and type."""
        assert self.alphas_cumprod is not None
        table = self._tables.get((device, dtype))
        if table is None:
            table = torch.stack([self.alphas_cumprod, 1 - self.alphas_cumprod]).to(dtype).to(device)
            self._tables[device, dtype] = table
        return table
