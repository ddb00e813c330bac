"""The causal Transformer (paper Section 2): X^l = Decoder(X^{l-1}), hidden_states = RMSNorm(X^L).

Pre-RMSNorm, SwiGLU and rotary positions after LLaMA, with grouped-query attention (Figures 7 and 11). It reads vectors
and gives vectors: what they stand for, text or latents, is the business of `LatentLM`.

What the Llama and Qwen families add to this (biases, norms of queries and keys, stretched rotary frequencies) is off
unless the config asks for it; `models.hf_checkpoint` reads their weights.

Shapes: B batch, T positions, D hidden_size, H heads, Dh head_dim, S keys visible (T, or the cache's length).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from torch.utils.checkpoint import checkpoint

from latentlm.models.kv_cache import CacheView, KVCache
from latentlm.nn.attention import attend
from latentlm.nn.feedforward import SwiGLU
from latentlm.nn.norm import RMSNorm
from latentlm.nn.rope import apply_rotary, rotary_frequencies, rotary_tables


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Llama 3.1's rotary positions for texts longer than it was first trained on ("llama3" in its checkpoints).

    Frequencies that turn often within the original length tell neighbours apart and stay; those that turn seldom are
    slowed by `factor`, so that the longer text spans no angle that training did not; between the two lies a ramp.
    """

    factor: float
    """How many times slower the slow frequencies become."""
    low_freq_factor: float
    """Turns within the original length up to which a frequency counts as slow."""
    high_freq_factor: float
    """Turns within the original length from which a frequency stays as it is."""
    original_max_position_embeddings: int
    """The original length in tokens."""

    def __post_init__(self) -> None:
        if self.factor < 1 or self.original_max_position_embeddings < 1:
            raise ValueError("factor and original_max_position_embeddings of rotary scaling must be at least 1")
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                f"low_freq_factor {self.low_freq_factor} must be positive and below "
                f"high_freq_factor {self.high_freq_factor}"
            )

    def scale(self, frequencies: Float[Tensor, "half"]) -> Float[Tensor, "half"]:
        """The frequencies, in radians per position, with the slow ones slowed."""
        turns = self.original_max_position_embeddings * frequencies / (2 * math.pi)
        kept = ((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)).clamp(0, 1)
        return frequencies * (kept + (1 - kept) / self.factor)


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes of the backbone."""

    hidden_size: int
    """Width D."""
    num_layers: int
    """Decoder layers L."""
    num_heads: int
    """Query heads."""
    intermediate_size: int
    """Width of the SwiGLU feed-forward network (4 D in the paper's scaling runs)."""
    num_kv_heads: int | None = None
    """Key-value heads for grouped-query attention; None means as many as query heads."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies."""
    rope_inclusive: bool = False
    """Rotary exponents run over 0..1 inclusive, as in the authors' image code; Llama's stop short of 1."""
    norm_eps: float = 1e-6
    """Added to the mean square in every RMSNorm."""
    head_size: int | None = None
    """Width of one attention head; None means hidden_size / num_heads (Qwen3 has other widths)."""
    qkv_bias: bool = False
    """Biases on queries, keys and values, as Qwen2 has them."""
    qk_norm: bool = False
    """RMSNorm of every head's query and key before the rotation, as in Qwen3."""
    rope_scaling: RopeScaling | None = None
    """Slowed rotary frequencies for long texts, as in Llama 3.1."""

    def __post_init__(self) -> None:
        for name in ("hidden_size", "num_layers", "num_heads", "intermediate_size", "num_kv_heads"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if self.head_size is not None and self.head_size < 1:
            raise ValueError(f"head_size is {self.head_size}; it must be positive, or null for hidden_size / num_heads")
        if self.head_size is None and self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        if self.num_heads % self.kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd, but rotary positions turn pairs of channels")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads if self.head_size is None else self.head_size

    @property
    def kv_heads(self) -> int:
        """Number of key-value heads."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads


class Attention(nn.Module):
    """Grouped-query self-attention with rotary positions."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        q_size, kv_size = config.num_heads * config.head_dim, config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, q_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(q_size, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else None

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        rotary: tuple[Tensor, Tensor],
        attention_mask: Bool[Tensor, "B 1 T S"] | BlockMask | None,
        layer: int,
        cache: CacheView | None,
    ) -> Float[Tensor, "B T D"]:
        """Attend from every position of `x` to the visible ones.

        Args:
            x: Normed input.
            rotary: cos and sin of the positions (`rotary_tables`).
            attention_mask: True where a query may look; None means plain causal attention.
            layer: Index of the layer, which the cache needs.
            cache: Past keys and values, to which the new ones are added.
        """
        q, k, v = (
            proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )  # (B, H, T, Dh)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = apply_rotary(q, *rotary), apply_rotary(k, *rotary)
        if cache is not None:
            k, v = cache.update(layer, k, v)
        out = attend(q, k, v, mask=attention_mask, is_causal=attention_mask is None)
        return self.o_proj(out.transpose(1, 2).flatten(2))


class DecoderLayer(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        rotary: tuple[Tensor, Tensor],
        attention_mask: Bool[Tensor, "B 1 T S"] | BlockMask | None,
        layer: int,
        cache: CacheView | None,
    ) -> Float[Tensor, "B T D"]:
        """One layer; arguments as in `Attention.forward`, `x` being the residual stream."""
        x = x + self.self_attn(self.input_layernorm(x), rotary, attention_mask, layer, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Transformer(nn.Module):
    """Input vectors to hidden states; parameter names follow Llama's, so that its checkpoints fit.

    Attributes:
        activation_checkpointing: Recompute each layer in the backward pass instead of keeping its activations.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, eps=config.norm_eps)

    def forward(
        self,
        inputs_embeds: Float[Tensor, "B T D"],
        positions: Int[Tensor, "B T"],
        *,
        attention_mask: Bool[Tensor, "B 1 T T"] | BlockMask | None = None,
        cache: CacheView | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Hidden states after the final norm.

        Args:
            inputs_embeds: Input vectors.
            positions: Position of each token in its document, from 0.
            attention_mask: True where a query may look; None means plain causal attention over the row. Ignored with a
                cache, which brings its own.
            cache: Where past keys and values live (see `KVCache.view`).
        """
        frequencies = rotary_frequencies(
            self.config.head_dim,
            theta=self.config.rope_theta,
            inclusive=self.config.rope_inclusive,
            device=positions.device,
        )
        if self.config.rope_scaling is not None:
            frequencies = self.config.rope_scaling.scale(frequencies)
        rotary = rotary_tables(positions, frequencies)
        if cache is not None:
            attention_mask = cache.attention_mask
        x = inputs_embeds
        for index, layer in enumerate(self.layers):
            if self.activation_checkpointing and torch.is_grad_enabled() and cache is None:
                x = checkpoint(layer, x, rotary, attention_mask, index, None, use_reentrant=False)
            else:
                x = layer(x, rotary, attention_mask, index, cache)
        return self.norm(x)

    def allocate_cache(self, num_rows: int, max_length: int) -> KVCache:
        """An empty cache on this model's device and in its type."""
        weight = self.norm.weight
        assert weight is not None
        return KVCache(
            num_layers=self.config.num_layers,
            num_rows=num_rows,
            num_kv_heads=self.config.kv_heads,
            head_dim=self.config.head_dim,
            max_length=max_length,
            device=weight.device,
            dtype=weight.dtype,
        )
