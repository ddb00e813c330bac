"""The autoregressive loop over both heads (paper Section 2.2, Inference): plain, readable, one token at a time.

Each round feeds every row its newest token, then either samples the row's next id from the softmax head or solves the
diffusion for its next latent. Rows differ in prompt length, mode, length, seed and guidance. This executor is the
reference that faster ones are tested against.

With guidance a row has further streams with cache rows of their own: the unconditional one, and one for every
intermediate prompt. They begin anew at every latent span, read their prompts, and then see the same generated latents
and the same starting noise as the first. Decisions to switch or stop come from the conditional stream alone.
"""

from collections.abc import Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
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
from latentlm.generation.rows import Links, Row, Stream, Token, allocate_cache, flush_text, take_text
from latentlm.generation.text_sampling import penalise_repetition, sample_ids
from latentlm.models.diffusion_head import DiffusionHead
from latentlm.models.kv_cache import KVCache
from latentlm.models.latentlm import LatentLM
from latentlm.nn.keyed_noise import keyed_normal, keyed_uniform, signed_int64
from latentlm.sequence import Document, LabelPart, LatentPart, Sequence, SequenceBuilder

# Streams of the keyed noise of one request.
STARTING_NOISE_STREAM = 1
STEP_NOISE_STREAM = 2
TEXT_STREAM = 3


class Generator:
    """Prompts in, a stream of events out.

    Args:
        model: In evaluation mode, on its device already.
        builder: Turns prompts into sequences; built on the model's vocabulary.
        sampling: Defaults of every modality, by name; absent ones get `LatentSamplingConfig()`.

    Raises:
        ValueError: If builder or sampling belong to another model.
    """

    def __init__(
        self, model: LatentLM, builder: SequenceBuilder, sampling: Mapping[str, LatentSamplingConfig] | None = None
    ) -> None:
        sampling, modalities = dict(sampling or {}), model.config.modalities
        if builder.vocabulary != model.config.vocabulary or builder.modalities != tuple(modalities):
            raise ValueError("the sequence builder was made for another vocabulary or other modalities than the model")
        if unknown := sorted(sampling.keys() - modalities.keys()):
            raise ValueError(f"sampling names {', '.join(unknown)} but the model knows {', '.join(modalities)}")
        self.model = model
        self.builder = builder
        self.sampling = {name: sampling.get(name, LatentSamplingConfig()) for name in modalities}
        self._solvers: dict[str, Solver] = {
            name: make_solver(model.processes[name], config.solver).to(model.device)
            for name, config in self.sampling.items()
        }
        self._heads: dict[str, DiffusionHead] = dict(model.diffusion_heads.items())  # pyright: ignore[reportAttributeAccessIssue]
        # Ids among which the softmax head decides: text, text or a new span, and within a span its going on or ending.
        vocabulary = builder.vocabulary
        self._text_ids = self._mask(range(vocabulary.num_text_ids))
        self._free_ids: dict[tuple[int, ...], Tensor | None] = {}
        self._begin_ids: dict[str, int] = {}
        self._span_ids = {}
        if vocabulary.switch_tokens:
            self._begin_ids = {name: vocabulary.begin_id(name) for name in modalities}
            self._span_ids = {
                name: self._mask([begin, vocabulary.end_id(name)]) for name, begin in self._begin_ids.items()
            }

    def _mask(self, ids: SequenceOf[int]) -> Bool[Tensor, "V"] | None:
        if not ids:
            return None
        mask = torch.zeros(self.builder.vocabulary.size, dtype=torch.bool)
        mask[list(ids)] = True
        return mask.to(self.model.device)

    def generate(self, requests: SequenceOf[GenerationRequest]) -> list[Document]:
        """What the model adds to each prompt, in the order of the requests."""
        documents: dict[int, Document] = {}
        for event in self.stream(requests):
            if isinstance(event, DoneEvent):
                documents[event.request] = event.document
        return [documents[index] for index in range(len(requests))]

    def stream(self, requests: SequenceOf[GenerationRequest]) -> Iterator[Event]:
        """Answer all requests as one batch, saying what happens as it happens.

        Raises:
            ValueError: If a request does not fit the model, or the model's numbers are not finite.
        """
        if not requests:
            return
        rows = [self._start(index, request) for index, request in enumerate(requests)]
        num_streams = len(rows)
        for row in rows:
            if any(self._is_guided(row, name) for name in self.sampling):
                for stream in row.weaker:
                    stream.cache_row = num_streams
                    num_streams += 1
        longest = max(self._budget(row) for row in rows)
        cache = allocate_cache(self.model.transformer, num_streams=num_streams, longest=longest)
        step_embeddings = self._embed_steps()
        active = list(rows)
        while active:
            self._read_pending([stream for row in active for stream in row.streams], cache)
            chosen_ids = self._choose_ids(active)
            drawing: dict[str, list[Row]] = {}
            for row in active:
                token = chosen_ids.get(row.index)
                if row.span is None:
                    yield from self._take_token(row, token)
                elif row.num_sizes_left:
                    assert token is not None
                    yield from self._take_size(row, row.span, token)
                elif self._span_goes_on(row, row.span, token):
                    drawing.setdefault(row.span.modality, []).append(row)
                else:
                    yield from self._close_span(row)
            for modality, group in drawing.items():
                latents = self._draw_latents(modality, group, step_embeddings[modality])
                for row, latent in zip(group, latents, strict=True):
                    yield from self._accept_latent(row, latent)
            for row in active:
                if row.finish_reason is not None:
                    yield DoneEvent(row.index, Document(tuple(row.parts)), row.finish_reason)
            active = [row for row in active if row.finish_reason is None]

    # -- rows ---------------------------------------------------------------------------------------------------------

    def _start(self, index: int, request: GenerationRequest) -> Row:
        for span in request.spans:
            if span.modality not in self.sampling:
                raise ValueError(
                    f"the request asks for '{span.modality}' but the model knows {', '.join(self.sampling)}"
                )
            self._check_size(span)
            self._check_prefix(span)
            if span.length is None and not self.builder.vocabulary.switch_tokens:
                raise ValueError("this model has no end token, so a span needs its num_latents")
        if request.max_new_tokens and not self.model.config.lm_head:
            raise ValueError("this model has no softmax head: it draws forced spans only (max_new_tokens must be 0)")
        prompt = self._prompt_tokens(request.prompt)
        weaker = [self._negative_tokens(request), *map(self._prompt_tokens, request.intermediate_prompts)]
        row = Row(
            index=index,
            request=request,
            weaker_prompts=weaker,
            cond=Stream(cache_row=index, pending=prompt),
            weaker=[Stream(cache_row=-1) for _ in weaker],
            spans=list(request.spans),
            seen_ids=[t for t in prompt if isinstance(t, int) and t < self.builder.vocabulary.num_text_ids],
        )
        if row.spans:
            self._open_span(row, row.spans.pop(0))
        return row

    def _check_size(self, span: LatentSpan) -> None:
        says_size = self.model.config.modalities[span.modality].says_size
        if says_size and span.num_latents is not None and span.grid is None:
            raise ValueError(f"{span.modality} spans of this model say their size: give the span a grid")
        if not says_size and span.grid is not None and self.builder.vocabulary.switch_tokens:
            raise ValueError(f"{span.modality} spans of this model do not say their size: give num_latents, no grid")

    def _check_prefix(self, span: LatentSpan) -> None:
        modality = self.model.config.modalities[span.modality]
        if span.prefix is None:
            return
        if modality.says_size:
            raise ValueError(f"{span.modality} spans of this model say their size, so that none can be continued")
        if span.prefix.shape[-1] != modality.latent_dim or not span.prefix.isfinite().all():
            raise ValueError(
                f"the prefix of a {span.modality} span must be finite latents [n, {modality.latent_dim}], but has "
                f"shape {tuple(span.prefix.shape)}; was it made by another tokenizer?"
            )

    def _prompt_tokens(self, prompt: Document) -> list[Token]:
        return self._tokens(self.builder.build(prompt, open_ended=True))

    def _tokens(self, sequence: Sequence) -> list[Token]:
        """The tokens of a sequence one by one, latents on the model's device."""
        latents = {name: iter(values.to(self.model.device, torch.float32)) for name, values in sequence.latents.items()}
        names = self.builder.modalities
        return [
            token if kind == 0 else (names[kind - 1], next(latents[names[kind - 1]]))
            for token, kind in zip(sequence.input_ids.tolist(), sequence.modality_ids.tolist(), strict=True)
        ]

    def _negative_tokens(self, request: GenerationRequest) -> list[Token]:
        """What the unconditional stream reads before a span, begin token excluded."""
        negative = request.negative_prompt
        if negative is None and not self.builder.vocabulary.switch_tokens:
            negative = Document((LabelPart(None),))
        if negative is None:
            # The document without its condition: documents with text begin with end-of-text, others with the span.
            text_tokenizer = self.builder.text_tokenizer
            return [] if text_tokenizer is None else [text_tokenizer.bos_id]
        return self._prompt_tokens(negative)

    def _budget(self, row: Row) -> int:
        """Positions that the row can fill at most, in any of its streams."""
        spans = sum(span.limit + 5 + _prefix_length(span) for span in row.request.spans)
        return max(len(row.cond.pending), *map(len, row.weaker_prompts)) + spans + row.request.max_new_tokens

    def _cfg_scales(self, row: Row, modality: str) -> tuple[float, ...]:
        """One per weaker stream."""
        scale = row.request.cfg_scale
        scale = self.sampling[modality].cfg_scale if scale is None else scale
        return scale if isinstance(scale, tuple) else (scale,)

    def _is_guided(self, row: Row, modality: str) -> bool:
        return any(scale != 1.0 for scale in self._cfg_scales(row, modality))

    def _open_span(self, row: Row, span: LatentSpan) -> None:
        vocabulary = self.builder.vocabulary
        label: list[Token] = [] if span.label is None else [vocabulary.class_id(span.label)]
        opening: list[Token] = [self._begin_ids[span.modality]] if vocabulary.switch_tokens else []
        row.num_sizes_left = 0
        if vocabulary.switch_tokens and self.model.config.modalities[span.modality].says_size:
            row.num_sizes_left = 2 if span.grid is None else 0
            opening += [] if span.grid is None else [vocabulary.size_id(side) for side in span.grid]
        row.span, row.span_latents = span, []
        prefix: list[Token] = []
        if span.prefix is not None:
            prefix = [(span.modality, latent) for latent in span.prefix.to(self.model.device, torch.float32)]
        # Numbered with the drawn ones: going on from a span's own beginning gives its own continuation.
        row.num_latents += len(prefix)
        row.cond.pending = row.cond.pending + label + opening + prefix
        row.guided = self._is_guided(row, span.modality)
        if row.guided:
            for stream, prompt in zip(row.weaker, row.weaker_prompts, strict=True):
                stream.restart(prompt + opening + ([] if span.guide_prefix else prefix))

    def _close_span(self, row: Row) -> Iterator[Event]:
        assert row.span is not None
        says_size = self.model.config.modalities[row.span.modality].says_size
        part = LatentPart(row.span.modality, torch.stack(row.span_latents), row.span.grid if says_size else None)
        if not part.latents.isfinite().all():
            raise ValueError(
                f"the {part.modality} latents drawn for request {row.index} hold NaN or infinity: the weights are "
                "damaged, or overflow in this precision"
            )
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

    # -- the backbone -------------------------------------------------------------------------------------------------

    # Gradients are off in each part that computes, not in `stream`: switched off for its whole body, they would stay
    # off in its caller's code between two events.

    @torch.no_grad()
    def _read_pending(self, streams: list[Stream], cache: KVCache) -> None:
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
        cache.reserve(length + 1)
        columns = torch.arange(width)
        # Right padding goes to the cache's last slot, which no row ever reaches and no query sees.
        positions = torch.where(columns < counts[:, None], starts[:, None] + columns, cache.max_length - 1)
        rows = torch.tensor([stream.cache_row for stream in streams])
        everyone = rows.tolist() == list(range(cache.keys.shape[1]))
        positions = positions.to(device)
        hidden_states = self.model.decode_step(
            input_ids.to(device),
            {name: torch.stack(items) for name, items in latents.items()},
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

    @torch.no_grad()
    def _choose_ids(self, rows: list[Row]) -> dict[int, int]:
        """Sample(P_d) of Eq. 1, by row index, for the rows where the softmax head decides what comes next."""
        asked = [(row, allowed) for row in rows if (allowed := self._allowed_ids(row)) is not None]
        if not asked:
            return {}
        logits = self.model.logits(torch.stack([row.cond.hidden_state for row, _ in asked]))  # (asked rows, V)
        numbers = keyed_uniform(
            self._seeds([row for row, _ in asked]),
            torch.tensor([row.cond.length for row, _ in asked], device=self.model.device),
            stream=TEXT_STREAM,
        )
        return {
            row.index: int(sample_ids(self._penalised(row, row_logits), row.request.text, number, allowed=allowed))
            for (row, allowed), row_logits, number in zip(asked, logits, numbers, strict=True)
        }

    def _penalised(self, row: Row, logits: Float[Tensor, "V"]) -> Float[Tensor, "V"]:
        """Logits after the repetition penalty, which is about text: switches and lengths are none of its business."""
        penalty = row.request.text.repetition_penalty
        if row.span is not None or penalty == 1.0:
            return logits
        seen = torch.tensor(sorted(set(row.seen_ids)), device=logits.device, dtype=torch.long)
        return penalise_repetition(logits, seen, penalty)

    def _allowed_ids(self, row: Row) -> Bool[Tensor, "V"] | None:
        """Ids among which the softmax head decides; None where there is nothing to decide."""
        if row.span is not None and row.num_sizes_left:
            return self._size_ids(row, row.span)
        if row.span is not None:
            # A forced length, the least and the most of a free one are not the model's choice.
            is_open = row.span.length is None and row.span.min_latents <= len(row.span_latents) < row.span.limit
            return self._span_ids[row.span.modality] if is_open else None
        num_left = row.request.max_new_tokens - row.num_free
        if num_left <= 0:
            return None
        if row.request.max_spans is not None and row.num_free_spans >= row.request.max_spans:
            return self._text_ids
        begins = tuple(id_ for name, id_ in self._begin_ids.items() if num_left >= self._shortest_span(row, name))
        if begins not in self._free_ids:  # asked for every token: made once for each set of spans that may begin
            self._free_ids[begins] = self._mask([*range(self.builder.vocabulary.num_text_ids), *begins])
        return self._free_ids[begins]

    def _shortest_span(self, row: Row, modality: str) -> int:
        """Positions that a span takes at least if the model opens it by itself: begin token, latents, end token."""
        sizes = 2 if self.model.config.modalities[modality].says_size else 0
        return 2 + sizes + row.request.free_lengths.get(modality, 1)

    def _size_ids(self, row: Row, span: LatentSpan) -> Bool[Tensor, "V"]:
        """Sides that the open span may have, within its bound."""
        most = span.limit if row.num_sizes_left == 2 else span.limit // row.sides[0]
        vocabulary = self.builder.vocabulary
        mask = self._mask([vocabulary.size_id(side) for side in range(1, min(most, vocabulary.max_grid_side) + 1)])
        assert mask is not None, "a span has room for one latent"
        return mask

    def _take_size(self, row: Row, span: LatentSpan, token: int) -> Iterator[Event]:
        """Rows, then columns, of a picture whose size the model says."""
        side = self.builder.vocabulary.side_of(token)
        assert side is not None
        yield TokenEvent(row.index, token)
        row.sides.append(side)
        row.num_sizes_left -= 1
        row.num_free += row.span_is_free
        for stream in row.streams:
            stream.pending = [token]
        if not row.num_sizes_left:
            rows, columns = row.sides
            row.span, row.sides = replace(span, grid=(rows, columns)), []

    def _span_goes_on(self, row: Row, span: LatentSpan, token: int | None) -> bool:
        """Whether the open span takes another latent; `token` is the softmax head's answer where it was asked."""
        if len(row.span_latents) >= span.limit:
            return False
        return token is None or token == self.builder.vocabulary.begin_id(span.modality)

    def _take_token(self, row: Row, token: int | None) -> Iterator[Event]:
        """Outside spans: a text id, end of text, or the begin token of a span; None at the request's bound."""
        if token is None:
            yield from flush_text(row, self.builder.text_tokenizer)
            row.finish_reason = "length"
            return
        row.num_free += 1
        yield TokenEvent(row.index, token)
        text_tokenizer = self.builder.text_tokenizer
        if token < self.builder.vocabulary.num_text_ids:
            assert text_tokenizer is not None, "there are no ids of text without it"
            yield from take_text(row, token, text_tokenizer)
        else:
            yield from flush_text(row, self.builder.text_tokenizer)
            modality = next(name for name, begin in self._begin_ids.items() if begin == token)
            # The span shares the request's bound on new positions; sizes and end token have to fit, too.
            row.span_is_free = True
            row.num_free_spans += 1
            room = row.request.max_new_tokens - row.num_free - 1
            room -= 2 if self.model.config.modalities[modality].says_size else 0
            self._open_span(row, LatentSpan(modality, row.request.free_lengths.get(modality), max_latents=room))

    # -- latents ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _embed_steps(self) -> dict[str, Float[Tensor, "_K _W"]]:
        """What depends on the solver's steps alone, by modality: computed once per run, not for every latent."""
        return {name: self._heads[name].timestep_embedding(solver.timesteps) for name, solver in self._solvers.items()}

    @torch.no_grad()
    def _draw_latents(
        self, modality: str, rows: list[Row], step_embeddings: Float[Tensor, "K W"]
    ) -> Float[Tensor, "B C"]:
        """Diffusion(h_i) of Eq. 1 for one latent of every row: the solver's loop over the diffusion head."""
        head, solver, device = self._heads[modality], self._solvers[modality], self.model.device
        latent_dim = self.model.config.modalities[modality].latent_dim
        links = Links.of(rows, [self._cfg_scales(row, modality) if row.guided else () for row in rows])
        streams = [row.cond for row in rows] + [rows[row].weaker[number] for row, number in links.places]
        condition = head.project_condition(torch.stack([stream.hidden_state for stream in streams]))
        scales = guidance_scales(
            self.sampling[modality].guidance,
            torch.tensor(links.scales, device=device, dtype=torch.float),
            solver.timesteps,
            position=torch.tensor(
                [len(rows[i].span_latents) for i, _ in links.places], device=device, dtype=torch.long
            ),
            num_positions=torch.tensor(
                [rows[i].open_span.limit for i, _ in links.places], device=device, dtype=torch.long
            ),
        )
        # Noise is a function of the request's seed and the latent's number, not of the batch around it.
        seeds, numbers = self._seeds(rows), torch.tensor([row.num_latents for row in rows], device=device)
        noise = keyed_normal(seeds, numbers, (latent_dim,), stream=STARTING_NOISE_STREAM)
        num_noises = solver.num_evaluations if solver.needs_noise else 0
        step_noise = keyed_normal(seeds, numbers, (num_noises, latent_dim), stream=STEP_NOISE_STREAM)  # (B, K, C)
        of_row = torch.tensor([row for row, _ in links.places], device=device, dtype=torch.long)
        stronger = torch.tensor(links.stronger, device=device, dtype=torch.long)
        state = solver.initial_state(noise)
        for k in range(solver.num_evaluations):
            noisy_latents = torch.cat([state.noisy_latents, state.noisy_latents[of_row]]).to(condition.dtype)
            predictions = head.denoise(noisy_latents, condition + step_embeddings[k]).float()
            # e_k + Σ (s_i - 1)(e_i - e_(i-1)), which is e_0 + Σ s_i (e_i - e_(i-1)).
            steps = guide(predictions[stronger], predictions[len(rows) :], scales[k]) - predictions[stronger]
            guided = predictions[: len(rows)].index_add(0, of_row, steps)
            state = solver.step(k, guided, state, step_noise[:, k] if solver.needs_noise else None)
        return state.noisy_latents

    def _seeds(self, rows: list[Row]) -> Int[Tensor, "B"]:
        return torch.tensor([signed_int64(row.request.seed) for row in rows], device=self.model.device)

    def _accept_latent(self, row: Row, latent: Float[Tensor, "C"]) -> Iterator[Event]:
        span = row.span
        assert span is not None
        row.span_latents.append(latent)
        row.num_latents += 1
        row.num_free += row.span_is_free
        yield LatentEvent(row.index, span.modality, latent, len(row.span_latents) - 1, span.length)
        for stream in row.streams:
            stream.pending = [(span.modality, latent)]
        if len(row.span_latents) == span.length:
            yield from self._close_span(row)


def _prefix_length(span: LatentSpan) -> int:
    return 0 if span.prefix is None else len(span.prefix)
