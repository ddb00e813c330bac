"""A voice for the decoder's end: a pulse train of a predicted pitch, and noise, shaped by predicted spectra.

    hidden states ─linear▶ pitch, spectrum of the pulses, spectrum of the noise
    pitch ─sum over time▶ phase ─▶ pulses of frame t ─FFT, times their spectrum─┐
    noise of frame t ─FFT, times its spectrum───────────────────────────────────┴─inverse FFT, weighted mean▶ waveform

A convolution of constant inputs gives constant outputs, and so cannot go on with a tone: phases would have to pass
through the latents, at many times their rate. Here the phase is a running sum of the pitch, kept in the stream's state,
as in neural source-filter models (Wang et al. 2019) and DDSP (Engel et al. 2020).

No gradient flows through phases: the pitch is learned from that of the recordings (`training/losses/pitch.py`). Nor do
spectra learn well from sound whose phases and noise are not those of the recording: what frames mean to say is compared
directly (`training/losses/envelope.py`).

Shapes: B streams, S samples, T frames, F = fft_size / 2 + 1 frequencies, C channels.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn
from torch.nn import functional as F

from latentlm.nn.causal_conv import initialise_weight
from latentlm.nn.keyed_noise import keyed_normal
from latentlm.tokenizers.speech.spectrum import SpectrumConfig, synthesis_window, weighted_mean

_NOISE_STREAM = 0x4015E
_FIRST_LEVEL = -2.0
"""Bias of the compressed spectra: an untrained decoder is as loud as quiet speech."""

HarmonicState = tuple[Float[Tensor, "B 2 overlap"], Float64[Tensor, "B"], Int[Tensor, "B"]]
"""What frames so far say of later samples, and their weights; the phase at the next frame, periods; its number."""


class SpokenFrames(NamedTuple):
    """What the decoder means to say in every frame, before phases and noise; all with gradients."""

    pitch: Float[Tensor, "B T"]
    """Hz."""
    power: Float[Tensor, "B T F"]
    """Spectrum that is expected of the frame under a Hann window of mean square 1, with the orthonormal transform."""


class HarmonicSynthesis(nn.Module):
    """A `CausalLayer`: hidden states to hop_length samples each.

    Args:
        config: The transform, with the range of pitches.
        channels: C.
        sample_rate: Hz.
    """

    window: Tensor
    analysis_window: Tensor

    def __init__(self, config: SpectrumConfig, channels: int, *, sample_rate: int) -> None:
        super().__init__()
        self.config, self.sample_rate = config, sample_rate
        self.projection = nn.Linear(channels, 1 + config.num_features)
        initialise_weight(self.projection.weight, fan_in=channels)
        nn.init.constant_(self.projection.bias, _FIRST_LEVEL)
        nn.init.zeros_(self.projection.bias[:1])
        self.register_buffer("window", synthesis_window(config), persistent=False)
        self.register_buffer("analysis_window", unit_hann_window(config.fft_size), persistent=False)

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B S 1"]:
        """T · hop_length samples of whole clips."""
        return self.step(x, self.init_state(len(x)))[0]

    def forward_with_frames(self, x: Float[Tensor, "B T C"]) -> tuple[Float[Tensor, "B S 1"], SpokenFrames]:
        """Samples of whole clips, and what their frames were to be."""
        waveforms, meant, _ = self._speak(x, self.init_state(len(x)))
        pitch, pulses, shapes = meant
        power = torch.fft.rfft(pulses * self.analysis_window, norm="ortho").abs().square()
        # White noise of unit variance has unit power at every frequency, under whatever window of mean square 1.
        of_pulses, of_noise = shapes.square().unbind(dim=2)
        return waveforms, SpokenFrames(pitch, power * of_pulses + of_noise)

    def init_state(self, batch_size: int) -> HarmonicState:
        """No frame has spoken."""
        overlap, device = self.config.fft_size - self.config.hop_length, self.window.device
        return (
            self.window.new_zeros(batch_size, 2, overlap),
            torch.zeros(batch_size, dtype=torch.float64, device=device),
            torch.zeros(batch_size, dtype=torch.long, device=device),
        )

    def step(
        self, chunk: Float[Tensor, "B n C"], state: HarmonicState
    ) -> tuple[Float[Tensor, "B samples 1"], HarmonicState]:
        """The n · hop_length samples that no later frame adds to. Float32 whatever the autocast type."""
        if chunk.shape[1] == 0:
            return state[0].new_zeros(len(chunk), 0, 1), state
        waveforms, _, state = self._speak(chunk, state)
        return waveforms, state

    def _speak(
        self, x: Float[Tensor, "B n C"], state: HarmonicState
    ) -> tuple[Float[Tensor, "B samples 1"], tuple[Tensor, Tensor, Tensor], HarmonicState]:
        """Samples; pitch [B, n], pulses [B, n, fft_size] and magnitudes [B, n, 2, F] of pulses and noise; state."""
        said, phase, frame = state
        num_frames, hop_length = x.shape[1], self.config.hop_length
        features = self.projection(x).float()
        pitch = self._pitch(features[..., 0])
        pulses, phase = self._pulses(pitch.detach().double() / self.sample_rate, phase)
        noise = self._noise(frame, num_frames)
        spectra = torch.fft.rfft(torch.stack([pulses, noise], dim=2), norm="ortho")  # (B, n, 2, F)
        shapes = F.softplus(features[..., 1:]).unflatten(-1, (2, -1)) ** (1 / self.config.power)
        frames = torch.fft.irfft((spectra * shapes).sum(dim=2), n=self.config.fft_size, norm="ortho")
        waveforms, rest = weighted_mean(frames, self.window, hop_length, said)
        return waveforms, (pitch, pulses, shapes), (rest, phase, frame + num_frames)

    def _pitch(self, logits: Float[Tensor, "B n"]) -> Float[Tensor, "B n"]:
        """Hz, evenly over the octaves of the range."""
        assert self.config.pitch_range is not None, "the decoder checks it"
        lowest, highest = self.config.pitch_range
        return lowest * (highest / lowest) ** logits.sigmoid()

    def _pulses(
        self, periods_per_sample: Float64[Tensor, "B n"], phase: Float64[Tensor, "B"]
    ) -> tuple[Float[Tensor, "B n fft_size"], Float64[Tensor, "B"]]:
        """Pulse trains of unit power without harmonics above half the sample rate; the phase after the last hop.

        Each frame goes on at its own pitch beyond its hop; the next one begins where it stands after the hop.
        """
        passed = (periods_per_sample * self.config.hop_length).cumsum(dim=1)
        starts = phase[:, None] + F.pad(passed, (1, 0))
        time = torch.arange(self.config.fft_size, device=phase.device)
        # In float64: half a minute at 8 kHz has thousands of periods.
        phases = starts[:, :-1, None] + periods_per_sample[..., None] * time
        half_turns = (math.pi * (phases - phases.round())).float()
        num_harmonics = (0.5 / periods_per_sample).floor().clamp(min=1)[..., None].float()
        # The sum of cos(2 k half_turns) for k = 1 ... num_harmonics.
        sine = half_turns.sin()
        is_pulse = sine.abs() < 1e-4
        sums = ((2 * num_harmonics + 1) * half_turns).sin() / (2 * torch.where(is_pulse, 1.0, sine)) - 0.5
        pulses = torch.where(is_pulse, num_harmonics, sums) * (2 / num_harmonics).sqrt()
        return pulses, starts[:, -1] % 1.0

    def _noise(self, frame: Int[Tensor, "B"], num_frames: int) -> Float[Tensor, "B n fft_size"]:
        """White noise that hangs on the place in the stream alone: overlapping frames hear the same."""
        fft_size, hop_length = self.config.fft_size, self.config.hop_length
        num_hops = num_frames - 1 + -(-fft_size // hop_length)
        hops = frame[:, None] + torch.arange(num_hops, device=frame.device)
        samples = keyed_normal(0, hops, (hop_length,), stream=_NOISE_STREAM).flatten(1)
        return samples.unfold(1, fft_size, hop_length)[:, :num_frames]


def unit_hann_window(fft_size: int) -> Float[Tensor, "fft_size"]:
    """A Hann window of mean square 1: it leaves the power of white noise as it is."""
    window = torch.hann_window(fft_size)
    return window / window.square().mean().sqrt()
