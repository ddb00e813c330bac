"""Masked modelling of vector-quantized codes (MaskGIT, Chang et al. 2022).

    class, codes with masks ──embed, + positions──▶ bidirectional transformer ──▶ logits at the masks

Training hides a random part of the codes and predicts them from the others; sampling starts from masks alone and fills
them in a few parallel iterations (`sampling.py`).

Shapes: B batch, N tokens of a picture (rows · columns), D hidden_size, V num_codes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from latentlm.baselines.maskgit.sampling import MaskGITSamplingConfig, parallel_decode
from latentlm.diffusion.guidance import guide
from latentlm.models.image_model import ImageModel, LabelledTokens, TokenSpace
from latentlm.models.transformer import Transformer, TransformerConfig
from latentlm.nn.flops import ImageFlops, count_flops
from latentlm.nn.keyed_noise import keyed_uniform

# Streams of the keyed noise of one training example: how many codes are masked, and which.
RATIO_STREAM = 1
ORDER_STREAM = 2


@dataclass(frozen=True, kw_only=True)
class MaskGITConfig:
    """A whole model."""

    space: TokenSpace = field(default_factory=TokenSpace)
    """What it reads and writes; data and tokenizer fill it in."""
    transformer: TransformerConfig
    """The backbone."""
    label_smoothing: float = 0.1
    """Share of a target that is spread evenly over all codes (Section 4.1)."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; it must lie in [0, 1)")


def draw_mask(noise_seed: int, keys: Int[Tensor, "B"], num_tokens: int) -> Bool[Tensor, "B N"]:
    """True at ceil(cos(pi/2 · r) N) random positions of every example, r uniform in (0, 1) (Section 3.1).

    Args:
        noise_seed: Of the training step.
        keys: Of the examples.
        num_tokens: N.
    """
    ratio = keyed_uniform(noise_seed, keys, stream=RATIO_STREAM)  # (B,)
    # At least one: for r just below 1 the cosine may round to less than nothing.
    counts = (num_tokens * torch.cos(math.pi / 2 * ratio)).ceil().clamp(min=1)
    rank = keyed_uniform(noise_seed, keys, (num_tokens,), stream=ORDER_STREAM).argsort(dim=-1).argsort(dim=-1)
    return rank < counts[:, None]


def mean_num_masked(num_tokens: int) -> float:
    """Expectation of how many codes `draw_mask` masks: the sum of P(more than k masks) = 2/pi · arccos(k / N)."""
    return sum(math.acos(k / num_tokens) for k in range(num_tokens)) * 2 / math.pi


class MaskGIT(ImageModel):
    """The model."""

    kind = "maskgit"
    config_class = MaskGITConfig
    token_kind = "codes"
    sampling_class = MaskGITSamplingConfig
    steps_field = "num_iterations"

    def __init__(self, config: MaskGITConfig) -> None:
        super().__init__()
        self.config = config
        self.check_space()
        hidden_size, space = config.transformer.hidden_size, config.space
        self.embed_classes = nn.Embedding(space.num_classes + 1, hidden_size)  # the last one is the null class
        self.embed_codes = nn.Embedding(space.num_codes + 1, hidden_size)  # the last one is the mask
        self.embed_positions = nn.Embedding(space.num_tokens + 1, hidden_size)  # the first one is the class's
        self.transformer = Transformer(config.transformer)
        self._initialise()

    def _initialise(self) -> None:
        # All linear layers and tables N(0, 0.02) cut at two deviations, as in the authors' code (from BERT).
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)

    def enable_activation_checkpointing(self) -> None:
        """Recompute the Transformer's layers in the backward pass."""
        self.transformer.activation_checkpointing = True

    @property
    def mask_id(self) -> int:
        """The token of a hidden code."""
        return self.space.num_codes

    def hidden_states(self, labels: Int[Tensor, "B"], codes: Int[Tensor, "B N"]) -> Float[Tensor, "B N D"]:
        """One vector per code, each from all that is visible.

        Args:
            labels: Classes; the null class for no condition.
            codes: The picture, with `mask_id` where it is hidden.
        """
        positions = torch.arange(codes.shape[1] + 1, device=codes.device).expand(len(codes), -1)  # (B, 1 + N)
        inputs = torch.cat([self.embed_classes(labels)[:, None], self.embed_codes(codes)], dim=1)
        # Every position sees every other: nothing here is causal.
        visible = torch.ones((), dtype=torch.bool, device=codes.device)
        visible = visible.expand(len(codes), 1, positions.shape[1], positions.shape[1])
        return self.transformer(inputs + self.embed_positions(positions), positions, attention_mask=visible)[:, 1:]

    def logits(self, hidden_states: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch V"]:
        """Of every code, by the table that embeds them, in float32 whatever the autocast type; a mask is no answer."""
        with torch.autocast(hidden_states.device.type, enabled=False):
            return F.linear(hidden_states.float(), self.embed_codes.weight[: self.mask_id].float())

    def forward(self, labels: Int[Tensor, "B"], codes: Int[Tensor, "B N"]) -> Float[Tensor, "B N V"]:
        """Logits at every position; arguments as in `hidden_states`."""
        return self.logits(self.hidden_states(labels, codes))

    def loss_counts(self, batch: LabelledTokens) -> dict[str, int]:
        """How many codes the loss is a mean over: the masked ones."""
        return {"total": int(draw_mask(batch.noise_seed, batch.keys, batch.tokens.shape[1]).sum())}

    def losses(
        self, batch: LabelledTokens, *, totals: Mapping[str, Tensor | float | int] | None = None
    ) -> dict[str, Float[Tensor, ""]]:
        """`total`: label-smoothed cross-entropy of the masked codes in nats, a mean over them (Eq. 1)."""
        codes = batch.tokens
        mask = draw_mask(batch.noise_seed, batch.keys, codes.shape[1])
        # The softmax over the codebook is a good part of the cost: only where a code is asked for.
        logits = self.logits(self.hidden_states(batch.labels, codes.masked_fill(mask, self.mask_id))[mask])
        summed = F.cross_entropy(logits, codes[mask], label_smoothing=self.config.label_smoothing, reduction="sum")
        return {"total": summed / (mask.sum() if totals is None else totals["total"])}

    @torch.no_grad()
    def sample(
        self,
        labels: Int[Tensor, "B"],
        *,
        seeds: Int[Tensor, "B"],
        sampling: MaskGITSamplingConfig,
        grid: tuple[int, int],
    ) -> Int[Tensor, "B N"]:
        """Draw codes by parallel decoding.

        Args:
            labels: Classes; the null class draws without a condition.
            seeds: All noise of a picture follows from its own.
            sampling: Iterations, temperatures, guidance.
            grid: Rows and columns of codes; those of the training pictures, which the table of positions is made for.

        Raises:
            ValueError: If the grid is another one, there are more iterations than codes, or the logits are NaN.
        """
        space = self.space
        if grid != (space.rows, space.columns):
            raise ValueError(f"this model draws {space.rows} x {space.columns} codes, not {grid[0]} x {grid[1]}")
        null_labels = torch.full_like(labels, space.null_class)

        def predict(codes: Tensor, iteration: int) -> Tensor:
            if sampling.cfg_scale == 1:
                return self(labels, codes)
            cond, uncond = self(torch.cat([labels, null_labels]), codes.repeat(2, 1)).chunk(2)
            return guide(cond, uncond, torch.full_like(cond[..., 0], sampling.guidance_scale(iteration)))

        return parallel_decode(
            predict, seeds=seeds, sampling=sampling, num_tokens=space.num_tokens, mask_id=self.mask_id
        )

    def flops(self, sampling: MaskGITSamplingConfig) -> ImageFlops:
        """What one picture costs: in training the mean over masks, as logits are only made where a code is masked."""
        space = self.space
        labels = torch.zeros(1, dtype=torch.long, device=self.device)
        backbone = count_flops(self.hidden_states, labels, labels[:, None].expand(1, space.num_tokens))
        softmax = 2 * self.config.transformer.hidden_size * space.num_codes  # at one position
        training = backbone + round(softmax * mean_num_masked(space.num_tokens))
        evaluation = backbone + softmax * space.num_tokens
        num_evaluations = sampling.num_iterations * (1 if sampling.cfg_scale == 1 else 2)
        return ImageFlops(training=3 * training, generation=num_evaluations * evaluation)
