"""VQ-MLLM: next-token prediction of text and of the codes of pictures (paper Section 3.2, Table 3).

    text ids, begin, code_1 … code_N, end, text ids ──embed──▶ causal transformer ──lm_head──▶ logits of the next id

LatentLM without latents, after Chameleon (arXiv 2405.09818) and LlamaGen (arXiv 2406.06525): pictures are ids of the
same vocabulary, so that one softmax predicts everything. Id space, switch tokens and backbone are LatentLM's.

Shapes: B rows, T positions, D hidden_size, V vocabulary size, k discrete targets of a batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from latentlm.models.kv_cache import CacheView
from latentlm.models.transformer import Transformer, TransformerConfig
from latentlm.pretrained import Pretrained
from latentlm.sequence import PackedBatch, VocabularyConfig

LM = "lm"
"""The loss of text and switch tokens: what counts for perplexity."""
CODES = "codes/image"
"""The loss of codes."""


@dataclass(frozen=True, kw_only=True)
class VQMLLMConfig:
    """A whole model."""

    vocabulary: VocabularyConfig = field(default_factory=lambda: VocabularyConfig(switch_tokens=True))
    """Text, switch tokens and codes. In a recipe 0 text ids and 0 codes mean those of the tokenizers."""
    transformer: TransformerConfig
    """The backbone."""
    tie_embeddings: bool = False
    """The softmax head shares the embedding table."""
    code_loss_weight: float = 1.0
    """Weight of a code among the targets; 1 is a plain language model's mean over all of them."""
    tokenizer_fingerprint: str | None = None
    """The image tokenizer that gave the codes; another one is refused."""

    def __post_init__(self) -> None:
        if not self.vocabulary.switch_tokens:
            raise ValueError("codes stand between begin and end tokens, which need vocabulary.switch_tokens: true")
        if not 0 <= self.code_loss_weight < float("inf"):
            raise ValueError(f"code_loss_weight is {self.code_loss_weight}; it must be finite and not negative")

    @property
    def says_size(self) -> bool:
        """Spans begin with rows and columns, because pictures differ in size."""
        return self.vocabulary.max_grid_side > 0


class VQMLLM(Pretrained, nn.Module):
    """The model. `forward` gives training losses; generation lives in `generator`."""

    kind = "vq_mllm"
    config_class = VQMLLMConfig

    def __init__(self, config: VQMLLMConfig) -> None:
        super().__init__()
        vocabulary, hidden_size = config.vocabulary, config.transformer.hidden_size
        if min(vocabulary.num_text_ids, vocabulary.num_codes) < 1:
            raise ValueError(
                f"the vocabulary needs text and codes, but has num_text_ids={vocabulary.num_text_ids} and "
                f"num_codes={vocabulary.num_codes}"
            )
        self.config = config
        self.embed_tokens = nn.Embedding(vocabulary.size, hidden_size)
        self.transformer = Transformer(config.transformer)
        self.lm_head = None if config.tie_embeddings else nn.Linear(hidden_size, vocabulary.size, bias=False)
        self._initialise()

    def _initialise(self) -> None:
        # As LatentLM, so that the comparison differs in the tokens alone: tables N(0, 0.02), linear layers PyTorch's.
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        if self.lm_head is not None:
            nn.init.normal_(self.lm_head.weight, std=0.02)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embed_tokens.weight.device

    def hidden_states(self, batch: PackedBatch) -> Float[Tensor, "B T D"]:
        """One vector per position; that of position i predicts token i + 1."""
        embeds = self.embed_tokens(batch.input_ids)
        return self.transformer(embeds, batch.positions, attention_mask=batch.attention_mask())

    def decode_step(
        self, input_ids: Int[Tensor, "B T"], positions: Int[Tensor, "B T"], cache: CacheView
    ) -> Float[Tensor, "B T D"]:
        """Hidden states of new tokens that follow those in the cache; prefill is the same with many tokens."""
        return self.transformer(self.embed_tokens(input_ids), positions, cache=cache)

    def logits(self, hidden_states: Float[Tensor, "*n D"]) -> Float[Tensor, "*n V"]:
        """Of every id, in float32 whatever the autocast type."""
        weight = self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight
        with torch.autocast(hidden_states.device.type, enabled=False):
            return F.linear(hidden_states.float(), weight.float())

    def loss_counts(self, batch: PackedBatch) -> dict[str, int]:
        """How many targets `lm` and `codes/image` are means over, also by group of documents."""
        ones = torch.ones_like(batch.text_positions)
        return {name: int(count) for name, count in self._sums(ones, batch).items()}

    def forward(
        self, batch: PackedBatch, *, totals: Mapping[str, Tensor | float | int] | None = None
    ) -> dict[str, Float[Tensor, ""]]:
        """Cross-entropies of the next id, in nats.

        With weight w of a code `total` is (Σ of text and switches + w Σ of codes) / (their number + w · number of
        codes): for w = 1 the mean over all targets, long pictures outweighing short captions as they do in the paper's
        plain language model.

        Args:
            batch: Packed documents whose pictures are codes.
            totals: Normaliser of each loss, for gradient accumulation and many ranks (the sum of `loss_counts` over
                all micro-batches); None means this batch's own counts.

        Returns:
            float32 scalars: `lm`, `codes/image`, `total`; where the batch names groups of documents also `lm/<group>`
            and `codes/image/<group>`, which are not added to the total. A loss without a single target is 0.
        """
        totals = self.loss_counts(batch) if totals is None else totals
        index = batch.text_positions  # every target is discrete, so that these are all
        logits = self.logits(self.hidden_states(batch).flatten(0, 1)[index])  # (k, V)
        sums = self._sums(F.cross_entropy(logits, batch.labels.flatten()[index], reduction="none"), batch)
        losses = {name: value / _at_least_one(totals[name]) for name, value in sums.items()}
        weight = self.config.code_loss_weight
        losses["total"] = (sums[LM] + weight * sums[CODES]) / _at_least_one(totals[LM] + weight * totals[CODES])
        return losses

    def _sums(self, values: Shaped[Tensor, "k"], batch: PackedBatch) -> dict[str, Shaped[Tensor, ""]]:
        """What the targets of every loss add up to; by group of documents without a gradient, for the log."""
        index = batch.text_positions
        groups = batch.group_ids.flatten()[index]
        is_code = batch.labels.flatten()[index] >= self.config.vocabulary.first_code_id
        sums = {}
        for name, others in ((LM, is_code), (CODES, ~is_code)):
            of_loss = values.masked_fill(others, 0)
            sums[name] = of_loss.sum()
            if batch.group_names:
                by_group = of_loss.new_zeros(len(batch.group_names)).index_add(0, groups, of_loss.detach())
                sums |= {f"{name}/{group}": value for group, value in zip(batch.group_names, by_group, strict=True)}
        return sums


def _at_least_one(count: Tensor | float | int) -> Tensor | float | int:
    """A normaliser under which the mean over no target is 0, not NaN."""
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)
