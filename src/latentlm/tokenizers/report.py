"""The numbers that give a tokenizer's sigma its meaning: noise says something only against the spread of the mean.

An encoder can outgrow a fixed sigma by scaling its means up (beta holds it back), and a channel whose mean stops
varying carries nothing even where the variance cannot collapse. Hence, per channel: std(mu), std(mu) / sigma, whether
it is dead, the posterior sigma that a vanilla VAE learned (Figure 3's collapse, measured), and the rate.

Shapes: B batch, N latents per example, C latent_dim.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from latentlm.tokenizers.base import Posterior
from latentlm.tokenizers.bottleneck import BottleneckConfig
from latentlm.tokenizers.latent_statistics import StreamingMoments

DEAD_RATIO = 0.1
"""A channel is dead below this std(mu) / sigma: it then carries less than a hundredth of a bit per latent."""


@dataclass(frozen=True, kw_only=True)
class ChannelReport:
    """One channel of the latents, over all positions and pictures seen."""

    mean_std: float
    """std(mu)."""
    sigma: float
    """Noise: `latent_sigma` of a sigma-VAE, root mean square of the learned ones of a VAE, 0 of an autoencoder."""

    @property
    def ratio(self) -> float:
        """std(mu) / sigma; infinite without noise."""
        return self.mean_std / self.sigma if self.sigma > 0 else math.inf

    @property
    def is_dead(self) -> bool:
        """Whether noise drowns the mean, or, without noise, the mean does not vary."""
        return self.ratio < DEAD_RATIO or self.mean_std == 0

    @property
    def bits(self) -> float:
        """½ log2(1 + var mu / sigma²): what one latent's channel can tell, in bits; infinite without noise."""
        return 0.5 * math.log2(1 + self.ratio**2) if self.sigma > 0 else math.inf


@dataclass(frozen=True, kw_only=True)
class TokenizerReport:
    """The report of a tokenizer on some pictures."""

    bottleneck: str
    beta: float
    """Weight of the regularizer it was trained with."""
    num_latents: int
    """Latents per example."""
    num_examples: int
    channels: tuple[ChannelReport, ...]
    frame_rate: float | None = None
    """Latents per second of sound, Hz; None where an example has no duration."""

    @property
    def dead_channels(self) -> list[int]:
        """Numbers of the dead channels, from 0."""
        return [number for number, channel in enumerate(self.channels) if channel.is_dead]

    @property
    def floats_per_example(self) -> int:
        """N · C, what the paper's compression ratio counts."""
        return self.num_latents * len(self.channels)

    @property
    def bits_per_example(self) -> float:
        """N · sum over channels of `bits`; infinite without noise."""
        return self.num_latents * sum(channel.bits for channel in self.channels)

    @property
    def floats_per_second(self) -> float | None:
        """frame_rate · C; None without a frame rate."""
        return None if self.frame_rate is None else self.frame_rate * len(self.channels)

    @property
    def bits_per_second(self) -> float | None:
        """frame_rate · sum over channels of `bits`; infinite without noise, None without a frame rate."""
        return None if self.frame_rate is None else self.frame_rate * sum(channel.bits for channel in self.channels)

    def as_json(self) -> dict[str, Any]:
        """Plain values; what is infinite is None. Numbers over all channels are root mean squares."""
        rates: dict[str, Any] = {}
        if self.frame_rate is not None and self.bits_per_second is not None:
            rates = {
                "frame_rate": self.frame_rate,
                "floats_per_second": self.floats_per_second,
                "bits_per_second": _finite(self.bits_per_second),
            }
        return {
            "bottleneck": self.bottleneck,
            "beta": self.beta,
            "num_examples": self.num_examples,
            "num_latents": self.num_latents,
            "floats_per_example": self.floats_per_example,
            "bits_per_example": _finite(self.bits_per_example),
            **rates,
            "dead_channels": self.dead_channels,
            "num_dead_channels": len(self.dead_channels),
            "mean_std": _root_mean_square([channel.mean_std for channel in self.channels]),
            "sigma": _root_mean_square([channel.sigma for channel in self.channels]),
            "smallest_sigma": min(channel.sigma for channel in self.channels),
            "largest_sigma": max(channel.sigma for channel in self.channels),
            "smallest_ratio": _finite(min(channel.ratio for channel in self.channels)),
            "largest_ratio": _finite(max(channel.ratio for channel in self.channels)),
            "channels": [
                {
                    "mean_std": channel.mean_std,
                    "sigma": channel.sigma,
                    "ratio": _finite(channel.ratio),
                    "bits": _finite(channel.bits),
                }
                for channel in self.channels
            ],
        }

    def as_markdown(self) -> str:
        """A table with a row per channel and the sums below it."""
        lines = ["| channel | std(mu) | sigma | std(mu) / sigma | bits per latent | |", "|---|---|---|---|---|---|"]
        lines += [
            f"| {number} | {channel.mean_std:.3f} | {channel.sigma:.3f} | {channel.ratio:.2f} | {channel.bits:.2f} | "
            f"{'dead' if channel.is_dead else ''} |"
            for number, channel in enumerate(self.channels)
        ]
        lines.append("")
        lines.append(
            f"{self.bottleneck}, beta {self.beta:g}: {self.num_latents} latents x {len(self.channels)} channels = "
            f"{self.floats_per_example} floats, {self.bits_per_example:.0f} bits per example; "
            f"{len(self.dead_channels)} dead channels; over {self.num_examples} examples."
        )
        if self.frame_rate is not None:
            lines.append("")
            lines.append(
                f"Per second: {self.frame_rate:g} latents, {self.floats_per_second:g} floats, "
                f"{self.bits_per_second:.0f} bits."
            )
        return "\n".join(lines) + "\n"


def report_tokenizer(
    posteriors: Iterable[Posterior],
    bottleneck: BottleneckConfig,
    *,
    beta: float,
    frame_rate: float | None = None,
) -> TokenizerReport:
    """Measure a tokenizer on posteriors of validation examples.

    Args:
        posteriors: Batches from `LatentTokenizer.posterior`, before normalisation.
        bottleneck: The tokenizer's.
        beta: Weight of the regularizer it was trained with.
        frame_rate: Latents per second of sound, Hz; None for pictures.

    Raises:
        ValueError: If there are no posteriors.
    """
    means: StreamingMoments | None = None
    learned: StreamingMoments | None = None
    num_examples = num_latents = 0
    for posterior in posteriors:
        num_latents, num_channels = posterior.mean.shape[1:]
        means = means or StreamingMoments(num_channels)
        means.update(posterior.mean)
        if posterior.log_std is not None:
            learned = learned or StreamingMoments(num_channels)
            learned.update((2 * posterior.log_std.float()).exp())
        num_examples += len(posterior.mean)
    if means is None:
        raise ValueError("a report on a tokenizer needs at least one example")
    sigmas = learned.mean.sqrt() if learned is not None else _set_sigmas(bottleneck, len(means.mean))
    channels = zip(means.variance.sqrt().tolist(), sigmas.tolist(), strict=True)
    return TokenizerReport(
        bottleneck=bottleneck.kind,
        beta=beta,
        num_latents=num_latents,
        num_examples=num_examples,
        channels=tuple(ChannelReport(mean_std=mean_std, sigma=sigma) for mean_std, sigma in channels),
        frame_rate=frame_rate,
    )


def _set_sigmas(bottleneck: BottleneckConfig, num_channels: int) -> Float64[Tensor, "C"]:
    sigma = bottleneck.latent_sigma if bottleneck.kind == "sigma_vae" else 0.0
    return torch.full((num_channels,), sigma, dtype=torch.float64)


def _root_mean_square(values: Sequence[float]) -> float:
    return math.sqrt(sum(value * value for value in values) / len(values))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
