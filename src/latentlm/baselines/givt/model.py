"""GIVT: a causal Transformer whose head is a mixture of Gaussians (Tschannen et al. 2024, arXiv 2312.02116).

    label ────embed_labels──┐
                            ├─▶ transformer ─▶ hidden_states ─head─▶ mixture of the next latent ─▶ log-likelihood
    latents ──input_proj────┘

LatentLM with its diffusion head replaced by a density in closed form: one pass of the network per latent, and an exact
likelihood to train on.

Shapes: B batch, N latents of a picture, D hidden_size, K components, C latent_dim, S candidates of guidance.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from latentlm.baselines.givt.mixture import GaussianMixture, sample_guided
from latentlm.baselines.givt.sampling import GIVTSamplingConfig
from latentlm.models.image_model import ImageModel, LabelledTokens, TokenSpace
from latentlm.models.kv_cache import KVCache
from latentlm.models.transformer import Transformer, TransformerConfig
from latentlm.nn.flops import ImageFlops, count_flops
from latentlm.nn.keyed_noise import keyed_normal, keyed_uniform

# Streams of the keyed noise of one picture.
COMPONENT_STREAM = 1
GAUSSIAN_STREAM = 2
SELECTION_STREAM = 3


@dataclass(frozen=True, kw_only=True)
class GIVTConfig:
    """Sizes of the model."""

    space: TokenSpace = field(default_factory=TokenSpace)
    """Filled in from the data and the tokenizer."""
    transformer: TransformerConfig
    """The backbone, LatentLM's."""
    num_components: int = 16
    """K, Gaussians of a mixture (16: paper, class-conditional ImageNet)."""
    min_scale: float = 1e-3
    """Added to every standard deviation; latents have unit variance."""

    def __post_init__(self) -> None:
        if self.num_components < 1:
            raise ValueError(f"num_components is {self.num_components}; a mixture has at least one")
        if not self.min_scale > 0:
            raise ValueError(f"min_scale is {self.min_scale}; only a positive floor keeps the likelihood finite")


class GIVT(ImageModel):
    """The model: `losses` is the negative log-likelihood, `sample` draws latent after latent."""

    kind = "givt"
    config_class = GIVTConfig
    token_kind = "latents"
    sampling_class = GIVTSamplingConfig

    def __init__(self, config: GIVTConfig) -> None:
        super().__init__()
        self.config = config
        self.check_space()
        hidden_size, latent_dim = config.transformer.hidden_size, config.space.latent_dim
        self.embed_labels = nn.Embedding(config.space.num_classes + 1, hidden_size)
        self.input_proj = nn.Linear(latent_dim, hidden_size, bias=False)
        self.transformer = Transformer(config.transformer)
        self.head = nn.Linear(hidden_size, config.num_components * (1 + 2 * latent_dim))
        # As in LatentLM. The head keeps PyTorch's default, too: from the zeros of the official code all components
        # would start alike, get the same gradient, and stay one component.
        nn.init.normal_(self.embed_labels.weight, std=0.02)

    def enable_activation_checkpointing(self) -> None:
        """Recompute the Transformer's layers in the backward pass."""
        self.transformer.activation_checkpointing = True

    def mixtures(self, labels: Int[Tensor, "B"], latents: Float[Tensor, "B N C"]) -> GaussianMixture:
        """Mixture [B, N] of every latent given the class and the latents before it.

        Args:
            labels: Classes, or the null class.
            latents: Clean latents; the last one is predicted but not read.
        """
        return self._mixture(self._hidden_states(labels, latents))

    def _hidden_states(self, labels: Int[Tensor, "B"], latents: Float[Tensor, "B N C"]) -> Float[Tensor, "B N D"]:
        embeds = torch.cat([self.embed_labels(labels)[:, None], self.input_proj(latents[:, :-1])], dim=1)
        positions = torch.arange(embeds.shape[1], device=embeds.device).expand(embeds.shape[:2])
        return self.transformer(embeds, positions)

    def _mixture(self, hidden_states: Float[Tensor, "*n D"]) -> GaussianMixture:
        # float32 whatever the autocast type: log-likelihoods have no digits to spare.
        with torch.autocast(hidden_states.device.type, enabled=False):
            bias = self.head.bias.float()
            outputs = F.linear(hidden_states.float(), self.head.weight.float(), bias)
        return GaussianMixture.from_outputs(
            outputs, num_components=self.config.num_components, min_scale=self.config.min_scale
        )

    def losses(
        self, batch: LabelledTokens, *, totals: Mapping[str, Tensor | float | int] | None = None
    ) -> dict[str, Float[Tensor, ""]]:
        """Negative log-likelihood of the latents in nats per dimension, so that its scale does not follow C."""
        totals = self.loss_counts(batch) if totals is None else totals
        log_probs = self.mixtures(batch.labels, batch.tokens).log_prob(batch.tokens)  # (B, N)
        return {"total": -log_probs.sum() / (totals["total"] * self.space.latent_dim)}

    @torch.no_grad()
    def sample(
        self,
        labels: Int[Tensor, "B"],
        *,
        seeds: Int[Tensor, "B"],
        sampling: GIVTSamplingConfig,
        grid: tuple[int, int],
    ) -> Float[Tensor, "B N C"]:
        """One latent after another; with guidance a second stream reads the null class and the same latents.

        Raises:
            ValueError: If the grid is not the training one.
        """
        if grid != (self.space.rows, self.space.columns):
            raise ValueError(
                f"this model was trained on grids of {self.space.rows} x {self.space.columns} latents, not {grid}"
            )
        is_guided = sampling.cfg_scale != 1
        if is_guided:
            labels = torch.cat([labels, torch.full_like(labels, self.space.null_class)])  # [cond; null]
        cache = self.transformer.allocate_cache(len(labels), self.space.num_tokens)
        embeds = self.embed_labels(labels)
        latents: list[Tensor] = []
        for position in range(self.space.num_tokens):
            mixture = self._mixture(self._decode_step(embeds, position, cache)).tempered(float(sampling.temperature))
            latents.append(self._draw(mixture, position, seeds, sampling))
            embeds = self.input_proj(latents[-1].to(embeds.dtype))
            if is_guided:
                embeds = torch.cat([embeds, embeds])
        return torch.stack(latents, dim=1)

    def _decode_step(self, embeds: Float[Tensor, "R D"], position: int, cache: KVCache) -> Float[Tensor, "R D"]:
        """Hidden states that predict latent `position`, after the newest input vector of every row."""
        positions = torch.full((len(embeds), 1), position, device=embeds.device)
        view = cache.view(positions, length=position + 1)
        return self.transformer(embeds[:, None], positions, cache=view)[:, 0]

    def _draw(
        self, mixture: GaussianMixture, position: int, seeds: Int[Tensor, "B"], sampling: GIVTSamplingConfig
    ) -> Float[Tensor, "B C"]:
        """Latent `position` of every picture, from its own seed; `mixture` has the rows of both streams."""
        is_guided = sampling.cfg_scale != 1
        num_draws = sampling.num_candidates if is_guided else 1
        index = torch.full_like(seeds, position)
        uniform = keyed_uniform(seeds, index, (num_draws,), stream=COMPONENT_STREAM)  # (B, S)
        normal = keyed_normal(seeds, index, (num_draws, self.space.latent_dim), stream=GAUSSIAN_STREAM)  # (B, S, C)
        if not is_guided:
            return mixture.sample(uniform[:, 0], normal[:, 0])
        cond, uncond = (GaussianMixture(*parts) for parts in zip(*(part.chunk(2) for part in mixture), strict=True))
        selection = keyed_uniform(seeds, index, (num_draws,), stream=SELECTION_STREAM)
        return sample_guided(cond, uncond, sampling.cfg_scale, uniform=uniform, normal=normal, selection=selection)

    def flops(self, sampling: GIVTSamplingConfig) -> ImageFlops:
        """Cost of one picture; the densities of guidance's candidates are no matrix products and not in it."""
        # On the meta device nothing is computed, only counted.
        model, num_tokens = copy.deepcopy(self).to("meta"), self.space.num_tokens
        labels = torch.zeros(1, dtype=torch.long, device="meta")
        latents = torch.zeros(1, num_tokens, self.space.latent_dim, device="meta")
        hidden = torch.zeros(1, num_tokens, self.config.transformer.hidden_size, device="meta")
        forward = count_flops(model._hidden_states, labels, latents) + count_flops(model.head, hidden)

        num_streams = 1 if sampling.cfg_scale == 1 else 2
        cache = model.transformer.allocate_cache(num_streams, num_tokens)
        embeds = hidden[0, :1].expand(num_streams, -1)
        steps = sum(count_flops(model._decode_step, embeds, position, cache) for position in range(num_tokens))
        # The label enters by a table, every latent but the last by the projection.
        per_stream = count_flops(model.input_proj, latents[:, 1:]) + count_flops(model.head, hidden)
        return ImageFlops(training=3 * forward, generation=steps + num_streams * per_stream)
