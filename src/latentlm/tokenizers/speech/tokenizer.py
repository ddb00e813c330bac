"""The speech tokenizer: sound to a stream of latent vectors and back (paper Sections 2.3 and 3.3).

    waveforms [B, S] ─causal encoder▶ posterior ─bottleneck: + s eps▶ z (B, N, C)
      ─(z + bias) · scale▶ latents of unit variance: what models see
    latents ─/ scale - bias▶ z ─causal decoder▶ waveforms [B, N · hop_length]

Sound is mono, in [-1, 1], at the config's sample rate. Whole clips and streams give the same numbers:

    state = tokenizer.encoder_state(1)
    for chunk in chunks:                                  # of any length
        posterior, state = tokenizer.posterior_step(chunk, state)
    posterior, state = tokenizer.posterior_step(no_samples, state, final=True)

Shapes: B clips or streams, S samples, N = ceil(S / hop_length) latents, C latent_dim.
"""

from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from latentlm.tokenizers.base import Posterior
from latentlm.tokenizers.bottleneck import BottleneckConfig, make_bottleneck
from latentlm.tokenizers.latent_sampling import LatentSampling
from latentlm.tokenizers.latent_statistics import LatentStatistics
from latentlm.tokenizers.speech.autoencoder import SpeechAutoencoder, SpeechAutoencoderConfig


@dataclass(frozen=True, kw_only=True)
class SpeechTokenizerConfig(SpeechAutoencoderConfig):
    """Geometry, sizes and bottleneck of a continuous speech tokenizer."""

    latent_dim: int = 64
    """C, width of a latent. The paper: 32, 64, 128 at 1600, 3200, 6400 samples a latent."""
    bottleneck: BottleneckConfig = field(default_factory=lambda: BottleneckConfig(latent_sigma=0.5))
    """The paper's sigma for speech is not told; 0.5 is VibeVoice's."""
    per_channel_statistics: bool = False
    """Normalise each channel of the latents by its own bias and scale instead of all by one pair."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.latent_dim < 1:
            raise ValueError(f"latent_dim is {self.latent_dim}; a latent has at least one number")


class SpeechTokenizer(LatentSampling, SpeechAutoencoder):
    """A `LatentTokenizer` for sound: sigma-VAE, vanilla VAE or autoencoder over causal convolutions."""

    kind = "speech_tokenizer"
    config_class = SpeechTokenizerConfig

    def __init__(self, config: SpeechTokenizerConfig) -> None:
        bottleneck = make_bottleneck(config.bottleneck)
        num_outputs = config.latent_dim * bottleneck.outputs_per_channel
        super().__init__(config, num_outputs=num_outputs, latent_dim=config.latent_dim)
        self.config = config
        self.bottleneck = bottleneck
        self.statistics = LatentStatistics(config.latent_dim, per_channel=config.per_channel_statistics)

    @property
    def latent_dim(self) -> int:
        """Width C of one latent vector."""
        return self.config.latent_dim

    def posterior(self, waveforms: Float[Tensor, "B S"]) -> Posterior:
        """Encode clips in [-1, 1], completed by zeros to whole latents; neither sampled nor normalised (Eq. 5)."""
        return self.bottleneck.posterior(self.encoder_outputs(waveforms))

    def posterior_step(
        self, chunk: Float[Tensor, "B s"], state: tuple[Any, ...], *, final: bool = False
    ) -> tuple[Posterior, tuple[Any, ...]]:
        """Encode the next samples of streams.

        Args:
            chunk: Any number of samples, none too.
            state: From `encoder_state` or the last step.
            final: The streams end here: a latent that has begun is completed by zeros. The state is then spent.

        Returns:
            The posterior of the latents whose last sample is now in, and the state after them.
        """
        outputs, state = self.encoder_outputs_step(chunk, state, final=final)
        return self.bottleneck.posterior(outputs), state

    def encode_step(
        self, chunk: Float[Tensor, "B s"], state: tuple[Any, ...], *, final: bool = False
    ) -> tuple[Float[Tensor, "B n C"], tuple[Any, ...]]:
        """Means of the next latents of streams, of unit variance; arguments as in `posterior_step`.

        Raises:
            ValueError: If the latent statistics were never measured.
        """
        posterior, state = self.posterior_step(chunk, state, final=final)
        return self.statistics.normalize(posterior.mean), state

    def decode(self, latents: Float[Tensor, "B N C"], *, num_samples: int | None = None) -> Float[Tensor, "B S"]:
        """Sound of latents of unit variance, clipped to [-1, 1].

        Args:
            latents: In order of time.
            num_samples: Length of the clip that was encoded; None gives all N · hop_length samples.

        Raises:
            ValueError: If a clip of that length has another number of latents, or the statistics were never measured.
        """
        return self._clipped(self.reconstruct(self.statistics.denormalize(latents)), num_samples)

    def decode_step(
        self, latents: Float[Tensor, "B n C"], state: tuple[Any, ...]
    ) -> tuple[Float[Tensor, "B s"], tuple[Any, ...]]:
        """Sound of the next latents of streams: n · hop_length samples, clipped to [-1, 1].

        Args:
            latents: Of unit variance, any number.
            state: From `decoder_state` or the last step.

        Raises:
            ValueError: If the latent statistics were never measured.
        """
        waveforms, state = self.reconstruct_step(self.statistics.denormalize(latents), state)
        return waveforms.clamp(-1, 1), state
