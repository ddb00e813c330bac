"""DiT: diffusion over all latents of a picture at once (Peebles & Xie 2023), the baseline of the paper's Section 3.1.

    noisy latents ─latent_proj──(+ positions)──▶ blocks: bidirectional attention, SwiGLU ─▶ final_layer ─▶ prediction
    timestep ─timestep_embedding─┐                  ▲                                          ▲
    label ───label_embedding─────┴─(+)─ condition ──┴── AdaLN-Zero: shift, scale, gate ────────┘

One timestep serves a whole picture, so every step of the sampler runs the whole network; LatentLM runs its Transformer
once and only its small head at every step. RMSNorm and SwiGLU replace the LayerNorm and GELU of DiT, as in the paper.

Shapes: B batch, N tokens, C latent_dim, D hidden_size, H heads, Dh head_dim, K evaluations of the network,
R noises per image.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from latentlm.baselines.dit.positions import sincos_1d, sincos_2d
from latentlm.diffusion.guidance import guidance_scales, guide
from latentlm.diffusion.process import DiffusionConfig, DiffusionProcess
from latentlm.diffusion.solvers import Solver, make_solver
from latentlm.generation.requests import LatentSamplingConfig
from latentlm.models.diffusion_head import FinalLayer
from latentlm.models.image_model import ImageModel, LabelledTokens, TokenSpace
from latentlm.nn.adaln import AdaLNModulation, modulate
from latentlm.nn.attention import attend
from latentlm.nn.feedforward import SwiGLU
from latentlm.nn.flops import ImageFlops, count_flops
from latentlm.nn.keyed_noise import keyed_normal, keyed_uniform
from latentlm.nn.norm import RMSNorm
from latentlm.nn.timestep_embedding import TimestepEmbedding

# Streams of the keyed noise in training: timestep and noise of an image must not share random bits.
TIMESTEP_STREAM = 1
NOISE_STREAM = 2
# Streams of the keyed noise in sampling.
STARTING_NOISE_STREAM = 1
STEP_NOISE_STREAM = 2


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """Sizes of the model, and what it is trained to predict."""

    space: TokenSpace = field(default_factory=TokenSpace)
    """Classes, grid and latent_dim; training fills it in from the data and the tokenizer."""
    hidden_size: int
    """Width D."""
    num_layers: int
    """Blocks."""
    num_heads: int
    """Query heads."""
    intermediate_size: int
    """Width of the SwiGLU: 8/3 D in the paper, which the authors' code rounds down to a multiple of 64."""
    num_kv_heads: int | None = None
    """Key-value heads for grouped-query attention; None means as many as query heads."""
    norm_eps: float = 1e-6
    """Added to the mean square in every RMSNorm."""
    position_encoding: Literal["sincos_2d", "sincos_1d", "learned"] = "sincos_2d"
    """Fixed sines and cosines of row and column (DiT), or of the index in reading order (the authors' code where it
    flattens its latents), both for any grid; or a table of its own, for the training grid alone."""
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    """The diffusion process."""
    num_noises_per_image: int = 1
    """Timesteps and noises drawn for every image in one training step; each costs a whole pass. DiT draws one."""

    def __post_init__(self) -> None:
        kv_heads = self.num_heads if self.num_kv_heads is None else self.num_kv_heads
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        if self.num_heads % kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {kv_heads}")
        multiple = {"sincos_2d": 4, "sincos_1d": 2, "learned": 1}[self.position_encoding]
        if self.hidden_size % multiple:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of {multiple}, which position_encoding "
                f"{self.position_encoding!r} needs: a sine and a cosine per axis"
            )
        if self.num_noises_per_image < 1:
            raise ValueError(f"num_noises_per_image is {self.num_noises_per_image} but training needs at least one")


class Attention(nn.Module):
    """Grouped-query self-attention of every token to every token."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.head_dim = config.hidden_size // config.num_heads
        kv_size = (config.num_kv_heads or config.num_heads) * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        q, k, v = (
            proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )  # (B, H, N, Dh)
        return self.o_proj(attend(q, k, v).transpose(1, 2).flatten(2))


class DiTBlock(nn.Module):
    """x + gate attention(modulate(norm(x))), then the same with the SwiGLU: the adaLN-Zero block of DiT, Figure 3."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        # Without weights: the scale of AdaLN takes their place.
        self.norm = RMSNorm(config.hidden_size, eps=config.norm_eps, elementwise_affine=False)
        self.self_attn = Attention(config)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size)
        self.modulation = AdaLNModulation(config.hidden_size, 6)

    def forward(self, x: Float[Tensor, "B N D"], condition: Float[Tensor, "B 1 D"]) -> Float[Tensor, "B N D"]:
        attn_shift, attn_scale, attn_gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(condition)
        x = x + attn_gate * self.self_attn(modulate(self.norm(x), attn_shift, attn_scale))
        return x + mlp_gate * self.mlp(modulate(self.norm(x), mlp_shift, mlp_scale))


class DiT(ImageModel):
    """The model.

    Raises:
        ValueError: If the config's space is not filled in.
    """

    kind = "dit"
    config_class = DiTConfig
    token_kind = "latents"
    sampling_class = LatentSamplingConfig
    steps_field = "solver.num_inference_steps"

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.check_space()
        self.activation_checkpointing = False
        self.process = DiffusionProcess(config.diffusion)
        space, hidden_size = config.space, config.hidden_size
        self.latent_proj = nn.Linear(space.latent_dim, hidden_size, bias=False)
        self.position_embedding = (
            nn.Parameter(torch.empty(space.num_tokens, hidden_size)) if config.position_encoding == "learned" else None
        )
        self.label_embedding = nn.Embedding(space.num_classes + 1, hidden_size)  # the null class comes last
        self.timestep_embedding = TimestepEmbedding(hidden_size)
        self.blocks = nn.ModuleList(DiTBlock(config) for _ in range(config.num_layers))
        self.final_layer = FinalLayer(hidden_size, space.latent_dim, config.norm_eps)
        self._initialise()

    def _initialise(self) -> None:
        # N(0, 0.02): DiT, and the authors' code. Linear layers keep PyTorch's default, as in LatentLM and the authors'
        # DiT (the original draws them Xavier-uniform); AdaLN-Zero's zeros and the timestep MLP are set where made.
        nn.init.normal_(self.label_embedding.weight, std=0.02)
        if self.position_embedding is not None:
            nn.init.normal_(self.position_embedding, std=0.02)

    def enable_activation_checkpointing(self) -> None:
        """Recompute the blocks in the backward pass."""
        self.activation_checkpointing = True

    def positions(self, grid: tuple[int, int]) -> Float[Tensor, "N D"]:
        """What is added to the tokens of a grid, in the weights' type.

        Args:
            grid: Rows and columns.

        Raises:
            ValueError: If positions are learned and the grid is another one than in training.
        """
        if self.position_embedding is not None:
            if grid != (self.space.rows, self.space.columns):
                raise ValueError(
                    f"learned positions exist for {self.space.rows} x {self.space.columns} tokens alone, not for "
                    f"{grid[0]} x {grid[1]}; train with position_encoding 'sincos_2d' for other sizes"
                )
            return self.position_embedding
        if self.config.position_encoding == "sincos_2d":
            table = sincos_2d(*grid, self.config.hidden_size, device=self.device)
        else:
            table = sincos_1d(torch.arange(grid[0] * grid[1], device=self.device), self.config.hidden_size)
        return table.to(self.latent_proj.weight.dtype)

    def denoise(
        self,
        noisy_latents: Float[Tensor, "B N C"],
        condition: Float[Tensor, "B D"],
        positions: Float[Tensor, "N D"],
    ) -> Float[Tensor, "B N C"]:
        """Prediction for `noisy_latents`.

        Args:
            noisy_latents: x_t.
            condition: `timestep_embedding(timesteps) + label_embedding(labels)`.
            positions: From `positions(grid)`.
        """
        condition = condition[:, None]  # (B, 1, D): the same for all tokens of a picture
        x = self.latent_proj(noisy_latents.to(self.latent_proj.weight.dtype)) + positions
        for block in self.blocks:
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, condition, use_reentrant=False)
            else:
                x = block(x, condition)
        return self.final_layer(x, condition)

    def forward(
        self,
        noisy_latents: Float[Tensor, "B N C"],
        timesteps: Float[Tensor, "B"] | Int[Tensor, "B"],
        labels: Int[Tensor, "B"],
        *,
        grid: tuple[int, int] | None = None,
    ) -> Float[Tensor, "B N C"]:
        """Prediction for `noisy_latents`; what it means is set by `diffusion.prediction_type`.

        Args:
            noisy_latents: x_t.
            timesteps: One per picture, as the diffusion process counts them.
            labels: Classes; the null class for no condition.
            grid: Rows and columns of tokens; None is the training size.
        """
        positions = self.positions((self.space.rows, self.space.columns) if grid is None else grid)
        condition = self.timestep_embedding(timesteps) + self.label_embedding(labels)
        return self.denoise(noisy_latents, condition, positions)

    def losses(
        self, batch: LabelledTokens, *, totals: Mapping[str, Tensor | float | int] | None = None
    ) -> dict[str, Float[Tensor, ""]]:
        """`total`: squared error of the prediction, averaged over noises and channels, and over all tokens.

        Timesteps and noise of a picture depend on the batch's `noise_seed` and its key alone. Arguments as in
        `ImageModel.losses`.
        """
        totals = self.loss_counts(batch) if totals is None else totals
        num_noises, seed = self.config.num_noises_per_image, batch.noise_seed
        latents = batch.tokens.float().repeat_interleave(num_noises, dim=0)  # (B·R, N, C)
        timesteps = self.process.timesteps_from_uniform(
            keyed_uniform(seed, batch.keys, (num_noises,), stream=TIMESTEP_STREAM)
        ).flatten()  # (B·R,)
        noise = keyed_normal(seed, batch.keys, (num_noises, *batch.tokens.shape[1:]), stream=NOISE_STREAM).flatten(0, 1)
        with torch.autocast(latents.device.type, enabled=False):
            noisy_latents = self.process.add_noise(latents, noise, timesteps[:, None])
            target = self.process.training_target(latents, noise, timesteps[:, None])
        prediction = self(noisy_latents, timesteps, batch.labels.repeat_interleave(num_noises))
        loss = (prediction.float() - target).square().mean(dim=2).sum() / num_noises
        return {"total": loss / totals["total"]}

    @torch.no_grad()
    def sample(
        self,
        labels: Int[Tensor, "B"],
        *,
        seeds: Int[Tensor, "B"],
        sampling: LatentSamplingConfig,
        grid: tuple[int, int],
    ) -> Float[Tensor, "B N C"]:
        """Draw latents: the solver's loop over whole pictures; arguments as in `ImageModel.sample`.

        Guided evaluations run labels and null class as one batch of twice the size; where the scale is 1 the second
        stream is left out.

        Raises:
            ValueError: If the sampling has a position schedule, or the model cannot draw such a grid.
        """
        solver, scales = self._solver_and_scales(sampling)
        solver, num_images = solver.to(self.device), labels.shape[0]
        positions = self.positions(grid)
        step_embeddings = self.timestep_embedding(solver.timesteps)  # (K, D)
        cond = self.label_embedding(labels)  # (B, D)
        both = torch.cat([cond, self.label_embedding(torch.full_like(labels, self.space.null_class))])  # (2B, D)
        shape = (grid[0] * grid[1], self.space.latent_dim)
        noise = keyed_normal(seeds, torch.zeros_like(seeds), shape, stream=STARTING_NOISE_STREAM)
        state, step_noise = solver.initial_state(noise), None
        for k in range(solver.num_evaluations):
            x = state.noisy_latents
            if scales[k] == 1:
                prediction = self.denoise(x, cond + step_embeddings[k], positions).float()
            else:
                predictions = self.denoise(torch.cat([x, x]), both + step_embeddings[k], positions)
                on_cond, on_null = predictions.split(num_images)
                prediction = guide(on_cond, on_null, torch.full((num_images, 1), scales[k], device=x.device))
            if solver.needs_noise:
                # Drawn step by step: those of a thousand steps would not fit beside the model.
                step_noise = keyed_normal(seeds, torch.full_like(seeds, k), shape, stream=STEP_NOISE_STREAM)
            state = solver.step(k, prediction, state, step_noise)
        return state.noisy_latents

    def flops(self, sampling: LatentSamplingConfig) -> ImageFlops:
        """What one picture of the training size costs; see `ImageModel.flops`."""
        with torch.device("meta"):
            twin = DiT(self.config)
            latents = torch.zeros(1, self.space.num_tokens, self.space.latent_dim)
            forward = count_flops(twin, latents, torch.zeros(1), torch.zeros(1, dtype=torch.int64))
        _, scales = self._solver_and_scales(sampling)
        num_passes = sum(1 if scale == 1 else 2 for scale in scales)
        return ImageFlops(training=3 * self.config.num_noises_per_image * forward, generation=num_passes * forward)

    def _solver_and_scales(self, sampling: LatentSamplingConfig) -> tuple[Solver, list[float]]:
        """The solver, on the CPU, and the guidance scale of each of its evaluations."""
        if sampling.guidance.position_schedule != "constant":
            raise ValueError(
                f"guidance.position_schedule is {sampling.guidance.position_schedule!r}, but DiT draws all positions "
                "of a picture together; use guidance.step_schedule"
            )
        solver = make_solver(self.process, sampling.solver)
        cfg_scale = torch.tensor([sampling.cfg_scale])
        return solver, guidance_scales(sampling.guidance, cfg_scale, solver.timesteps)[:, 0].tolist()
