"""The discrete speech codec: sound to code numbers and back, the baseline of the paper's Section 3.3.

    waveforms [B, S] ─causal encoder▶ vectors (B, N, C) ─residual quantization▶ codes [B, N, Q]
    codes ─sum over codebooks▶ (B, N, C) ─causal decoder▶ waveforms [B, N · hop_length]

Encoder and decoder are those of the sigma-VAE (`tokenizer.py`); the two tokenizers differ in the bottleneck alone.

Shapes: B clips or streams, S samples, N = ceil(S / hop_length) frames, C code_dim, Q codebooks, q of them used.
"""

from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from latentlm.tokenizers.residual_quantizer import ResidualQuantized, ResidualQuantizer, ResidualQuantizerConfig
from latentlm.tokenizers.speech.autoencoder import SpeechAutoencoder, SpeechAutoencoderConfig


@dataclass(frozen=True, kw_only=True)
class SpeechCodecConfig(SpeechAutoencoderConfig):
    """Geometry, sizes and codebooks of a speech codec."""

    quantizer: ResidualQuantizerConfig = field(default_factory=ResidualQuantizerConfig)


class SpeechCodec(SpeechAutoencoder):
    """Sound as frames of Q numbers in 0 … num_codes - 1."""

    kind = "speech_codec"
    config_class = SpeechCodecConfig

    def __init__(self, config: SpeechCodecConfig) -> None:
        code_dim = config.quantizer.quantizer.code_dim
        super().__init__(config, num_outputs=code_dim, latent_dim=code_dim)
        self.config = config
        self.quantizer = ResidualQuantizer(config.quantizer)

    @property
    def num_codes(self) -> int:
        """Size of each codebook."""
        return self.config.quantizer.quantizer.num_codes

    @property
    def num_quantizers(self) -> int:
        """Q, numbers per frame."""
        return self.config.quantizer.num_quantizers

    def quantize(self, waveforms: Float[Tensor, "B S"], *, seed: int, keys: Int[Tensor, "B"]) -> ResidualQuantized:
        """Encode for training: codes as vectors that let gradients through; in training mode the codebooks move.

        Args:
            waveforms: Clips in [-1, 1], completed by zeros to whole frames.
            seed: Of this step, for the restarts of dead codes and the dropout of codebooks.
            keys: One per clip.
        """
        return self.quantizer(self.encoder_outputs(waveforms), seed=seed, keys=keys)

    def encode(self, waveforms: Float[Tensor, "B S"], *, num_quantizers: int | None = None) -> Int[Tensor, "B N q"]:
        """Codes of clips; changes nothing, in training mode neither.

        Args:
            waveforms: In [-1, 1], completed by zeros to whole frames.
            num_quantizers: q, the first so many numbers of each frame; None gives all.

        Raises:
            ValueError: If there are not so many codebooks.
        """
        return self.quantizer.encode(self.encoder_outputs(waveforms), num_quantizers=num_quantizers)

    def encode_step(
        self, chunk: Float[Tensor, "B s"], state: tuple[Any, ...], *, final: bool = False
    ) -> tuple[Int[Tensor, "B n Q"], tuple[Any, ...]]:
        """Codes of the next samples of streams.

        Args:
            chunk: Any number of samples, none too.
            state: From `encoder_state` or the last step.
            final: The streams end here: a frame that has begun is completed by zeros. The state is then spent.

        Returns:
            Codes of the frames whose last sample is now in, and the state after them.
        """
        vectors, state = self.encoder_outputs_step(chunk, state, final=final)
        return self.quantizer.encode(vectors), state

    def decode(self, codes: Int[Tensor, "B N q"], *, num_samples: int | None = None) -> Float[Tensor, "B S"]:
        """Sound of codes, clipped to [-1, 1].

        Args:
            codes: In order of time; the first q numbers of each frame.
            num_samples: Length of the clip that was encoded; None gives all N · hop_length samples.

        Raises:
            ValueError: If the codes are none of the codebooks', or a clip of that length has another number of frames.
        """
        return self._clipped(self.reconstruct(self.quantizer.lookup(codes)), num_samples)

    def decode_step(
        self, codes: Int[Tensor, "B n q"], state: tuple[Any, ...]
    ) -> tuple[Float[Tensor, "B s"], tuple[Any, ...]]:
        """Sound of the next codes of streams: n · hop_length samples, clipped to [-1, 1].

        Args:
            codes: Any number of frames; the first q numbers of each.
            state: From `decoder_state` or the last step.

        Raises:
            ValueError: If the codes are none of the codebooks'.
        """
        waveforms, state = self.reconstruct_step(self.quantizer.lookup(codes), state)
        return waveforms.clamp(-1, 1), state
