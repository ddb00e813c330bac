"""What speaks: one interface to LatentLM and to the models that it is compared with.

    recording ─read_voice▶ voice;  texts, voices, seeds ─speak▶ utterances

Shared by all of them: the guards, which bound the length of an utterance by that of its text, and further draws of what
a bound ended. Both can be switched off, and both are told in the result.

Shapes: S samples, n tokens of a sound, C numbers per token.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Shaped
from torch import Tensor

from latentlm.nn.keyed_noise import combine_keys, signed_int64
from latentlm.nn.precision import Precision

_RETRY_STREAM = 0x9E77


@dataclass(frozen=True, kw_only=True)
class SpeakingConfig:
    """How an utterance is drawn and when it is stopped."""

    cfg_scale: float | None = None
    """Guidance; None takes the model's default. The paper speaks with 4."""
    num_inference_steps: int | None = None
    """Solver steps per latent; None takes the model's default. The paper: 5, and 3 nearly as good. For models that
    denoise; others refuse it."""
    end_temperature: float = 0.0
    """Of the choice to go on or to end at every latent: 0 ends where the model finds it likelier than not, 1 draws. For
    models whose end is a choice of its own; codec language models draw it among the codes."""
    length_guard: bool = True
    """Keep the length between `min_ratio` and `max_ratio` of what the text would take. Off: up to `max_seconds`."""
    min_ratio: float = 0.4
    max_ratio: float = 2.5
    seconds_per_character: float | None = None
    """Expected pace; None takes the voice's own where its text is known, else 0.08, a calm reader of English."""
    max_seconds: float = 30.0
    """Bound on every utterance, guarded or not."""
    num_retries: int = 0
    """Further draws, each with a seed of its own, of an utterance that a bound ended."""
    sample_voice: bool = False
    """Read the voice as a sample of its posterior, as in training, instead of its mean. A sample has one scalar of
    noise for the whole voice, and what is said goes on at its level. Codes have no posterior."""
    guide_voice: bool = True
    """Whether guidance strengthens the voice with the text: its unconditional stream then begins without both. Off, it
    reads the voice and misses the text alone. For models whose voice is read by both streams; codec language models
    refuse it."""
    precision: Precision = "float32"
    """Of the model's matrix products."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_ratio < self.max_ratio:
            raise ValueError(f"min_ratio is {self.min_ratio} and max_ratio {self.max_ratio}; need 0 <= min < max")
        if self.max_seconds <= 0 or self.num_retries < 0:
            raise ValueError("max_seconds must be positive and num_retries 0 or more")
        if self.seconds_per_character is not None and not 0 < self.seconds_per_character < 10:
            raise ValueError(f"seconds_per_character is {self.seconds_per_character}; it must lie in (0, 10)")


@dataclass(frozen=True, eq=False)
class Utterance:
    """What was said.

    Attributes:
        waveform: In [-1, 1], without the voice's recording.
        sample_rate: Hz.
        tokens: What the waveform was decoded from: latents of unit variance, or codes.
        ended_by_itself: Whether the model closed the utterance, or a bound did.
        seeds: Of all draws; the last one's is what is heard.
    """

    waveform: Float[Tensor, "S"]
    sample_rate: int
    tokens: Shaped[Tensor, "n C"]
    ended_by_itself: bool
    seeds: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class SpeakingCost:
    """What an utterance costs; the tokenizer's decoder is not included."""

    num_steps: int
    """Autoregressive steps: passes of which each waits for the one before."""
    num_evaluations: int
    """Evaluations of a network, every stream of guidance being one: backbone steps, head steps, other passes."""
    flops: int
    """Of all evaluations, the reading of text and voice included."""


@runtime_checkable
class SomeVoice(Protocol):
    """What voices of all models have in common."""

    @property
    def text(self) -> str | None:
        """What the recording says; None if nobody wrote it down."""
        ...

    @property
    def seconds(self) -> float:
        """Length of the recording."""
        ...

    def save(self, path: Path) -> None:
        """Write it as one file, which `Speaker.read_voice` reads."""
        ...


@runtime_checkable
class Speaker(Protocol):
    """A trained model that says texts in the voices of recordings."""

    @property
    def kind(self) -> str:
        """Of the model, as in its config.json."""
        ...

    @property
    def sample_rate(self) -> int:
        """Of recordings and utterances, Hz."""
        ...

    def make_voice(self, waveform: Float[Tensor, "S"], *, text: str | None = None) -> SomeVoice:
        """A recording in [-1, 1], at the model's sample rate, as a voice.

        Raises:
            ValueError: If it is empty, silent, too long or not finite.
        """
        ...

    def read_voice(self, path: Path, *, text: str | None = None) -> SomeVoice:
        """A voice file, or a recording in any format that the audio library reads.

        Raises:
            ValueError: If it is neither.
            FileNotFoundError: If there is none.
        """
        ...

    def speak(
        self,
        texts: Sequence[str],
        voices: Sequence[Any],
        *,
        config: SpeakingConfig | None = None,
        seeds: Sequence[int] | None = None,
    ) -> list[Utterance]:
        """Speak texts, as one batch.

        Args:
            texts: What to say.
            voices: From `make_voice` or `read_voice`; None leaves it to the model.
            config: Guidance and guards.
            seeds: One per text; None counts from 0.

        Raises:
            ValueError: If a text is empty, or a voice is another tokenizer's.
        """
        ...

    def stream(
        self, text: str, voice: Any = None, *, config: SpeakingConfig | None = None, seed: int = 0
    ) -> Iterator[Float[Tensor, "_samples"]]:
        """Speak a text, chunk by chunk as far as the model can: joined, they are what `speak` gives without retries."""
        ...

    def speaking_cost(
        self, seconds: float, *, text: str = "", voice_seconds: float = 0.0, config: SpeakingConfig | None = None
    ) -> SpeakingCost:
        """What an utterance costs.

        Args:
            seconds: Of sound that is spoken.
            text: All that is read: the voice's text and what is said.
            voice_seconds: Of the voice's recording.
            config: Guidance and steps.
        """
        ...


def length_bounds(text: str, voice: SomeVoice | None, config: SpeakingConfig, frame_rate: float) -> tuple[int, int]:
    """Least and most tokens of an utterance.

    Args:
        text: To be said.
        voice: In which it is said.
        config: The guards.
        frame_rate: Tokens per second.
    """
    most = max(1, round(config.max_seconds * frame_rate))
    if not config.length_guard:
        return 1, most
    expected = len(text) * seconds_per_character(voice, config)
    least = max(1, math.floor(config.min_ratio * expected * frame_rate))
    most = min(most, math.ceil(config.max_ratio * expected * frame_rate) + 1)
    return min(least, most), most


def seconds_per_character(voice: SomeVoice | None, config: SpeakingConfig) -> float:
    """The pace that is expected of an utterance."""
    if config.seconds_per_character is not None:
        return config.seconds_per_character
    if voice is not None and voice.text:
        return voice.seconds / len(voice.text.strip())
    return 0.08


def said_with(text: str, voice: SomeVoice | None) -> str:
    """The text that a model reads before the sound: the voice's, and what is to be said.

    Raises:
        ValueError: If nothing is to be said, or nobody knows what the voice's recording says.
    """
    if not text.strip():
        raise ValueError("the text is empty: there is nothing to say")
    if voice is None:
        return text
    if voice.text is None or not voice.text.strip():
        raise ValueError(
            "the voice goes without its text: it would be taken for the beginning of what is to be said; tell "
            "what it says (latentlm say --voice-text, latentlm voice --text)"
        )
    return f"{voice.text.strip()} {text}"


def draw_utterances(
    draw: Callable[[list[int], list[int]], list[Utterance]],
    texts: Sequence[str],
    voices: Sequence[Any],
    seeds: Sequence[int] | None,
    *,
    num_retries: int,
) -> list[Utterance]:
    """Draw one utterance per text, and again those that a bound ended.

    Args:
        draw: Numbers of texts, and a seed for each, to their utterances.
        texts: What to say.
        voices: One per text.
        seeds: One per text; None counts from 0.
        num_retries: Draws after the first.

    Raises:
        ValueError: If there is not one voice and one seed per text.
    """
    seeds = range(len(texts)) if seeds is None else seeds
    if not len(texts) == len(voices) == len(seeds):
        raise ValueError(f"{len(texts)} texts, {len(voices)} voices, {len(seeds)} seeds: give one of each per text")
    utterances: dict[int, Utterance] = {}
    tried: dict[int, tuple[int, ...]] = {number: (seed,) for number, seed in enumerate(seeds)}
    waiting = list(tried)
    for _ in range(1 + num_retries):
        if not waiting:
            break
        for number, utterance in zip(waiting, draw(waiting, [tried[n][-1] for n in waiting]), strict=True):
            utterances[number] = replace(utterance, seeds=tried[number])
        waiting = [number for number in waiting if not utterances[number].ended_by_itself]
        for number in waiting:
            tried[number] = (*tried[number], _next_seed(tried[number]))
    return [utterances[number] for number in range(len(texts))]


def _next_seed(seeds: tuple[int, ...]) -> int:
    """Of another draw: it follows from the first seed and the number of draws, so that a run repeats."""
    return int(combine_keys(_RETRY_STREAM, signed_int64(seeds[0]), len(seeds)))
