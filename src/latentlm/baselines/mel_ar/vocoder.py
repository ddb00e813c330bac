"""Sound of mel frames: a speech tokenizer with a formula where the learned encoder was.

    waveforms [B, S] ─LogMel▶ frames (B, N, M) ─(frame + bias) · scale▶ frames of unit variance: what the model predicts
    frames of unit variance ─causal decoder▶ waveforms [B, N · hop_length]

MELLE leaves the sound to a HiFi-GAN that others trained; this one has the decoder, the losses and the recordings of the
speech tokenizer that LatentLM is compared with. A frame carries no noise, and every filter has a bias and a scale of
its own: low frequencies are louder and move more.

Shapes: B clips or streams, S samples, N = ceil(S / hop_length) frames, M filters, the tokenizer's `latent_dim`.
"""

from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from latentlm.baselines.mel_ar.features import LogMel, MelConfig
from latentlm.tokenizers.bottleneck import BottleneckConfig, make_bottleneck
from latentlm.tokenizers.fingerprint import Fingerprinted
from latentlm.tokenizers.latent_statistics import LatentStatistics
from latentlm.tokenizers.speech import SpeechTokenizer, SpeechTokenizerConfig
from latentlm.tokenizers.speech.autoencoder import SpeechDecoder
from latentlm.tokenizers.speech.harmonic import SpokenFrames


@dataclass(frozen=True, kw_only=True)
class MelVocoderConfig(SpeechTokenizerConfig):
    """Geometry and sizes of the decoder, from the waveform to the frames as in every speech tokenizer."""

    latent_dim: int = 80
    """M, mel filters."""
    mel: MelConfig = field(default_factory=MelConfig)
    """How they look at the sound."""
    bottleneck: BottleneckConfig = field(default_factory=lambda: BottleneckConfig(kind="ae"))
    """Frames are exact: no other kind is taken."""
    per_channel_statistics: bool = True
    """Likewise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bottleneck.kind != "ae" or not self.per_channel_statistics:
            raise ValueError("mel frames carry no noise and have statistics per filter: leave both settings out")


class MelVocoder(SpeechTokenizer):
    """Sound to mel frames by a formula, and back by a learned decoder, which streams.

    Raises:
        ValueError: If the mel filters do not fit the sample rate.
    """

    kind = "mel_vocoder"
    config_class = MelVocoderConfig
    config: MelVocoderConfig

    def __init__(self, config: MelVocoderConfig) -> None:
        # Not SpeechTokenizer's own beginning, which would build an encoder to be learned.
        Fingerprinted.__init__(self, config)
        self.encoder = LogMel(
            config.mel, num_mels=config.latent_dim, sample_rate=config.sample_rate, hop_length=config.hop_length
        )
        self.decoder = SpeechDecoder(config, latent_dim=config.latent_dim)
        self.bottleneck = make_bottleneck(config.bottleneck)
        self.statistics = LatentStatistics(config.latent_dim, per_channel=True)

    def encoder_outputs(self, waveforms: Float[Tensor, "B S"]) -> Float[Tensor, "B N M"]:
        """Log10 mel magnitudes of clips in [-1, 1]."""
        return self.encoder(waveforms)

    def encoder_state(self, batch_size: int) -> tuple[Any, ...]:
        """Refused: a frame is centred, so that half of it lies ahead.

        Raises:
            ValueError: Always.
        """
        raise ValueError("mel frames look half a window ahead: a vocoder reads whole clips, and streams only sound")

    def reconstruct(self, vectors: Float[Tensor, "B N M"]) -> Float[Tensor, "B S"]:
        """Sound of log10 mel magnitudes, not clipped; the decoder sees them normalised.

        Raises:
            ValueError: If the statistics were never measured.
        """
        return super().reconstruct(self.statistics.normalize(vectors))

    def reconstruct_with_frames(
        self, vectors: Float[Tensor, "B N M"]
    ) -> tuple[Float[Tensor, "B S"], SpokenFrames | None]:
        """See `SpeechAutoencoder`; errors as in `reconstruct`."""
        return super().reconstruct_with_frames(self.statistics.normalize(vectors))

    def reconstruct_step(
        self, vectors: Float[Tensor, "B n M"], state: tuple[Any, ...]
    ) -> tuple[Float[Tensor, "B s"], tuple[Any, ...]]:
        """`reconstruct` of the next frames of streams."""
        return super().reconstruct_step(self.statistics.normalize(vectors), state)
