"""Draws the codes of utterances: first codes step by step with a cache, then one pass over all frames per further code.

Rows differ in text, voice, length and seed. With guidance a row has a second stream, which reads neither text nor voice
and then the same first codes.

Shapes: A rows that still speak, S their streams (2 A with guidance, the unconditional ones behind the others),
T positions, G codes of a group, D hidden_size, V codes and the end, n frames drawn, m of the voice, Q codes of a frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from latentlm.baselines.codec_lm.model import CodecLM
from latentlm.baselines.codec_lm.rows import (
    UNKNOWN,
    CodecUtterance,
    groups_of,
    non_autoregressive_tokens,
    pack,
    text_and_begin,
)
from latentlm.baselines.codec_lm.sampling import CodecSamplingConfig, sample_first_codes
from latentlm.diffusion.guidance import guide
from latentlm.generation.text_sampling import sample_untruncated
from latentlm.models.kv_cache import KVCache
from latentlm.nn.keyed_noise import keyed_uniform, signed_int64

# Streams of the keyed noise of one request: its first codes, and from OTHER_STREAM on those of every level.
FIRST_STREAM = 1
OTHER_STREAM = 16


@dataclass(frozen=True, eq=False)
class CodeRequest:
    """An utterance to be drawn.

    Attributes:
        text_ids: As in `rows.CodecUtterance`: the voice's text and what is to be said.
        prompt: Codes of the voice; may be empty.
        unprompted_ids: Text ids that guidance's unconditional stream reads.
        min_frames: The utterance may not end before it has so many.
        max_frames: It is ended here.
        seed: Of all its draws.
    """

    text_ids: Sequence[int]
    prompt: Int[Tensor, "m Q"]
    unprompted_ids: Sequence[int]
    min_frames: int
    max_frames: int
    seed: int


class DrawnCodes(NamedTuple):
    """The answer to a request."""

    codes: Int[Tensor, "n Q"]
    """Without the voice's; on the CPU."""
    ended: bool
    """By the model, not by `max_frames`."""


@dataclass
class _Row:
    """A request under way."""

    request: CodeRequest
    cache_rows: list[int]
    """Of its streams, the conditional one first."""
    lengths: list[int]
    """Positions that each stream has read."""
    first_codes: list[int]
    """The voice's, and those drawn."""
    num_drawn: int = 0
    ended: bool = False

    @property
    def is_done(self) -> bool:
        return self.ended or self.num_drawn == self.request.max_frames

    @property
    def drawn(self) -> list[int]:
        return self.first_codes[len(self.first_codes) - self.num_drawn :]


@torch.no_grad()
def draw_codes(model: CodecLM, requests: Sequence[CodeRequest], sampling: CodecSamplingConfig) -> list[DrawnCodes]:
    """Draw utterances as one batch; each depends on its own request alone (up to rounding).

    Args:
        model: In evaluation mode.
        requests: What to draw.
        sampling: Of all codes.

    Raises:
        ValueError: If the model's numbers are NaN.
    """
    if not requests:
        return []
    rows = _draw_first_codes(model, requests, sampling)
    codes = _draw_other_codes(model, rows, sampling)
    return [DrawnCodes(of_row, row.ended) for row, of_row in zip(rows, codes, strict=True)]


# -- first codes ------------------------------------------------------------------------------------------------------


def _draw_first_codes(model: CodecLM, requests: Sequence[CodeRequest], sampling: CodecSamplingConfig) -> list[_Row]:
    group_size = model.config.group_size
    prefixes: list[tuple[Tensor, Tensor]] = []
    rows: list[_Row] = []
    for request in requests:
        # The voice without the frames at its beginning that fill no group: what is drawn goes on at its end.
        voice = request.prompt[len(request.prompt) % group_size :, 0].long()
        of_row = [_prefix(model, request.text_ids, voice)]
        if sampling.cfg_scale != 1:
            of_row.append(_prefix(model, request.unprompted_ids, voice[:0]))
        first_row = len(prefixes)
        prefixes += of_row
        cache_rows = list(range(first_row, len(prefixes)))
        rows.append(_Row(request, cache_rows, [len(text_ids) for text_ids, _ in of_row], voice.tolist()))
    most = max(max(row.lengths) + -(-row.request.max_frames // group_size) for row in rows)
    cache = model.autoregressive.transformer.allocate_cache(len(prefixes), most)
    active = rows
    hidden_states = _read_prefixes(model, prefixes, cache)[_cache_rows(active, model.device)]
    while True:
        _take_group(active, _guided_logits(model, hidden_states, sampling), sampling, model.end_code)
        active = [row for row in active if not row.is_done]
        if not active:
            return rows
        hidden_states = _read_group(model, active, cache)


def _prefix(model: CodecLM, text_ids: Sequence[int], voice: Int[Tensor, "m"]) -> tuple[Tensor, Tensor]:
    """Text ids [T] and codes [T, G] of what a stream reads before the first draw."""
    group_size = model.config.group_size
    ids, no_codes = text_and_begin(text_ids, model.begin_id, group_size)
    groups = groups_of(voice, group_size)
    return F.pad(ids, (0, len(groups)), value=UNKNOWN), torch.cat([no_codes, groups])


def _read_prefixes(model: CodecLM, prefixes: Sequence[tuple[Tensor, Tensor]], cache: KVCache) -> Float[Tensor, "S D"]:
    """Prefill: the last hidden state of every stream. Right padding is overwritten when the row reaches its slot."""
    lengths = torch.tensor([len(text_ids) for text_ids, _ in prefixes], device=model.device)
    width = int(lengths.max())
    text_ids = torch.stack([F.pad(ids, (0, width - len(ids)), value=UNKNOWN) for ids, _ in prefixes])
    codes = torch.stack([F.pad(codes, (0, 0, 0, width - len(codes)), value=UNKNOWN) for _, codes in prefixes])
    positions = torch.arange(width, device=model.device).expand(len(prefixes), width)
    view = cache.view(positions, length=width)
    hidden_states = model.autoregressive.decode_step(text_ids.to(model.device), codes.to(model.device), positions, view)
    return hidden_states[torch.arange(len(prefixes), device=model.device), lengths - 1]


def _read_group(model: CodecLM, active: Sequence[_Row], cache: KVCache) -> Float[Tensor, "S D"]:
    """One step: every stream reads the group that its row has just drawn."""
    num_streams, device = len(active[0].lengths), model.device
    codes = torch.tensor([row.first_codes[-model.config.group_size :] for row in active], device=device)
    codes = codes.repeat(num_streams, 1)[:, None]  # (S, 1, G)
    positions = torch.tensor([[row.lengths[stream]] for stream in range(num_streams) for row in active], device=device)
    for row in active:
        row.lengths = [length + 1 for length in row.lengths]
    view = cache.view(positions, length=max(max(row.lengths) for row in active), rows=_cache_rows(active, device))
    text_ids = torch.full_like(positions, UNKNOWN)
    return model.autoregressive.decode_step(text_ids, codes, positions, view)[:, 0]


def _cache_rows(active: Sequence[_Row], device: torch.device) -> Int[Tensor, "S"]:
    num_streams = len(active[0].cache_rows)
    return torch.tensor([row.cache_rows[stream] for stream in range(num_streams) for row in active], device=device)


def _guided_logits(
    model: CodecLM, hidden_states: Float[Tensor, "S D"], sampling: CodecSamplingConfig
) -> Float[Tensor, "A G V"]:
    logits = model.autoregressive.logits(hidden_states)
    if sampling.cfg_scale == 1:
        return logits
    cond, uncond = logits.chunk(2)
    return guide(cond, uncond, torch.full_like(cond[..., 0], sampling.cfg_scale))


def _take_group(
    active: Sequence[_Row], logits: Float[Tensor, "A G V"], sampling: CodecSamplingConfig, end_code: int
) -> None:
    """Draw the next codes of every row, up to its end; within the group earlier ones count as history."""
    device = logits.device
    window = sampling.repetition_window
    seeds = torch.tensor([signed_int64(row.request.seed) for row in active], device=device)
    for place in range(logits.shape[1]):
        numbers = torch.tensor([row.num_drawn for row in active], device=device)
        history = torch.tensor(
            [([UNKNOWN] * window + row.first_codes)[len(row.first_codes) :] for row in active],
            device=device,
            dtype=torch.long,
        )
        may_end = numbers >= torch.tensor([row.request.min_frames for row in active], device=device)
        allowed = torch.ones(len(active), logits.shape[-1], dtype=torch.bool, device=device)
        allowed[:, end_code] = may_end
        uniform = keyed_uniform(seeds, numbers, (2,), stream=FIRST_STREAM)
        codes = sample_first_codes(logits[:, place], history, sampling, uniform, allowed=allowed)
        for row, code in zip(active, codes.tolist(), strict=True):
            if row.is_done:
                continue
            row.ended = code == end_code
            if not row.ended:
                row.first_codes.append(code)
                row.num_drawn += 1


# -- the other codes --------------------------------------------------------------------------------------------------


def _draw_other_codes(model: CodecLM, rows: Sequence[_Row], sampling: CodecSamplingConfig) -> list[Int[Tensor, "_n Q"]]:
    """All codes of what was drawn, level by level, the voice's frames showing theirs."""
    num_drawn = [row.num_drawn for row in rows]
    codes = [torch.zeros(count, model.config.num_quantizers, dtype=torch.long) for count in num_drawn]
    for of_row, row in zip(codes, rows, strict=True):
        of_row[:, 0] = torch.tensor(row.drawn, dtype=torch.long)
    seeds = torch.cat([torch.full((row.num_drawn,), signed_int64(row.request.seed)) for row in rows])
    frames = torch.cat([torch.arange(count) for count in num_drawn])
    for level in range(1, model.config.num_quantizers):
        tokens = [
            non_autoregressive_tokens(
                CodecUtterance(row.request.text_ids, torch.cat([row.request.prompt.long(), of_row])),
                num_prompt_frames=len(row.request.prompt),
                level=level,
                begin_id=model.begin_id,
            )
            for row, of_row in zip(rows, codes, strict=True)
        ]
        packed = pack([[one] for one in tokens], num_codes=model.config.num_quantizers, num_targets=1).to(model.device)
        hidden_states = model.non_autoregressive.hidden_states(packed).flatten(0, 1)[packed.target_positions]
        logits = model.non_autoregressive.logits(hidden_states, torch.full_like(packed.target_positions, level))
        uniform = keyed_uniform(seeds, frames, stream=OTHER_STREAM + level).to(model.device)
        chosen = sample_untruncated(logits, sampling.other_temperature, uniform)
        for of_row, of_level in zip(codes, chosen.cpu().split(num_drawn), strict=True):
            of_row[:, level] = of_level
    return codes
