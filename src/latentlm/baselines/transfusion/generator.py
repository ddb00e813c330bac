"""Transfusion's inference: text token by token, a picture as one block that is denoised as a whole.

Decoding is in one of two modes (Transfusion, Section 3, inference). In the mode of text each round reads the newest
token and draws the next id. At a begin token as many noise latents as a picture has are appended, and every evaluation
of the solver runs the whole Transformer over them: they read the cached prefix and each other, and their keys and
values overwrite those of the evaluation before. The finished picture is read once more, clean, the end token is
appended, and text goes on.

With guidance a second stream reads what opens every document and the begin token, and then the same noisy latents. Rows
differ in prompt, mode, length, seed and guidance; each is what it would be alone.

Shapes: B rows, N latents of a picture, C latent_dim, V vocabulary size.
"""

from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentlm.baselines.transfusion.model import Transfusion
from latentlm.baselines.transfusion.reader import StreamReader
from latentlm.baselines.transfusion.sequence import MODALITY
from latentlm.diffusion.guidance import guidance_scales, guide
from latentlm.diffusion.solvers import make_solver
from latentlm.generation.generator import STARTING_NOISE_STREAM, STEP_NOISE_STREAM, TEXT_STREAM
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
from latentlm.generation.rows import Row, Stream, Token, allocate_cache, flush_text, take_text
from latentlm.generation.text_sampling import penalise_repetition, sample_ids
from latentlm.nn.keyed_noise import combine_keys, keyed_normal, keyed_uniform, signed_int64
from latentlm.sequence import Document, LatentPart, SequenceBuilder


class TransfusionGenerator:
    """Prompts in, a stream of events out.

    Args:
        model: In evaluation mode, on its device already.
        builder: Turns prompts into sequences; has a text tokenizer.
        sampling: Of pictures.
        num_latents: Of a picture whose length a request leaves open: pictures are always whole.

    Raises:
        ValueError: If guidance is to change along the picture, whose positions are drawn together.
    """

    def __init__(
        self, model: Transfusion, builder: SequenceBuilder, sampling: LatentSamplingConfig, *, num_latents: int
    ) -> None:
        if sampling.guidance.position_schedule != "constant":
            raise ValueError(
                f"guidance.position_schedule is {sampling.guidance.position_schedule!r}, but Transfusion draws all "
                "positions of a picture together; use guidance.step_schedule"
            )
        assert builder.text_tokenizer is not None
        self.model = model
        self.builder = builder
        self.sampling = sampling
        self._text_tokenizer = builder.text_tokenizer
        self._num_latents = num_latents
        self._solver = make_solver(model.process, sampling.solver).to(model.device)
        self._begin_id = builder.vocabulary.begin_id(MODALITY)
        self._end_id = builder.vocabulary.end_id(MODALITY)
        # Ids among which the softmax head decides: text alone, or text and the beginning of a picture.
        self._is_text = torch.arange(builder.vocabulary.size, device=model.device) < builder.vocabulary.num_text_ids
        self._is_text_or_begin = self._is_text.clone()
        self._is_text_or_begin[self._begin_id] = True

    def generate(self, requests: SequenceOf[GenerationRequest]) -> list[Document]:
        """What the model adds to each prompt, in the order of the requests."""
        done = {event.request: event.document for event in self.stream(requests) if isinstance(event, DoneEvent)}
        return [done[index] for index in range(len(requests))]

    def stream(self, requests: SequenceOf[GenerationRequest]) -> Iterator[Event]:
        """Answer all requests as one batch, saying what happens as it happens.

        The latents of a picture are told one by one, but all at once: after its last step.

        Raises:
            ValueError: If a request does not fit the model, or the model's numbers are not finite.
        """
        if not requests:
            return
        rows = [self._start(index, request) for index, request in enumerate(requests)]
        num_streams = len(rows)
        for row in rows:
            if self._cfg_scale(row) != 1.0:
                row.weaker[0].cache_row = num_streams
                num_streams += 1
        longest = max(self._budget(row) for row in rows)
        cache = allocate_cache(self.model.transformer, num_streams=num_streams, longest=longest)
        reader = StreamReader(self.model, cache)
        active = list(rows)
        while active:
            reader.read_pending([stream for row in active for stream in row.streams])
            chosen_ids = self._choose_ids([row for row in active if row.span is None])
            drawing: dict[int, list[Row]] = {}
            for row in active:
                if row.span is None:
                    yield from self._take_token(row, chosen_ids.get(row.index))
                else:
                    drawing.setdefault(row.span.limit, []).append(row)
            for num_latents, group in drawing.items():
                pictures = self._draw_pictures(group, num_latents, reader)
                for row, latents in zip(group, pictures, strict=True):
                    yield from self._accept_picture(row, latents)
            for row in active:
                if row.finish_reason is not None:
                    yield DoneEvent(row.index, Document(tuple(row.parts)), row.finish_reason)
            active = [row for row in active if row.finish_reason is None]

    # -- rows ---------------------------------------------------------------------------------------------------------

    def _start(self, index: int, request: GenerationRequest) -> Row:
        if request.intermediate_prompts:
            raise ValueError("Transfusion is guided by one condition: leave intermediate_prompts out")
        for span in request.spans:
            if span.modality != MODALITY:
                raise ValueError(f"the request asks for '{span.modality}' but the model knows {MODALITY}")
            if span.grid is not None:
                raise ValueError("pictures of this model do not say their size: give num_latents, no grid")
        prompt = self._tokens(request.prompt)
        # Without a condition a document still has what opens every text.
        negative = self._tokens(request.negative_prompt or Document(()))
        row = Row(
            index=index,
            request=request,
            weaker_prompts=[negative],
            cond=Stream(cache_row=index, pending=prompt),
            weaker=[Stream(cache_row=-1)],
            spans=[LatentSpan(MODALITY, span.length or self._num_latents) for span in request.spans],
            seen_ids=[t for t in prompt if isinstance(t, int) and t < self.builder.vocabulary.num_text_ids],
        )
        if row.spans:
            self._open_span(row, row.spans.pop(0))
        return row

    def _tokens(self, prompt: Document) -> list[Token]:
        """The tokens of a prompt one by one, latents on the model's device."""
        sequence = self.builder.build(prompt, open_ended=True)
        latents = iter(sequence.latents.get(MODALITY, torch.zeros(0)).to(self.model.device, torch.float32))
        return [
            token if kind == 0 else (MODALITY, next(latents))
            for token, kind in zip(sequence.input_ids.tolist(), sequence.modality_ids.tolist(), strict=True)
        ]

    def _budget(self, row: Row) -> int:
        """Positions that the row can fill at most, in either stream."""
        spans = sum((span.length or self._num_latents) + 2 for span in row.request.spans)
        return max(len(row.cond.pending), len(row.weaker_prompts[0])) + spans + row.request.max_new_tokens

    def _cfg_scale(self, row: Row) -> float:
        scale = row.request.cfg_scale
        assert not isinstance(scale, tuple) or len(scale) == 1, "one scale per condition"
        scale = scale[0] if isinstance(scale, tuple) else scale
        return self.sampling.cfg_scale if scale is None else scale

    def _open_span(self, row: Row, span: LatentSpan) -> None:
        row.span = span
        row.cond.pending = [*row.cond.pending, self._begin_id]
        row.guided = self._cfg_scale(row) != 1.0
        if row.guided:
            row.weaker[0].restart([*row.weaker_prompts[0], self._begin_id])

    # -- discrete tokens ----------------------------------------------------------------------------------------------

    # Gradients are off in each part that computes, not in `stream`: switched off for its whole body, they would stay
    # off in its caller's code between two events.

    @torch.no_grad()
    def _choose_ids(self, rows: list[Row]) -> dict[int, int]:
        """The next id by row index, for the rows that may still write one."""
        asked = [(row, allowed) for row in rows if (allowed := self._allowed_ids(row)) is not None]
        if not asked:
            return {}
        logits = self.model.logits(torch.stack([row.cond.hidden_state for row, _ in asked]))  # (asked rows, V)
        numbers = keyed_uniform(
            self._seeds([row for row, _ in asked]),
            torch.tensor([row.cond.length for row, _ in asked], device=self.model.device),
            stream=TEXT_STREAM,
        )
        chosen = {}
        for (row, allowed), row_logits, number in zip(asked, logits, numbers, strict=True):
            seen = torch.tensor(sorted(set(row.seen_ids)), device=logits.device, dtype=torch.long)
            penalised = penalise_repetition(row_logits, seen, row.request.text.repetition_penalty)
            chosen[row.index] = int(sample_ids(penalised, row.request.text, number, allowed=allowed))
        return chosen

    def _allowed_ids(self, row: Row) -> Bool[Tensor, "V"] | None:
        """Ids among which the softmax head decides; None at the request's bound."""
        request, num_left = row.request, row.request.max_new_tokens - row.num_free
        if num_left <= 0:
            return None
        may_begin = request.max_spans is None or row.num_free_spans < request.max_spans
        return self._is_text_or_begin if may_begin and num_left >= self._free_length(row) + 2 else self._is_text

    def _free_length(self, row: Row) -> int:
        return row.request.free_lengths.get(MODALITY, self._num_latents)

    def _take_token(self, row: Row, token: int | None) -> Iterator[Event]:
        """A text id, end of text, or the begin token of a picture; None at the request's bound."""
        if token is None:
            yield from flush_text(row, self._text_tokenizer)
            row.finish_reason = "length"
            return
        row.num_free += 1
        yield TokenEvent(row.index, token)
        if token == self._begin_id:
            yield from flush_text(row, self._text_tokenizer)
            row.span_is_free = True
            row.num_free_spans += 1
            self._open_span(row, LatentSpan(MODALITY, self._free_length(row)))
        else:
            yield from take_text(row, token, self._text_tokenizer)

    # -- pictures -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _draw_pictures(self, rows: list[Row], num_latents: int, reader: StreamReader) -> Float[Tensor, "B N C"]:
        """The solver's loop over the whole network, one picture for each row."""
        solver, device, latent_dim = self._solver, self.model.device, self.model.config.image.latent_dim
        guided = [number for number, row in enumerate(rows) if row.guided]
        streams = [row.cond for row in rows] + [rows[number].weaker[0] for number in guided]
        cfg_scales = torch.tensor([self._cfg_scale(rows[number]) for number in guided], device=device)
        scales = guidance_scales(self.sampling.guidance, cfg_scales, solver.timesteps)  # (K, guided rows)
        index = torch.tensor(guided, device=device, dtype=torch.long)
        # Noise is a function of the request's seed and the latent's number, not of the batch around it.
        firsts = torch.tensor([row.num_latents for row in rows], device=device)
        numbers = firsts[:, None] + torch.arange(num_latents, device=device)
        seeds = self._seeds(rows)[:, None].expand_as(numbers)
        state = solver.initial_state(keyed_normal(seeds, numbers, (latent_dim,), stream=STARTING_NOISE_STREAM))
        step_noise = None
        for k in range(solver.num_evaluations):
            noisy_latents = torch.cat([state.noisy_latents, state.noisy_latents[index]])
            predictions = reader.predict(streams, noisy_latents, solver.timesteps[k])
            cond, uncond = predictions[: len(rows)], predictions[len(rows) :]
            cond = cond.index_copy(0, index, guide(cond[index], uncond, scales[k][:, None]))
            if solver.needs_noise:
                step_noise = keyed_normal(seeds, combine_keys(numbers, k), (latent_dim,), stream=STEP_NOISE_STREAM)
            state = solver.step(k, cond, state, step_noise)
        return state.noisy_latents

    def _seeds(self, rows: list[Row]) -> Int[Tensor, "B"]:
        return torch.tensor([signed_int64(row.request.seed) for row in rows], device=self.model.device)

    def _accept_picture(self, row: Row, latents: Float[Tensor, "N C"]) -> Iterator[Event]:
        if not latents.isfinite().all():
            raise ValueError(
                f"the latents drawn for request {row.index} hold NaN or infinity: the weights are damaged, or overflow "
                "in this precision"
            )
        count = len(latents)
        row.num_latents += count
        row.num_free += (count + 1) * row.span_is_free
        for number, latent in enumerate(latents):
            yield LatentEvent(row.index, MODALITY, latent, number, count)
        part = LatentPart(MODALITY, latents)
        row.parts.append(part)
        yield PartEvent(row.index, part)
        # Read again without noise, in the place of the last evaluation's keys and values; then the end token.
        row.cond.pending = [*((MODALITY, latent) for latent in latents), self._end_id]
        yield TokenEvent(row.index, self._end_id)
        row.span, row.span_is_free, row.guided = None, False, False
        if row.spans:
            self._open_span(row, row.spans.pop(0))
        elif row.request.max_new_tokens == 0:
            row.finish_reason = "spans"
