"""The autoregressive network: the first code of every frame, from the text and the codes before it.

    text ids, begin, groups ──embed──▶ causal transformer ──group_out, table of codes──▶ logits of the next group

With groups of G frames (VALL-E 2, Chen et al. 2024, grouped code modelling) a step reads the embeddings of G codes
joined and projected, and predicts the next G at once; G = 1 is VALL-E (Wang et al. 2023).

Shapes: B rows, T positions, G codes of a group, D hidden_size, V codes and the end.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from latentlm.baselines.codec_lm.rows import PackedRows
from latentlm.models.kv_cache import CacheView
from latentlm.models.transformer import Transformer, TransformerConfig


class AutoregressiveNetwork(nn.Module):
    """First codes, group by group.

    Args:
        config: The backbone.
        num_text_ids: Of the text tokenizer; the begin of sound is one more.
        num_codes: Of the first codebook; the end is one more.
        group_size: G.
    """

    def __init__(self, config: TransformerConfig, *, num_text_ids: int, num_codes: int, group_size: int) -> None:
        super().__init__()
        hidden_size = config.hidden_size
        self.group_size = group_size
        self.embed_text = nn.Embedding(num_text_ids + 1, hidden_size)
        self.embed_codes = nn.Embedding(num_codes + 1, hidden_size)
        joined_size = group_size * hidden_size
        self.group_in = nn.Linear(joined_size, hidden_size, bias=False) if group_size > 1 else nn.Identity()
        self.group_out = nn.Linear(hidden_size, joined_size, bias=False) if group_size > 1 else nn.Identity()
        self.transformer = Transformer(config)

    def embed(self, text_ids: Int[Tensor, "B T"], codes: Int[Tensor, "B T G"]) -> Float[Tensor, "B T D"]:
        """Input vectors: of a text id, or where that is UNKNOWN of a group."""
        groups = self.group_in(self.embed_codes(codes.clamp(min=0)).flatten(2))
        return torch.where((text_ids >= 0)[..., None], self.embed_text(text_ids.clamp(min=0)), groups)

    def hidden_states(self, rows: PackedRows) -> Float[Tensor, "B T D"]:
        """One vector per position; that of the begin predicts the first group."""
        length = rows.positions.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=rows.positions.device).tril()
        mask = rows.same_document() & causal
        return self.transformer(self.embed(rows.text_ids, rows.codes), rows.positions, attention_mask=mask)

    def decode_step(
        self,
        text_ids: Int[Tensor, "B T"],
        codes: Int[Tensor, "B T G"],
        positions: Int[Tensor, "B T"],
        cache: CacheView,
    ) -> Float[Tensor, "B T D"]:
        """Hidden states of new positions that follow those in the cache; prefill is the same with many positions."""
        return self.transformer(self.embed(text_ids, codes), positions, cache=cache)

    def logits(self, hidden_states: Float[Tensor, "*n D"]) -> Float[Tensor, "*n G V"]:
        """Of every code of the next group and its end, by the table that embeds codes, in float32."""
        vectors = self.group_out(hidden_states).unflatten(-1, (self.group_size, -1))  # (*n, G, D)
        with torch.autocast(hidden_states.device.type, enabled=False):
            return F.linear(vectors.float(), self.embed_codes.weight.float())
