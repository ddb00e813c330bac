"""Causal convolutions over time, for whole clips and for streams (paper Section 3.3, "1D causal convolution").

    output t sees inputs up to the end of its own stride, (t + 1) · stride - 1, and none after
    forward(x)                 a whole clip; before its start lie zeros
    step(chunk, state)         the next part of a stream, of any length, down to nothing

`forward` is one step from the initial state, so that both ways run the same code. A state is a tensor, or a tuple of
states; every tensor has the stream first, is bounded whatever the length of the stream, and belongs to the caller: one
module serves many streams. A convolution keeps the inputs that later outputs still need, a transposed one the parts of
later outputs that are already known; neither computes anything twice.

Time stands before channels, as linear layers and norms want it. Such a tensor is a picture of height 1 in PyTorch's
"channels last" format, for which 2D convolutions on a CPU run two to four times faster than 1D ones on [B, C, T]
(depthwise, kernel 7, forward and backward).

Shapes: B streams, T inputs, n inputs of a chunk, C channels.
"""

import math
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

_FEWEST_CHANNELS_IN_HALF_PRECISION = 32

State: TypeAlias = Tensor | tuple[Any, ...]
"""What a layer remembers of its streams: a tensor, or a tuple of states."""


@runtime_checkable
class CausalLayer(Protocol):
    """A layer that can follow streams."""

    def init_state(self, batch_size: int) -> State:
        """State of streams that have not begun."""
        ...

    def step(self, chunk: Float[Tensor, "B n C"], state: Any) -> tuple[Float[Tensor, "B m D"], Any]:
        """Outputs that the chunk completes, and the state after it."""
        ...


class CausalConv1d(nn.Module):
    """A convolution whose output t ends with the last input of its stride.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Taps.
        stride: Inputs per output; a last stride that is not full gives no output.
        dilation: Inputs from one tap to the next.
        depthwise: One filter per channel; in_channels and out_channels are then equal.

    Raises:
        ValueError: If the kernel does not reach over a stride, or the channels of a depthwise convolution differ.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        depthwise: bool = False,
    ) -> None:
        super().__init__()
        self.reach = _reach(kernel_size, stride, dilation)
        _refuse_unequal_channels(in_channels, out_channels, depthwise)
        self.stride, self.dilation = stride, dilation
        self.in_channels, self.out_channels = in_channels, out_channels
        self.groups = in_channels if depthwise else 1
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // self.groups, kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels))
        initialise_weight(self.weight, fan_in=in_channels // self.groups * kernel_size)
        nn.init.zeros_(self.bias)

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B frames D"]:
        """T // stride outputs of a whole clip."""
        return self.step(x, self.init_state(len(x)))[0]

    def init_state(self, batch_size: int) -> Float[Tensor, "B past C"]:
        """Zeros before the start: what the first output sees beyond its own stride."""
        return self.weight.new_zeros(batch_size, self.reach - self.stride, self.in_channels)

    def step(
        self, chunk: Float[Tensor, "B n C"], state: Float[Tensor, "B past C"]
    ) -> tuple[Float[Tensor, "B frames D"], Float[Tensor, "B rest C"]]:
        """Outputs whose last input is in the chunk.

        Args:
            chunk: The next inputs.
            state: Inputs that they still need: at least reach - stride, fewer than reach.
        """
        buffer = torch.cat([state, chunk], dim=1)
        num_outputs = num_complete(buffer.shape[1], self.reach, self.stride)
        # A copy: a view would keep the whole chunk alive.
        rest = buffer[:, num_outputs * self.stride :].clone()
        if num_outputs == 0:
            return chunk.new_zeros(len(chunk), 0, self.out_channels), rest
        in_float32 = self._needs_float32(buffer)
        with torch.autocast(buffer.device.type, enabled=False) if in_float32 else nullcontext():
            outputs = F.conv2d(
                _as_picture(buffer.float() if in_float32 else buffer),
                self.weight.unsqueeze(2),
                self.bias,
                stride=(1, self.stride),
                dilation=(1, self.dilation),
                groups=self.groups,
            )
        return _from_picture(outputs), rest

    def _needs_float32(self, buffer: Tensor) -> bool:
        """Whether half precision would silently be wrong.

        On CPUs with AMX, strided channels-last convolutions of 8 to 24 input channels give errors as large as their
        outputs in bfloat16 (oneDNN of torch 2.13).
        """
        is_narrow = self.groups == 1 and self.stride > 1 and self.in_channels < _FEWEST_CHANNELS_IN_HALF_PRECISION
        return is_narrow and buffer.device.type == "cpu" and self.weight.dtype == torch.float32


class CausalConvTranspose1d(nn.Module):
    """A transposed convolution: input t adds to outputs from t · stride on; those after (t + 1) · stride are not final.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Taps: how many outputs an input adds to.
        stride: Outputs per input.
        dilation: Outputs from one tap to the next.
        depthwise: One filter per channel; in_channels and out_channels are then equal.

    Raises:
        ValueError: If the kernel does not reach over a stride, or the channels of a depthwise convolution differ.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        depthwise: bool = False,
    ) -> None:
        super().__init__()
        self.overlap = _reach(kernel_size, stride, dilation) - stride
        _refuse_unequal_channels(in_channels, out_channels, depthwise)
        self.stride, self.dilation = stride, dilation
        self.out_channels = out_channels
        self.groups = in_channels if depthwise else 1
        self.weight = nn.Parameter(torch.empty(in_channels, out_channels // self.groups, kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels))
        # An output hears kernel_size / stride inputs.
        initialise_weight(self.weight, fan_in=max(1, in_channels // self.groups * kernel_size // stride))
        nn.init.zeros_(self.bias)

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B outputs D"]:
        """T · stride outputs of a whole clip."""
        return self.step(x, self.init_state(len(x)))[0]

    def init_state(self, batch_size: int) -> Float[Tensor, "B overlap D"]:
        """Nothing has been added to the first outputs yet."""
        return self.weight.new_zeros(batch_size, self.overlap, self.out_channels)

    def step(
        self, chunk: Float[Tensor, "B n C"], state: Float[Tensor, "B overlap D"]
    ) -> tuple[Float[Tensor, "B outputs D"], Float[Tensor, "B overlap D"]]:
        """The n · stride outputs that no later input adds to.

        Args:
            chunk: The next inputs.
            state: What earlier inputs added to the outputs after theirs.
        """
        if chunk.shape[1] == 0:
            return chunk.new_zeros(len(chunk), 0, self.out_channels), state
        sums = _from_picture(
            F.conv_transpose2d(
                _as_picture(chunk),
                self.weight.unsqueeze(2),
                stride=(1, self.stride),
                dilation=(1, self.dilation),
                groups=self.groups,
            )
        )  # (B, n · stride + overlap, D)
        sums[:, : self.overlap] += state
        num_outputs = chunk.shape[1] * self.stride
        # The bias belongs to an output, not to an input: it is added once an output is complete.
        return sums[:, :num_outputs] + self.bias, sums[:, num_outputs:].clone()


class CausalSequential(nn.Sequential):
    """Causal layers, one after the other; itself one. Its state is the tuple of theirs.

    Attributes:
        activation_checkpointing: In training on whole clips, recompute the inside of each layer in the backward pass
            instead of keeping it.
    """

    activation_checkpointing = False

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B U D"]:
        """A whole clip."""
        return self.run_through(self, x)

    def run_through(self, layers: Iterable[nn.Module], x: Float[Tensor, "B T C"]) -> Float[Tensor, "B U D"]:
        """A whole clip through some of the layers."""
        for layer in layers:
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, use_reentrant=False)
            else:
                x = layer(x)
        return x

    def init_state(self, batch_size: int) -> tuple[Any, ...]:
        """Initial states of the layers."""
        return initial_states(self, batch_size)

    def step(self, chunk: Float[Tensor, "B n C"], state: tuple[Any, ...]) -> tuple[Float[Tensor, "B m D"], tuple]:
        """What the last layer completes, which may be nothing, and the states after it."""
        return step_through(self, chunk, state)


def initial_states(layers: Iterable[Any], batch_size: int) -> tuple[Any, ...]:
    """States of causal layers whose streams have not begun."""
    return tuple(layer.init_state(batch_size) for layer in layers)


def step_through(
    layers: Iterable[Any], chunk: Float[Tensor, "B n C"], states: tuple[Any, ...]
) -> tuple[Float[Tensor, "B m D"], tuple[Any, ...]]:
    """One step of causal layers in a row.

    Args:
        layers: Each takes what the one before it completes, which may be nothing.
        chunk: The next inputs of the first.
        states: One per layer.

    Returns:
        What the last layer completes, and the states after it.
    """
    states_after = []
    for layer, state in zip(layers, states, strict=True):
        chunk, state_after = layer.step(chunk, state)
        states_after.append(state_after)
    return chunk, tuple(states_after)


def num_complete(num_inputs: int, reach: int, stride: int) -> int:
    """Windows of `reach` inputs, `stride` apart, that lie whole within `num_inputs`."""
    return max(0, (num_inputs - reach) // stride + 1)


def initialise_weight(weight: Tensor, *, fan_in: int) -> None:
    """LeCun's normal initialisation: outputs have the variance of the inputs.

    A tokenizer is a dozen linear maps in a row besides its residual blocks; with VibeVoice's deviation of 0.01, or
    PyTorch's default, sound has faded to next to nothing when it reaches the latents.
    """
    nn.init.normal_(weight, std=1 / math.sqrt(fan_in))


def _reach(kernel_size: int, stride: int, dilation: int) -> int:
    """Inputs from the first tap to the last."""
    reach = (kernel_size - 1) * dilation + 1
    if min(kernel_size, stride, dilation) < 1 or reach < stride:
        raise ValueError(
            f"kernel_size {kernel_size} with dilation {dilation} does not reach over stride {stride}; "
            "all three are at least 1, and every input must count"
        )
    return reach


def _refuse_unequal_channels(in_channels: int, out_channels: int, depthwise: bool) -> None:
    if depthwise and in_channels != out_channels:
        raise ValueError(f"a depthwise convolution keeps its channels, but got {in_channels} and {out_channels}")


def _as_picture(x: Float[Tensor, "B T C"]) -> Float[Tensor, "B C 1 T"]:
    """A view: height 1, channels last in memory."""
    return x.transpose(1, 2).unsqueeze(2)


def _from_picture(x: Float[Tensor, "B C 1 T"]) -> Float[Tensor, "B T C"]:
    return x.squeeze(2).transpose(1, 2)
