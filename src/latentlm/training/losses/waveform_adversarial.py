"""The adversarial losses of speech tokenizers (paper Section 3.3.1): period and complex STFT discriminators.

    waveforms ─folded by each period▶ pictures (samples / period, period) ─2-D convolutions▶ verdicts   (HiFi-GAN)
    waveforms ─complex STFT─▶ real and imaginary part, cut into bands ─2-D convolutions▶ verdicts         (DAC)

Every sub-discriminator gives verdicts (positive for real) and its feature maps, on which feature matching compares real
and fake. Convolutions are weight-normalised; nothing ties the examples of a batch together. Losses are summed over the
sub-discriminators as in DAC, whose weights (1 adversarial, 2 feature matching, beside 15 for mel) thereby carry over.

Sources: Kong et al. 2020 (HiFi-GAN), Kumar et al. 2023 (DAC).

Shapes: B batch, S samples, F frequency bins, T frames.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from latentlm.nn.mel import spectrogram

# DAC shows waveforms at a peak of 0.8. Quieter than the floor they are not raised so far: silence would be noise, and
# its gradient without bound.
_PEAK = 0.8
_PEAK_FLOOR = 1e-3

_HOPS_PER_WINDOW = 4


@dataclass(frozen=True, kw_only=True)
class PeriodDiscriminatorConfig:
    """The multi-period discriminator of HiFi-GAN."""

    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    """Samples per row, one sub-discriminator each; primes share no harmonics."""
    channels: tuple[int, ...] = (32, 128, 512, 1024, 1024)
    """Widths of the convolutions; each but the last keeps every third row."""

    def __post_init__(self) -> None:
        if not self.periods or min(self.periods) < 1 or not self.channels or min(self.channels) < 1:
            raise ValueError(f"periods {self.periods} and channels {self.channels} must be positive, at least one each")


@dataclass(frozen=True, kw_only=True)
class STFTDiscriminatorConfig:
    """The complex multi-band STFT discriminator of DAC."""

    window_lengths: tuple[int, ...] = (2048, 1024, 512)
    """Samples per frame, one sub-discriminator each; frames advance by a quarter."""
    band_edges: tuple[float, ...] = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
    """Where the spectrum is cut, as shares of half the sample rate; each band has weights of its own."""
    num_channels: int = 32
    """Width of the convolutions."""

    def __post_init__(self) -> None:
        edges = self.band_edges
        if len(edges) < 2 or edges[0] < 0 or edges[-1] > 1 or any(a >= b for a, b in pairwise(edges)):
            raise ValueError(f"band_edges are {edges}; they must rise within [0, 1], two at least")
        if not self.window_lengths or self.num_channels < 1:
            raise ValueError("the STFT discriminator needs at least one window length and one channel")
        for length in self.window_lengths:
            if length < _HOPS_PER_WINDOW or length % 2 or any(low == high for low, high in self.bands(length)):
                raise ValueError(f"a window of {length} samples is odd or leaves a band of {edges} without a bin")

    def bands(self, window_length: int) -> list[tuple[int, int]]:
        """First bin, and the one after the last, of each band."""
        num_bins = window_length // 2 + 1
        edges = [int(edge * num_bins) for edge in self.band_edges]
        return list(pairwise(edges))


@dataclass(frozen=True, kw_only=True)
class WaveformAdversarialConfig:
    """Which discriminators take part, from when on and how strongly."""

    weight: float = 1.0
    """Of the generator's adversarial loss."""
    feature_weight: float = 2.0
    """Of feature matching."""
    loss: Literal["least_squares", "hinge"] = "least_squares"
    """least_squares (HiFi-GAN, DAC) or hinge (Encodec)."""
    start_step: int = 0
    """Optimizer step from which the discriminators are trained and heard."""
    period: PeriodDiscriminatorConfig | None = field(default_factory=PeriodDiscriminatorConfig)
    """null for none."""
    stft: STFTDiscriminatorConfig | None = field(default_factory=STFTDiscriminatorConfig)
    """null for none."""

    def __post_init__(self) -> None:
        if self.weight <= 0 or self.feature_weight <= 0:
            raise ValueError("the weights of adversarial losses must be positive; for none use adversarial: null")
        if self.start_step < 0:
            raise ValueError(f"start_step is {self.start_step}, but cannot be negative")
        if self.period is None and self.stft is None:
            raise ValueError("both discriminators are null; leave the whole out with adversarial: null")


class Judgement(NamedTuple):
    """What one sub-discriminator says."""

    verdicts: Float[Tensor, "B ..."]
    """Positive for real."""
    features: list[Tensor]
    """Its feature maps, [B, ...] each, from the input on."""


class WaveformDiscriminator(nn.Module):
    """All sub-discriminators of a config.

    Args:
        config: Which, and their sizes.
    """

    def __init__(self, config: WaveformAdversarialConfig) -> None:
        super().__init__()
        self.parts = nn.ModuleList()
        if config.period is not None:
            self.parts += [_PeriodDiscriminator(period, config.period.channels) for period in config.period.periods]
        if config.stft is not None:
            self.parts += [_STFTDiscriminator(config.stft, length) for length in config.stft.window_lengths]

    def forward(self, waveforms: Float[Tensor, "B S"]) -> list[Judgement]:
        """Every sub-discriminator's judgement of waveforms in [-1, 1], brought to one level."""
        waveforms = _levelled(waveforms)
        return [part(waveforms) for part in self.parts]

    def judge(self, waveforms: Float[Tensor, "B S"]) -> list[Judgement]:
        """`forward` for the generator's loss: gradients reach the waveforms and leave the discriminator alone."""
        frozen = {name: parameter.detach() for name, parameter in self.named_parameters()}
        return functional_call(self, frozen, (waveforms,))


class _PeriodDiscriminator(nn.Module):
    """Looks at every `period`-th sample: a waveform folded into rows of one period."""

    def __init__(self, period: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.period = period
        self.layers = nn.Sequential()
        width = 1
        for number, wider in enumerate(channels, start=1):
            stride = 3 if number < len(channels) else 1
            self.layers.append(weight_norm(nn.Conv2d(width, wider, (5, 1), stride=(stride, 1), padding=(2, 0))))
            width = wider
        self.verdicts = weight_norm(nn.Conv2d(width, 1, (3, 1), padding=(1, 0)))

    def forward(self, waveforms: Float[Tensor, "B S"]) -> Judgement:
        missing = -waveforms.shape[1] % self.period
        x = F.pad(waveforms, (0, missing)).unflatten(1, (-1, self.period))[:, None]  # (B, 1, rows, period)
        features = list(_activations(x, self.layers))
        return Judgement(self.verdicts(features[-1]), features)


class _STFTDiscriminator(nn.Module):
    """Looks at real and imaginary part of a spectrum, in each band with other weights: phases count too."""

    def __init__(self, config: STFTDiscriminatorConfig, window_length: int) -> None:
        super().__init__()
        self.window_length = window_length
        self.bands = config.bands(window_length)
        width = config.num_channels
        self.band_layers = nn.ModuleList(_band_layers(width) for _ in self.bands)
        self.verdicts = weight_norm(nn.Conv2d(width, 1, (3, 3), padding=(1, 1)))

    def forward(self, waveforms: Float[Tensor, "B S"]) -> Judgement:
        hop_length = self.window_length // _HOPS_PER_WINDOW
        spectra = spectrogram(waveforms, window_length=self.window_length, hop_length=hop_length)  # (B, F, T)
        x = torch.view_as_real(spectra).permute(0, 3, 2, 1)  # (B, 2, T, F)
        features, ends = [], []
        for (low, high), layers in zip(self.bands, self.band_layers, strict=True):
            assert isinstance(layers, nn.Sequential)
            features += _activations(x[..., low:high], layers)
            ends.append(features[-1])
        return Judgement(self.verdicts(torch.cat(ends, dim=-1)), features)


def _band_layers(width: int) -> nn.Sequential:
    """DAC's convolutions over (frames, bins) of one band; the middle three halve the bins."""
    layers = nn.Sequential(weight_norm(nn.Conv2d(2, width, (3, 9), padding=(1, 4))))
    for _ in range(3):
        layers.append(weight_norm(nn.Conv2d(width, width, (3, 9), stride=(1, 2), padding=(1, 4))))
    layers.append(weight_norm(nn.Conv2d(width, width, (3, 3), padding=(1, 1))))
    return layers


def _activations(x: Tensor, layers: nn.Sequential) -> Iterator[Tensor]:
    for layer in layers:
        x = F.leaky_relu(layer(x), 0.1)
        yield x


def _levelled(waveforms: Tensor) -> Tensor:
    """Without their mean, at one peak; as float32, since a mean over 16-bit samples loses its low bits."""
    waveforms = waveforms.float()
    waveforms = waveforms - waveforms.mean(dim=1, keepdim=True)
    return _PEAK * waveforms / waveforms.abs().amax(dim=1, keepdim=True).clamp_min(_PEAK_FLOOR)


def generator_loss(fake: Sequence[Judgement], loss: Literal["least_squares", "hinge"]) -> Float[Tensor, "B"]:
    """What the generator minimises, per clip: sum over sub-discriminators of mean (1 - v)², or of mean -v (hinge)."""
    verdicts = [judgement.verdicts.float().flatten(1) for judgement in fake]
    if loss == "hinge":
        return torch.stack([-verdict.mean(dim=1) for verdict in verdicts]).sum(dim=0)
    return torch.stack([(1 - verdict).square().mean(dim=1) for verdict in verdicts]).sum(dim=0)


def discriminator_loss(
    real: Sequence[Judgement], fake: Sequence[Judgement], loss: Literal["least_squares", "hinge"]
) -> Float[Tensor, "B"]:
    """What the discriminators minimise, per clip, summed over them.

    mean (1 - real)² + mean fake², or (hinge) mean max(0, 1 - real) + mean max(0, 1 + fake).
    """
    total = real[0].verdicts.new_zeros(len(real[0].verdicts), dtype=torch.float32)
    for one, other in zip(real, fake, strict=True):
        genuine, forged = one.verdicts.float().flatten(1), other.verdicts.float().flatten(1)
        if loss == "hinge":
            total = total + F.relu(1 - genuine).mean(dim=1) + F.relu(1 + forged).mean(dim=1)
        else:
            total = total + (1 - genuine).square().mean(dim=1) + forged.square().mean(dim=1)
    return total


def feature_matching_loss(real: Sequence[Judgement], fake: Sequence[Judgement]) -> Float[Tensor, "B"]:
    """Per clip, sum over sub-discriminators and feature maps of the mean |fake - real|; real ones are targets."""
    total = real[0].verdicts.new_zeros(len(real[0].verdicts), dtype=torch.float32)
    for one, other in zip(real, fake, strict=True):
        for target, features in zip(one.features, other.features, strict=True):
            total = total + (features.float() - target.detach().float()).abs().flatten(1).mean(dim=1)
    return total
