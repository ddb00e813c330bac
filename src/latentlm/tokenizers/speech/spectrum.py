"""A causal short-time Fourier transform at the encoder's start, and an inverse one at the decoder's end.

    waveform ─frames, Hann window, FFT▶ complex spectrum ─|S|^power, phase kept▶ ─linear▶ hidden states
    hidden states ─linear▶ compressed spectrum ─|S|^(1 / power)▶ ─inverse FFT▶ frames ─weighted mean▶ waveform

    analysis frame t    samples [(t + 1) · hop - fft, (t + 1) · hop): ends with the newest samples
    synthesis frame t   samples [t · hop, t · hop + fft): begins where frame t's own samples begin

so that samples up to (t + 1) · hop depend on frames up to t and on none after, in both directions. This is the
transform of Vocos (Siuzdak 2023) with its lookahead taken away. The price is at the start of every frame, where older
frames that have not heard the newest samples speak too; hence the synthesis window rises within one hop, to give the
newest frame its say at once, and falls over the rest.

Phases are told against the clock of the stream, not of the frame: bin k of a frame that begins at sample n is turned by
-2 pi k n / fft_size, and back. A steady tone then has a steady phase from frame to frame; without this it turns by an
amount that depends on its frequency, up to half a circle per frame, and layers that see a few latents a second could
not say where a period begins.

A sample is the mean of the frames that cover it, weighted by the window. The first samples of a clip have few frames
or only one; a mean, unlike a sum over the window's steady total, does not fade them in.

Shapes: B streams, S samples, T frames, F = fft_size / 2 + 1 frequencies, C channels.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from latentlm.nn.causal_conv import initialise_weight, num_complete
from latentlm.nn.pitch import PitchTracker

# Added to |S|², where the root has no derivative: 120 dB below a spectrum of size 1.
_TINY_POWER = 1e-12
_SILENT_POWER = 1e-6
"""Of a bin: levels end 60 dB below full scale."""


@dataclass(frozen=True, kw_only=True)
class SpectrumConfig:
    """Geometry of the transform; at 8 kHz, fft_size 256 and hop_length 50 make 160 frames of 32 ms a second."""

    fft_size: int
    """Samples of a frame, even."""
    hop_length: int
    """Samples from one frame to the next, at most fft_size."""
    power: float = 0.4
    """Of the magnitudes that the network sees and gives: below 1, quiet partials count beside loud ones."""
    pitch_range: tuple[float, float] | None = None
    """Lowest and highest pitch of voices, Hz: the decoder then speaks by pulses of a pitch and by noise
    (`harmonic.py`). None: it gives magnitudes and phases of every frame, for sounds of any kind."""

    def __post_init__(self) -> None:
        if self.fft_size < 2 or self.fft_size % 2:
            raise ValueError(f"fft_size is {self.fft_size}; it must be even and at least 2")
        if not 1 <= self.hop_length <= self.fft_size:
            raise ValueError(f"hop_length is {self.hop_length}; it must lie between 1 and fft_size {self.fft_size}")
        if not 0 < self.power <= 1:
            raise ValueError(f"power is {self.power}; it must lie in (0, 1]")
        if self.pitch_range is not None and not 0 < self.pitch_range[0] < self.pitch_range[1]:
            raise ValueError(f"pitch_range is {self.pitch_range}; give the lowest and then the highest pitch, Hz")

    @property
    def num_features(self) -> int:
        """Numbers per frame: real and imaginary parts of F frequencies."""
        return self.fft_size + 2


class SpectralAnalysis(nn.Module):
    """A `CausalLayer`: samples to hidden states, hop_length samples each.

    A decoder that speaks by a pitch has phases of its own: for it this tells the levels of the spectrum without phases,
    and the pitch of the newest samples. Both could be read from complex spectra, but a network takes long to learn it.

    Args:
        config: The transform.
        channels: C.
        sample_rate: Hz.
    """

    window: Tensor
    turns: Tensor

    def __init__(self, config: SpectrumConfig, channels: int, *, sample_rate: int) -> None:
        super().__init__()
        self.config = config
        self.tracker = None if config.pitch_range is None else PitchTracker(sample_rate, config.pitch_range)
        self.frame_length = max(config.fft_size, 0 if self.tracker is None else self.tracker.frame_length)
        num_features = config.num_features if self.tracker is None else config.fft_size // 2 + 1 + 2
        self.projection = nn.Linear(num_features, channels)
        initialise_weight(self.projection.weight, fan_in=num_features)
        nn.init.zeros_(self.projection.bias)
        window = torch.hann_window(config.fft_size)
        # Of unit mean square: with an orthonormal FFT a spectrum is then as large as the sound.
        self.register_buffer("window", window * window.square().mean().rsqrt(), persistent=False)
        self.register_buffer("turns", turns_of_frames(config, backward=True), persistent=False)

    def forward(self, waveforms: Float[Tensor, "B S 1"]) -> Float[Tensor, "B T C"]:
        """S // hop_length hidden states of whole clips."""
        return self.step(waveforms, self.init_state(len(waveforms)))[0]

    def init_state(self, batch_size: int) -> tuple[Float[Tensor, "B past 1"], Int[Tensor, "B"]]:
        """Silence before the start, and no frame."""
        past = self.frame_length - self.config.hop_length
        return self.window.new_zeros(batch_size, past, 1), _no_frames(batch_size, self.window.device)

    def step(
        self, chunk: Float[Tensor, "B n 1"], state: tuple[Float[Tensor, "B past 1"], Int[Tensor, "B"]]
    ) -> tuple[Float[Tensor, "B frames C"], tuple[Float[Tensor, "B rest 1"], Int[Tensor, "B"]]]:
        """Hidden states of the frames that the chunk completes.

        Args:
            chunk: The next samples.
            state: Samples that they still need, fewer than a frame's; and the number of the next frame, modulo the
                period of the turns.
        """
        fft_size, hop_length = self.config.fft_size, self.config.hop_length
        past, frame = state
        buffer = torch.cat([past, chunk.float()], dim=1)
        num_frames = num_complete(buffer.shape[1], self.frame_length, hop_length)
        rest = buffer[:, num_frames * hop_length :].clone()
        if num_frames == 0:
            return chunk.new_zeros(len(chunk), 0, self.projection.out_features), (rest, frame)
        frames = buffer.squeeze(-1).unfold(1, self.frame_length, hop_length)  # (B, T, frame_length)
        turns, frame = _next_turns(self.turns, frame, num_frames)
        newest = frames[..., self.frame_length - fft_size :]
        newest = newest * self.window
        if self.tracker is None:
            spectrum = torch.view_as_real(torch.fft.rfft(newest, norm="ortho") * turns)  # (B, T, F, 2)
            features = _raise_magnitude(spectrum, self.config.power).flatten(2)
        else:
            track = self.tracker.of_frames(frames[..., self.frame_length - self.tracker.frame_length :])
            features = torch.cat([_levels(newest), self.tracker.features(track)], dim=-1)
        return self.projection(features), (rest, frame)


def _levels(frames: Float[Tensor, "B T fft_size"]) -> Float[Tensor, "B T F"]:
    """Log magnitudes, from about -1.5 in silence to 2 in loud speech."""
    # In float64: a transform of more frames rounds otherwise, and the logarithm of a quiet bin makes much of it.
    power = torch.fft.rfft(frames.double(), norm="ortho").abs().square()
    return ((0.5 * (power + _SILENT_POWER).log() + 4) / 2).float()


class SpectralSynthesis(nn.Module):
    """A `CausalLayer`: hidden states to hop_length samples each.

    Its state is the weighted sum of the frames so far, and the sum of their weights, over the fft_size - hop_length
    samples that later frames still add to; and the number of the next frame, modulo the period of the turns.

    Args:
        config: The transform.
        channels: C.
    """

    window: Tensor
    turns: Tensor

    def __init__(self, config: SpectrumConfig, channels: int) -> None:
        super().__init__()
        self.config = config
        self.projection = nn.Linear(channels, config.num_features)
        initialise_weight(self.projection.weight, fan_in=channels)
        nn.init.zeros_(self.projection.bias)
        self.register_buffer("window", synthesis_window(config), persistent=False)
        self.register_buffer("turns", turns_of_frames(config), persistent=False)

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B S 1"]:
        """T · hop_length samples of whole clips."""
        return self.step(x, self.init_state(len(x)))[0]

    def init_state(self, batch_size: int) -> tuple[Float[Tensor, "B 2 overlap"], Int[Tensor, "B"]]:
        """No frame has spoken."""
        overlap = self.config.fft_size - self.config.hop_length
        return self.window.new_zeros(batch_size, 2, overlap), _no_frames(batch_size, self.window.device)

    def step(
        self, chunk: Float[Tensor, "B n C"], state: tuple[Float[Tensor, "B 2 overlap"], Int[Tensor, "B"]]
    ) -> tuple[Float[Tensor, "B samples 1"], tuple[Float[Tensor, "B 2 overlap"], Int[Tensor, "B"]]]:
        """The n · hop_length samples that no later frame adds to. Float32 whatever the autocast type.

        Args:
            chunk: The next hidden states.
            state: What the frames so far say of the samples after theirs, and how many they are.
        """
        num_frames, hop_length = chunk.shape[1], self.config.hop_length
        said, frame = state
        if num_frames == 0:
            return said.new_zeros(len(chunk), 0, 1), state
        compressed = self.projection(chunk).float().unflatten(-1, (-1, 2))  # (B, n, F, 2)
        turns, frame = _next_turns(self.turns, frame, num_frames)
        spectrum = torch.view_as_complex(_raise_magnitude(compressed, 1 / self.config.power)) * turns
        frames = torch.fft.irfft(spectrum, n=self.config.fft_size, norm="ortho")  # (B, n, fft_size)
        waveforms, rest = weighted_mean(frames, self.window, hop_length, said)
        return waveforms, (rest, frame)


def synthesis_window(config: SpectrumConfig) -> Float[Tensor, "fft_size"]:
    """Weights of a frame's samples: a sine squared that rises over a hop, then one that falls over the rest.

    All are above zero, so that every sample has a weighted mean.
    """
    num_rising, num_falling = config.hop_length, config.fft_size - config.hop_length
    rising = torch.arange(1, num_rising + 1) / (num_rising + 1)
    falling = torch.arange(num_falling, 0, -1) / (num_falling + 1)
    return (torch.cat([rising, falling]) * (math.pi / 2)).sin().square()


def turns_of_frames(config: SpectrumConfig, *, backward: bool = False) -> Float[Tensor, "period F 2"]:
    """Real and imaginary part of exp(2 pi i k n / fft_size), for every bin k and the start n of every frame.

    Starts repeat after fft_size / gcd(fft_size, hop_length) frames; whole numbers keep them exact at any length.

    Args:
        config: The transform.
        backward: Turn the other way.
    """
    period = config.fft_size // math.gcd(config.fft_size, config.hop_length)
    starts = torch.arange(period) * config.hop_length
    parts = starts[:, None] * torch.arange(config.fft_size // 2 + 1) % config.fft_size
    angles = (-2 if backward else 2) * math.pi * parts / config.fft_size
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def _next_turns(
    turns: Float[Tensor, "period F 2"], frame: Int[Tensor, "B"], num_frames: int
) -> tuple[Complex[Tensor, "B n F"], Int[Tensor, "B"]]:
    """Those of the next frames of every stream, and the number of the frame after them."""
    numbers = frame[:, None] + torch.arange(num_frames, device=frame.device)
    return torch.view_as_complex(turns[numbers % len(turns)].float()), (frame + num_frames) % len(turns)


def _no_frames(batch_size: int, device: torch.device) -> Int[Tensor, "B"]:
    return torch.zeros(batch_size, dtype=torch.long, device=device)


def _raise_magnitude(spectrum: Float[Tensor, "B T F 2"], power: float) -> Float[Tensor, "B T F 2"]:
    """S |S|^(power - 1): magnitude to the power, phase kept."""
    squared = spectrum.square().sum(dim=-1, keepdim=True)
    return spectrum * (squared + _TINY_POWER) ** ((power - 1) / 2)


def weighted_mean(
    frames: Float[Tensor, "B n fft_size"],
    window: Float[Tensor, "fft_size"],
    hop_length: int,
    said: Float[Tensor, "B 2 overlap"],
) -> tuple[Float[Tensor, "B samples 1"], Float[Tensor, "B 2 overlap"]]:
    """The samples that no later frame adds to, and what is said so far of those that follow.

    Args:
        frames: The next ones of every stream.
        window: Their weights.
        hop_length: Samples from one frame to the next.
        said: By earlier frames: weighted sums, and sums of weights.
    """
    num_complete_samples = frames.shape[1] * hop_length
    weights = window.expand(1, frames.shape[1], -1)
    sums = torch.stack(
        torch.broadcast_tensors(_overlap_add(frames * window, hop_length), _overlap_add(weights, hop_length)), dim=1
    )  # (B, 2, samples + overlap)
    sums[..., : said.shape[-1]] += said
    complete, rest = sums[..., :num_complete_samples], sums[..., num_complete_samples:].clone()
    return (complete[:, 0] / complete[:, 1]).unsqueeze(-1), rest


def _overlap_add(frames: Float[Tensor, "B n fft_size"], hop_length: int) -> Float[Tensor, "B samples"]:
    """Sum of frames laid hop_length samples apart; (n - 1) · hop_length + fft_size samples."""
    num_frames, fft_size = frames.shape[1:]
    num_samples = (num_frames - 1) * hop_length + fft_size
    columns = frames.transpose(1, 2)  # (B, fft_size, n)
    return F.fold(columns, (1, num_samples), (1, fft_size), stride=(1, hop_length))[:, 0, 0]
