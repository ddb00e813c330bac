"""MELLE: autoregression over mel frames, no codes and no diffusion (Meng et al. 2024, arXiv 2407.08551).

    text ids ──embed_tokens──┐                    ┌─ stop layer ──▶ "these frames are the last"
                             ├─▶ transformer ─▶ e ┤
    frames ──pre-net─────────┘                    └─ mu, log sigma² ─+ eps▶ z ─residual MLP▶ coarse frames y'
    y' of a whole utterance ─post-net▶ refined frames y''

The hidden state of position i predicts the group of r frames at i + 1, and whether it is the last. Sequences, packing
and backbone are LatentLM's; groups of frames stand where its latents stand.

Shapes: B rows, T positions, D hidden_size, M num_mels, r reduction_factor, n groups of frames of the batch in reading
order, N = r · n its frames, U utterances of up to L frames.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from latentlm.baselines.mel_ar.features import group_frames, ungroup_frames
from latentlm.baselines.mel_ar.losses import (
    divergence_from_frames,
    regression_loss,
    spectrogram_flux,
    stop_loss,
)
from latentlm.models.kv_cache import CacheView
from latentlm.models.transformer import Transformer, TransformerConfig
from latentlm.nn.keyed_noise import keyed_normal, keyed_uniform
from latentlm.nn.norm import RMSNorm
from latentlm.pretrained import Pretrained
from latentlm.sequence import PackedBatch, VocabularyConfig

SPEECH = "speech"

# Streams of the keyed noise of one group.
NOISE_STREAM = 2
_FIRST_DROPOUT_STREAM = 16

# Variances whose exponentials and gradients stay finite from the first step on; trained ones lie far inside.
_LOG_VARIANCE_RANGE = (-16.0, 8.0)


@dataclass(frozen=True, kw_only=True)
class PreNetConfig:
    """What stands between frames and Transformer (its Section 4.2, after Tacotron)."""

    num_layers: int = 3
    """Linear layers."""
    dropout: float = 0.5
    """Behind all but the last, in training and in generation: it keeps a model from copying the frame before."""

    def __post_init__(self) -> None:
        if self.num_layers < 1 or not 0 <= self.dropout < 1:
            raise ValueError(f"num_layers {self.num_layers} must be at least 1, dropout {self.dropout} in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class PostNetConfig:
    """The convolutions that refine a whole utterance (its Section 4.2)."""

    num_layers: int = 5
    """Convolutions."""
    channels: int = 256
    """Between them."""
    kernel_size: int = 5
    """Frames that each sees, odd."""

    def __post_init__(self) -> None:
        if min(self.num_layers, self.channels) < 1 or self.kernel_size % 2 == 0:
            raise ValueError("a post-net has at least one layer and one channel, and an odd kernel_size")

    @property
    def reach(self) -> int:
        """Frames to either side that a refined frame hangs on."""
        return self.num_layers * (self.kernel_size // 2)


@dataclass(frozen=True, kw_only=True)
class MelARConfig:
    """A whole model."""

    vocabulary: VocabularyConfig = field(default_factory=lambda: VocabularyConfig(switch_tokens=True))
    """Text and switch tokens. In a recipe 0 text ids mean those of the text tokenizer."""
    transformer: TransformerConfig
    """The backbone."""
    num_mels: int = 80
    """M, the vocoder's."""
    reduction_factor: int = 1
    """r, frames of one step (Eq. 2): fewer steps, and less likeness of the voice (its Table 1)."""
    pre_net: PreNetConfig = field(default_factory=PreNetConfig)
    num_sampler_layers: int = 3
    """Linear layers of the MLP behind the sampled latent."""
    post_net: PostNetConfig = field(default_factory=PostNetConfig)
    stop_positive_weight: float = 100.0
    """How often a last step counts against any other in the loss of the stop layer; its logit is shifted likewise."""
    vocoder_fingerprint: str | None = None
    """The vocoder whose frames these are; another one is refused."""

    def __post_init__(self) -> None:
        if not self.vocabulary.switch_tokens:
            raise ValueError("frames stand between begin and end tokens, which need vocabulary.switch_tokens: true")
        if min(self.num_mels, self.reduction_factor, self.num_sampler_layers) < 1:
            raise ValueError("num_mels, reduction_factor and num_sampler_layers must be at least 1")
        if self.stop_positive_weight <= 0:
            raise ValueError(f"stop_positive_weight is {self.stop_positive_weight}; it must be positive")

    @property
    def group_dim(self) -> int:
        """Numbers of one step: r · M."""
        return self.reduction_factor * self.num_mels


class PreNet(nn.Module):
    """Groups of frames to input vectors: linear, ReLU, dropout, …, linear."""

    def __init__(self, config: PreNetConfig, *, group_dim: int, hidden_size: int) -> None:
        super().__init__()
        widths = [group_dim] + config.num_layers * [hidden_size]
        self.dropout = config.dropout
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))

    def forward(
        self, groups: Float[Tensor, "n grouped"], seeds: int | Int[Tensor, "n"], keys: Int[Tensor, "n"]
    ) -> Float[Tensor, "n D"]:
        """Input vectors.

        Args:
            groups: Frames of unit variance.
            seeds: Of the dropout, which is never off.
            keys: Of each group: what is dropped hangs on (seed, key) alone.
        """
        x = groups
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if number < len(self.layers) - 1:
                draws = keyed_uniform(seeds, keys, (x.shape[-1],), stream=_FIRST_DROPOUT_STREAM + number)
                x = F.relu(x) * (draws >= self.dropout) / (1 - self.dropout)
        return x


class DrawnFrames(NamedTuple):
    """What the sampler makes of hidden states; float32."""

    mean: Float[Tensor, "n grouped"]
    log_variance: Float[Tensor, "n grouped"]
    coarse: Float[Tensor, "n grouped"]
    """y', from a sampled latent."""


class FrameSampler(nn.Module):
    """The latent sampling module: z = mu + sigma eps, y' = z + MLP(z) (Eq. 3)."""

    def __init__(self, *, hidden_size: int, group_dim: int, num_layers: int) -> None:
        super().__init__()
        self.moments = nn.Linear(hidden_size, 2 * group_dim)
        widths = [group_dim] + (num_layers - 1) * [hidden_size] + [group_dim]
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))

    def forward(self, hidden_states: Float[Tensor, "n D"], noise: Float[Tensor, "n grouped"]) -> DrawnFrames:
        """Frames that follow hidden states.

        Args:
            hidden_states: e, one per group.
            noise: eps, standard normal; zeros take the mean.
        """
        mean, log_variance = self.moments(hidden_states).float().chunk(2, dim=-1)
        log_variance = log_variance.clamp(*_LOG_VARIANCE_RANGE)
        latents = mean + (0.5 * log_variance).exp() * noise
        residual = latents.to(hidden_states.dtype)
        for number, layer in enumerate(self.layers):
            residual = layer(F.relu(residual) if number else residual)
        return DrawnFrames(mean, log_variance, latents + residual.float())


class PostNet(nn.Module):
    """Coarse frames to refined ones: y'' = y' + convolutions(y'), tanh between them, both sides of a frame in view.

    The norm is over the channels of one frame where Tacotron's is over the batch, so that an utterance does not hang
    on those beside it.
    """

    def __init__(self, config: PostNetConfig, *, num_mels: int) -> None:
        super().__init__()
        widths = [num_mels] + (config.num_layers - 1) * [config.channels] + [num_mels]
        self.convolutions = nn.ModuleList(
            nn.Conv1d(*pair, config.kernel_size, padding=config.kernel_size // 2) for pair in pairwise(widths)
        )
        self.norms = nn.ModuleList(RMSNorm(width, eps=1e-6) for width in widths[1:-1])

    def forward(self, frames: Float[Tensor, "U L M"], is_real: Bool[Tensor, "U L"]) -> Float[Tensor, "U L M"]:
        """Refined frames.

        Args:
            frames: Utterances side by side.
            is_real: False for padding, which changes nothing.
        """
        inside = is_real[..., None]
        x = frames * inside
        for number, convolution in enumerate(self.convolutions):
            x = convolution(x.transpose(1, 2)).transpose(1, 2)
            if number < len(self.norms):
                # Padding must stay zero, as the nothing beyond the longest utterance is.
                x = torch.tanh(self.norms[number](x)) * inside
        return frames + x.float()


class MelAR(Pretrained, nn.Module):
    """The model. `forward` gives training losses; generation lives in `generator`."""

    kind = "mel_ar"
    config_class = MelARConfig

    def __init__(self, config: MelARConfig) -> None:
        super().__init__()
        if config.vocabulary.num_text_ids < 1:
            raise ValueError("the vocabulary needs text: num_text_ids is 0")
        self.config = config
        hidden_size = config.transformer.hidden_size
        self.embed_tokens = nn.Embedding(config.vocabulary.size, hidden_size)
        self.pre_net = PreNet(config.pre_net, group_dim=config.group_dim, hidden_size=hidden_size)
        self.transformer = Transformer(config.transformer)
        self.sampler = FrameSampler(
            hidden_size=hidden_size, group_dim=config.group_dim, num_layers=config.num_sampler_layers
        )
        self.stop = nn.Linear(hidden_size, 1)
        self.post_net = PostNet(config.post_net, num_mels=config.num_mels)
        self._initialise()

    def _initialise(self) -> None:
        # As LatentLM, so that the comparison differs in what is predicted alone: the table N(0, 0.02), linear layers
        # PyTorch's.
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        # The post-net begins by changing nothing: frames are learned first, then what they lack.
        last = self.post_net.convolutions[-1]
        assert isinstance(last, nn.Conv1d)
        assert last.bias is not None
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embed_tokens.weight.device

    def embed_groups(
        self, groups: Float[Tensor, "n grouped"], seeds: int | Int[Tensor, "n"], keys: Int[Tensor, "n"]
    ) -> Float[Tensor, "n D"]:
        """Input vectors of groups of frames; see `PreNet.forward`.

        Raises:
            ValueError: If groups have another width than the model was built for.
        """
        if groups.shape[-1] != self.config.group_dim:
            raise ValueError(
                f"groups of frames have {groups.shape[-1]} numbers but the model was built for {self.config.group_dim} "
                f"({self.config.reduction_factor} x {self.config.num_mels}); is this another vocoder's?"
            )
        return self.pre_net(groups, seeds, keys)

    def hidden_states(self, batch: PackedBatch, noise_seed: int) -> Float[Tensor, "B T D"]:
        """e of every position of packed rows."""
        embeds = self.embed_tokens(batch.input_ids)
        groups = self.embed_groups(batch.latents[SPEECH], noise_seed, batch.latent_keys[SPEECH])
        flat = embeds.flatten(0, 1).index_copy(0, batch.latent_positions[SPEECH], groups.to(embeds.dtype))
        return self.transformer(flat.view_as(embeds), batch.positions, attention_mask=batch.attention_mask())

    def decode_step(
        self, embeds: Float[Tensor, "B T D"], positions: Int[Tensor, "B T"], cache: CacheView
    ) -> Float[Tensor, "B T D"]:
        """e of new positions that follow those in the cache; prefill is the same with many of them."""
        return self.transformer(embeds, positions, cache=cache)

    def stop_logits(self, hidden_states: Float[Tensor, "n D"]) -> Float[Tensor, "n"]:
        """Above 0 where the frames that follow are said to be the last; float32."""
        return self.stop(hidden_states).float().squeeze(-1)

    def refine(self, coarse: Float[Tensor, "n grouped"], starts: Bool[Tensor, "n"]) -> Float[Tensor, "n grouped"]:
        """The post-net over every utterance of a batch.

        Args:
            coarse: Groups of y', utterance after utterance.
            starts: Where one begins.
        """
        reduction_factor = self.config.reduction_factor
        first = starts.nonzero().squeeze(1)
        lengths = torch.diff(first, append=first.new_tensor([len(starts)])) * reduction_factor
        frames = ungroup_frames(coarse, reduction_factor)  # (N, M)
        padded = pad_sequence(list(frames.split(lengths.tolist())), batch_first=True)  # (U, L, M)
        is_real = torch.arange(padded.shape[1], device=lengths.device) < lengths[:, None]
        return group_frames(self.post_net(padded, is_real)[is_real], reduction_factor)

    def loss_counts(self, batch: PackedBatch) -> dict[str, int]:
        """How many items each loss of `forward` is a mean over: frames, those with one before them, steps."""
        positions = batch.latent_positions[SPEECH]
        num_frames = len(positions) * self.config.reduction_factor
        num_utterances = int(_starts(positions).sum())
        return {
            "coarse": num_frames,
            "refined": num_frames,
            "divergence": num_frames,
            "flux": num_frames - num_utterances,
            "stop": len(positions),
        }

    def forward(
        self, batch: PackedBatch, *, noise_seed: int, totals: Mapping[str, Tensor | float | int] | None = None
    ) -> dict[str, Float[Tensor, ""]]:
        """The losses of MELLE's Section 3.3 by name, before their weights.

        Noise and dropout of a group depend on `noise_seed` and its key alone, not on the batch around it. With r > 1
        the flux is still one frame against the true one before it, as is the divergence.

        Args:
            batch: Packed documents whose latents are groups of frames of unit variance.
            noise_seed: Another one for every training step.
            totals: Normaliser of each loss (see `loss_counts`), for gradient accumulation and many ranks; None means
                this batch's own counts.

        Returns:
            float32 scalars: `coarse` and `refined` (the halves of the regression loss), `divergence`, `flux`, `stop`.
        """
        totals = self.loss_counts(batch) if totals is None else totals
        positions, r = batch.latent_positions[SPEECH], self.config.reduction_factor
        # The position before a group predicts it.
        conditions = self.hidden_states(batch, noise_seed).flatten(0, 1)[positions - 1]  # (n, D)
        noise = keyed_normal(noise_seed, batch.latent_keys[SPEECH], (self.config.group_dim,), stream=NOISE_STREAM)
        drawn = self.sampler(conditions, noise)
        starts = _starts(positions)
        frames = ungroup_frames(batch.latents[SPEECH].float(), r)  # (N, M)
        mean, log_variance, coarse, refined = (
            ungroup_frames(groups, r) for groups in (*drawn, self.refine(drawn.coarse, starts))
        )
        has_previous = torch.ones(len(frames), dtype=torch.bool, device=frames.device)
        has_previous[::r] = ~starts
        flux = spectrogram_flux(mean, frames.roll(1, dims=0)) * has_previous
        values = {
            "coarse": regression_loss(coarse, frames),
            "refined": regression_loss(refined, frames),
            "divergence": divergence_from_frames(mean, log_variance, frames),
            "flux": flux,
            "stop": stop_loss(
                self.stop_logits(conditions), _ends(starts), positive_weight=self.config.stop_positive_weight
            ),
        }
        return {name: value.sum() / _at_least_one(totals[name]) for name, value in values.items()}


def _starts(positions: Int[Tensor, "n"]) -> Bool[Tensor, "n"]:
    """Which groups begin an utterance: the position before them holds no other group."""
    before = torch.cat([positions.new_full((1,), -2), positions[:-1]])
    return positions != before + 1


def _ends(starts: Bool[Tensor, "n"]) -> Bool[Tensor, "n"]:
    """Which groups end an utterance: the next one begins another."""
    return torch.cat([starts[1:], starts.new_ones(1)])


def _at_least_one(count: Tensor | float | int) -> Tensor | float | int:
    """A normaliser under which the mean over no target is 0, not NaN."""
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)
