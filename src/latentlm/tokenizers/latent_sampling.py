"""What continuous tokenizers of every modality do alike: sample a posterior, bring latents to unit variance.

    raw ─posterior▶ mean, log_std ─bottleneck: + s eps▶ z ─(z + bias) · scale▶ latents of unit variance

Shapes: B batch, N latents per example, C latent_dim.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentlm.tokenizers.base import Posterior
from latentlm.tokenizers.bottleneck import Bottleneck, draw_keyed_noise, draw_noise
from latentlm.tokenizers.latent_statistics import LatentStatistics, StreamingMoments

# The noise of the samples on which statistics are measured: fixed, so that the same weights get the same numbers.
_STATISTICS_SEED = 0


class LatentSampling(ABC):
    """The half of a `LatentTokenizer` that does not depend on the medium.

    Attributes:
        bottleneck: How much noise a latent carries.
        statistics: Bias and scale of the latents.
    """

    bottleneck: Bottleneck
    statistics: LatentStatistics

    @property
    @abstractmethod
    def latent_dim(self) -> int:
        """Width C of one latent vector."""

    @abstractmethod
    def posterior(self, raw: Tensor, /) -> Posterior:
        """Encode raw examples; the result is neither sampled nor normalised (Eq. 5, first line)."""

    def sample(self, posterior: Posterior, *, generator: torch.Generator | None = None) -> Float[Tensor, "B N C"]:
        """Draw latents of unit variance, with noise from `generator` (None: the device's default).

        Raises:
            ValueError: If the latent statistics were never measured.
        """
        return self.statistics.normalize(self.bottleneck.sample(posterior, draw_noise(posterior, generator=generator)))

    def sample_keyed(self, posterior: Posterior, seed: int, keys: Int[Tensor, "B"]) -> Float[Tensor, "B N C"]:
        """Draw latents of unit variance whose noise depends on (seed, key) alone.

        Args:
            posterior: Fresh, or from a cache.
            seed: For example the hash of run seed and step.
            keys: One per example.

        Raises:
            ValueError: If the latent statistics were never measured.
        """
        noise = draw_keyed_noise(posterior, seed, keys)
        return self.statistics.normalize(self.bottleneck.sample(posterior, noise))

    def encode(
        self, raw: Tensor, /, *, sample: bool = True, generator: torch.Generator | None = None
    ) -> Float[Tensor, "B N C"]:
        """Latents of unit variance, in order: of reading, or of time.

        Args:
            raw: What `posterior` takes.
            sample: Draw from the posterior, as models are trained; otherwise its mean.
            generator: For the noise of the sample.

        Raises:
            ValueError: If the tokenizer cannot take such examples, or the statistics were never measured.
        """
        posterior = self.posterior(raw)
        return self.sample(posterior, generator=generator) if sample else self.statistics.normalize(posterior.mean)

    @torch.no_grad()
    def measure_statistics(self, batches: Iterable[tuple[Tensor, Int[Tensor, "B"]]]) -> None:
        """Measure bias and scale on one sample of each example; needed once, after training and before `encode`.

        Args:
            batches: Raw examples and their keys. Their noise hangs on the keys, so the result does not depend on
                batching.

        Raises:
            ValueError: If there are no examples, or their latents do not vary.
        """
        moments = StreamingMoments(self.latent_dim)
        for raw, keys in batches:
            posterior = self.posterior(raw)
            moments.update(self.bottleneck.sample(posterior, draw_keyed_noise(posterior, _STATISTICS_SEED, keys)))
        self.statistics.set_from(moments)
