"""The adversarial loss of image tokenizers: a patch discriminator, the hinge loss, and VQGAN's adaptive weight.

Optional beside Eq. 6 (the paper's 172M tokenizer uses it; its details are VQGAN's: Esser et al. 2021).

Shapes: B batch, H height, W width.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

# VQGAN: keeps the adaptive weight finite where the discriminator says nothing. Theirs is 1e-4, for losses summed over
# pixels; ours are means, and their gradients smaller by the number of pixels.
_SMALLEST_GRADIENT = 1e-8
_LARGEST_ADAPTIVE_WEIGHT = 1e4
# Both gradients are taken of losses this much larger: means over many pixels would vanish in float16's backward pass.
_GRADIENT_SCALE = 2.0**12

_GROUPS = 8  # of the discriminator's GroupNorm


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig:
    """When and how strongly a discriminator takes part."""

    weight: float = 0.5
    """Of the generator's adversarial loss, times the adaptive weight. 0.5 to 0.8 are usual."""
    start_step: int = 0
    """Optimizer step from which the discriminator is trained and heard."""
    num_layers: int = 3
    """Halvings of the picture's side: 3 sees patches of 70 pixels. Pictures need 3 · 2^num_layers pixels a side."""
    num_filters: int = 64
    """Channels of the first layer; doubled by each halving, up to eightfold."""

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise ValueError(f"the adversarial loss has weight {self.weight}; leave it out (null) rather than at zero")
        if self.start_step < 0 or self.num_layers < 1 or self.num_filters % _GROUPS:
            raise ValueError(
                f"start_step cannot be negative, num_layers must be at least 1 and num_filters a multiple of {_GROUPS}"
            )

    @property
    def min_image_size(self) -> int:
        """Smallest side, pixels, that leaves the discriminator at least one verdict."""
        return 3 * 2**self.num_layers


class PatchDiscriminator(nn.Module):
    """One verdict per overlapping patch (PatchGAN, Isola et al. 2017): positive for real.

    GroupNorm stands where they have BatchNorm: batch statistics would tie the examples of a batch together, and the
    sum of micro-batches would no longer be the batch.

    Args:
        config: Its size.
        num_channels: Of the pictures; any number.
    """

    def __init__(self, config: AdversarialConfig, *, num_channels: int) -> None:
        super().__init__()
        self.min_image_size = config.min_image_size
        layers: list[nn.Module] = [nn.Conv2d(num_channels, config.num_filters, 4, stride=2, padding=1), _leaky_relu()]
        width = config.num_filters
        for layer in range(1, config.num_layers + 1):
            wider = config.num_filters * min(2**layer, 8)
            stride = 2 if layer < config.num_layers else 1
            # No bias before a norm, which would take it away again.
            layers += [nn.Conv2d(width, wider, 4, stride=stride, padding=1, bias=False)]
            layers += [nn.GroupNorm(_GROUPS, wider), _leaky_relu()]
            width = wider
        layers.append(nn.Conv2d(width, 1, 4, padding=1))
        self.layers = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # pix2pix: normal, deviation 0.02
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B verdicts"]:
        """Verdicts on the patches of pictures in [-1, 1].

        Raises:
            ValueError: If the pictures are too small.
        """
        if min(images.shape[2:]) < self.min_image_size:
            raise ValueError(
                f"the discriminator needs at least {self.min_image_size} pixels a side but the pictures have "
                f"{images.shape[2]} x {images.shape[3]}; lower --losses.adversarial.num_layers"
            )
        return self.layers(images).flatten(1)

    def judge(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B verdicts"]:
        """`forward` for the generator's loss: gradients reach the pictures and leave the discriminator alone."""
        frozen = {name: parameter.detach() for name, parameter in self.named_parameters()}
        return functional_call(self, frozen, (images,))


def generator_loss(fake: Float[Tensor, "B verdicts"]) -> Float[Tensor, "B"]:
    """What the generator minimises, per picture: minus the mean verdict on its pictures."""
    return -fake.float().mean(dim=1)


def discriminator_loss(real: Float[Tensor, "B verdicts"], fake: Float[Tensor, "B verdicts"]) -> Float[Tensor, "B"]:
    """Hinge loss (Lim & Ye 2017) per picture: half of mean max(0, 1 - real) + mean max(0, 1 + fake)."""
    return 0.5 * (F.relu(1 - real.float()).mean(dim=1) + F.relu(1 + fake.float()).mean(dim=1))


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Float[Tensor, ""]:
    """How much the adversarial loss must be scaled to pull at the decoder's last layer as hard as the reconstruction.

    |d reconstruction / d w| / |d adversarial / d w| (Esser et al. 2021, Eq. 7); no gradient flows through it.

    Args:
        reconstruction: 0-dim; the perceptual loss included.
        adversarial: 0-dim, of the same pictures.
        last_layer: Weights of the decoder's last layer.
    """
    (pull,) = torch.autograd.grad(reconstruction * _GRADIENT_SCALE, last_layer, retain_graph=True)
    (push,) = torch.autograd.grad(adversarial * _GRADIENT_SCALE, last_layer, retain_graph=True)
    ratio = pull.float().norm() / (push.float().norm() + _SMALLEST_GRADIENT * _GRADIENT_SCALE)
    return ratio.clamp(max=_LARGEST_ADAPTIVE_WEIGHT).detach()


def _leaky_relu() -> nn.Module:
    return nn.LeakyReLU(0.2)
