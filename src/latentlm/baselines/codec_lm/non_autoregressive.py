"""The non-autoregressive network: codes 2 … Q of all frames, one level in one pass, each from the levels below.

    text ids, begin, sums of known codes ──▶ bidirectional transformer, AdaLN by level ──table of the level──▶ logits

VALL-E (Wang et al. 2023, Section 4.2.2): the level scales and shifts every normed input. There that is a linear map of
a level's embedding; here, for the few levels there are, the same is a table.

Shapes: B rows, T positions, Q codes of a frame, D hidden_size, V codes, N positions with a target.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from latentlm.baselines.codec_lm.rows import PackedRows
from latentlm.models.transformer import Attention, TransformerConfig
from latentlm.nn.adaln import modulate
from latentlm.nn.feedforward import SwiGLU
from latentlm.nn.norm import RMSNorm
from latentlm.nn.rope import rotary_frequencies, rotary_tables


class LevelLayer(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)), both norms scaled and shifted by the level."""

    def __init__(self, config: TransformerConfig, num_levels: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.norm_eps, elementwise_affine=False)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.norm_eps, elementwise_affine=False)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size)
        self.embed_level = nn.Embedding(num_levels, 4 * config.hidden_size)
        nn.init.zeros_(self.embed_level.weight)  # begins as a plain norm

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        rotary: tuple[Tensor, Tensor],
        attention_mask: Bool[Tensor, "B 1 T T"],
        levels: Int[Tensor, "B T"],
    ) -> Float[Tensor, "B T D"]:
        """One layer; `levels` count from 0, the second code's."""
        shift_1, scale_1, shift_2, scale_2 = self.embed_level(levels).to(x.dtype).chunk(4, dim=-1)
        x = x + self.self_attn(modulate(self.input_layernorm(x), shift_1, scale_1), rotary, attention_mask, 0, None)
        return x + self.mlp(modulate(self.post_attention_layernorm(x), shift_2, scale_2))


class NonAutoregressiveNetwork(nn.Module):
    """Codes of a level from the text, the prompt and the levels below.

    Args:
        config: Sizes.
        num_text_ids: Of the text tokenizer; the begin of sound is one more.
        num_codes: V, of every codebook.
        num_quantizers: Q.

    Attributes:
        activation_checkpointing: Recompute each layer in the backward pass instead of keeping its activations.
    """

    def __init__(self, config: TransformerConfig, *, num_text_ids: int, num_codes: int, num_quantizers: int) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        self.num_codes = num_codes
        self.embed_text = nn.Embedding(num_text_ids + 1, config.hidden_size)
        # The Q tables end to end: that of a level embeds its codes, and predicts them (VALL-E shares these too).
        self.embed_codes = nn.Embedding(num_quantizers * num_codes, config.hidden_size)
        self.layers = nn.ModuleList(LevelLayer(config, num_quantizers - 1) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, eps=config.norm_eps)

    def embed(self, text_ids: Int[Tensor, "B T"], codes: Int[Tensor, "B T Q"]) -> Float[Tensor, "B T D"]:
        """Input vectors: of a text id, or where that is UNKNOWN the sum over the codes that are known."""
        tables = self.num_codes * torch.arange(codes.shape[-1], device=codes.device)
        of_codes = self.embed_codes(codes.clamp(min=0) + tables) * (codes >= 0)[..., None]
        return torch.where((text_ids >= 0)[..., None], self.embed_text(text_ids.clamp(min=0)), of_codes.sum(dim=-2))

    def hidden_states(self, rows: PackedRows) -> Float[Tensor, "B T D"]:
        """One vector per position; that of a frame predicts its own code."""
        frequencies = rotary_frequencies(
            self.config.head_dim,
            theta=self.config.rope_theta,
            inclusive=self.config.rope_inclusive,
            device=rows.positions.device,
        )
        rotary = rotary_tables(rows.positions, frequencies)
        mask, levels = rows.same_document(), (rows.levels - 1).clamp(min=0)  # padding has none
        x = self.embed(rows.text_ids, rows.codes)
        for layer in self.layers:
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, rotary, mask, levels, use_reentrant=False)
            else:
                x = layer(x, rotary, mask, levels)
        return self.norm(x)

    def logits(self, hidden_states: Float[Tensor, "N D"], levels: Int[Tensor, "N"]) -> Float[Tensor, "N V"]:
        """Of every code of each position's level, in float32 whatever the autocast type."""
        tables = self.embed_codes.weight.float().view(-1, self.num_codes, self.config.hidden_size)
        result = hidden_states.new_zeros(len(hidden_states), self.num_codes, dtype=torch.float32)
        with torch.autocast(hidden_states.device.type, enabled=False):
            for level in range(1, len(tables)):
                index = (levels == level).nonzero()[:, 0]
                result = result.index_add(0, index, F.linear(hidden_states[index].float(), tables[level]))
        return result
