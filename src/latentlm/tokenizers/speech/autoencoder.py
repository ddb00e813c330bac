"""What the speech tokenizers share: a causal convolutional encoder and its mirror (paper Section 3.3).

    waveforms [B, S] ─first layer▶ frames ─blocks▶ ─strided convolution, blocks▶ … ─convolution▶ outputs (B, N, ...)
    vectors (B, N, C) ─convolution▶ ─blocks, transposed convolution▶ … ─blocks▶ ─last layer▶ waveforms [B, N · hop]

Two designs differ in the first and the last layer alone:

    time domain (the paper's)   a convolution from and to samples; strides 4, 4, 5, 5, 8 make the paper's 3200
    spectral (`spectrum`)       a short-time Fourier transform and its inverse, which take over the fast strides; meant
                                for small machines

Both are causal, sample for sample, and stream exactly (`nn/causal_conv.py`): the N-th latent comes out with the last
of its hop_length samples, and the waveform of a latent follows from it and earlier ones. A clip of any length is
completed by zeros to whole latents.

Shapes: B clips or streams, S samples, N = ceil(S / hop_length) latents, C width of a bottleneck vector.
"""

import math
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from latentlm.nn.causal_conv import CausalConv1d, CausalConvTranspose1d, CausalSequential
from latentlm.tokenizers.fingerprint import Fingerprinted
from latentlm.tokenizers.speech.convnext import ConvNeXtConfig, ConvNeXtStage
from latentlm.tokenizers.speech.harmonic import HarmonicSynthesis, SpokenFrames
from latentlm.tokenizers.speech.spectrum import SpectralAnalysis, SpectralSynthesis, SpectrumConfig

# Of the size of quiet speech's hidden states.
_FIRST_BIAS_STD = 0.1


@dataclass(frozen=True, kw_only=True)
class SpeechAutoencoderConfig:
    """Geometry and sizes of the encoder; the decoder mirrors it. Each tokenizer adds its bottleneck.

    The paper's encoder of about 120 million parameters: channels 32, 64, 128, 256, 512, 1024 and strides 4, 4, 5, 5, 8
    (3200 samples a latent). It does not tell the depths; 3, 3, 3, 3, 3, 12 fits the count, deepest where frames are
    few, as in VibeVoice.
    """

    sample_rate: int = 24_000
    """Hz."""
    spectrum: SpectrumConfig | None = None
    """The Fourier transform of the spectral design; absent in the time domain."""
    channels: tuple[int, ...]
    """Of each stage, from the waveform to the latents."""
    depths: tuple[int, ...]
    """ConvNeXt blocks of each stage."""
    strides: tuple[int, ...]
    """Between the stages, so one fewer. The convolution there has kernel 2 · stride."""
    block: ConvNeXtConfig = field(default_factory=ConvNeXtConfig)

    def __post_init__(self) -> None:
        if not len(self.channels) == len(self.depths) == len(self.strides) + 1:
            raise ValueError(
                f"{len(self.channels)} channels, {len(self.depths)} depths and {len(self.strides)} strides: each stage "
                "has channels and a depth, and between two stages lies a stride"
            )
        if min(self.sample_rate, *self.channels, *self.strides) < 1 or min(self.depths) < 0:
            raise ValueError("sample_rate, channels and strides must be at least 1, depths at least 0")

    @property
    def hop_length(self) -> int:
        """Samples per latent: the paper's compression ratio."""
        return math.prod(self.strides) * (1 if self.spectrum is None else self.spectrum.hop_length)

    @property
    def frame_rate(self) -> float:
        """Latents per second, Hz."""
        return self.sample_rate / self.hop_length


class SpeechEncoder(CausalSequential):
    """Samples [B, S, 1] to the bottleneck's inputs [B, S // hop_length, num_outputs]."""

    def __init__(self, config: SpeechAutoencoderConfig, *, num_outputs: int) -> None:
        super().__init__()
        kernel_size, channels = config.block.kernel_size, config.channels
        if config.spectrum is None:
            self.first = CausalConv1d(1, channels[0], kernel_size)
            bias = self.first.bias
        else:
            self.first = SpectralAnalysis(config.spectrum, channels[0], sample_rate=config.sample_rate)
            bias = self.first.projection.bias
        # Digital silence must not be zero inside: there every norm has the slope 1 / sqrt(eps), and gradients grow
        # from block to block beyond what float32 holds.
        nn.init.normal_(bias, std=_FIRST_BIAS_STD)
        for stage, depth in enumerate(config.depths):
            if stage > 0:
                stride = config.strides[stage - 1]
                down = CausalConv1d(channels[stage - 1], channels[stage], 2 * stride, stride=stride)
                self.add_module(f"down_{stage}", down)
            self.add_module(f"stage_{stage}", ConvNeXtStage(config.block, channels[stage], depth))
        self.last = CausalConv1d(channels[-1], num_outputs, kernel_size)


class SpeechDecoder(CausalSequential):
    """Bottleneck vectors [B, N, latent_dim] to samples [B, N · hop_length, 1]; the encoder's stages in reverse."""

    def __init__(self, config: SpeechAutoencoderConfig, *, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        kernel_size, channels = config.block.kernel_size, config.channels
        self.first = CausalConv1d(latent_dim, channels[-1], kernel_size)
        for stage in reversed(range(len(channels))):
            self.add_module(f"stage_{stage}", ConvNeXtStage(config.block, channels[stage], config.depths[stage]))
            if stage > 0:
                stride = config.strides[stage - 1]
                up = CausalConvTranspose1d(channels[stage], channels[stage - 1], 2 * stride, stride=stride)
                self.add_module(f"up_{stage}", up)
        if config.spectrum is None:
            self.last = CausalConv1d(channels[0], 1, kernel_size)
        elif config.spectrum.pitch_range is None:
            self.last = SpectralSynthesis(config.spectrum, channels[0])
        else:
            self.last = HarmonicSynthesis(config.spectrum, channels[0], sample_rate=config.sample_rate)

    def forward_with_frames(
        self, vectors: Float[Tensor, "B N C"]
    ) -> tuple[Float[Tensor, "B S 1"], SpokenFrames | None]:
        """Whole clips, and what their frames were to be; None from a decoder that does not speak by a pitch."""
        if not isinstance(self.last, HarmonicSynthesis):
            return self(vectors), None
        *layers, _ = self
        return self.last.forward_with_frames(self.run_through(layers, vectors))


class SpeechAutoencoder(Fingerprinted):
    """Encoder, decoder and geometry; a tokenizer adds what lies between.

    Args:
        config: The tokenizer's.
        num_outputs: Numbers per latent that the encoder gives.
        latent_dim: C, numbers per latent that the decoder takes.
    """

    modality = "speech"

    def __init__(self, config: SpeechAutoencoderConfig, *, num_outputs: int, latent_dim: int) -> None:
        super().__init__(config)
        self.config = config
        self.encoder = SpeechEncoder(config, num_outputs=num_outputs)
        self.decoder = SpeechDecoder(config, latent_dim=latent_dim)

    def num_frames(self, num_samples: int) -> int:
        """Latents of a clip: ceil(num_samples / hop_length)."""
        return -(-num_samples // self.config.hop_length)

    def encoder_state(self, batch_size: int) -> tuple[Any, ...]:
        """State of streams to encode, none of which has begun: tensors, streams first, in nested tuples."""
        return self.encoder.init_state(batch_size)

    def decoder_state(self, batch_size: int) -> tuple[Any, ...]:
        """State of streams to decode, none of which has begun: tensors, streams first, in nested tuples."""
        return self.decoder.init_state(batch_size)

    def encoder_outputs(self, waveforms: Float[Tensor, "B S"]) -> Float[Tensor, "B N outputs"]:
        """What the encoder says of clips in [-1, 1], completed by zeros to whole latents."""
        missing = self.num_frames(waveforms.shape[1]) * self.config.hop_length - waveforms.shape[1]
        return self.encoder(F.pad(waveforms, (0, missing)).unsqueeze(-1))

    def encoder_outputs_step(
        self, chunk: Float[Tensor, "B s"], state: tuple[Any, ...], *, final: bool
    ) -> tuple[Float[Tensor, "B n outputs"], tuple[Any, ...]]:
        """`encoder_outputs` of the latents whose last sample is in the chunk; `final` completes the last one."""
        # One sample short of a latent: completes one that has begun, and begins no other.
        missing = self.config.hop_length - 1 if final else 0
        return self.encoder.step(F.pad(chunk, (0, missing)).unsqueeze(-1), state)

    def reconstruct(self, vectors: Float[Tensor, "B N C"]) -> Float[Tensor, "B S"]:
        """The decoder, for training: N · hop_length samples of the bottleneck's own vectors, float32, not clipped."""
        return self.decoder(vectors).float().squeeze(-1)

    def reconstruct_with_frames(
        self, vectors: Float[Tensor, "B N C"]
    ) -> tuple[Float[Tensor, "B S"], SpokenFrames | None]:
        """`reconstruct`, and what the decoder's frames were to be, if it speaks by a pitch."""
        waveforms, frames = self.decoder.forward_with_frames(vectors)
        return waveforms.float().squeeze(-1), frames

    def reconstruct_step(
        self, vectors: Float[Tensor, "B n C"], state: tuple[Any, ...]
    ) -> tuple[Float[Tensor, "B s"], tuple[Any, ...]]:
        """`reconstruct` of the next vectors of streams."""
        waveforms, state = self.decoder.step(vectors, state)
        return waveforms.float().squeeze(-1), state

    def _clipped(self, waveforms: Float[Tensor, "B S"], num_samples: int | None) -> Float[Tensor, "B s"]:
        """Clipped to [-1, 1] and cut to a clip's own length.

        Raises:
            ValueError: If a clip of this length has another number of latents.
        """
        if num_samples is not None:
            hop_length = self.config.hop_length
            if self.num_frames(num_samples) * hop_length != waveforms.shape[1]:
                raise ValueError(
                    f"{waveforms.shape[1] // hop_length} latents of {hop_length} samples do not make a clip of "
                    f"{num_samples} samples, which has {self.num_frames(num_samples)}"
                )
            waveforms = waveforms[:, :num_samples]
        return waveforms.clamp(-1, 1)
