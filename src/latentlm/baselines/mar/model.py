"""MAR: masked autoregression over latents with a diffusion head per token (Li et al. 2024, arXiv 2406.11838).

    label ──▶ buffer tokens ─┐
    visible latents ─────────┴─▶ encoder ─┐
                           mask tokens ───┴─▶ decoder ─▶ hidden_states ─head─▶ each masked latent

Attention is bidirectional and latents come in random order, several at a time. The encoder sees visible latents only,
the decoder every position, as in a masked autoencoder. Both are LatentLM's Transformer with learned positions.

Shapes: B batch, N latents of a picture, M buffer tokens, V visible slots, D hidden_size, R noises per latent,
C latent_dim, S streams (1, or 2 with guidance) times B, r latents revealed in one iteration.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from latentlm.baselines.mar.masking import expected_num_masked, mask_ratios, most_visible, reveal_schedule
from latentlm.baselines.mar.sampling import MARSamplingConfig
from latentlm.diffusion.guidance import guide
from latentlm.diffusion.process import DiffusionConfig, DiffusionProcess
from latentlm.diffusion.solvers import Solver, make_solver
from latentlm.models.diffusion_head import DiffusionHead, DiffusionHeadConfig
from latentlm.models.image_model import ImageModel, LabelledTokens, TokenSpace
from latentlm.models.transformer import Transformer, TransformerConfig
from latentlm.nn.flops import ImageFlops, count_flops
from latentlm.nn.keyed_noise import keyed_normal, keyed_uniform
from latentlm.nn.norm import RMSNorm

# Streams of the keyed noise, of a training step or of one picture.
ORDER_STREAM = 1
RATIO_STREAM = 2
TIMESTEP_STREAM = 3
NOISE_STREAM = 4
STEP_NOISE_STREAM = 5


@dataclass(frozen=True, kw_only=True)
class MARConfig:
    """Sizes of the model and its training task."""

    space: TokenSpace = field(default_factory=TokenSpace)
    """Filled in from the data and the tokenizer."""
    hidden_size: int
    """Width D of encoder and decoder."""
    num_encoder_layers: int
    """As many as in the decoder in the paper's models."""
    num_decoder_layers: int
    num_heads: int
    intermediate_size: int
    """Width of the SwiGLU feed-forward networks."""
    num_buffer_tokens: int = 64
    """M, positions at the front that carry the class (64 for the paper's 256 latents)."""
    min_mask_ratio: float = 0.7
    """Smallest share of latents masked in training."""
    head: DiffusionHeadConfig = field(default_factory=DiffusionHeadConfig)
    """The diffusion head, LatentLM's."""
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    """The diffusion process. LatentLM's default; MAR's own predicts epsilon on the same schedule."""
    num_noises_per_latent: int = 4
    """R, timesteps and noises drawn for every masked latent (4: paper, Section 4.2)."""

    def __post_init__(self) -> None:
        if min(self.num_buffer_tokens, self.num_noises_per_latent) < 1:
            raise ValueError("num_buffer_tokens and num_noises_per_latent must be at least 1")
        if not 0 < self.min_mask_ratio < 1:
            raise ValueError(f"min_mask_ratio is {self.min_mask_ratio}; it must lie between 0 and 1")

    def transformer(self, num_layers: int) -> TransformerConfig:
        """The encoder or the decoder."""
        return TransformerConfig(
            hidden_size=self.hidden_size,
            num_layers=num_layers,
            num_heads=self.num_heads,
            intermediate_size=self.intermediate_size,
        )


class MAR(ImageModel):
    """The model: `losses` denoises masked latents, `sample` reveals them over a number of iterations."""

    kind = "mar"
    config_class = MARConfig
    token_kind = "latents"
    sampling_class = MARSamplingConfig
    steps_field = "num_iterations"

    def __init__(self, config: MARConfig) -> None:
        super().__init__()
        self.config = config
        self.check_space()
        hidden_size, num_tokens = config.hidden_size, self.space.num_tokens
        num_positions = config.num_buffer_tokens + num_tokens
        self.embed_labels = nn.Embedding(self.space.num_classes + 1, hidden_size)
        self.input_proj = nn.Linear(self.space.latent_dim, hidden_size, bias=False)
        self.encoder_positions = nn.Parameter(torch.empty(num_positions, hidden_size))
        self.input_norm = RMSNorm(hidden_size)
        self.encoder = Transformer(config.transformer(config.num_encoder_layers))
        self.decoder_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.mask_token = nn.Parameter(torch.empty(hidden_size))
        self.decoder_positions = nn.Parameter(torch.empty(num_positions, hidden_size))
        self.decoder = Transformer(config.transformer(config.num_decoder_layers))
        self.head_positions = nn.Parameter(torch.empty(num_tokens, hidden_size))
        self.head = DiffusionHead(
            config.head,
            latent_dim=self.space.latent_dim,
            backbone_hidden_size=hidden_size,
            backbone_intermediate_size=config.intermediate_size,
        )
        self.process = DiffusionProcess(config.diffusion)
        self._initialise()

    def _initialise(self) -> None:
        # Tables N(0, 0.02), as in the official code and in LatentLM; linear layers keep PyTorch's default, as there.
        for table in (self.embed_labels.weight, self.encoder_positions, self.decoder_positions, self.head_positions):
            nn.init.normal_(table, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)

    def enable_activation_checkpointing(self) -> None:
        """Recompute the layers of encoder and decoder in the backward pass."""
        self.encoder.activation_checkpointing = True
        self.decoder.activation_checkpointing = True

    # -- the backbone -------------------------------------------------------------------------------------------------

    def hidden_states(
        self,
        labels: Int[Tensor, "S"],
        latents: Float[Tensor, "S N C"],
        order: Int[Tensor, "S N"],
        num_visible: Int[Tensor, "S"],
        *,
        max_visible: int,
    ) -> Float[Tensor, "S N D"]:
        """What conditions the head, at every position; only masked ones are of use.

        Args:
            labels: Classes, or the null class.
            latents: Clean where visible; masked ones are not read.
            order: The order in which positions are revealed.
            num_visible: The first so many positions of `order` are visible.
            max_visible: V, at least the largest of `num_visible`; known to the caller without a device sync.
        """
        is_visible = torch.arange(max_visible, device=order.device) < num_visible[:, None]  # (S, V)
        slots = order[:, :max_visible]
        encoded = self._encode(labels, _gather(latents, slots), slots, is_visible)  # (S, M + V, D)
        return self._decode(self.decoder_proj(encoded), slots, is_visible)

    def _encode(
        self,
        labels: Int[Tensor, "S"],
        visible: Float[Tensor, "S V C"],
        slots: Int[Tensor, "S V"],
        is_visible: Bool[Tensor, "S V"],
    ) -> Float[Tensor, "S MV D"]:
        """Buffer tokens and visible latents attend to one another; slots that are not visible are seen by none."""
        num_buffer = self.config.num_buffer_tokens
        # Zeros, because attention multiplies masked values by zero, and 0 · NaN is NaN.
        visible = visible.masked_fill(~is_visible[..., None], 0.0)
        buffer = self.embed_labels(labels)[:, None] + self.encoder_positions[:num_buffer]  # (S, M, D)
        tokens = self.input_proj(visible.to(buffer.dtype)) + self.encoder_positions[num_buffer:][slots]
        x = self.input_norm(torch.cat([buffer, tokens.to(buffer.dtype)], dim=1))
        is_seen = torch.cat([is_visible.new_ones(len(x), num_buffer), is_visible], dim=1)  # (S, M + V)
        return _attend_to(self.encoder, x, is_seen)

    def _decode(
        self, encoded: Float[Tensor, "S MV D"], slots: Int[Tensor, "S V"], is_visible: Bool[Tensor, "S V"]
    ) -> Float[Tensor, "S N D"]:
        """Encoded latents return to their positions, mask tokens fill the others, and all attend to all."""
        num_buffer, (rows, _), width = self.config.num_buffer_tokens, slots.shape, encoded.shape[-1]
        mask_tokens = self.mask_token.to(encoded.dtype).expand(rows, self.space.num_tokens, width)
        values = torch.where(is_visible[..., None], encoded[:, num_buffer:], mask_tokens[:, : slots.shape[1]])
        tokens = mask_tokens.scatter(1, slots[..., None].expand_as(values), values)  # (S, N, D)
        x = torch.cat([encoded[:, :num_buffer], tokens], dim=1) + self.decoder_positions
        is_seen = is_visible.new_ones(x.shape[:2])
        return _attend_to(self.decoder, x, is_seen)[:, num_buffer:] + self.head_positions

    # -- training -----------------------------------------------------------------------------------------------------

    def draw_masks(self, batch: LabelledTokens) -> tuple[Int[Tensor, "B N"], Int[Tensor, "B"]]:
        """The order of positions, and how many of the first are visible, of every example from its own key.

        The official code draws one ratio per batch, so that all rows have the same length; here each example has its
        own, which depends on no batch around it.
        """
        num_tokens, min_mask_ratio = self.space.num_tokens, self.config.min_mask_ratio
        order = _draw_order(batch.noise_seed, batch.keys, num_tokens)
        ratios = mask_ratios(keyed_uniform(batch.noise_seed, batch.keys, stream=RATIO_STREAM), min_mask_ratio)
        num_visible = num_tokens - torch.ceil(num_tokens * ratios).long()
        return order, num_visible.clamp(0, most_visible(num_tokens, min_mask_ratio))  # against rounding of the ratio

    def loss_counts(self, batch: LabelledTokens) -> dict[str, int]:
        """Masked latents: the loss is a mean over these."""
        _, num_visible = self.draw_masks(batch)
        return {"total": batch.tokens.shape[0] * batch.tokens.shape[1] - int(num_visible.sum())}

    def losses(
        self, batch: LabelledTokens, *, totals: Mapping[str, Tensor | float | int] | None = None
    ) -> dict[str, Float[Tensor, ""]]:
        """Diffusion loss of the masked latents, averaged over them, their noises and dimensions (Equation 1)."""
        totals = self.loss_counts(batch) if totals is None else totals
        order, num_visible = self.draw_masks(batch)
        max_visible = most_visible(self.space.num_tokens, self.config.min_mask_ratio)
        hidden_states = self.hidden_states(batch.labels, batch.tokens, order, num_visible, max_visible=max_visible)
        is_masked = order.argsort(dim=-1) >= num_visible[:, None]  # (B, N): the place of a position in the order
        return {"total": self._diffusion_loss(batch, hidden_states, is_masked) / totals["total"]}

    def _diffusion_loss(
        self, batch: LabelledTokens, hidden_states: Float[Tensor, "B N D"], is_masked: Bool[Tensor, "B N"]
    ) -> Float[Tensor, ""]:
        """Summed over masked latents, averaged over noises and dimensions; the head runs on masked latents alone."""
        num_tokens, num_noises = self.space.num_tokens, self.config.num_noises_per_latent
        uniform = keyed_uniform(batch.noise_seed, batch.keys, (num_tokens, num_noises), stream=TIMESTEP_STREAM)
        noise = keyed_normal(
            batch.noise_seed, batch.keys, (num_tokens, num_noises, self.space.latent_dim), stream=NOISE_STREAM
        )
        timesteps = self.process.timesteps_from_uniform(uniform[is_masked]).T  # (R, n), n masked latents in all
        noise = noise[is_masked].movedim(1, 0)  # (R, n, C)
        latents = batch.tokens[is_masked].float().expand_as(noise)
        with torch.autocast(latents.device.type, enabled=False):
            noisy_latents = self.process.add_noise(latents, noise, timesteps)
            target = self.process.training_target(latents, noise, timesteps)
        conditions = hidden_states[is_masked]  # (n, D)
        prediction = self.head(noisy_latents.to(conditions.dtype), timesteps, conditions)
        return (prediction.float() - target).square().mean(dim=(0, 2)).sum()

    # -- sampling -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self,
        labels: Int[Tensor, "B"],
        *,
        seeds: Int[Tensor, "B"],
        sampling: MARSamplingConfig,
        grid: tuple[int, int],
    ) -> Float[Tensor, "B N C"]:
        """Reveal latents in an order of each picture's own, by the cosine schedule, each by the head's diffusion.

        Raises:
            ValueError: If the grid is not the training one, or there are more iterations than latents.
        """
        if grid != (self.space.rows, self.space.columns):
            raise ValueError(
                f"positions are learned: the model draws {self.space.rows} x {self.space.columns} latents, not {grid}"
            )
        num_tokens = self.space.num_tokens
        schedule = reveal_schedule(num_tokens, sampling.num_iterations)
        solver = make_solver(self.process, sampling.solver).to(labels.device)
        step_embeddings = self.head.timestep_embedding(solver.timesteps)  # (K, W), the same in all iterations
        order = _draw_order(seeds, torch.zeros_like(seeds), num_tokens)
        latents = torch.zeros(len(labels), num_tokens, self.space.latent_dim, device=labels.device)
        num_streams = 1 if sampling.cfg_scale == 1 else 2
        if num_streams == 2:
            labels = torch.cat([labels, torch.full_like(labels, self.space.null_class)])  # [cond; null]
        num_visible = 0
        for count in schedule:
            hidden_states = self.hidden_states(
                labels,
                latents.repeat(num_streams, 1, 1),
                order.repeat(num_streams, 1),
                torch.full_like(labels, num_visible),
                max_visible=num_visible,
            )
            revealed = order[:, num_visible : num_visible + count]  # (B, r)
            num_visible += count
            conditions = _gather(hidden_states, revealed.repeat(num_streams, 1))
            drawn = self._draw(
                conditions,
                revealed,
                seeds,
                solver,
                step_embeddings,
                scale=sampling.guidance_scale(num_visible / num_tokens),
                temperature=float(sampling.temperature),
            )
            latents = latents.scatter(1, revealed[..., None].expand_as(drawn), drawn)
        return latents

    def _draw(
        self,
        hidden_states: Float[Tensor, "S r D"],
        positions: Int[Tensor, "B r"],
        seeds: Int[Tensor, "B"],
        solver: Solver,
        step_embeddings: Float[Tensor, "K W"],
        *,
        scale: float,
        temperature: float,
    ) -> Float[Tensor, "B r C"]:
        """The latents at `positions`, in parallel, by the solver's loop over the head; noise by seed and position."""
        seeds, latent_dim = seeds[:, None].expand_as(positions), self.space.latent_dim
        num_noises = solver.num_evaluations if solver.needs_noise else 0
        step_noise = keyed_normal(seeds, positions, (num_noises, latent_dim), stream=STEP_NOISE_STREAM) * temperature
        state = solver.initial_state(keyed_normal(seeds, positions, (latent_dim,), stream=NOISE_STREAM))
        condition = self.head.project_condition(hidden_states)
        num_streams = len(hidden_states) // len(positions)
        for k in range(solver.num_evaluations):
            noisy_latents = state.noisy_latents.repeat(num_streams, 1, 1).to(condition.dtype)
            prediction = self.head.denoise(noisy_latents, condition + step_embeddings[k]).float()
            if num_streams == 2:
                cond, uncond = prediction.chunk(2)
                prediction = guide(cond, uncond, cond.new_full((1, 1), scale))
            state = solver.step(k, prediction, state, step_noise[:, :, k] if solver.needs_noise else None)
        return state.noisy_latents

    # -- cost ---------------------------------------------------------------------------------------------------------

    def flops(self, sampling: MARSamplingConfig) -> ImageFlops:
        """Cost of one picture, the head's at the expected number of masked latents.

        The encoder of training is counted over all its V slots, as it is computed, although most are padding.

        Raises:
            ValueError: If there are more iterations than latents.
        """
        # On the meta device nothing is computed, only counted.
        model, num_tokens, latent_dim = copy.deepcopy(self).to("meta"), self.space.num_tokens, self.space.latent_dim
        hidden = torch.zeros(1, self.config.hidden_size, device="meta")

        def backbone(num_streams: int, max_visible: int) -> int:
            rows = torch.zeros(num_streams, dtype=torch.long, device="meta")
            latents = torch.zeros(num_streams, num_tokens, latent_dim, device="meta")
            order = torch.zeros(num_streams, num_tokens, dtype=torch.long, device="meta")
            return count_flops(model.hidden_states, rows, latents, order, rows, max_visible=max_visible)

        noisy = torch.zeros(self.config.num_noises_per_latent, 1, latent_dim, device="meta")
        masked_latent = count_flops(model.head, noisy, noisy[..., 0], hidden)
        num_masked = expected_num_masked(num_tokens, self.config.min_mask_ratio)
        forward = backbone(1, most_visible(num_tokens, self.config.min_mask_ratio)) + round(num_masked * masked_latent)

        num_streams = 1 if sampling.cfg_scale == 1 else 2
        schedule = reveal_schedule(num_tokens, sampling.num_iterations)
        passes = sum(backbone(num_streams, sum(schedule[:i])) for i in range(len(schedule)))
        condition = model.head.project_condition(hidden)
        evaluations = make_solver(self.process, sampling.solver).num_evaluations
        drawn_latent = count_flops(model.head.project_condition, hidden)
        drawn_latent += evaluations * count_flops(model.head.denoise, noisy[0], condition)
        return ImageFlops(training=3 * forward, generation=passes + num_streams * num_tokens * drawn_latent)


def _draw_order(seed: int | Int[Tensor, "B"], keys: Int[Tensor, "B"], num_tokens: int) -> Int[Tensor, "B N"]:
    """A random order of the positions of every picture."""
    return keyed_uniform(seed, keys, (num_tokens,), stream=ORDER_STREAM).argsort(dim=-1, stable=True)


def _gather(values: Float[Tensor, "S N F"], positions: Int[Tensor, "S P"]) -> Float[Tensor, "S P F"]:
    """The vectors at `positions` of every row."""
    return values.gather(1, positions[..., None].expand(-1, -1, values.shape[-1]))


def _attend_to(
    transformer: Transformer, x: Float[Tensor, "S T D"], is_seen: Bool[Tensor, "S T"]
) -> Float[Tensor, "S T D"]:
    """Run a Transformer in which every position looks at all that are seen, before it or behind it."""
    length = x.shape[1]
    mask = is_seen[:, None, None].expand(-1, 1, length, -1)
    # Positions of 0 turn no channel: order is known from the learned positions in x, as in the paper.
    nowhere = torch.zeros(1, dtype=torch.long, device=x.device).expand(x.shape[:2])
    return transformer(x, nowhere, attention_mask=mask)
