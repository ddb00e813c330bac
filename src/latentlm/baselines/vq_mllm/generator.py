"""The autoregressive loop of a model for which all is ids: text, switch tokens, sizes and codes of pictures.

Each round feeds every row its newest ids, then samples its next one among those that may come: text or a new picture,
within a picture sides, codes, and its end if the length is free. Requests and events are those of
`generation.generator`, which they mean the same to, with `CodePart` for `LatentPart` and ids for latents.

With guidance a row has further streams with cache rows of their own: the unconditional one, and one for every
intermediate prompt. They begin anew at every picture, read their prompts, and then the codes that were drawn. Guidance
acts on the logits of codes (LlamaGen) and of the end token beside them, for they share one softmax; text and sizes come
from the conditional stream alone.
"""

from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from latentlm.baselines.vq_ar.sampling import CodeSamplingConfig
from latentlm.baselines.vq_mllm.model import VQMLLM
from latentlm.baselines.vq_mllm.rows import Picture, Row
from latentlm.diffusion.guidance import guide
from latentlm.generation.requests import (
    DoneEvent,
    Event,
    GenerationRequest,
    LatentSpan,
    PartEvent,
    TextSamplingConfig,
    TokenEvent,
)
from latentlm.generation.rows import Stream, allocate_cache, flush_text, take_text
from latentlm.generation.text_sampling import penalise_repetition, sample_ids
from latentlm.models.kv_cache import KVCache
from latentlm.nn.keyed_noise import keyed_uniform, signed_int64
from latentlm.sequence import CodePart, Document, SequenceBuilder

# Stream of the keyed noise of one request: the number that decides the id of a position.
ID_STREAM = 1


class CodeGenerator:
    """Prompts in, a stream of events out.

    Args:
        model: In evaluation mode, on its device already.
        builder: Turns prompts into sequences; built on the model's vocabulary.
        sampling: Default of how codes are drawn.

    Raises:
        ValueError: If the builder belongs to another model, has no text tokenizer, or codes must not repeat.
    """

    def __init__(self, model: VQMLLM, builder: SequenceBuilder, sampling: CodeSamplingConfig) -> None:
        vocabulary = model.config.vocabulary
        if builder.vocabulary != vocabulary or builder.text_tokenizer is None:
            raise ValueError("the sequence builder was made for another vocabulary than the model, or without text")
        if sampling.repetition_penalty != 1:
            raise ValueError("pictures repeat their codes; repetition_penalty of codes must be 1")
        self.model = model
        self.builder = builder
        self.sampling = sampling
        self._text_tokenizer = builder.text_tokenizer
        self._begin_id, self._end_id = vocabulary.begin_id("image"), vocabulary.end_id("image")
        text, codes = range(vocabulary.num_text_ids), range(vocabulary.first_code_id, vocabulary.size)
        self._text_ids, self._text_or_begin = self._mask(text), self._mask([*text, self._begin_id])
        self._code_ids, self._code_or_end = self._mask(codes), self._mask([*codes, self._end_id])

    def _mask(self, ids: SequenceOf[int]) -> Bool[Tensor, "V"]:
        mask = torch.zeros(self.builder.vocabulary.size, dtype=torch.bool)
        mask[list(ids)] = True
        return mask.to(self.model.device)

    def generate(self, requests: SequenceOf[GenerationRequest]) -> list[Document]:
        """What `stream` ends with: one document per request, prompts excluded."""
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
        weaker = [stream for row in rows for stream in row.weaker]
        for cache_row, stream in enumerate(weaker, start=len(rows)):
            stream.cache_row = cache_row
        longest = max(self._budget(row) for row in rows)
        cache = allocate_cache(self.model.transformer, num_streams=len(rows) + len(weaker), longest=longest)
        active = rows
        while active:
            self._read_pending([stream for row in active for stream in row.streams], cache)
            chosen_ids = self._choose_ids(active)
            for row in active:
                yield from self._take(row, chosen_ids.get(row.index))
                if row.finish_reason is not None:
                    yield DoneEvent(row.index, Document(tuple(row.parts)), row.finish_reason)
            active = [row for row in active if row.finish_reason is None]

    # -- rows ---------------------------------------------------------------------------------------------------------

    def _start(self, index: int, request: GenerationRequest) -> Row:
        for span in request.spans:
            self._check_span(span)
        scale = self.sampling.cfg_scale if request.cfg_scale is None else request.cfg_scale
        scales = scale if isinstance(scale, tuple) else (scale,)
        guided = any(scale != 1 for scale in scales)
        # Without a prompt of its own the unconditional stream reads what opens every document.
        negative = Document(()) if request.negative_prompt is None else request.negative_prompt
        weaker = [self._ids(prompt) for prompt in (negative, *request.intermediate_prompts)] if guided else []
        prompt = self._ids(request.prompt)
        row = Row(
            index=index,
            request=request,
            scales=scales if guided else (),
            weaker_prompts=weaker,
            cond=Stream(cache_row=index, pending=[*prompt]),
            weaker=[Stream(cache_row=-1) for _ in weaker],
            spans=list(request.spans),
            seen_ids=[token for token in prompt if token < self.builder.vocabulary.num_text_ids],
        )
        if row.spans:
            self._open_next_span(row)
        return row

    def _check_span(self, span: LatentSpan) -> None:
        if span.modality != "image":
            raise ValueError(f"the request asks for '{span.modality}' but the model knows image")
        if self.model.config.says_size and span.num_latents is not None and span.grid is None:
            raise ValueError("pictures of this model say their size: give the span a grid")
        if not self.model.config.says_size and span.grid is not None:
            raise ValueError("pictures of this model do not say their size: give num_latents, no grid")

    def _ids(self, prompt: Document) -> list[int]:
        return self.builder.build(prompt, open_ended=True).input_ids.tolist()

    def _budget(self, row: Row) -> int:
        """Positions that the row can fill at most, in any of its streams."""
        spans = sum(span.limit + 4 for span in row.request.spans)
        longest = max(map(len, (row.cond.pending, *row.weaker_prompts)))
        return longest + spans + row.request.max_new_tokens

    def _open_next_span(self, row: Row) -> None:
        span = row.spans.pop(0)
        self._open(row, Picture(span.length, span.limit, is_free=False, sides=list(span.grid or ())))

    def _open(self, row: Row, picture: Picture) -> None:
        sides = [self.builder.vocabulary.size_id(side) for side in picture.sides]
        row.picture = picture
        row.cond.pending = [*row.cond.pending, self._begin_id, *sides]
        for stream, prompt in zip(row.weaker, row.weaker_prompts, strict=True):
            stream.restart([*prompt, self._begin_id, *sides])

    # -- the network --------------------------------------------------------------------------------------------------

    # Gradients are off in each part that computes, not in `stream`: switched off for its whole body, they would stay
    # off in its caller's code between two events.

    @torch.no_grad()
    def _read_pending(self, streams: list[Stream], cache: KVCache) -> None:
        """One pass of the backbone: every stream reads its pending ids and keeps its last hidden state."""
        device = self.model.device
        counts = torch.tensor([len(stream.pending) for stream in streams])
        starts = torch.tensor([stream.length for stream in streams])
        length = int((starts + counts).max())
        cache.reserve(length + 1)
        columns = torch.arange(int(counts.max()))
        input_ids = torch.full((len(streams), len(columns)), self.builder.vocabulary.pad_id)
        for ids, stream in zip(input_ids, streams, strict=True):
            ids[: len(stream.pending)] = torch.tensor(stream.pending)
        # Right padding goes to the cache's last slot, which no row ever reaches and no query sees.
        positions = torch.where(columns < counts[:, None], starts[:, None] + columns, cache.max_length - 1).to(device)
        cache_rows = [stream.cache_row for stream in streams]
        everyone = cache_rows == list(range(cache.keys.shape[1]))
        view = cache.view(
            positions,
            length=length,
            rows=None if everyone else torch.tensor(cache_rows, device=device),
        )
        hidden_states = self.model.decode_step(input_ids.to(device), positions, view)
        last = hidden_states[torch.arange(len(streams), device=device), (counts - 1).to(device)]
        for stream, hidden_state in zip(streams, last, strict=True):
            stream.length += len(stream.pending)
            stream.pending = []
            stream.hidden_state = hidden_state

    @torch.no_grad()
    def _choose_ids(self, rows: list[Row]) -> dict[int, int]:
        """The next id by row index; none for rows that have reached the request's bound."""
        asked = [(row, allowed) for row in rows if (allowed := self._allowed_ids(row)) is not None]
        if not asked:
            return {}
        hidden_states = torch.stack([stream.hidden_state for row, _ in asked for stream in row.streams])
        of_rows = self.model.logits(hidden_states).split([len(row.streams) for row, _ in asked])
        logits = torch.stack([self._combined(row, of_row) for (row, _), of_row in zip(asked, of_rows, strict=True)])
        # A number for every position of a request, whatever the batch around it.
        device = self.model.device
        seeds = torch.tensor([signed_int64(row.request.seed) for row, _ in asked], device=device)
        lengths = torch.tensor([row.cond.length for row, _ in asked], device=device)
        numbers = keyed_uniform(seeds, lengths, stream=ID_STREAM)
        places: dict[TextSamplingConfig, list[int]] = {}
        for place, (row, _) in enumerate(asked):
            places.setdefault(self.sampling if self._draws_code(row) else row.request.text, []).append(place)
        chosen: dict[int, int] = {}
        for config, group in places.items():
            allowed = torch.stack([asked[place][1] for place in group])
            ids = sample_ids(logits[group], config, numbers[group], allowed=allowed).tolist()
            chosen |= {asked[place][0].index: token for place, token in zip(group, ids, strict=True)}
        return chosen

    def _combined(self, row: Row, logits: Float[Tensor, "streams V"]) -> Float[Tensor, "V"]:
        """Logits of a row from those of its streams: guided in pictures, penalised for repetition in text."""
        penalty = row.request.text.repetition_penalty
        if row.picture is None and penalty != 1:
            seen = torch.tensor(sorted(set(row.seen_ids)), device=logits.device, dtype=torch.long)
            return penalise_repetition(logits[0], seen, penalty)
        if not row.scales or not self._draws_code(row):
            return logits[0]
        # e_k + Σ (s_i - 1)(e_i - e_(i-1)), which is e_0 + Σ s_i (e_i - e_(i-1)); e_k, the strongest, stands first.
        stronger = torch.cat([logits[2:], logits[:1]])
        links = guide(stronger, logits[1:], torch.tensor(row.scales, device=logits.device)) - stronger
        return logits[0] + links.sum(0)

    def _draws_code(self, row: Row) -> bool:
        return row.picture is not None and not self._num_sides_left(row.picture)

    def _num_sides_left(self, picture: Picture) -> int:
        """Rows and columns that the picture has yet to say."""
        return 2 - len(picture.sides) if self.model.config.says_size else 0

    # -- what may come, and what came ---------------------------------------------------------------------------------

    def _allowed_ids(self, row: Row) -> Bool[Tensor, "V"] | None:
        """Ids that may come next; None if nothing may."""
        request, picture = row.request, row.picture
        if picture is not None and self._num_sides_left(picture):
            most = picture.limit // (picture.sides[0] if picture.sides else 1)
            longest = min(most, self.builder.vocabulary.max_grid_side)
            return self._mask([self.builder.vocabulary.size_id(side) for side in range(1, longest + 1)])
        if picture is not None:  # it has one code at least
            return self._code_or_end if picture.length is None and picture.codes else self._code_ids
        num_left = request.max_new_tokens - row.num_free
        if num_left <= 0:
            return None
        shortest = request.free_lengths.get("image", 1) + (4 if self.model.config.says_size else 2)
        is_allowed = request.max_spans is None or row.num_free_spans < request.max_spans
        return self._text_or_begin if is_allowed and num_left >= shortest else self._text_ids

    def _take(self, row: Row, token: int | None) -> Iterator[Event]:
        """One id of a row; None at the request's bound."""
        if token is None:
            yield from flush_text(row, self._text_tokenizer)
            row.finish_reason = "length"
        elif row.picture is not None and token == self._end_id:
            yield from self._close(row, row.picture)
        elif row.picture is not None:
            yield from self._take_in_picture(row, row.picture, token)
        else:
            yield from self._take_outside(row, token)

    def _take_in_picture(self, row: Row, picture: Picture, token: int) -> Iterator[Event]:
        """A side or a code."""
        yield TokenEvent(row.index, token)
        row.num_free += picture.is_free
        for stream in row.streams:
            stream.pending = [token]
        side = self.builder.vocabulary.side_of(token)
        if side is None:
            picture.codes.append(token - self.builder.vocabulary.first_code_id)
            if len(picture.codes) == picture.limit:
                yield from self._close(row, picture)
            return
        picture.sides.append(side)
        if not self._num_sides_left(picture):
            picture.length = picture.limit = picture.sides[0] * picture.sides[1]

    def _close(self, row: Row, picture: Picture) -> Iterator[Event]:
        grid = (picture.sides[0], picture.sides[1]) if picture.sides else None
        part = CodePart("image", torch.tensor(picture.codes, device=self.model.device), grid)
        row.parts.append(part)
        yield PartEvent(row.index, part)
        row.cond.pending = [*row.cond.pending, self._end_id]
        row.num_free += picture.is_free
        yield TokenEvent(row.index, self._end_id)
        row.picture = None
        if row.spans:
            self._open_next_span(row)
        elif row.request.max_new_tokens == 0:
            row.finish_reason = "spans"

    def _take_outside(self, row: Row, token: int) -> Iterator[Event]:
        """A text id, end of text, or the begin token of a picture."""
        yield TokenEvent(row.index, token)
        row.num_free += 1
        if token == self._begin_id:
            yield from flush_text(row, self._text_tokenizer)
            row.num_free_spans += 1
            # The picture shares the request's bound on new positions; its sides and its end token have to fit, too.
            room = row.request.max_new_tokens - row.num_free - (3 if self.model.config.says_size else 1)
            length = row.request.free_lengths.get("image")
            self._open(row, Picture(length, room if length is None else length, is_free=True, sides=[]))
        else:
            yield from take_text(row, token, self._text_tokenizer)
