"""The codec language model: VALL-E (Wang et al. 2023) with VALL-E 2's grouped codes (Chen et al. 2024).

    text, prompt ─autoregressive network▶ first codes, group by group, until the end
    text, prompt, first codes ─non-autoregressive network▶ second codes ▶ third codes ▶ … of all frames at once

What the paper's Section 3.3 compares LatentLM with. The two networks share nothing but the batch; one run trains both.

Shapes: B rows, T positions, N positions with a target, k targets of a position.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from latentlm.baselines.codec_lm.autoregressive import AutoregressiveNetwork
from latentlm.baselines.codec_lm.non_autoregressive import NonAutoregressiveNetwork
from latentlm.baselines.codec_lm.rows import (
    CodecUtterance,
    PackedRows,
    autoregressive_tokens,
    non_autoregressive_tokens,
    pack,
)
from latentlm.models.transformer import TransformerConfig
from latentlm.nn.keyed_noise import keyed_uniform
from latentlm.pretrained import Pretrained
from latentlm.sequence import IGNORE_LABEL

AUTOREGRESSIVE = "autoregressive"
NON_AUTOREGRESSIVE = "non_autoregressive"


@dataclass(frozen=True, kw_only=True)
class CodecLMConfig:
    """A whole model. In a recipe 0 means the number of the tokenizer."""

    num_text_ids: int = 0
    """Of the text tokenizer."""
    num_codes: int = 0
    """V, of every codebook of the codec."""
    num_quantizers: int = 0
    """Q, codes of a frame."""
    group_size: int = 1
    """G, frames whose first codes are one autoregressive step. 1 is VALL-E; VALL-E 2 compares 1, 2 and 4."""
    autoregressive: TransformerConfig
    """The causal backbone."""
    non_autoregressive: TransformerConfig
    """The bidirectional one."""
    max_prompt_ratio: float = 0.5
    """In training the first frames of an utterance are the non-autoregressive network's prompt, a random share of them
    up to this one."""
    tokenizer_fingerprint: str | None = None
    """The codec that gave the codes; another one is refused."""

    def __post_init__(self) -> None:
        if self.group_size < 1:
            raise ValueError(f"group_size is {self.group_size}; a group has at least one frame")
        if not 0 <= self.max_prompt_ratio < 1:
            raise ValueError(f"max_prompt_ratio is {self.max_prompt_ratio}; it must lie in [0, 1)")


class CodecBatch(NamedTuple):
    """The same utterances as each network reads them."""

    autoregressive: PackedRows
    non_autoregressive: PackedRows
    group_names: tuple[str, ...]
    """Sources by number, for losses told apart by them; empty for none."""


class CodecLM(Pretrained, nn.Module):
    """The model. `forward` gives training losses; generation lives in `generator`."""

    kind = "codec_lm"
    config_class = CodecLMConfig

    def __init__(self, config: CodecLMConfig) -> None:
        super().__init__()
        if min(config.num_text_ids, config.num_codes) < 1 or config.num_quantizers < 2:
            raise ValueError(
                "the model needs text, codes, and two codes of a frame at least, but has "
                f"num_text_ids={config.num_text_ids}, num_codes={config.num_codes}, "
                f"num_quantizers={config.num_quantizers}"
            )
        if config.non_autoregressive.rope_scaling is not None:
            raise ValueError("the non-autoregressive network has no slowed rotary positions; leave rope_scaling out")
        self.config = config
        sizes = {"num_text_ids": config.num_text_ids, "num_codes": config.num_codes}
        self.autoregressive = AutoregressiveNetwork(config.autoregressive, **sizes, group_size=config.group_size)
        self.non_autoregressive = NonAutoregressiveNetwork(
            config.non_autoregressive, **sizes, num_quantizers=config.num_quantizers
        )
        self._initialise()

    def _initialise(self) -> None:
        # As LatentLM, so that the comparison differs in the tokens alone: tables N(0, 0.02), linear layers PyTorch's.
        for network in (self.autoregressive, self.non_autoregressive):
            nn.init.normal_(network.embed_text.weight, std=0.02)
            nn.init.normal_(network.embed_codes.weight, std=0.02)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.autoregressive.embed_text.weight.device

    @property
    def begin_id(self) -> int:
        """Text id of the begin of sound."""
        return self.config.num_text_ids

    @property
    def end_code(self) -> int:
        """The first code that ends an utterance."""
        return self.config.num_codes

    def batch(
        self, rows: Sequence[Sequence[CodecUtterance]], *, noise_seed: int, group_names: Sequence[str] = ()
    ) -> CodecBatch:
        """Rows of utterances for training, on the CPU.

        Every utterance trains one level of the non-autoregressive network, drawn evenly, after a prompt of random
        length; the draws depend on (noise_seed, key of the utterance).

        Args:
            rows: Utterances side by side.
            noise_seed: Of this step.
            group_names: Of the sources.
        """
        config = self.config
        first, others = [], []
        for row in rows:
            keys = torch.tensor([utterance.key for utterance in row], dtype=torch.long)
            of_level, of_prompt = keyed_uniform(noise_seed, keys, (2,)).unbind(dim=-1)
            levels = 1 + (of_level * (config.num_quantizers - 1)).long()
            shares = of_prompt * config.max_prompt_ratio
            first.append(
                [
                    autoregressive_tokens(
                        utterance, begin_id=self.begin_id, end_code=self.end_code, group_size=config.group_size
                    )
                    for utterance in row
                ]
            )
            others.append(
                [
                    non_autoregressive_tokens(
                        utterance,
                        num_prompt_frames=int(share * len(utterance.codes)),
                        level=level,
                        begin_id=self.begin_id,
                    )
                    for utterance, level, share in zip(row, levels.tolist(), shares.tolist(), strict=True)
                ]
            )
        return CodecBatch(
            pack(first, num_codes=config.group_size, num_targets=config.group_size),
            pack(others, num_codes=config.num_quantizers, num_targets=1),
            tuple(group_names),
        )

    def loss_counts(self, batch: CodecBatch) -> dict[str, int]:
        """How many codes each loss is a mean over, also by source."""
        counts = {}
        for name, rows in self._rows(batch).items():
            labels = rows.labels.flatten(0, 1)[rows.target_positions]
            counts |= self._sums(name, (labels != IGNORE_LABEL).long(), rows, batch.group_names)
        return {name: int(count) for name, count in counts.items()}

    def forward(
        self, batch: CodecBatch, *, totals: Mapping[str, Tensor | float | int] | None = None
    ) -> dict[str, Float[Tensor, ""]]:
        """Cross-entropies of codes in nats: two means, each over its network's own targets, and their sum.

        Args:
            batch: From `batch`, on the model's device.
            totals: Normaliser of each loss, for gradient accumulation and many ranks (the sum of `loss_counts` over
                all micro-batches); None means this batch's own counts.

        Returns:
            float32 scalars: `autoregressive` (ends are targets too), `non_autoregressive`, `total`; where the batch
            names sources also both by source, which are not added to the total. A loss without a target is 0.
        """
        totals = self.loss_counts(batch) if totals is None else totals
        losses = {}
        for name, rows in self._rows(batch).items():
            losses |= self._sums(name, self._cross_entropies(name, rows), rows, batch.group_names)
        losses = {name: value / _at_least_one(totals[name]) for name, value in losses.items()}
        losses["total"] = losses[AUTOREGRESSIVE] + losses[NON_AUTOREGRESSIVE]
        return losses

    def _rows(self, batch: CodecBatch) -> dict[str, PackedRows]:
        return {AUTOREGRESSIVE: batch.autoregressive, NON_AUTOREGRESSIVE: batch.non_autoregressive}

    def _cross_entropies(self, name: str, rows: PackedRows) -> Float[Tensor, "N k"]:
        """Of every target; 0 where a position has fewer than others."""
        index = rows.target_positions
        labels = rows.labels.flatten(0, 1)[index]  # (N, k)
        if name == AUTOREGRESSIVE:
            logits = self.autoregressive.logits(self.autoregressive.hidden_states(rows).flatten(0, 1)[index])
        else:
            hidden_states = self.non_autoregressive.hidden_states(rows).flatten(0, 1)[index]
            logits = self.non_autoregressive.logits(hidden_states, rows.levels.flatten()[index])[:, None]
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE_LABEL, reduction="none")
        return losses.view(labels.shape)

    def _sums(
        self, name: str, values: Shaped[Tensor, "N k"], rows: PackedRows, group_names: tuple[str, ...]
    ) -> dict[str, Shaped[Tensor, ""]]:
        """What a loss adds up to; by source without a gradient, for the log."""
        of_position = values.sum(dim=-1)
        sums = {name: of_position.sum()}
        if group_names:
            groups = rows.group_ids.flatten()[rows.target_positions]
            by_group = of_position.new_zeros(len(group_names)).index_add(0, groups, of_position.detach())
            sums |= {f"{name}/{group}": value for group, value in zip(group_names, by_group, strict=True)}
        return sums


def _at_least_one(count: Tensor | float | int) -> Tensor | float | int:
    """A normaliser under which the mean over no target is 0, not NaN."""
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)
