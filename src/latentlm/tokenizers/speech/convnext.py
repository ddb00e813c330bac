"""The ConvNeXt block over time (Liu et al. 2022, with 1D causal convolutions: paper Section 3.3).

    x + scale · depthwise causal convolution(norm(x));  x + scale · linear(GELU(linear(norm(x))))

The paper says no more than "ConvNeXt blocks". Ours is that of VibeVoice, the authors' later tokenizer: both halves have
a norm, a residual and a layer scale of their own, where the image ConvNeXt has one of each around the whole.

Shapes: B streams, T frames, C channels.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from latentlm.nn.causal_conv import CausalConv1d, initial_states, initialise_weight, step_through
from latentlm.nn.norm import RMSNorm


@dataclass(frozen=True, kw_only=True)
class ConvNeXtConfig:
    """The inside of every block; width and number of blocks are the autoencoder's."""

    kernel_size: int = 7
    """Frames that the depthwise convolution sees (7: ConvNeXt). The convolutions at both ends have it too."""
    expansion: int = 4
    """Width of the feed-forward half as a multiple of the channels (4: ConvNeXt)."""
    norm: Literal["rms_norm", "layer_norm"] = "rms_norm"
    """Over the channels of one frame, so that it needs no state: rms_norm (VibeVoice) or layer_norm (ConvNeXt)."""
    norm_eps: float = 1e-5
    layer_scale_init: float = 0.1
    """Where the learned scale of each residual starts. 0.1 suits up to 18 blocks (Touvron et al. 2021, CaiT) and learns
    at once; 1e-6 (ConvNeXt, VibeVoice) is for deep stacks and long runs: its blocks start as good as absent."""

    def __post_init__(self) -> None:
        if min(self.kernel_size, self.expansion) < 1:
            raise ValueError("kernel_size and expansion must be at least 1")


class ConvNeXtBlock(nn.Module):
    """A `CausalLayer` that keeps length and channels; its state is that of its convolution.

    Args:
        config: Its inside.
        channels: C.
    """

    def __init__(self, config: ConvNeXtConfig, channels: int) -> None:
        super().__init__()
        self.mixer_norm = _make_norm(config, channels)
        self.mixer = CausalConv1d(channels, channels, config.kernel_size, depthwise=True)
        self.mixer_scale = nn.Parameter(torch.full((channels,), config.layer_scale_init))
        self.ffn_norm = _make_norm(config, channels)
        self.expand = nn.Linear(channels, config.expansion * channels)
        self.contract = nn.Linear(config.expansion * channels, channels)
        self.ffn_scale = nn.Parameter(torch.full((channels,), config.layer_scale_init))
        for linear in (self.expand, self.contract):
            initialise_weight(linear.weight, fan_in=linear.in_features)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        """A whole clip."""
        return self.step(x, self.init_state(len(x)))[0]

    def init_state(self, batch_size: int) -> Float[Tensor, "B past C"]:
        """Zeros before the start."""
        return self.mixer.init_state(batch_size)

    def step(
        self, chunk: Float[Tensor, "B n C"], state: Float[Tensor, "B past C"]
    ) -> tuple[Float[Tensor, "B n C"], Float[Tensor, "B past C"]]:
        """The next frames of streams, of any number."""
        mixed, state = self.mixer.step(self.mixer_norm(chunk), state)
        x = chunk + self.mixer_scale * mixed
        inner = F.gelu(self.expand(self.ffn_norm(x)))  # (B, n, expansion · C)
        return x + self.ffn_scale * self.contract(inner), state


class ConvNeXtStage(nn.Module):
    """Blocks of one width, one after the other; a `CausalLayer` whose state is the tuple of theirs.

    Args:
        config: The inside of the blocks.
        channels: C.
        depth: Number of blocks; 0 passes frames through.
    """

    def __init__(self, config: ConvNeXtConfig, channels: int, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ConvNeXtBlock(config, channels) for _ in range(depth))

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        """A whole clip."""
        for block in self.blocks:
            x = block(x)
        return x

    def init_state(self, batch_size: int) -> tuple[Any, ...]:
        """Initial states of the blocks."""
        return initial_states(self.blocks, batch_size)

    def step(
        self, chunk: Float[Tensor, "B n C"], state: tuple[Any, ...]
    ) -> tuple[Float[Tensor, "B n C"], tuple[Any, ...]]:
        """The next frames of streams, of any number."""
        return step_through(self.blocks, chunk, state)


def _make_norm(config: ConvNeXtConfig, channels: int) -> nn.Module:
    if config.norm == "rms_norm":
        return RMSNorm(channels, eps=config.norm_eps)
    return nn.LayerNorm(channels, eps=config.norm_eps)
