"""A second feature space, independent of the judge and of labels: random convolutions, then principal components.

A ranking of models counts when it holds in the judge's features and here too. Random filters see texture, sharpness,
contrast and coverage but know no classes (Naeem et al. 2020 use untrained networks in the same role); the principal
components, scaled to unit variance, turn their thousands of pooled responses into few dimensions, so that the Fréchet
distance of a few thousand images stays near its true value. We chose it over a self-supervised encoder because nothing
in it is trained to ignore noise, shifts or contrast, which augmentation-based training would teach.

Shapes: N images, C channels, H height, W width, P pooled responses, D features.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

_POOLED_SIDE = 4
"""Side to which the responses of every layer are averaged, whatever the image size."""
_WIDTHS = (1, 2, 4)
"""Channels of the three layers in units of `width`."""
_GAIN = 2.0
"""Of the orthogonal filters: half of the responses do not pass the ReLU."""
_BIAS_STD = 0.1


@dataclass(frozen=True, kw_only=True)
class SecondSpaceConfig:
    """Size of the random network and of its fit."""

    num_features: int = 32
    width: int = 32
    num_fitted: int = 10_000
    """Images on which the principal components are found."""
    seed: int = 1


class RandomFeatures(nn.Module):
    """Three layers of fixed random filters; pooled responses of all layers, projected and scaled.

    Everything is a buffer: nothing here is ever trained, and a saved space does not depend on a random generator.
    """

    response_mean: Tensor
    response_std: Tensor
    components: Tensor

    def __init__(self, config: SecondSpaceConfig, *, num_channels: int) -> None:
        super().__init__()
        self.config = config
        widths = [num_channels, *(multiple * config.width for multiple in _WIDTHS)]
        generator = torch.Generator().manual_seed(config.seed)
        for layer, (inputs, outputs) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            filters = torch.empty(outputs, inputs, 3, 3)
            nn.init.orthogonal_(filters, _GAIN, generator=generator)
            self.register_buffer(f"filters_{layer}", filters)
            self.register_buffer(f"biases_{layer}", _BIAS_STD * torch.randn(outputs, generator=generator))
        num_responses = sum(widths[1:]) * _POOLED_SIDE**2
        self.register_buffer("response_mean", torch.zeros(num_responses))
        self.register_buffer("response_std", torch.ones(num_responses))
        self.register_buffer("components", torch.zeros(num_responses, config.num_features))

    @torch.no_grad()
    def features(self, images: Float[Tensor, "N C H W"]) -> Float[Tensor, "N D"]:
        """Features in float64, variance 1 per dimension over the images the space was fitted on."""
        return torch.cat([self._standardised(chunk) @ self.components for chunk in images.split(512)]).double()

    @torch.no_grad()
    def fit(self, images: Float[Tensor, "N C H W"]) -> None:
        """Find the principal components of the responses to these images.

        Raises:
            ValueError: If there are not more images than features.
        """
        num_features = self.config.num_features
        if len(images) <= num_features:
            raise ValueError(f"{num_features} principal components need more than {len(images)} images")
        responses = torch.cat([self._responses(chunk) for chunk in images.split(512)])
        self.response_mean.copy_(responses.mean(dim=0))
        self.response_std.copy_(responses.std(dim=0).clamp_min(1e-6))  # a filter that never fires stays 0
        standardised = (responses - self.response_mean) / self.response_std
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)  # the start of the iteration; the caller's state is restored after
            _, singular_values, components = torch.pca_lowrank(
                standardised, q=num_features, center=False, niter=4
            )  # (P, D)
        deviations = singular_values / (len(images) - 1) ** 0.5
        self.components.copy_(components / deviations.clamp_min(1e-6))

    def _standardised(self, images: Tensor) -> Tensor:
        return (self._responses(images) - self.response_mean) / self.response_std

    def _responses(self, images: Tensor) -> Float[Tensor, "N P"]:
        pooled, hidden = [], images.float()
        for layer in range(len(_WIDTHS)):
            filters, biases = self.get_buffer(f"filters_{layer}"), self.get_buffer(f"biases_{layer}")
            hidden = F.relu(F.conv2d(hidden, filters, biases, padding=1))
            pooled.append(F.adaptive_avg_pool2d(hidden, _POOLED_SIDE).flatten(1))
            hidden = F.avg_pool2d(hidden, 2, ceil_mode=True)
        return torch.cat(pooled, dim=1)
