"""Transfusion (Zhou et al. 2024): one Transformer that predicts the next token and diffuses whole pictures.

    input_ids ────────embed_tokens──┐                          ┌─ lm_head ──▶ logits of the next id
                                    ├─▶ transformer ─▶ hidden_states
    noisy latents ──input_proj─(+)──┘                          └─ image_head ──▶ prediction for the same latents
                   timestep ────┘  causal; bidirectional within a picture

A position of text predicts the token behind it, as in LatentLM; a latent predicts its own noise, not its neighbour. One
timestep serves a picture, and whatever follows the picture reads it noised in training: the conflict between the two
tasks that LatentLM does without. A picture stands between a begin and an end token. The text before it predicts the
begin token; inside it, the begin token included, nothing discrete is predicted; the end token is appended, never drawn.

Shapes: B rows, T positions, D hidden_size, n latents in the batch, P pictures, N latents of the largest, C latent_dim,
V vocabulary size.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from latentlm.baselines.transfusion.image_head import ImageHead
from latentlm.baselines.transfusion.sequence import PictureBatch
from latentlm.diffusion.process import DiffusionConfig, DiffusionProcess
from latentlm.models.kv_cache import CacheView
from latentlm.models.transformer import Transformer, TransformerConfig
from latentlm.nn.keyed_noise import keyed_normal, keyed_uniform
from latentlm.nn.timestep_embedding import TimestepEmbedding
from latentlm.pretrained import Pretrained
from latentlm.sequence import VocabularyConfig

# Streams of the keyed noise: the timestep of a picture and the noise of its latents must not share random bits.
TIMESTEP_STREAM = 1
NOISE_STREAM = 2

Totals = Mapping[str, Tensor | float | int]


@dataclass(frozen=True, kw_only=True)
class TransfusionImageConfig:
    """How pictures enter and leave the Transformer."""

    latent_dim: int
    """Width C of one latent vector; the tokenizer's."""
    num_head_layers: int = 6
    """Layers of the image head (LatentLM, Section 3.2.2)."""
    head_adaln: bool = False
    """Modulate every layer of the image head by the timestep; half as many parameters again. See `image_head`."""
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    """The diffusion process."""
    loss_weight: float = 1.0
    """lambda of Transfusion's training objective (its Section 3). The paper takes 5; 1 is the weight that LatentLM's
    diffusion loss has here. Both models' losses are means over text targets and over latents, so that equal weights ask
    both for the same trade of text against pictures."""
    max_noise_before_caption: float | None = None
    """Pictures that open a document and are then spoken of are noised up to this share of the schedule only, instead of
    all of it: 0.5 is the paper's remedy, t up to 500 of 1000. See `sequence.before_caption`."""
    tokenizer_fingerprint: str | None = None
    """The tokenizer this model was trained with; another one is refused."""

    def __post_init__(self) -> None:
        if self.latent_dim < 1 or self.num_head_layers < 0:
            raise ValueError("latent_dim must be at least 1, num_head_layers cannot be negative")
        if self.max_noise_before_caption is not None and not 0 <= self.max_noise_before_caption <= 1:
            raise ValueError(
                f"max_noise_before_caption is {self.max_noise_before_caption}; it is a share of the schedule between 0 "
                "and 1, or null for all of it"
            )


@dataclass(frozen=True, kw_only=True)
class TransfusionConfig:
    """A whole model."""

    vocabulary: VocabularyConfig
    """Discrete tokens."""
    transformer: TransformerConfig
    """The backbone, whose weights text and pictures share."""
    image: TransfusionImageConfig
    """Pictures."""
    tie_embeddings: bool = False
    """The softmax head shares the embedding table."""

    def __post_init__(self) -> None:
        if not self.vocabulary.switch_tokens:
            raise ValueError("Transfusion writes text between pictures, which needs vocabulary.switch_tokens: true")
        if self.vocabulary.num_codes or self.vocabulary.max_grid_side:
            raise ValueError("Transfusion's pictures are latents of one size: leave out num_codes and max_grid_side")


class Transfusion(Pretrained, nn.Module):
    """The model. `forward` gives training losses; generation lives in `generator`."""

    kind = "transfusion"
    config_class = TransfusionConfig

    def __init__(self, config: TransfusionConfig) -> None:
        super().__init__()
        self.config = config
        hidden_size, num_ids, image = config.transformer.hidden_size, config.vocabulary.size, config.image
        self.embed_tokens = nn.Embedding(num_ids, hidden_size)
        self.transformer = Transformer(config.transformer)
        self.lm_head = None if config.tie_embeddings else nn.Linear(hidden_size, num_ids, bias=False)
        self.input_proj = nn.Linear(image.latent_dim, hidden_size, bias=False)
        self.timestep_embedding = TimestepEmbedding(hidden_size)
        self.image_head = ImageHead(
            config.transformer, num_layers=image.num_head_layers, latent_dim=image.latent_dim, adaln=image.head_adaln
        )
        self.process = DiffusionProcess(image.diffusion)
        self._initialise()

    def _initialise(self) -> None:
        # As LatentLM: N(0, 0.02) for the tables, PyTorch's default elsewhere; the zeros of AdaLN-Zero are set where
        # they are made.
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        if self.lm_head is not None:
            nn.init.normal_(self.lm_head.weight, std=0.02)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embed_tokens.weight.device

    @property
    def clean_timestep(self) -> int:
        """The timestep of pictures that are given or finished, as the network sees it: the quiet end of the process."""
        diffusion = self.config.image.diffusion
        return diffusion.num_train_timesteps if diffusion.process == "flow_matching" else 0

    def embed(
        self,
        input_ids: Int[Tensor, "B T"],
        noisy_latents: Float[Tensor, "n C"],
        latent_positions: Int[Tensor, "n"],
        timesteps: Shaped[Tensor, "n"],
    ) -> Float[Tensor, "B T D"]:
        """Input vectors: the lookup table for ids; projection plus timestep embedding for latents.

        Args:
            input_ids: Ids; placeholders are overwritten.
            noisy_latents: x_t.
            latent_positions: Their flat positions b * T + t.
            timesteps: Of each latent, as the process counts them.

        Raises:
            ValueError: If latents have another width than the model was built for.
        """
        latent_dim = self.config.image.latent_dim
        if noisy_latents.shape[-1] != latent_dim:
            raise ValueError(
                f"the latents have {noisy_latents.shape[-1]} channels but the model was built for "
                f"latent_dim={latent_dim}; was it trained with another tokenizer?"
            )
        embeds = self.embed_tokens(input_ids)
        projected = self.input_proj(noisy_latents.to(embeds.dtype)) + self.timestep_embedding(timesteps)
        return embeds.flatten(0, 1).index_copy(0, latent_positions, projected.to(embeds.dtype)).view_as(embeds)

    def hidden_states(
        self, batch: PictureBatch, noisy_latents: Float[Tensor, "n C"], timesteps: Shaped[Tensor, "n"]
    ) -> Float[Tensor, "B T D"]:
        """States of every position of a batch whose latents are noised to `timesteps`."""
        embeds = self.embed(batch.packed.input_ids, noisy_latents, batch.latent_positions, timesteps)
        return self.transformer(embeds, batch.packed.positions, attention_mask=batch.attention_mask())

    def decode_step(
        self,
        input_ids: Int[Tensor, "B T"],
        noisy_latents: Float[Tensor, "n C"],
        latent_positions: Int[Tensor, "n"],
        timesteps: Shaped[Tensor, "n"],
        positions: Int[Tensor, "B T"],
        cache: CacheView,
    ) -> Float[Tensor, "B T D"]:
        """States of new tokens, given those in the cache; its view says how far each of them sees."""
        embeds = self.embed(input_ids, noisy_latents, latent_positions, timesteps)
        return self.transformer(embeds, positions, cache=cache)

    def logits(self, hidden_states: Float[Tensor, "*n D"]) -> Float[Tensor, "*n V"]:
        """Of the next id, in float32 whatever the autocast type."""
        weight = self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight
        with torch.autocast(hidden_states.device.type, enabled=False):
            return F.linear(hidden_states.float(), weight.float())

    def predict(
        self,
        hidden_states: Float[Tensor, "P N D"],
        timesteps: Shaped[Tensor, "P"],
        is_latent: Bool[Tensor, "P N"],
    ) -> Float[Tensor, "P N C"]:
        """What the diffusion process asks for, of every latent of some pictures; padding gives anything.

        Args:
            hidden_states: Of the pictures' latents.
            timesteps: One per picture.
            is_latent: False where a smaller picture is padded.
        """
        return self.image_head(hidden_states, self.timestep_embedding(timesteps), is_latent)

    def loss_counts(self, batch: PictureBatch) -> dict[str, int]:
        """How many items each loss of `forward` is a mean over: text targets and latents, also by group."""
        packed = batch.packed
        positions = {"lm": batch.text_positions, "diffusion/image": batch.latent_positions}
        counts = {name: index.shape[0] for name, index in positions.items()}
        for name, index in positions.items():
            by_group = torch.bincount(packed.group_ids.flatten()[index], minlength=len(packed.group_names)).tolist()
            counts |= {f"{name}/{group}": by_group[number] for number, group in enumerate(packed.group_names)}
        return counts

    def forward(self, batch: PictureBatch, *, totals: Totals | None = None) -> dict[str, Float[Tensor, ""]]:
        """Training losses by name; `total` = LM + lambda · diffusion (Transfusion, Section 3).

        The timestep of a picture and the noise of a latent depend on the batch's `noise_seed` and their keys alone.

        Args:
            batch: Packed documents.
            totals: Normaliser of each loss, for gradient accumulation and many ranks; None means this batch's counts.

        Returns:
            float32 scalars: `lm`, `diffusion/image`, `total`; where the batch names groups of documents also
            `lm/<group>` and `diffusion/image/<group>`, which are not added to the total. A loss without a single target
            is 0.
        """
        totals = self.loss_counts(batch) if totals is None else totals
        timesteps = self.draw_timesteps(batch)
        of_latent = timesteps[batch.picture_of_latent]  # (n,)
        latents = batch.latents.float()
        noise = keyed_normal(batch.noise_seed, batch.latent_keys, latents.shape[1:], stream=NOISE_STREAM)
        with torch.autocast(latents.device.type, enabled=False):
            noisy_latents = self.process.add_noise(latents, noise, of_latent)
            target = self.process.training_target(latents, noise, of_latent)
        hidden_states = self.hidden_states(batch, noisy_latents, of_latent).flatten(0, 1)  # (B·T, D)
        losses = self._text_losses(hidden_states, batch, totals)
        each = (self._predict_packed(hidden_states, batch, timesteps).float() - target).square().mean(dim=1)  # (n,)
        losses |= _means("diffusion/image", each, batch.latent_positions, batch, totals)
        losses["total"] = losses["lm"] + self.config.image.loss_weight * losses["diffusion/image"]
        return losses

    def text_losses(
        self, batch: PictureBatch, *, totals: Totals | None = None, noise_level: float = 0.0
    ) -> dict[str, Float[Tensor, ""]]:
        """`lm` and `lm/<group>` as `forward` gives them, but of text that reads clean pictures, as in generation.

        Args:
            batch: Packed documents.
            totals: As in `forward`.
            noise_level: Share of the schedule up to which the pictures are noised instead, with `forward`'s noise.
        """
        totals = self.loss_counts(batch) if totals is None else totals
        latents, timestep = batch.latents.float(), self.process.timestep_at(noise_level)
        timesteps = torch.full(batch.latent_positions.shape, timestep, device=latents.device)
        if noise_level:
            noise = keyed_normal(batch.noise_seed, batch.latent_keys, latents.shape[1:], stream=NOISE_STREAM)
            latents = self.process.add_noise(latents, noise, timesteps)
        return self._text_losses(self.hidden_states(batch, latents, timesteps).flatten(0, 1), batch, totals)

    def draw_timesteps(self, batch: PictureBatch) -> Shaped[Tensor, "P"]:
        """One timestep per picture, nearer to the quiet end where the recipe limits the noise before a caption."""
        timesteps = self.process.timesteps_from_uniform(
            keyed_uniform(batch.noise_seed, batch.picture_keys, stream=TIMESTEP_STREAM)
        )
        share, clean = self.config.image.max_noise_before_caption, self.clean_timestep
        if share is None:
            return timesteps
        quieter = (clean + (timesteps - clean) * share).to(timesteps.dtype)
        return torch.where(batch.is_before_caption, quieter, timesteps)

    def _predict_packed(
        self, hidden_states: Float[Tensor, "L D"], batch: PictureBatch, timesteps: Shaped[Tensor, "P"]
    ) -> Float[Tensor, "n C"]:
        """The image head on all pictures of a batch, laid side by side."""
        places = batch.picture_of_latent, batch.place_in_picture
        shape = (timesteps.shape[0], batch.max_latents)
        is_latent = torch.zeros(shape, dtype=torch.bool, device=hidden_states.device)
        is_latent[places] = True
        pictures = hidden_states.new_zeros(*shape, hidden_states.shape[-1])
        pictures = pictures.index_put(places, hidden_states[batch.latent_positions])  # (P, N, D)
        return self.predict(pictures, timesteps, is_latent)[places]

    def _text_losses(
        self, hidden_states: Float[Tensor, "L D"], batch: PictureBatch, totals: Totals
    ) -> dict[str, Float[Tensor, ""]]:
        index = batch.text_positions
        each = F.cross_entropy(
            self.logits(hidden_states[index]), batch.packed.labels.flatten()[index], reduction="none"
        )
        return _means("lm", each, index, batch, totals)


def _means(
    name: str, each: Float[Tensor, "k"], positions: Int[Tensor, "k"], batch: PictureBatch, totals: Totals
) -> dict[str, Float[Tensor, ""]]:
    """The mean of single losses, and that of each group of documents: for the log, without a gradient."""

    def mean(total: Tensor, key: str) -> Tensor:
        count = totals[key]
        return total / (count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1))

    packed = batch.packed
    sums = each.new_zeros(len(packed.group_names))
    if packed.group_names:
        sums = sums.index_add(0, packed.group_ids.flatten()[positions], each.detach())
    keys = [f"{name}/{group}" for group in packed.group_names]
    return {name: mean(each.sum(), name)} | {key: mean(total, key) for key, total in zip(keys, sums, strict=True)}
