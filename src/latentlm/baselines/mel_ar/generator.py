"""The loop that speaks: one group of frames after the other until the stop layer says that it was the last.

    text ids, begin, voice's groups ─prefill▶ e ─sampler▶ y', stop? ─pre-net▶ e ─▶ …

Rows of a batch are independent: noise and dropout hang on a row's seed and the place in its span, and a row that ends
leaves the batch.

Shapes: A rows that still speak, D hidden_size, G groups of a row, T positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from latentlm.baselines.mel_ar.model import NOISE_STREAM, MelAR
from latentlm.nn.keyed_noise import keyed_normal, signed_int64


@dataclass(frozen=True, kw_only=True)
class MelSamplingConfig:
    """How frames are drawn."""

    noise_scale: float = 1.0
    """Of the latent's deviation: 1 samples as MELLE does, 0 takes the mean (its Table 4)."""
    stop_threshold: float = 0.5
    """Probability by the stop layer, whose loss weighs last steps up, from which on an utterance ends."""

    def __post_init__(self) -> None:
        if self.noise_scale < 0 or not 0 < self.stop_threshold < 1:
            raise ValueError("noise_scale cannot be negative, and stop_threshold must lie in (0, 1)")


@dataclass(frozen=True, eq=False)
class MelRequest:
    """One utterance to draw.

    Attributes:
        ids: What stands before the frames, the begin token last.
        prefix: Groups of a voice that the frames go on from; may be empty.
        min_groups: The stop layer is not asked before.
        max_groups: Most groups.
        seed: Of noise and dropout.
    """

    ids: Int[Tensor, "T"]
    prefix: Float[Tensor, "prefix grouped"]
    min_groups: int
    max_groups: int
    seed: int


class MelAnswer(NamedTuple):
    """What was drawn."""

    coarse: Float[Tensor, "G grouped"]
    """Frames before the post-net, without the prefix."""
    ended: bool
    """By the stop layer, not by `max_groups`."""


@dataclass
class _Row:
    """A request under way."""

    number: int
    length: int
    """Positions in the cache."""
    drawn: list[Tensor]


@torch.no_grad()
def draw_groups(model: MelAR, requests: Sequence[MelRequest], sampling: MelSamplingConfig) -> list[MelAnswer]:
    """Draw every request, as one batch.

    Args:
        model: In evaluation mode or not: it has no other dropout than the pre-net's, which is always on.
        requests: Any number.
        sampling: Of all.
    """
    device = model.device
    rows = [_Row(number, len(request.ids) + len(request.prefix), []) for number, request in enumerate(requests)]
    longest = max((row.length + requests[row.number].max_groups for row in rows), default=0)
    cache = model.transformer.allocate_cache(len(rows), longest)
    seeds = torch.tensor([signed_int64(request.seed) for request in requests], device=device)

    prompts = [_embedded(model, request, seed) for request, seed in zip(requests, seeds, strict=True)]
    answers: dict[int, MelAnswer] = {}
    if rows:
        embeds = pad_sequence(prompts, batch_first=True)  # (B, T, D): what lies behind a prompt is overwritten later
        positions = torch.arange(embeds.shape[1], device=device).expand(len(rows), -1)
        states = model.decode_step(embeds, positions, cache.view(positions, length=embeds.shape[1]))
        last = torch.tensor([row.length - 1 for row in rows], device=device)
        states = states[torch.arange(len(rows), device=device), last]  # (A, D)
    while rows:
        numbers = torch.tensor([row.number for row in rows], device=device)
        places = torch.tensor([len(requests[row.number].prefix) + len(row.drawn) for row in rows], device=device)
        noise = keyed_normal(seeds[numbers], places, (model.config.group_dim,), stream=NOISE_STREAM)
        groups = model.sampler(states, sampling.noise_scale * noise).coarse  # (A, grouped)
        stops = (model.stop_logits(states).sigmoid() >= sampling.stop_threshold).tolist()
        going_on = []
        for place, (row, group, stop) in enumerate(zip(rows, groups, stops, strict=True)):
            request = requests[row.number]
            row.drawn.append(group)
            ended = stop and len(row.drawn) >= request.min_groups
            if ended or len(row.drawn) == request.max_groups:
                answers[row.number] = MelAnswer(torch.stack(row.drawn), ended)
            else:
                going_on.append(place)
        rows = [rows[place] for place in going_on]
        if rows:
            kept = torch.tensor(going_on, device=device)
            embeds = model.embed_groups(groups[kept], seeds[numbers[kept]], places[kept])[:, None]  # (A, 1, D)
            positions = torch.tensor([[row.length] for row in rows], device=device)
            view = cache.view(positions, length=max(row.length for row in rows) + 1, rows=numbers[kept])
            states = model.decode_step(embeds, positions, view)[:, 0]
            for row in rows:
                row.length += 1
    return [answers[number] for number in range(len(requests))]


def _embedded(model: MelAR, request: MelRequest, seed: Int[Tensor, ""]) -> Float[Tensor, "T D"]:
    """A prompt as input vectors: ids, then the voice's groups."""
    keys = torch.arange(len(request.prefix), device=model.device)
    groups = model.embed_groups(request.prefix.to(model.device), seed.expand(len(keys)), keys)
    ids = model.embed_tokens(request.ids.to(model.device))
    return torch.cat([ids, groups.to(ids.dtype)])
