"""Causal convolutions: PyTorch's numbers, streams equal to whole clips, and no look ahead."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_speech import split_at, tensors_of
from torch import Tensor, nn
from torch.nn import functional as F

from latentlm.nn.causal_conv import CausalConv1d, CausalConvTranspose1d, CausalLayer, CausalSequential

# Sums of at most a hundred products of size 1, in another order.
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}

# Name to settings: channels in, out, kernel, and what is not 1.
KERNELS = {
    "plain": (3, 5, 7, {}),
    "pointwise": (3, 5, 1, {}),
    "strided": (3, 5, 8, {"stride": 4}),
    "kernel of one stride": (3, 5, 4, {"stride": 4}),
    "stride that does not divide the kernel": (3, 5, 7, {"stride": 3}),
    "dilated": (3, 5, 3, {"dilation": 4}),
    "dilated and strided": (3, 5, 3, {"dilation": 2, "stride": 3}),
    "depthwise": (4, 4, 7, {"depthwise": True}),
    "depthwise, dilated and strided": (4, 4, 5, {"depthwise": True, "dilation": 2, "stride": 2}),
}
LAYERS = [(kind, name) for kind in (CausalConv1d, CausalConvTranspose1d) for name in KERNELS]


def make_layer(kind: type, name: str) -> nn.Module:
    in_channels, out_channels, kernel_size, extras = KERNELS[name]
    layer = kind(in_channels, out_channels, kernel_size, **extras).requires_grad_(False)
    assert isinstance(layer, CausalLayer)
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer


def inputs(layer: nn.Module, batch_size: int, length: int) -> Tensor:
    channels = layer.weight.shape[0] if isinstance(layer, CausalConvTranspose1d) else layer.in_channels
    return torch.randn(batch_size, length, channels, generator=torch.Generator().manual_seed(1))


def streamed(layer: CausalLayer, chunks: list[Tensor]) -> Tensor:
    state, outputs = layer.init_state(len(chunks[0])), []
    for chunk in chunks:
        output, state = layer.step(chunk, state)
        outputs.append(output)
    return torch.cat(outputs, dim=1)


@pytest.mark.parametrize("name", KERNELS)
def test_a_convolution_is_pytorchs_with_zeros_before_the_start(name: str) -> None:
    layer = make_layer(CausalConv1d, name)
    stride, dilation = layer.stride, layer.dilation
    x = inputs(layer, 2, 31)
    padding = (KERNELS[name][2] - 1) * dilation - (stride - 1)
    expected = F.conv1d(
        F.pad(x.transpose(1, 2), (padding, 0)), layer.weight, layer.bias, stride, dilation=dilation, groups=layer.groups
    )
    assert expected.shape[2] == 31 // stride
    torch.testing.assert_close(layer(x), expected.transpose(1, 2), **TOLERANCE)


@pytest.mark.parametrize("name", KERNELS)
def test_a_transposed_convolution_is_pytorchs_without_its_tail(name: str) -> None:
    layer = make_layer(CausalConvTranspose1d, name)
    stride, dilation = layer.stride, layer.dilation
    x = inputs(layer, 2, 9)
    expected = F.conv_transpose1d(
        x.transpose(1, 2), layer.weight, layer.bias, stride, groups=layer.groups, dilation=dilation
    )
    torch.testing.assert_close(layer(x), expected.transpose(1, 2)[:, : 9 * stride], **TOLERANCE)


@pytest.mark.parametrize(("kind", "name"), LAYERS)
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 40), st.lists(st.integers(0, 12), max_size=8))
def test_chunks_of_any_length_give_what_the_whole_gives(kind: type, name: str, length: int, sizes: list[int]) -> None:
    layer = make_layer(kind, name)
    x = inputs(layer, 2, length)
    torch.testing.assert_close(streamed(layer, split_at(x, sizes)), layer(x), **TOLERANCE)


@pytest.mark.parametrize(("kind", "name"), LAYERS)
def test_a_chunk_completes_the_outputs_of_its_own_strides_and_no_input_moves_earlier_ones(
    kind: type, name: str
) -> None:
    layer = make_layer(kind, name)
    x = inputs(layer, 1, 24)
    whole = layer(x)
    outputs_per_input = whole.shape[1] / 24
    changed = x.clone()
    changed[:, 15:] = torch.nan  # what is looked at turns to NaN
    before = int(15 * outputs_per_input)
    assert torch.equal(layer(changed)[:, :before], whole[:, :before])
    assert layer(changed)[:, before:].isnan().any()
    assert streamed(layer, [x[:, :15]]).shape[1] == before


@pytest.mark.parametrize(("kind", "name"), LAYERS)
def test_the_state_is_bounded_and_keeps_no_chunk_alive(kind: type, name: str) -> None:
    layer = make_layer(kind, name)
    kernel_size, extras = KERNELS[name][2:]
    reach = (kernel_size - 1) * extras.get("dilation", 1) + 1
    state = layer.init_state(1)
    for length in (1, 1000, 0, 3, 501):
        _, state = layer.step(inputs(layer, 1, length), state)
        assert state.shape[1] < max(reach, 2)
        assert state.untyped_storage().nbytes() == state.numel() * state.element_size()


def test_layers_in_a_row_stream_as_one() -> None:
    layers = CausalSequential(
        make_layer(CausalConv1d, "strided"),
        CausalSequential(CausalConv1d(5, 3, 2)),
        make_layer(CausalConvTranspose1d, "strided"),
    ).requires_grad_(False)
    x = inputs(layers[0], 2, 50)
    whole = layers(x)
    assert whole.shape == (2, 48, 5)
    torch.testing.assert_close(streamed(layers, list(x.split(7, dim=1))), whole, **TOLERANCE)
    assert all(len(tensor) == 2 for tensor in tensors_of(layers.init_state(2)))


def test_rows_of_states_are_streams_that_can_be_parted() -> None:
    layer = make_layer(CausalConv1d, "dilated")
    x = inputs(layer, 2, 20)
    _, state = layer.step(x[:, :9], layer.init_state(2))
    torch.testing.assert_close(layer.step(x[1:, 9:], state[1:])[0], layer(x)[1:, 9:], **TOLERANCE)


def test_checkpointed_layers_have_the_same_gradients() -> None:
    layers = CausalSequential(
        make_layer(CausalConv1d, "plain"), CausalConv1d(5, 3, 3), make_layer(CausalConvTranspose1d, "strided")
    ).requires_grad_(True)
    x = inputs(layers[0], 2, 20)
    gradients = []
    for layers.activation_checkpointing in (False, True):
        layers.zero_grad()
        layers(x).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in layers.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert plain.abs().max() > 0
        assert torch.equal(plain, checkpointed)


@pytest.mark.parametrize("kind", [CausalConv1d, CausalConvTranspose1d])
def test_a_kernel_shorter_than_its_stride_and_unequal_depthwise_channels_are_refused(kind: type) -> None:
    with pytest.raises(ValueError, match="does not reach over stride 4"):
        kind(3, 3, 3, stride=4)
    with pytest.raises(ValueError, match="got 3 and 5"):
        kind(3, 5, 3, depthwise=True)


def test_fresh_weights_keep_the_variance() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [
            CausalConv1d(64, 64, 7),
            CausalConv1d(64, 64, 8, stride=4),
            CausalConv1d(64, 64, 7, depthwise=True),
            CausalConvTranspose1d(64, 64, 8, stride=4),
        ]
    x = torch.randn(4, 400, 64, generator=torch.Generator().manual_seed(0))
    for layer in layers:
        # 64 filters of random length, and the first outputs see zeros: a quarter is plenty.
        assert layer(x).var().item() == pytest.approx(1, rel=0.25)


@pytest.mark.parametrize(("in_channels", "stride"), [(8, 4), (16, 4), (16, 8), (24, 8), (32, 4)])
def test_half_precision_is_near_full_precision(in_channels: int, stride: int) -> None:
    torch.manual_seed(0)
    layer = CausalConv1d(in_channels, 32, 2 * stride, stride=stride)
    x = torch.randn(2, 40 * stride, in_channels)
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(x).float()
    full = layer(x)
    # Eight bits of mantissa in both factors; a broken kernel is off by as much as the output itself.
    assert (half - full).norm() < 0.02 * full.norm()
