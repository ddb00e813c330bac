"""Perceptual and adversarial losses: against independent forms, on many shapes, and with their refusals."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from latentlm.training.losses.adversarial import (
    AdversarialConfig,
    PatchDiscriminator,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
)
from latentlm.training.losses.perceptual import PerceptualConfig, PerceptualDistance, load_perceptual_distance


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def vgg16() -> nn.Sequential:
    """torchvision's `features`, layer for layer, with small random weights."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512):
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
    network = nn.Sequential(*layers)
    generator = seeded()
    with torch.no_grad():
        for parameter in network.parameters():
            # He's deviation keeps the maps of order one through 13 layers.
            fan_in = parameter[0].numel()
            spread = (2 / fan_in) ** 0.5 if parameter.ndim == 4 else 0.05
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
    return network.requires_grad_(False)


@pytest.fixture(scope="module")
def network() -> nn.Sequential:
    return vgg16()


@pytest.fixture(scope="module")
def heads() -> dict[str, Tensor]:
    widths = (64, 128, 256, 512, 512)
    generator = seeded(1)
    return {f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1, generator=generator) for i, width in enumerate(widths)}


def named(network: nn.Sequential) -> dict[str, Tensor]:
    return {f"features.{name}": tensor for name, tensor in network.state_dict().items()}


def plain_lpips(network: nn.Sequential, heads: dict[str, Tensor], one: Tensor, other: Tensor) -> Tensor:
    """LPIPS as its paper writes it, Eq. 1, with torchvision's numbering of the compared layers."""
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    total = torch.zeros(len(one))
    x, y = (one - shift) / scale, (other - shift) / scale
    compared = {3: 0, 8: 1, 15: 2, 22: 3, 29: 4}
    for index, layer in enumerate(network):
        x, y = layer(x), layer(y)
        if index in compared:
            weight = heads[f"lin{compared[index]}.model.1.weight"].view(-1, 1, 1)
            difference = x / x.norm(dim=1, keepdim=True) - y / y.norm(dim=1, keepdim=True)
            total = total + (weight * difference**2).sum(dim=1).mean(dim=(1, 2))
    return total


def test_perceptual_distance_equals_a_plain_form_of_lpips(network: nn.Sequential, heads: dict[str, Tensor]) -> None:
    one, other = torch.rand(2, 2, 3, 32, 32, generator=seeded(2)) * 2 - 1
    expected = plain_lpips(network, heads, one, other)
    assert expected.min() > 0.01
    # Float32 through 13 convolutions.
    assert torch.allclose(PerceptualDistance(named(network), heads)(one, other), expected, rtol=1e-4)


def test_grey_pictures_are_seen_as_rgb_and_equal_ones_are_at_distance_zero(
    network: nn.Sequential, heads: dict[str, Tensor]
) -> None:
    distance = PerceptualDistance(named(network), heads)
    one, other = torch.rand(2, 2, 1, 16, 16, generator=seeded(2)) * 2 - 1
    assert torch.equal(distance(one, other), distance(one.expand(-1, 3, -1, -1), other.expand(-1, 3, -1, -1)))
    assert distance(one, one).tolist() == [0.0, 0.0]


def test_perceptual_gradients_are_finite_and_no_checkpoint_holds_its_weights(
    network: nn.Sequential, heads: dict[str, Tensor]
) -> None:
    distance = PerceptualDistance(named(network), heads)
    assert not list(distance.parameters())
    assert not distance.state_dict()
    picture = torch.zeros(1, 3, 16, 16, requires_grad=True)  # flat: many features are exactly zero
    distance(picture, torch.ones(1, 3, 16, 16)).sum().backward()
    assert picture.grad is not None
    assert picture.grad.isfinite().all()
    assert picture.grad.abs().max() > 0


def test_pictures_too_small_for_vgg_are_refused(network: nn.Sequential, heads: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="at least 16 pixels"):
        PerceptualDistance(named(network), heads)(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))


def test_the_users_files_are_loaded_in_both_formats(
    network: nn.Sequential, heads: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save(named(network) | {"classifier.0.bias": torch.zeros(3)}, tmp_path / "vgg16.pth")
    save_file(heads, tmp_path / "lpips.safetensors")
    config = PerceptualConfig(vgg16_path=str(tmp_path / "vgg16.pth"), lpips_path=str(tmp_path / "lpips.safetensors"))
    one, other = torch.rand(2, 1, 3, 16, 16, generator=seeded(3)) * 2 - 1
    expected = PerceptualDistance(named(network), heads)(one, other)
    assert torch.equal(load_perceptual_distance(config)(one, other), expected)


def test_absent_or_wrong_weight_files_are_refused_with_instructions(heads: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--losses\.perceptual\.vgg16_path"):
        load_perceptual_distance(PerceptualConfig())
    with pytest.raises(ValueError, match=r"nowhere.pth does not exist.*vgg16-397923af"):
        load_perceptual_distance(PerceptualConfig(vgg16_path="nowhere.pth", lpips_path="nowhere.pth"))
    with pytest.raises(ValueError, match=r"features.0.weight is missing.*right files"):
        PerceptualDistance(heads, heads)


@pytest.mark.parametrize(
    ("num_channels", "size", "num_layers"), [(1, 8, 1), (3, 6, 1), (1, 28, 3), (3, 24, 3), (5, 13, 2)]
)
def test_the_discriminator_takes_any_channels_and_small_pictures(num_channels: int, size: int, num_layers: int) -> None:
    discriminator = PatchDiscriminator(
        AdversarialConfig(num_layers=num_layers, num_filters=8), num_channels=num_channels
    )
    verdicts = discriminator(torch.randn(2, num_channels, size, size, generator=seeded()))
    assert verdicts.shape[0] == 2
    assert verdicts.shape[1] >= 1


def test_pictures_too_small_for_the_discriminator_are_refused() -> None:
    config = AdversarialConfig(num_layers=2, num_filters=8)
    with pytest.raises(ValueError, match="at least 12 pixels"):
        PatchDiscriminator(config, num_channels=1)(torch.zeros(1, 1, 11, 11))
    assert PatchDiscriminator(config, num_channels=1)(torch.zeros(1, 1, 12, 12)).shape == (1, 1)


def test_a_discriminator_of_three_layers_sees_patches_of_70_pixels() -> None:
    discriminator = PatchDiscriminator(AdversarialConfig(num_filters=8), num_channels=1)
    for module in discriminator.modules():
        if isinstance(module, nn.GroupNorm):
            module.forward = lambda x: x  # it looks at the whole picture; only the reach of the convolutions is asked
    picture = torch.randn(1, 1, 128, 128, generator=seeded(), requires_grad=True)
    verdicts = discriminator.layers(picture)
    verdicts[0, 0, 7, 7].backward()
    assert picture.grad is not None
    touched = picture.grad[0, 0].abs().sum(dim=0) > 0
    assert int(touched.sum()) == 70  # Isola et al. 2017


def test_verdicts_of_an_example_do_not_depend_on_the_batch() -> None:
    discriminator = PatchDiscriminator(AdversarialConfig(num_layers=1, num_filters=8), num_channels=1)
    images = torch.randn(4, 1, 8, 8, generator=seeded())
    with torch.no_grad():
        # Float32; convolutions may sum in another order for another batch size.
        assert torch.allclose(discriminator(images)[:1], discriminator(images[:1]), atol=1e-6)


def test_judging_moves_the_picture_and_not_the_judge() -> None:
    discriminator = PatchDiscriminator(AdversarialConfig(num_layers=1, num_filters=8), num_channels=1)
    images = torch.randn(2, 1, 8, 8, generator=seeded(), requires_grad=True)
    verdicts = discriminator.judge(images)
    assert torch.equal(verdicts, discriminator(images))
    generator_loss(verdicts).sum().backward()
    assert images.grad is not None
    assert images.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in discriminator.parameters())


def test_hinge_losses_by_hand() -> None:
    real, fake = torch.tensor([[2.0, 0.5]]), torch.tensor([[-3.0, 0.0]])
    # max(0, 1 - real) = 0, 0.5; max(0, 1 + fake) = 0, 1.
    assert discriminator_loss(real, fake).tolist() == [0.5 * (0.25 + 0.5)]
    assert generator_loss(fake).tolist() == [1.5]


def test_adaptive_weight_makes_both_losses_pull_equally_hard() -> None:
    layer = nn.Parameter(torch.randn(4, 4, generator=seeded()))
    reconstruction = (layer * torch.randn(4, 4, generator=seeded(1))).sum() * 7
    adversarial = (layer.square() * torch.randn(4, 4, generator=seeded(2))).sum() * 0.01
    weight = adaptive_weight(reconstruction, adversarial, layer)
    assert not weight.requires_grad
    (pull,) = torch.autograd.grad(reconstruction, layer)
    (push,) = torch.autograd.grad(weight * adversarial, layer)
    assert push.norm().item() == pytest.approx(pull.norm().item(), rel=1e-5)


def test_adaptive_weight_stays_finite_when_the_discriminator_says_nothing() -> None:
    layer = nn.Parameter(torch.ones(2))
    assert adaptive_weight(layer.sum(), (layer * 0).sum(), layer).item() == 1e4
