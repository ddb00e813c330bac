"""LatentLM: one causal Transformer over discrete and continuous tokens (paper Section 2, Figure 2).

    input_ids ──embed_tokens──┐                         ┌─ lm_head ──▶ logits of the next id          (Eq. 1)
                              ├─▶ transformer ─▶ hidden_states
    latents ──input_projs─────┘                         └─ diffusion_heads ──▶ the next latent   (Eq. 1, 2, 3)

The hidden state of position i predicts token i + 1, whichever kind it is. Every continuous modality has its own
latent_dim, input projection, diffusion head and diffusion process.

Shapes: B rows, T positions, D hidden_size, n latents of a modality in the batch, R noises per latent, C latent_dim,
V vocabulary size.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from latentlm.diffusion.process import DiffusionConfig, DiffusionProcess
from latentlm.models.diffusion_head import DiffusionHead, DiffusionHeadConfig
from latentlm.models.kv_cache import CacheView
from latentlm.models.transformer import Transformer, TransformerConfig
from latentlm.nn.keyed_noise import keyed_normal, keyed_uniform
from latentlm.pretrained import Pretrained
from latentlm.sequence import PADDING_DOCUMENT, PackedBatch, VocabularyConfig

# Streams of the keyed noise: timesteps and noise of one latent must not share random bits.
TIMESTEP_STREAM = 1
NOISE_STREAM = 2


@dataclass(frozen=True, kw_only=True)
class ModalityConfig:
    """One kind of latents: how it enters the Transformer and how it is predicted."""

    latent_dim: int
    """Width C of one latent vector; the tokenizer's."""
    head: DiffusionHeadConfig = field(default_factory=DiffusionHeadConfig)
    """The diffusion head."""
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    """The diffusion process."""
    loss_weight: float = 1.0
    """alpha of Section 2.2. Our diffusion loss is a mean over dimensions; the paper writes a sum, C times as large."""
    continue_loss_weight: float = 0.1
    """Weight of the in-span target "another latent follows"."""
    num_noises_per_latent: int = 4
    """Timesteps and noises drawn for every latent in one forward pass (Section 2.2: typically four)."""
    says_size: bool = False
    """Spans begin with rows and columns, because pictures differ in size; needs vocabulary.max_grid_side."""
    tokenizer_fingerprint: str | None = None
    """The tokenizer this modality was trained with; another one is refused."""

    def __post_init__(self) -> None:
        if min(self.latent_dim, self.num_noises_per_latent) < 1:
            raise ValueError("latent_dim and num_noises_per_latent must be at least 1")
        if not (self.loss_weight > 0 and math.isfinite(self.loss_weight)):
            raise ValueError(f"loss_weight is {self.loss_weight}; it must be positive")
        if not (self.continue_loss_weight >= 0 and math.isfinite(self.continue_loss_weight)):
            raise ValueError(f"continue_loss_weight is {self.continue_loss_weight}; it must be positive, or 0 for none")


@dataclass(frozen=True, kw_only=True)
class LatentLMConfig:
    """A whole model."""

    vocabulary: VocabularyConfig
    """Discrete tokens."""
    transformer: TransformerConfig
    """The backbone."""
    modalities: dict[str, ModalityConfig]
    """Continuous modalities by name; the order numbers them."""
    lm_head: bool = True
    """A softmax head. The paper's class-conditional image models predict latents only and have none."""
    tie_embeddings: bool = False
    """The softmax head shares the embedding table."""

    def __post_init__(self) -> None:
        if self.lm_head != self.vocabulary.switch_tokens:
            raise ValueError(
                f"lm_head: {str(self.lm_head).lower()} does not go with vocabulary.switch_tokens: "
                f"{str(self.vocabulary.switch_tokens).lower()}: discrete targets exist with switch tokens only"
            )
        if not self.modalities and not self.lm_head:
            raise ValueError("a model without modalities and without softmax head would predict nothing")
        for name in self.modalities:
            if not name.isidentifier():
                raise ValueError(f"'{name}' cannot name a modality: it becomes a name of files and parameters")
            if self.modalities[name].says_size and not self.vocabulary.max_grid_side:
                raise ValueError(
                    f"modalities.{name}.says_size needs vocabulary.max_grid_side: the longest side, in latents"
                )
            if self.vocabulary.switch_tokens:
                self.vocabulary.begin_id(name)  # refuses a modality without switch tokens


class LatentLM(Pretrained, nn.Module):
    """The model. `forward` gives training losses; generation lives in `latentlm.generation`."""

    kind = "latentlm"
    config_class = LatentLMConfig

    def __init__(self, config: LatentLMConfig) -> None:
        super().__init__()
        if config.vocabulary.size == 0:
            raise ValueError("the vocabulary is empty: set num_classes, or num_text_ids with switch_tokens: true")
        self.config = config
        hidden_size = config.transformer.hidden_size
        self.embed_tokens = nn.Embedding(config.vocabulary.size, hidden_size)
        self.transformer = Transformer(config.transformer)
        self.lm_head = (
            nn.Linear(hidden_size, config.vocabulary.size, bias=False)
            if config.lm_head and not config.tie_embeddings
            else None
        )
        self.input_projs = nn.ModuleDict(
            {name: nn.Linear(item.latent_dim, hidden_size, bias=False) for name, item in config.modalities.items()}
        )
        self.diffusion_heads = nn.ModuleDict(
            {
                name: DiffusionHead(
                    item.head,
                    latent_dim=item.latent_dim,
                    backbone_hidden_size=hidden_size,
                    backbone_intermediate_size=config.transformer.intermediate_size,
                )
                for name, item in config.modalities.items()
            }
        )
        self.processes = {name: DiffusionProcess(item.diffusion) for name, item in config.modalities.items()}
        self._initialise()

    def _initialise(self) -> None:
        # Embeddings N(0, 0.02), as the authors' label table. Linear layers keep PyTorch's default, as theirs do; the
        # zeros of AdaLN-Zero and the timestep MLP are set where they are made.
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        if self.lm_head is not None:
            nn.init.normal_(self.lm_head.weight, std=0.02)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embed_tokens.weight.device

    def embed(
        self,
        input_ids: Int[Tensor, "B T"],
        latents: Mapping[str, Float[Tensor, "_n _C"]],
        latent_positions: Mapping[str, Int[Tensor, "_n"]],
    ) -> Float[Tensor, "B T D"]:
        """X^0 of Section 2: the lookup table for ids, the input projection for latents.

        Args:
            input_ids: Ids; placeholders are overwritten.
            latents: Clean latents by modality.
            latent_positions: Their flat positions b * T + t.

        Raises:
            ValueError: If latents have another width than the model was built for.
        """
        embeds = self.embed_tokens(input_ids)
        flat = embeds.flatten(0, 1)
        for name, values in latents.items():
            latent_dim = self.config.modalities[name].latent_dim
            if values.shape[-1] != latent_dim:
                raise ValueError(
                    f"{name} latents have {values.shape[-1]} channels but the model was built for "
                    f"latent_dim={latent_dim}; was it trained with another tokenizer?"
                )
            projected = self.input_projs[name](values.to(flat.dtype))
            flat = flat.index_copy(0, latent_positions[name], projected.to(flat.dtype))
        return flat.view_as(embeds)

    def hidden_states(self, batch: PackedBatch) -> Float[Tensor, "B T D"]:
        """h_1 … h_T = RMSNorm(X^L) of every row."""
        embeds = self.embed(batch.input_ids, batch.latents, batch.latent_positions)
        if not batch.plain_causal:
            # Whatever padding holds, even NaN, must not reach attention, where masked values are multiplied by zero.
            embeds = embeds.masked_fill((batch.document_ids == PADDING_DOCUMENT)[..., None], 0.0)
        return self.transformer(embeds, batch.positions, attention_mask=batch.attention_mask())

    def decode_step(
        self,
        input_ids: Int[Tensor, "B T"],
        latents: Mapping[str, Float[Tensor, "_n _C"]],
        latent_positions: Mapping[str, Int[Tensor, "_n"]],
        positions: Int[Tensor, "B T"],
        cache: CacheView,
    ) -> Float[Tensor, "B T D"]:
        """Hidden states of new tokens that follow those in the cache; prefill is the same with many tokens."""
        return self.transformer(self.embed(input_ids, latents, latent_positions), positions, cache=cache)

    def logits(self, hidden_states: Float[Tensor, "*n D"]) -> Float[Tensor, "*n V"]:
        """h W_v of Eq. 1, in float32 whatever the autocast type.

        Raises:
            ValueError: If the model has no softmax head.
        """
        if not self.config.lm_head:
            raise ValueError("this model has no softmax head (lm_head: false): it predicts latents only")
        weight = self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight
        with torch.autocast(hidden_states.device.type, enabled=False):
            return F.linear(hidden_states.float(), weight.float())

    def loss_counts(self, batch: PackedBatch) -> dict[str, int]:
        """How many items each loss of `forward` is a mean over: discrete targets, latents, in-span targets.

        The names are those of the model, not of the batch, so that the counts of any batches can be added up.
        """
        batch = self._complete(batch)
        counts = {f"diffusion/{name}": values.shape[0] for name, values in batch.latents.items()}
        if self.config.lm_head:
            counts["lm"] = batch.text_positions.shape[0]
            counts |= {f"continue/{name}": index.shape[0] for name, index in batch.continue_positions.items()}
        return counts | self._group_counts(batch)

    def _group_counts(self, batch: PackedBatch) -> dict[str, int]:
        """The same by group of documents, for the losses that are told apart by them."""
        positions = {f"diffusion/{name}": index for name, index in batch.latent_positions.items()}
        if self.config.lm_head:
            positions["lm"] = batch.text_positions
        num_groups = len(batch.group_names)
        return {
            f"{loss}/{group}": count
            for loss, index in positions.items()
            for group, count in zip(
                batch.group_names,
                torch.bincount(batch.group_ids.flatten()[index], minlength=num_groups).tolist() if num_groups else (),
                strict=True,
            )
        }

    def _complete(self, batch: PackedBatch) -> PackedBatch:
        """The batch with an empty entry for every modality that occurs in none of its documents.

        Every batch then has the same losses and gives every parameter a gradient, if of zero: micro-batches and ranks
        that happen to hold different modalities can be added up.
        """
        modalities = self.config.modalities
        no_latents = {name: batch.input_ids.new_zeros((0, modalities[name].latent_dim)).float() for name in modalities}
        nowhere = dict.fromkeys(modalities, batch.input_ids.new_zeros(0))
        return dataclasses.replace(
            batch,
            latents=no_latents | dict(batch.latents),
            latent_positions=nowhere | dict(batch.latent_positions),
            latent_keys=nowhere | dict(batch.latent_keys),
            continue_positions=nowhere | dict(batch.continue_positions),
        )

    def forward(
        self, batch: PackedBatch, *, noise_seed: int, totals: Mapping[str, Tensor | float | int] | None = None
    ) -> dict[str, Float[Tensor, ""]]:
        """Training losses of Section 2.2 by name; `total` = LM + alpha · diffusion + the weighted in-span targets.

        Timesteps and noise of a latent depend on `noise_seed` and its key alone, not on the batch around it.

        Args:
            batch: Packed documents.
            noise_seed: Another one for every training step.
            totals: Normaliser of each loss, for gradient accumulation and many ranks (the sum of `loss_counts` over
                all micro-batches); None means this batch's own counts.

        Returns:
            float32 scalars: `lm`, `continue/<modality>`, `diffusion/<modality>`, `total`; where the batch names groups
            of documents also `lm/<group>` and `diffusion/<modality>/<group>`, which are not added to the total. A loss
            without a single target is 0.
        """
        totals = self.loss_counts(batch) if totals is None else totals
        batch = self._complete(batch)
        hidden_states = self.hidden_states(batch).flatten(0, 1)  # (B·T, D)
        losses: dict[str, Tensor] = {}
        weighted: list[Tensor] = []
        if self.config.lm_head:
            groups = {"lm": (batch.text_positions, 1.0)} | {
                f"continue/{name}": (index, self.config.modalities[name].continue_loss_weight)
                for name, index in batch.continue_positions.items()
            }
            for name, (index, weight) in groups.items():
                logits = self.logits(hidden_states[index])
                each = F.cross_entropy(logits, batch.labels.flatten()[index], reduction="none")
                losses[name] = each.sum() / _at_least_one(totals[name])
                weighted.append(weight * losses[name])
                if name == "lm":
                    losses |= _by_group(name, each, index, batch, totals)
        for name in batch.latents:
            each = self._diffusion_losses(name, batch, hidden_states, noise_seed)
            key = f"diffusion/{name}"
            losses[key] = each.sum() / _at_least_one(totals[key])
            weighted.append(self.config.modalities[name].loss_weight * losses[key])
            losses |= _by_group(key, each, batch.latent_positions[name], batch, totals)
        losses["total"] = torch.stack(weighted).sum()
        return losses

    def _diffusion_losses(
        self, name: str, batch: PackedBatch, hidden_states: Float[Tensor, "P D"], noise_seed: int
    ) -> Float[Tensor, "n"]:
        """Eq. 3 of every latent, averaged over noises and dimensions; the head runs on latent positions only."""
        config, process = self.config.modalities[name], self.processes[name]
        latents, keys, num_noises = batch.latents[name].float(), batch.latent_keys[name], config.num_noises_per_latent
        timesteps = process.timesteps_from_uniform(
            keyed_uniform(noise_seed, keys, (num_noises,), stream=TIMESTEP_STREAM)
        ).T  # (R, n): the condition, (n, W), broadcasts over the noises instead of being repeated
        noise = keyed_normal(noise_seed, keys, (num_noises, config.latent_dim), stream=NOISE_STREAM).movedim(1, 0)
        with torch.autocast(latents.device.type, enabled=False):
            noisy_latents = process.add_noise(latents.expand_as(noise), noise, timesteps)
            target = process.training_target(latents.expand_as(noise), noise, timesteps)
        # The position before a latent predicts it.
        conditions = hidden_states[batch.latent_positions[name] - 1]
        head: DiffusionHead = self.diffusion_heads[name]  # pyright: ignore[reportAssignmentType]
        prediction = head(noisy_latents.to(conditions.dtype), timesteps, conditions)
        return (prediction.float() - target).square().mean(dim=(0, 2))


def _by_group(
    name: str,
    losses: Float[Tensor, "k"],
    positions: Int[Tensor, "k"],
    batch: PackedBatch,
    totals: Mapping[str, Tensor | float | int],
) -> dict[str, Float[Tensor, ""]]:
    """Losses of single targets, averaged over those of each group of documents; for the log, without a gradient."""
    if not batch.group_names:
        return {}
    summed = losses.new_zeros(len(batch.group_names))
    summed = summed.index_add(0, batch.group_ids.flatten()[positions], losses.detach())
    keys = [f"{name}/{group}" for group in batch.group_names]
    return {key: value / _at_least_one(totals[key]) for key, value in zip(keys, summed, strict=True)}


def _at_least_one(count: Tensor | float | int) -> Tensor | float | int:
    """A normaliser under which the mean over no target is 0, not NaN."""
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)
