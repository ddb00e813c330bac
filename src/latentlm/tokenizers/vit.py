"""Vision Transformer (Dosovitskiy et al. 2021), the body of the image tokenizer's encoder and decoder.

    features [B, N, F] ─input_projection▶ (B, N, D) ─class token before, + positions▶ (B, 1 + N, D)
      ─blocks: x + attention(norm(x)); x + mlp(norm(x))▶ final norm ─class token dropped▶ hidden_states [B, N, D]

As released by the authors (BEiT's details): LayerNorm, a bias on query and value but none on key (it would add the same
number to all scores of a query, and softmax does not see that), exact GELU, learned absolute positions.

Shapes: B batch, N grid cells (rows · columns, reading order), F input features, D hidden_size.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from latentlm.nn.attention import attend


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Size of one Vision Transformer; ViT-B is 768, 12, 12."""

    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_ratio: float = 4.0
    """Width of the MLP as a multiple of hidden_size."""
    sub_layer_norm: bool = False
    """LayerNorm before the output of attention and MLP too, as in BEiT-3 (Wang et al. 2022, Magneto)."""
    layer_norm_eps: float = 1e-6
    """1e-6 in the authors' code; checkpoints of others may want 1e-5 (torchscale) or 1e-12 (Hugging Face)."""

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is no multiple of num_heads {self.num_heads}")


class ViTAttention(nn.Module):
    """Multi-head attention of all positions to all."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.num_heads = config.num_heads
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(size, size, bias=False)
        self.value = nn.Linear(size, size)
        self.inner_norm = nn.LayerNorm(size, eps=config.layer_norm_eps) if config.sub_layer_norm else nn.Identity()
        self.output = nn.Linear(size, size)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        query, key, value = (
            projection(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, T, D / heads)
            for projection in (self.query, self.key, self.value)
        )
        mixed = attend(query, key, value)
        return self.output(self.inner_norm(mixed.transpose(1, 2).flatten(2)))


class ViTMLP(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        size, inner = config.hidden_size, int(config.hidden_size * config.mlp_ratio)
        self.input = nn.Linear(size, inner)
        self.inner_norm = nn.LayerNorm(inner, eps=config.layer_norm_eps) if config.sub_layer_norm else nn.Identity()
        self.output = nn.Linear(inner, size)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        return self.output(self.inner_norm(F.gelu(self.input(x))))


class ViTBlock(nn.Module):
    """Pre-norm attention, then pre-norm MLP, each added to its input."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = ViTAttention(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = ViTMLP(config)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class ViT(nn.Module):
    """A ViT over a grid of feature vectors.

    Args:
        config: Its size.
        num_features: F, width of a grid cell: the pixels of a patch, or a latent.
        grid: Rows and columns of the training pictures; other grids interpolate the positions.
    """

    def __init__(self, config: ViTConfig, *, num_features: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.config = config
        self.grid = grid
        self.activation_checkpointing = False
        self.input_projection = nn.Linear(num_features, config.hidden_size)
        self.class_token = nn.Parameter(torch.empty(1, config.hidden_size))
        self.positions = nn.Parameter(torch.empty(1 + math.prod(grid), config.hidden_size))  # the class token's first
        self.blocks = nn.ModuleList(ViTBlock(config) for _ in range(config.num_layers))
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                initialise_linear(module)
        for table in (self.class_token, self.positions):
            _truncated_normal(table)
        # BEiT: the outputs of layer l shrink by sqrt(2 l), so that the residual stream grows slowly with depth.
        with torch.no_grad():
            for layer, block in enumerate(self.blocks, start=1):
                assert isinstance(block, ViTBlock)
                block.attention.output.weight.div_(math.sqrt(2 * layer))
                block.mlp.output.weight.div_(math.sqrt(2 * layer))

    def forward(self, features: Float[Tensor, "B N F"], grid: tuple[int, int]) -> Float[Tensor, "B N D"]:
        """Final hidden states of the grid cells.

        Args:
            features: Grid cells in reading order.
            grid: Their rows and columns.
        """
        x = self.input_projection(features)  # (B, N, D)
        class_tokens = self.class_token.expand(len(x), 1, -1)
        x = torch.cat([class_tokens, x], dim=1) + self.positions_for(grid)  # (B, 1 + N, D)
        for block in self.blocks:
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return self.final_norm(x)[:, 1:]

    def positions_for(self, grid: tuple[int, int]) -> Float[Tensor, "T D"]:
        """Positions of the class token and of a grid; one that was not trained on is interpolated bicubically."""
        if grid == self.grid:
            return self.positions
        return torch.cat([self.positions[:1], resize_positions(self.positions[1:], self.grid, grid)])


def resize_positions(
    positions: Float[Tensor, "N D"], old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> Float[Tensor, "M D"]:
    """Interpolate a table of positions on a grid to another grid, bicubically (Dosovitskiy et al. 2021)."""
    image = positions.unflatten(0, old_grid).permute(2, 0, 1)[None]  # (1, D, rows, columns)
    return F.interpolate(image, new_grid, mode="bicubic")[0].flatten(1).T  # (M, D)


def initialise_linear(linear: nn.Linear) -> None:
    """BEiT's initialisation: weights normal with deviation 0.02, cut at one deviation; biases zero."""
    _truncated_normal(linear.weight)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def _truncated_normal(tensor: Tensor) -> None:
    nn.init.trunc_normal_(tensor, std=0.02, a=-0.02, b=0.02)
