"""The autoregressive loop over both heads (paper Section 2.2, Inference): plain, readable, one token at a time.

Each round feeds every row its newest token, then either samples the row's next id from the softmax head or solves the
diffusion for its next latent. Rows differ in prompt length, mode, length, seed and guidance. This executor is the
reference that faster ones are tested against.

With guidance a row has a second, unconditional stream with its own cache rows. It begins anew at every latent span,
reads the negative prompt, and then sees the same generated latents and the same starting noise as the first.
Decisions to switch or stop come from the conditional stream alone.
"""

from collections.abc import Iterator, Mapping, Sequence as SequenceOf
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from latentlm.diffusion.guidance import guidance_scales, guide
from latentlm.diffusion.solvers import Solver, make_solver
from latentlm.generation.requests import (
    DoneEvent,
    Event,
    GenerationRequest,
    LatentEvent,
    LatentSamplingConfig,
    LatentSpan,
    PartEvent,
    TokenEvent,
)
from latentlm.generation.text_sampling import sample_token
from latentlm.models.diffusion_head import DiffusionHead
from latentlm.models.kv_cache import KVCache
from latentlm.models.latentlm import LatentLM
from latentlm.nn.keyed_noise import keyed_normal, keyed_uniform
from latentlm.sequence import Document, LabelPart, LatentPart, Part, Sequence, SequenceBuilder, TextPart

# Streams of the keyed noise of one request.
STARTING_NOISE_STREAM = 1
STEP_NOISE_STREAM = 2
TEXT_STREAM = 3

Token = int | tuple[str, Tensor]
"""A discrete id, or (modality, latent)."""


@dataclass
class _Stream:
    """One row of the cache: what it has read, what it reads next, and the hidden state of its newest token."""

    cache_row: int
    pending: list[Token] = field(default_factory=list)
    length: int = 0
    hidden_state: Tensor | None = None

    def restart(self, tokens: list[Token]) -> None:
        """Forget what was read; slots are overwritten from position 0."""
        self.pending, self.length = tokens, 0


@dataclass
class _Row:
    """One request under way."""

    index: int
    request: GenerationRequest
    cond: _Stream
    uncond: _Stream
    spans: list[LatentSpan]
    span: LatentSpan | None = None
    span_latents: list[Tensor] = field(default_factory=list)
    text_ids: list[int] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    num_latents: int = 0
    num_free: int = 0
    span_is_free: bool = False
    guided: bool = False
    finish_reason: str | None = None


class Generator:
    """Prompts in, a stream of events out.

    Args:
        model: In evaluation mode.
        builder: Turns prompts into sequences; built on the model's vocabulary.
        sampling: Defaults of every modality, by name; absent ones get `LatentSamplingConfig()`.
    """

    def __init__(
        self, model: LatentLM, builder: SequenceBuilder, sampling: Mapping[str, LatentSamplingConfig] | None = None
    ) -> None:
        self.model = model
        self.builder = builder
        self.sampling = {name: (sampling or {}).get(name, LatentSamplingConfig()) for name in model.config.modalities}
        self._solvers: dict[str, Solver] = {
            name: make_solver(model.processes[name], config.solver).to(model.device)
            for name, config in self.sampling.items()
        }

    def generate(self, requests: SequenceOf[GenerationRequest]) -> list[Document]:
        """What the model adds to each prompt, in the order of the requests."""
        documents: dict[int, Document] = {}
        for event in self.stream(requests):
            if isinstance(event, DoneEvent):
                documents[event.request] = event.document
        return [documents[index] for index in range(len(requests))]

    @torch.inference_mode()
    def stream(self, requests: SequenceOf[GenerationRequest]) -> Iterator[Event]:
        """Answer all requests as one batch, saying what happens as it happens.

        Raises:
            ValueError: If a request does not fit the model.
        """
        rows = [self._start(index, request, len(requests)) for index, request in enumerate(requests)]
        # One slot more than any row needs: right padding is written there.
        cache = self.model.transformer.allocate_cache(2 * len(rows), 1 + max(self._budget(row) for row in rows))
        active = list(rows)
        while active:
            self._read_pending([row.cond for row in active] + [row.uncond for row in active if row.guided], cache)
            drawing: dict[str, list[_Row]] = {}
            for row in active:
                if row.span is not None and self._span_goes_on(row):
                    drawing.setdefault(row.span.modality, []).append(row)
                else:
                    yield from self._next_token(row)
            for modality, group in drawing.items():
                for row, latent in zip(group, self._draw_latents(modality, group), strict=True):
                    yield from self._accept_latent(row, latent)
            for row in active:
                if row.finish_reason is not None:
                    yield DoneEvent(row.index, Document(tuple(row.parts)), row.finish_reason)
            active = [row for row in active if row.finish_reason is None]

    # -- rows ---------------------------------------------------------------------------------------------------------

    def _start(self, index: int, request: GenerationRequest, num_rows: int) -> _Row:
        for span in request.spans:
            if span.modality not in self.model.config.modalities:
                raise ValueError(
                    f"the request asks for '{span.modality}' but the model knows "
                    f"{', '.join(self.model.config.modalities)}"
                )
            if span.num_latents is None and not self.builder.vocabulary.switch_tokens:
                raise ValueError("this model has no end token, so a span needs its num_latents")
        if request.max_new_tokens and not self.model.config.lm_head:
            raise ValueError("this model has no softmax head: it draws forced spans only (max_new_tokens must be 0)")
        row = _Row(index, request, _Stream(index), _Stream(num_rows + index), list(request.spans))
        row.cond.pending = _tokens(self.builder.build(request.prompt, open_ended=True), self.builder.modalities)
        if row.spans:
            self._open_span(row, row.spans.pop(0))
        return row

    def _budget(self, row: _Row) -> int:
        """Positions that the row can fill at most, in either stream."""
        request = row.request
        negative = self._negative_tokens(row)
        spans = sum(span.limit + 2 for span in request.spans)
        return max(len(row.cond.pending), len(negative)) + spans + request.max_new_tokens + 1

    def _negative_tokens(self, row: _Row) -> list[Token]:
        """What the unconditional stream reads before a span, begin token excluded."""
        vocabulary, negative = self.builder.vocabulary, row.request.negative_prompt
        if negative is None and not vocabulary.switch_tokens:
            negative = Document((LabelPart(None),))
        if negative is None:
            return []
        return _tokens(self.builder.build(negative, open_ended=True), self.builder.modalities)

    def _open_span(self, row: _Row, span: LatentSpan) -> None:
        vocabulary = self.builder.vocabulary
        begin: list[Token] = [vocabulary.begin_id(span.modality)] if vocabulary.switch_tokens else []
        row.span, row.span_latents = span, []
        row.cond.pending = row.cond.pending + begin
        row.guided = self._cfg_scale(row, span.modality) != 1.0
        if row.guided:
            row.uncond.restart(self._negative_tokens(row) + begin)

    def _cfg_scale(self, row: _Row, modality: str) -> float:
        scale = row.request.cfg_scale
        return self.sampling[modality].cfg_scale if scale is None else scale

    def _close_span(self, row: _Row) -> Iterator[Event]:
        assert row.span is not None
        part = LatentPart(row.span.modality, torch.stack(row.span_latents))
        row.parts.append(part)
        yield PartEvent(row.index, part)
        vocabulary = self.builder.vocabulary
        if vocabulary.switch_tokens:
            end = vocabulary.end_id(row.span.modality)
            row.cond.pending = [*row.cond.pending, end]
            row.num_free += row.span_is_free
            yield TokenEvent(row.index, end)
        row.span, row.span_is_free, row.guided = None, False, False
        if row.spans:
            self._open_span(row, row.spans.pop(0))
        elif row.request.max_new_tokens == 0:
            row.finish_reason = "spans"

    def _flush_text(self, row: _Row) -> Iterator[Event]:
        if row.text_ids:
            assert self.builder.text_tokenizer is not None
            part = TextPart(self.builder.text_tokenizer.decode(row.text_ids))
            row.parts.append(part)
            row.text_ids = []
            yield PartEvent(row.index, part)

    # -- the backbone -------------------------------------------------------------------------------------------------

    def _read_pending(self, streams: list[_Stream], cache: KVCache) -> None:
        """One pass of the backbone: every stream reads its pending tokens and keeps its last hidden state."""
        device, width = self.model.device, max(len(stream.pending) for stream in streams)
        input_ids = torch.full((len(streams), width), self.builder.vocabulary.pad_id)
        flat_positions: dict[str, list[int]] = {}
        latents: dict[str, list[Tensor]] = {}
        for b, stream in enumerate(streams):
            for t, token in enumerate(stream.pending):
                if isinstance(token, int):
                    input_ids[b, t] = token
                else:
                    flat_positions.setdefault(token[0], []).append(b * width + t)
                    latents.setdefault(token[0], []).append(token[1])
        starts = torch.tensor([stream.length for stream in streams])
        counts = torch.tensor([len(stream.pending) for stream in streams])
        length = int((starts + counts).max())
        columns = torch.arange(width)
        # Right padding goes to the cache's last slot, which no row ever reaches and no query sees.
        positions = torch.where(columns < counts[:, None], starts[:, None] + columns, cache.max_length - 1)
        rows = torch.tensor([stream.cache_row for stream in streams])
        everyone = rows.tolist() == list(range(cache.keys.shape[1]))
        positions = positions.to(device)
        hidden_states = self.model.decode_step(
            input_ids.to(device),
            {name: torch.stack(items).to(device) for name, items in latents.items()},
            {name: torch.tensor(items, device=device) for name, items in flat_positions.items()},
            positions,
            cache.view(positions, length=length, rows=None if everyone else rows.to(device)),
        )
        last = hidden_states[torch.arange(len(streams), device=device), (counts - 1).to(device)]
        for stream, hidden_state in zip(streams, last, strict=True):
            stream.length += len(stream.pending)
            stream.pending = []
            stream.hidden_state = hidden_state

    # -- discrete tokens ----------------------------------------------------------------------------------------------

    def _sample_id(self, row: _Row, allowed_ids: list[int] | None) -> int:
        assert row.cond.hidden_state is not None
        logits = self.model.logits(row.cond.hidden_state)
        vocabulary = self.builder.vocabulary
        allowed = torch.zeros_like(logits, dtype=torch.bool)
        if allowed_ids is None:
            # Free text: text ids and the begin tokens of modalities that the model can draw.
            allowed[: vocabulary.num_text_ids] = True
            allowed_ids = [vocabulary.begin_id(name) for name in self.builder.modalities]
        allowed[allowed_ids] = True
        position = torch.tensor(row.cond.length, device=logits.device)
        return sample_token(
            logits, allowed, row.request.text, keyed_uniform(row.request.seed, position, stream=TEXT_STREAM)
        )

    def _span_goes_on(self, row: _Row) -> bool:
        """Whether the open span takes another latent; free lengths ask the language-model head."""
        span = row.span
        assert span is not None
        if len(row.span_latents) >= span.limit:
            return False
        if span.num_latents is not None or not row.span_latents:
            return True
        begin = self.builder.vocabulary.begin_id(span.modality)
        return self._sample_id(row, [begin, self.builder.vocabulary.end_id(span.modality)]) == begin

    def _next_token(self, row: _Row) -> Iterator[Event]:
        if row.span is not None:
            yield from self._close_span(row)
            return
        if row.num_free >= row.request.max_new_tokens:
            yield from self._flush_text(row)
            row.finish_reason = "length"
            return
        row.num_free += 1
        token = self._sample_id(row, None)
        yield TokenEvent(row.index, token)
        vocabulary, text_tokenizer = self.builder.vocabulary, self.builder.text_tokenizer
        if text_tokenizer is not None and token == text_tokenizer.eos_id:
            yield from self._flush_text(row)
            row.finish_reason = "eos"
        elif token < vocabulary.num_text_ids:
            row.text_ids.append(token)
            row.cond.pending = [token]
        else:
            yield from self._flush_text(row)
            modality = next(name for name in self.builder.modalities if vocabulary.begin_id(name) == token)
            # A span that the model opens by itself shares the request's bound on new positions.
            row.span_is_free = True
            self._open_span(row, LatentSpan(modality, max_latents=max(row.request.max_new_tokens - row.num_free, 1)))

    # -- latents ------------------------------------------------------------------------------------------------------

    def _draw_latents(self, modality: str, rows: list[_Row]) -> Float[Tensor, "B C"]:
        """Diffusion(h_i) of Eq. 1 for one latent of every row: the solver's loop over the diffusion head."""
        config, solver, device = self.model.config.modalities[modality], self._solvers[modality], self.model.device
        head: DiffusionHead = self.model.diffusion_heads[modality]  # pyright: ignore[reportAssignmentType]
        guided = [index for index, row in enumerate(rows) if row.guided]
        streams = [row.cond for row in rows] + [rows[index].uncond for index in guided]
        hidden_states = [stream.hidden_state for stream in streams if stream.hidden_state is not None]
        condition = head.project_condition(torch.stack(hidden_states))
        scales = guidance_scales(
            self.sampling[modality].guidance,
            torch.tensor([self._cfg_scale(rows[index], modality) for index in guided], device=device, dtype=torch.float),
            solver.timesteps,
            position=torch.tensor([len(rows[index].span_latents) for index in guided], device=device, dtype=torch.long),
            num_positions=torch.tensor([_limit(rows[index]) for index in guided], device=device, dtype=torch.long),
        )
        noise, step_noise = (torch.stack(items, dim=-2) for items in zip(*self._noise(rows, config.latent_dim, solver)))
        chosen = torch.tensor(guided, device=device, dtype=torch.long)
        state = solver.initial_state(noise)
        for k in range(solver.num_evaluations):
            noisy_latents = torch.cat([state.noisy_latents, state.noisy_latents[chosen]]).to(condition.dtype)
            prediction = head.denoise(noisy_latents, solver.timesteps[k], condition).float()
            cond, uncond = prediction[: len(rows)], prediction[len(rows) :]
            cond = cond.index_copy(0, chosen, guide(cond[chosen], uncond, scales[k]))
            state = solver.step(k, cond, state, step_noise[k] if solver.needs_noise else None)
        return state.noisy_latents

    def _noise(
        self, rows: list[_Row], latent_dim: int, solver: Solver
    ) -> Iterator[tuple[Float[Tensor, "C"], Float[Tensor, "K C"]]]:
        """Starting noise and step noise of each row's next latent: functions of its seed and the latent's number."""
        num_steps = solver.num_evaluations if solver.needs_noise else 0
        for row in rows:
            key = torch.tensor(row.num_latents, device=self.model.device)
            yield (
                keyed_normal(row.request.seed, key, (latent_dim,), stream=STARTING_NOISE_STREAM),
                keyed_normal(row.request.seed, key, (num_steps, latent_dim), stream=STEP_NOISE_STREAM),
            )

    def _accept_latent(self, row: _Row, latent: Float[Tensor, "C"]) -> Iterator[Event]:
        span = row.span
        assert span is not None
        row.span_latents.append(latent)
        row.num_latents += 1
        row.num_free += row.span_is_free
        yield LatentEvent(row.index, span.modality, latent, len(row.span_latents) - 1, span.num_latents)
        row.cond.pending = [(span.modality, latent)]
        if row.guided:
            row.uncond.pending = [(span.modality, latent)]
        if len(row.span_latents) == span.num_latents:
            yield from self._close_span(row)


def _limit(row: _Row) -> int:
    assert row.span is not None
    return row.span.limit


def _tokens(sequence: Sequence, modalities: SequenceOf[str]) -> list[Token]:
    """The tokens of a sequence one by one."""
    used = dict.fromkeys(sequence.latents, 0)
    tokens: list[Token] = []
    for token, kind in zip(sequence.input_ids.tolist(), sequence.modality_ids.tolist(), strict=True):
        if kind == 0:
            tokens.append(token)
        else:
            modality = modalities[kind - 1]
            tokens.append((modality, sequence.latents[modality][used[modality]]))
            used[modality] += 1
    return tokens
