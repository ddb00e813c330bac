"""The bottleneck between encoder and decoder: how much noise a latent carries, and what keeps its mean small.

Three kinds behind one interface; they differ in `deviations` and `regularizer` alone (paper Section 2.3, Figure 3):

    sigma_vae   z = mu + s eps, s one scalar per example, not learned (Eq. 5);  regularizer  mean mu²  (Eq. 6)
    vae         z = mu + sigma eps, sigma learned per element (Eq. 4);          regularizer  KL[N(mu, sigma²) ‖ N(0, 1)]
    ae          z = mu;                                                         regularizer  0

eps ~ N(0, I). Regularizers are means over the elements of an example, where the paper writes sums: its beta is ours
times (pixels per example) / (latent elements per example) if the reconstruction term is a mean over pixels too.

Shapes: B batch, N latents per example, C latent_dim.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentlm.nn.keyed_noise import keyed_normal
from latentlm.tokenizers.base import Posterior

# The authors divide by 0.8, sqrt(2 / pi) = 0.798 rounded: E|n| of a standard normal n. We keep their number so that
# their sigmas carry over exactly; E|s| is therefore 0.27% below `latent_sigma`.
EXPECTED_ABSOLUTE_NORMAL = 0.8

# Learned log-deviations are held in a range whose exponentials float16 still tells from zero and infinity.
_LOG_STD_RANGE = (-8.0, 8.0)

_EXAMPLE_STREAM = 1
_ELEMENT_STREAM = 2


@dataclass(frozen=True, kw_only=True)
class BottleneckConfig:
    """Which bottleneck, and the spread of the sigma-VAE's noise."""

    kind: Literal["sigma_vae", "vae", "ae"] = "sigma_vae"
    """sigma_vae (the paper's), vae (learned variance), ae (no noise)."""
    latent_sigma: float = 0.75
    """Typical size of the sigma-VAE's noise, E|s|; the authors use 0.75 for images and 0.5 for speech."""
    sigma_distribution: Literal["gaussian", "constant"] = "gaussian"
    """gaussian: s ~ N(0, sigma_scale²) per example: the decoder sees every noise level; constant: s = latent_sigma."""

    def __post_init__(self) -> None:
        if self.latent_sigma <= 0:
            raise ValueError(
                f"latent_sigma is {self.latent_sigma}, but a spread is positive; for no noise use kind: ae"
            )

    @property
    def sigma_scale(self) -> float:
        """The paper's C_sigma as a deviation: s = sigma_scale · n with n ~ N(0, 1), so that E|s| = latent_sigma."""
        return self.latent_sigma / EXPECTED_ABSOLUTE_NORMAL


class LatentNoise(NamedTuple):
    """Standard normal numbers for one draw from a posterior."""

    example: Float[Tensor, "B"]
    """One per example: the sigma-VAE's n."""
    element: Float[Tensor, "B N C"]
    """One per element: eps."""


class Bottleneck(ABC):
    """Encoder outputs to a posterior, a posterior to a sample; nothing here is learned or normalised."""

    outputs_per_channel: int = 1
    """Numbers that the encoder gives per latent channel."""

    def __init__(self, config: BottleneckConfig) -> None:
        self.config = config

    @abstractmethod
    def posterior(self, outputs: Float[Tensor, "B N outputs"]) -> Posterior:
        """Read the encoder's outputs, `latent_dim * outputs_per_channel` wide. Float32 whatever the autocast type."""

    @abstractmethod
    def deviations(self, posterior: Posterior, noise: Float[Tensor, "B"]) -> Float[Tensor, "B #N #C"]:
        """What eps is multiplied by.

        Args:
            posterior: From the encoder.
            noise: Standard normal, one number per example.
        """

    @abstractmethod
    def regularizer(self, posterior: Posterior) -> Float[Tensor, "B"]:
        """What beta multiplies, per example: a mean over N and C, in nats for the VAE."""

    def sample(self, posterior: Posterior, noise: LatentNoise) -> Float[Tensor, "B N C"]:
        """z = mean + deviations · eps (Eq. 5)."""
        return posterior.mean + self.deviations(posterior, noise.example) * noise.element


class SigmaVAE(Bottleneck):
    """The paper's sigma-VAE: the variance is not learned, so it cannot collapse."""

    def posterior(self, outputs: Float[Tensor, "B N outputs"]) -> Posterior:
        return Posterior(outputs.float(), None)

    def deviations(self, posterior: Posterior, noise: Float[Tensor, "B"]) -> Float[Tensor, "B #N #C"]:
        if self.config.sigma_distribution == "constant":
            return torch.full_like(noise, self.config.latent_sigma).view(-1, 1, 1)
        return (self.config.sigma_scale * noise).view(-1, 1, 1)

    def regularizer(self, posterior: Posterior) -> Float[Tensor, "B"]:
        return posterior.mean.square().mean(dim=(1, 2))


class VanillaVAE(Bottleneck):
    """Diagonal Gaussian posterior (Kingma & Welling 2014), the baseline of Figure 3."""

    outputs_per_channel = 2

    def posterior(self, outputs: Float[Tensor, "B N outputs"]) -> Posterior:
        mean, log_std = outputs.float().chunk(2, dim=-1)  # (B, N, C) each
        return Posterior(mean, log_std.clamp(*_LOG_STD_RANGE))

    def deviations(self, posterior: Posterior, noise: Float[Tensor, "B"]) -> Float[Tensor, "B #N #C"]:
        assert posterior.log_std is not None, "this posterior comes from another kind of bottleneck"
        return posterior.log_std.exp()

    def regularizer(self, posterior: Posterior) -> Float[Tensor, "B"]:
        assert posterior.log_std is not None, "this posterior comes from another kind of bottleneck"
        variance = (2 * posterior.log_std).exp()
        divergence = 0.5 * (posterior.mean.square() + variance - 1) - posterior.log_std
        return divergence.mean(dim=(1, 2))


class Autoencoder(Bottleneck):
    """No noise at all: the latent is its mean, and nothing holds it."""

    def posterior(self, outputs: Float[Tensor, "B N outputs"]) -> Posterior:
        return Posterior(outputs.float(), None)

    def deviations(self, posterior: Posterior, noise: Float[Tensor, "B"]) -> Float[Tensor, "B #N #C"]:
        return torch.zeros_like(noise).view(-1, 1, 1)

    def regularizer(self, posterior: Posterior) -> Float[Tensor, "B"]:
        return posterior.mean.new_zeros(len(posterior.mean))


_KINDS: dict[str, type[Bottleneck]] = {"sigma_vae": SigmaVAE, "vae": VanillaVAE, "ae": Autoencoder}


def make_bottleneck(config: BottleneckConfig) -> Bottleneck:
    """The bottleneck of a config's `kind`."""
    return _KINDS[config.kind](config)


def draw_noise(posterior: Posterior, *, generator: torch.Generator | None = None) -> LatentNoise:
    """Noise from a generator, on its device and then moved; from the posterior's device's default one if None."""
    mean = posterior.mean
    device = mean.device if generator is None else generator.device
    example = torch.randn(len(mean), generator=generator, device=device)
    element = torch.randn(mean.shape, generator=generator, device=device)
    return LatentNoise(example.to(mean.device), element.to(mean.device))


def draw_keyed_noise(posterior: Posterior, seed: int, keys: Int[Tensor, "B"]) -> LatentNoise:
    """Noise that depends on (seed, key) alone, not on an example's place in the batch.

    Args:
        posterior: Gives shape and device.
        seed: For example the hash of run seed and step.
        keys: One per example.
    """
    shape = tuple(posterior.mean.shape[1:])
    example = keyed_normal(seed, keys, stream=_EXAMPLE_STREAM)
    return LatentNoise(example, keyed_normal(seed, keys, shape, stream=_ELEMENT_STREAM))
