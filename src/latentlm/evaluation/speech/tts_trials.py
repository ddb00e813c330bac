"""What a zero-shot voice is asked to say, and after which prompt: the two protocols of the paper's Table 4.

    reference     another utterance of the speaker, with its transcript, is the prompt
    continuation  the first 3 s of a recording of at least 6 s, with their transcript, are the prompt

The prompt's sound is no part of what is scored; its own recording is what voices are compared with.

Shapes: S samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Protocol = Literal["reference", "continuation"]
Origin = Literal["recorded", "synthesised"]
"""Whether the real clips are recordings of people or the work of another synthesizer; stands in every row."""

PROMPT_SECONDS = 3.0
MIN_CONTINUED_SECONDS = 6.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Utterance:
    """A real clip.

    Attributes:
        waveform: In [-1, 1].
        text: What is said, in words.
        speaker: Who says it.
        word_ends: Where each word of the text ends, seconds; None if that is not known.
    """

    waveform: Float[Tensor, " S"]
    text: str
    speaker: str
    word_ends: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """One thing to say.

    Attributes:
        text: To be said.
        prompt: The voice to say it in.
        prompt_text: What is said in the prompt.
        speaker: Whose voice it is.
        target: The speaker's own recording of the text: the ground truth, and the expected length.
        seed: Of the generation.
    """

    text: str
    prompt: Float[Tensor, " S"]
    prompt_text: str
    speaker: str
    target: Float[Tensor, " R"]
    seed: int


@dataclass(frozen=True, kw_only=True, eq=False)
class TrialSet:
    """Trials of one protocol on one corpus."""

    protocol: Protocol
    origin: Origin
    sample_rate: int
    """Hz."""
    trials: tuple[Trial, ...]

    def __len__(self) -> int:
        return len(self.trials)


def reference_trials(
    utterances: Sequence[Utterance], sample_rate: int, *, origin: Origin, num_trials: int, seed: int = 0
) -> TrialSet:
    """Each target has another utterance of its speaker for a prompt, with another text: nothing can be copied.

    Args:
        utterances: Of speakers that the model has never heard.
        sample_rate: Hz.
        origin: Recorded or synthesised.
        num_trials: Different targets.
        seed: Of the draws; trial i is generated with seed + i.

    Raises:
        ValueError: If fewer utterances have a prompt.
    """
    generator = torch.Generator().manual_seed(seed)
    trials: list[Trial] = []
    for index in torch.randperm(len(utterances), generator=generator).tolist():
        target = utterances[index]
        prompts = [other for other in utterances if other.speaker == target.speaker and other.text != target.text]
        if prompts and len(trials) < num_trials:
            prompt = prompts[int(torch.randint(len(prompts), (), generator=generator))]
            trials.append(
                Trial(
                    text=target.text,
                    prompt=prompt.waveform,
                    prompt_text=prompt.text,
                    speaker=target.speaker,
                    target=target.waveform,
                    seed=seed + len(trials),
                )
            )
    return _trial_set("reference", origin, sample_rate, trials, num_trials)


def continuation_trials(
    utterances: Sequence[Utterance], sample_rate: int, *, origin: Origin, num_trials: int, seed: int = 0
) -> TrialSet:
    """Each recording is cut at the end of the word that is being said after 3 s.

    So the prompt has a transcript and no word is halved. Recordings shorter than 6 s, or without a word after the cut,
    are passed over.

    Args:
        utterances: Of speakers that the model has never heard, with `word_ends`.
        sample_rate: Hz.
        origin: Recorded or synthesised.
        num_trials: Different recordings.
        seed: Of the draws; trial i is generated with seed + i.

    Raises:
        ValueError: If an utterance does not know where its words end, or fewer are long enough.
    """
    generator = torch.Generator().manual_seed(seed)
    trials: list[Trial] = []
    for index in torch.randperm(len(utterances), generator=generator).tolist():
        utterance = utterances[index]
        words, ends = utterance.text.split(), utterance.word_ends
        if ends is None or len(ends) != len(words):
            raise ValueError(
                f"{utterance.text[:60]!r} has {len(words)} words and {len(ends or ())} ends of words: a prompt that is "
                "cut out of a recording needs them for its transcript"
            )
        num_prompt_words = 1 + sum(end < PROMPT_SECONDS for end in ends)
        is_long = len(utterance.waveform) >= MIN_CONTINUED_SECONDS * sample_rate
        if is_long and num_prompt_words < len(words) and len(trials) < num_trials:
            cut = round(ends[num_prompt_words - 1] * sample_rate)
            trials.append(
                Trial(
                    text=" ".join(words[num_prompt_words:]),
                    prompt=utterance.waveform[:cut],
                    prompt_text=" ".join(words[:num_prompt_words]),
                    speaker=utterance.speaker,
                    target=utterance.waveform[cut:],
                    seed=seed + len(trials),
                )
            )
    return _trial_set("continuation", origin, sample_rate, trials, num_trials)


def _trial_set(protocol: Protocol, origin: Origin, sample_rate: int, trials: list[Trial], num_trials: int) -> TrialSet:
    if len(trials) < num_trials or not trials:
        raise ValueError(f"{num_trials} trials of the protocol {protocol!r} were asked for, but {len(trials)} fit it")
    return TrialSet(protocol=protocol, origin=origin, sample_rate=sample_rate, trials=tuple(trials))
