"""Bringing latents to unit variance, by numbers measured once and kept with the tokenizer.

normalised = (z + bias) · scale, with bias = -mean and scale = 1 / std over *sampled* z: samples are what a model is
trained on, and their variance includes the bottleneck's noise. One scalar pair by default, as the authors do: the
relative spread of channels is information for the model; a pair per channel is an option.

Shapes: B batch, N latents per example, C latent_dim.
"""

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn


class StreamingMoments:
    """Mean and variance per channel over batches of any size, in float64 (Welford's update, batched by Chan et al.).

    A sum of squares would lose the variance to rounding where the mean is large; this form does not.

    Args:
        num_channels: C.
    """

    def __init__(self, num_channels: int) -> None:
        self.count = 0
        self.mean = torch.zeros(num_channels, dtype=torch.float64)
        self._sum_of_squares = torch.zeros(num_channels, dtype=torch.float64)  # of deviations from the mean

    def update(self, values: Float[Tensor, "*batch C"]) -> None:
        """Take in values; all axes but the last are examples."""
        rows = values.detach().reshape(-1, values.shape[-1]).cpu().double()  # (rows, C)
        if len(rows) == 0:
            return
        mean = rows.mean(dim=0)
        difference = mean - self.mean
        total = self.count + len(rows)
        self._sum_of_squares += (rows - mean).square().sum(dim=0)
        self._sum_of_squares += difference.square() * self.count * len(rows) / total
        self.mean = self.mean + difference * len(rows) / total
        self.count = total

    @property
    def variance(self) -> Float64[Tensor, "C"]:
        """Variance of each channel (divided by the count, not one less)."""
        self._refuse_if_empty()
        return self._sum_of_squares / self.count

    @property
    def overall_mean(self) -> float:
        """Mean over all elements."""
        self._refuse_if_empty()
        return self.mean.mean().item()

    @property
    def overall_variance(self) -> float:
        """Variance over all elements: within channels, plus that of the channels' means."""
        return (self.variance.mean() + self.mean.var(correction=0)).item()

    def _refuse_if_empty(self) -> None:
        if self.count == 0:
            raise ValueError("no latents were seen, so they have no mean and variance; is the data set empty?")


class LatentStatistics(nn.Module):
    """The pair (bias, scale) as buffers: saved with the tokenizer, NaN until measured.

    Args:
        latent_dim: C.
        per_channel: One pair per channel instead of one scalar pair.
    """

    bias: Tensor
    scale: Tensor

    def __init__(self, latent_dim: int, *, per_channel: bool = False) -> None:
        super().__init__()
        self.per_channel = per_channel
        shape = (latent_dim,) if per_channel else ()
        self.register_buffer("bias", torch.full(shape, torch.nan))
        self.register_buffer("scale", torch.full(shape, torch.nan))
        # Looking at the buffers makes the host wait for an accelerator, so it is done until they are good, then never.
        self._known_to_be_measured = False
        self.register_load_state_dict_post_hook(_look_again)

    @property
    def is_measured(self) -> bool:
        """Whether bias and scale hold numbers; on the meta device, where FLOPs are counted, it is taken for granted."""
        if self.bias.is_meta:
            return True
        if not self._known_to_be_measured:
            self._known_to_be_measured = bool((self.bias.isfinite() & self.scale.isfinite()).all())
        return self._known_to_be_measured

    @torch.no_grad()
    def set_from(self, moments: StreamingMoments) -> None:
        """Take bias and scale from the moments of sampled, unnormalised latents.

        Raises:
            ValueError: If nothing was measured, or the latents do not vary (or are not finite).
        """
        if self.per_channel:
            mean, variance = moments.mean, moments.variance
        else:
            mean, variance = torch.tensor(moments.overall_mean), torch.tensor(moments.overall_variance)
        if not (mean.isfinite().all() and variance.isfinite().all() and (variance > 0).all()):
            raise ValueError(
                f"latents of mean {mean.tolist()} and variance {variance.tolist()} cannot be brought to unit variance; "
                "has the tokenizer collapsed or diverged?"
            )
        self.bias.copy_(-mean)
        self.scale.copy_(variance.rsqrt())
        self._known_to_be_measured = True

    def normalize(self, latents: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """(z + bias) · scale.

        Raises:
            ValueError: If bias and scale were never measured.
        """
        self._refuse_if_unmeasured()
        return (latents + self.bias) * self.scale

    def denormalize(self, latents: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """Undo `normalize`: latents / scale - bias.

        Raises:
            ValueError: If bias and scale were never measured.
        """
        self._refuse_if_unmeasured()
        return latents / self.scale - self.bias

    def _refuse_if_unmeasured(self) -> None:
        if not self.is_measured:
            raise ValueError(
                "this tokenizer has no latent statistics yet, so its latents have no known scale; call "
                "measure_statistics(batches of raw data) once after training (latentlm train does) and save it again"
            )


def _look_again(module: nn.Module, incompatible_keys: object) -> None:
    assert isinstance(module, LatentStatistics)
    module._known_to_be_measured = False
