"""What a caller asks of the generator, and the events that answer it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from latentlm.diffusion.guidance import GuidanceConfig
from latentlm.diffusion.solvers import SolverConfig
from latentlm.sequence import Document, Part


@dataclass(frozen=True, kw_only=True)
class LatentSamplingConfig:
    """How the latents of one modality are sampled; saved with a model as its default."""

    cfg_scale: float = 1.0
    """Classifier-free guidance: 1 is none. The paper's images use 1.65 to 1.75, its speech 4."""
    solver: SolverConfig = field(default_factory=SolverConfig)
    """DPM-Solver++ with 20 steps is the paper's."""
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    """Where along steps and positions the guidance acts."""

    def __post_init__(self) -> None:
        _check_cfg_scale(self.cfg_scale)


@dataclass(frozen=True, kw_only=True)
class TextSamplingConfig:
    """How the next discrete token is chosen: Sample(P_d) of Eq. 1."""

    temperature: float = 1.0
    """Divides the logits; 0 is greedy."""
    top_k: int | None = None
    """Keep the k most likely ids."""
    top_p: float = 1.0
    """Keep the smallest set of ids whose probability reaches p, of those that top_k kept (Holtzman et al. 2020)."""
    min_p: float = 0.0
    """Keep the ids whose probability is at least this share of the most likely one's (Nguyen et al. 2024)."""
    repetition_penalty: float = 1.0
    """Divides the positive logits of ids that the prompt or the answer holds already, and multiplies the negative ones
    (Keskar et al. 2019); 1 is none."""
    eos_ids: tuple[int, ...] = ()
    """Ids that end a text besides the tokenizer's end-of-text: a chat model ends its turns with another one."""

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (greedy) or positive")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must lie in (0, 1]")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; it must be at least 1")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p is {self.min_p}; it must lie in [0, 1]")
        if not self.repetition_penalty > 0:
            raise ValueError(f"repetition_penalty is {self.repetition_penalty}; it must be positive, 1 for none")
        if any(token < 0 for token in self.eos_ids):
            raise ValueError(f"eos_ids is {self.eos_ids}; ids are not negative")


@dataclass(frozen=True)
class LatentSpan:
    """A span of latents that the request forces."""

    modality: str
    num_latents: int | None = None
    """Its length; None lets the model's own end token decide."""
    max_latents: int = 4096
    """Bound on a free length."""
    min_latents: int = 1
    """A free span may not end before it has so many."""
    prefix: Float[Tensor, "n C"] | None = field(default=None, compare=False)
    """Latents that the span begins with, to be continued: a voice to go on in. Not counted by the lengths above, and
    not part of the answer."""
    guide_prefix: bool = True
    """Whether guidance leads away from what lacks the prefix too: the unconditional stream begins without it."""
    grid: tuple[int, int] | None = None
    """Rows and columns, for models whose pictures say their size; gives the length too."""
    label: int | None = None
    """Class whose label stands before the span, behind whatever was generated; None for none. The unconditional stream
    reads its own prompt instead."""

    @property
    def length(self) -> int | None:
        """Its number of latents, if that is settled."""
        return self.num_latents if self.grid is None else self.grid[0] * self.grid[1]

    @property
    def limit(self) -> int:
        """Most latents that the span can have."""
        return self.max_latents if self.length is None else self.length


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """One row of a batch, with its own prompt, mode, length, seed and guidance.

    Attributes:
        prompt: What comes before.
        spans: Latent spans that follow the prompt at once, one after another ("now an image of 16 latents").
        max_new_tokens: Free decoding after the spans: text, and spans where the model opens them, up to this many
            positions, switch tokens and latents included. 0 stops after the spans.
        max_spans: Spans that the model may open by itself; 0 is text only, None any number.
        free_lengths: Length of the spans that the model opens by itself, by modality; where none is given, the model
            also decides when a span ends.
        stop_strings: Free decoding ends as soon as a stretch of its text holds one of them, which stays in the text.
        negative_prompt: What the unconditional stream reads before each span. None drops the condition: the null class
            where the model knows classes without switch tokens, otherwise nothing but what opens every document and
            the begin token.
        intermediate_prompts: For guidance by several conditions, each with its own strength: prompts that hold more and
            more of them, between the negative prompt and the prompt. With predictions e_0 (negative prompt), e_1, … and
            e_k (the prompt) latents are drawn from e_0 + Σ s_i (e_i - e_(i-1)) (InstructPix2Pix, Eq. 3).
        seed: Any integer; all noise of this request follows from it.
        cfg_scale: Guidance of this request; None takes the modality's default. With intermediate prompts a scale s_i
            for each of them and one for the prompt, in this order.
        text: How text is sampled.
    """

    prompt: Document
    spans: tuple[LatentSpan, ...] = ()
    max_new_tokens: int = 0
    max_spans: int | None = None
    free_lengths: Mapping[str, int] = field(default_factory=dict)
    stop_strings: tuple[str, ...] = ()
    negative_prompt: Document | None = None
    intermediate_prompts: tuple[Document, ...] = ()
    seed: int = 0
    cfg_scale: float | tuple[float, ...] | None = None
    text: TextSamplingConfig = field(default_factory=TextSamplingConfig)

    def __post_init__(self) -> None:
        if self.max_new_tokens < 0:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; it must be 0 or positive")
        if self.max_spans is not None and self.max_spans < 0:
            raise ValueError(f"max_spans is {self.max_spans}; it must be 0 or positive, or None for any number")
        if any(length < 1 for length in self.free_lengths.values()):
            raise ValueError("a latent span needs at least one latent")
        if "" in self.stop_strings:
            raise ValueError("a stop string is empty: every text holds it")
        scales = self.cfg_scale if isinstance(self.cfg_scale, tuple) else (self.cfg_scale,)
        for scale in scales:
            if scale is not None:
                _check_cfg_scale(scale)
        if len(scales) != 1 + len(self.intermediate_prompts):
            raise ValueError(
                f"{len(self.intermediate_prompts)} intermediate prompts need {1 + len(self.intermediate_prompts)} "
                f"values of cfg_scale, but {len(scales)} were given"
            )
        if not self.spans and not self.max_new_tokens:
            raise ValueError("the request asks for nothing: give spans, or max_new_tokens above 0")
        if any(min(span.limit, span.min_latents) < 1 for span in self.spans):
            raise ValueError("a latent span needs at least one latent")
        if any(span.min_latents > span.limit for span in self.spans):
            raise ValueError("min_latents of a span lies above its length, or above max_latents")


def _check_cfg_scale(cfg_scale: float) -> None:
    if not math.isfinite(cfg_scale):
        raise ValueError(f"cfg_scale is {cfg_scale}; guidance needs a finite number, 1 for none")


@dataclass(frozen=True)
class TokenEvent:
    """A discrete token was chosen, switch tokens included."""

    request: int
    token_id: int


@dataclass(frozen=True, eq=False)
class LatentEvent:
    """Latent `index` of `total` was sampled (`total` is None while the length is free)."""

    request: int
    modality: str
    latent: Float[Tensor, "C"]
    index: int
    total: int | None


@dataclass(frozen=True, eq=False)
class PartEvent:
    """A part is complete."""

    request: int
    part: Part


@dataclass(frozen=True, eq=False)
class DoneEvent:
    """The request is answered; `finish_reason` is "spans", "eos", "stop" (a stop string) or "length"."""

    request: int
    document: Document
    finish_reason: str


Event = TokenEvent | LatentEvent | PartEvent | DoneEvent
