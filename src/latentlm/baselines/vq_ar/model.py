"""Next-token prediction of vector-quantized codes (VQGAN, Esser et al. 2021; LlamaGen, Sun et al. 2024).

    class, code_1 … code_{N-1} ──embed──▶ causal transformer ──lm_head──▶ logits of code_1 … code_N

LatentLM without its latents: the same backbone reads `[class, codes]`, and a softmax over the codebook stands where
LatentLM has its diffusion head.

Shapes: B batch, N tokens of a picture (rows · columns), D hidden_size, V num_codes, S streams (2 B with guidance).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from latentlm.baselines.vq_ar.sampling import CodeSamplingConfig
from latentlm.diffusion.guidance import guide
from latentlm.generation.text_sampling import sample_ids
from latentlm.models.image_model import ImageModel, LabelledTokens, TokenSpace
from latentlm.models.transformer import Transformer, TransformerConfig
from latentlm.nn.flops import ImageFlops, count_flops
from latentlm.nn.keyed_noise import keyed_uniform

# Stream of the keyed noise of one picture: the number that decides each code.
CODE_STREAM = 1


@dataclass(frozen=True, kw_only=True)
class VQARConfig:
    """A whole model."""

    space: TokenSpace = field(default_factory=TokenSpace)
    """What it reads and writes; data and tokenizer fill it in."""
    transformer: TransformerConfig
    """The backbone."""
    tie_embeddings: bool = False
    """The softmax head shares the table of codes. LlamaGen has two tables, which outweigh a small backbone."""


class VQAR(ImageModel):
    """The model."""

    kind = "vq_ar"
    config_class = VQARConfig
    token_kind = "codes"
    sampling_class = CodeSamplingConfig

    def __init__(self, config: VQARConfig) -> None:
        super().__init__()
        self.config = config
        self.check_space()
        hidden_size, space = config.transformer.hidden_size, config.space
        self.embed_classes = nn.Embedding(space.num_classes + 1, hidden_size)  # the last one is the null class
        self.embed_codes = nn.Embedding(space.num_codes, hidden_size)
        self.transformer = Transformer(config.transformer)
        self.lm_head = None if config.tie_embeddings else nn.Linear(hidden_size, space.num_codes, bias=False)
        self._initialise()

    def _initialise(self) -> None:
        # All linear layers and tables N(0, 0.02), as in LlamaGen. Its head starts at zero, which a tied table cannot;
        # this small, it too begins close to log V nats.
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def enable_activation_checkpointing(self) -> None:
        """Recompute the Transformer's layers in the backward pass."""
        self.transformer.activation_checkpointing = True

    def hidden_states(self, labels: Int[Tensor, "B"], codes: Int[Tensor, "B N"]) -> Float[Tensor, "B N D"]:
        """One vector per code, from the class and the codes before it.

        Args:
            labels: Classes; the null class for no condition.
            codes: The picture; its last code is not looked at.
        """
        # Shifted by one: the class predicts the first code, and nothing follows the last.
        inputs = torch.cat([self.embed_classes(labels)[:, None], self.embed_codes(codes[:, :-1])], dim=1)  # (B, N, D)
        positions = torch.arange(codes.shape[1], device=codes.device).expand(codes.shape)
        return self.transformer(inputs, positions)

    def logits(self, hidden_states: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch V"]:
        """Of every code, in float32 whatever the autocast type."""
        weight = self.embed_codes.weight if self.lm_head is None else self.lm_head.weight
        with torch.autocast(hidden_states.device.type, enabled=False):
            return F.linear(hidden_states.float(), weight.float())

    def forward(self, labels: Int[Tensor, "B"], codes: Int[Tensor, "B N"]) -> Float[Tensor, "B N V"]:
        """Logits of every code given the class and the codes before it; arguments as in `hidden_states`."""
        return self.logits(self.hidden_states(labels, codes))

    def losses(
        self, batch: LabelledTokens, *, totals: Mapping[str, Tensor | float | int] | None = None
    ) -> dict[str, Float[Tensor, ""]]:
        """`total`: cross-entropy of the next code in nats, a mean over codes."""
        totals = self.loss_counts(batch) if totals is None else totals
        logits = self(batch.labels, batch.tokens)
        summed = F.cross_entropy(logits.flatten(0, 1), batch.tokens.flatten(), reduction="sum")
        return {"total": summed / totals["total"]}

    @torch.no_grad()
    def sample(
        self,
        labels: Int[Tensor, "B"],
        *,
        seeds: Int[Tensor, "B"],
        sampling: CodeSamplingConfig,
        grid: tuple[int, int],
    ) -> Int[Tensor, "B N"]:
        """Draw the codes in reading order.

        With guidance a picture has two rows of the cache: its class, and the null class followed by the same codes.

        Args:
            labels: Classes; the null class draws without a condition.
            seeds: All noise of a picture follows from its own.
            sampling: Temperature, truncation, guidance.
            grid: Rows and columns of codes; those of the training pictures, whose order the positions stand for.

        Raises:
            ValueError: If the grid is another one, or the logits are NaN.
        """
        space = self.space
        if grid != (space.rows, space.columns):
            raise ValueError(f"this model draws {space.rows} x {space.columns} codes, not {grid[0]} x {grid[1]}")
        guided = sampling.cfg_scale != 1
        streams = torch.cat([labels, torch.full_like(labels, space.null_class)]) if guided else labels
        cache = self.transformer.allocate_cache(len(streams), space.num_tokens)
        inputs = self.embed_classes(streams)  # (S, D)
        codes = []
        for index in range(space.num_tokens):
            positions = torch.full_like(streams, index)[:, None]
            view = cache.view(positions, length=index + 1)
            logits = self.logits(self.transformer(inputs[:, None], positions, cache=view)[:, 0])  # (S, V)
            if guided:
                cond, uncond = logits.chunk(2)
                logits = guide(cond, uncond, torch.full_like(cond[:, 0], sampling.cfg_scale))
            uniform = keyed_uniform(seeds, torch.full_like(seeds, index), stream=CODE_STREAM)
            codes.append(sample_ids(logits, sampling, uniform))
            inputs = self.embed_codes(codes[-1].repeat(2 if guided else 1))
        return torch.stack(codes, dim=1)

    def flops(self, sampling: CodeSamplingConfig) -> ImageFlops:
        """What one picture costs; thanks to the cache, drawing it reads every position once per stream."""
        space = self.space
        labels = torch.zeros(1, dtype=torch.long, device=self.device)
        codes = labels[:, None].expand(1, space.num_tokens)
        softmax = 2 * space.num_tokens * self.config.transformer.hidden_size * space.num_codes
        forward = count_flops(self.hidden_states, labels, codes) + softmax
        return ImageFlops(training=3 * forward, generation=(1 if sampling.cfg_scale == 1 else 2) * forward)
