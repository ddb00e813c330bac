"""The trials of text-to-speech protocols, made of a run's recordings.

    reference     strings of a speaker's recorded words, prompt and target of different recordings;
                  or another utterance of the speaker, where recordings are utterances
    continuation  long strings, cut at the end of a word after 3 s

Shapes: S samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from latentlm.data.audio import AudioDataset, WordPairs, WordStringConfig, WordStrings
from latentlm.evaluation.speech.recordings import Recordings
from latentlm.evaluation.speech.tts_trials import (
    Origin,
    Protocol,
    Trial,
    TrialSet,
    Utterance,
    continuation_trials,
    reference_trials,
)
from latentlm.experiments.speech_data import readable

_SPARE_RATIO = 2.0
"""Long strings drawn for every one that is needed: some last less than 6 s."""


@dataclass(frozen=True, kw_only=True)
class TrialShape:
    """How many words are said after how many; of no meaning where recordings are utterances."""

    num_words: int = 5
    num_prompt_words: int = 5
    num_continued_words: int = 14
    """Of a recording that is cut into prompt and target; of spoken digits 14 last seven seconds."""


def make_trials(
    protocol: Protocol,
    recordings: Sequence[AudioDataset],
    words: WordStringConfig | None,
    shape: TrialShape,
    *,
    num_trials: int,
    origin: Origin,
    seed: int,
) -> TrialSet:
    """Trials in equal numbers from each set of recordings of words, or from all utterances as they are drawn.

    Args:
        protocol: Which.
        recordings: Of one speaker each, or of several that take turns as they are drawn.
        words: How single words are joined; None where recordings are utterances.
        shape: How many words.
        num_trials: In all.
        origin: Recorded or synthesised.
        seed: Trial i is generated with seed + i.

    Raises:
        ValueError: If the recordings are too few or too short, or sentences are to be continued, whose words end nobody
            knows where.
    """
    if words is None:
        trials = _trials_of_utterances(protocol, recordings, num_trials, origin, seed)
    else:
        make = _pairs if protocol == "reference" else _continuations
        trials = []
        for number, clips in enumerate(recordings):
            count = num_trials // len(recordings) + (number < num_trials % len(recordings))
            if count:
                trials += make(clips, words, shape, count, origin, seed)
    numbered = tuple(replace(trial, seed=seed + number) for number, trial in enumerate(trials))
    return TrialSet(protocol=protocol, origin=origin, sample_rate=recordings[0].sample_rate, trials=numbered)


def real_speech(trials: TrialSet) -> Recordings:
    """The targets, as recordings that judges can be tried on."""
    return Recordings(
        waveforms=[trial.target for trial in trials.trials],
        texts=[trial.text for trial in trials.trials],
        speakers=[trial.speaker for trial in trials.trials],
        sample_rate=trials.sample_rate,
    )


def _pairs(
    clips: AudioDataset, words: WordStringConfig, shape: TrialShape, count: int, origin: Origin, seed: int
) -> list[Trial]:
    config = _of_length(words, shape.num_words, count, seed)
    counts = {"min_prompt_words": shape.num_prompt_words, "max_prompt_words": shape.num_prompt_words}
    return [
        Trial(
            text=pair["text"],
            prompt=pair["prompt_audio"],
            prompt_text=pair["prompt_text"],
            speaker=pair["speaker"],
            target=pair["audio"],
            seed=seed,
        )
        for pair in readable(WordPairs(clips, config, **counts))
    ]


def _continuations(
    clips: AudioDataset, words: WordStringConfig, shape: TrialShape, count: int, origin: Origin, seed: int
) -> list[Trial]:
    strings = WordStrings(clips, _of_length(words, shape.num_continued_words, int(_SPARE_RATIO * count), seed))
    utterances = [_utterance(example, strings.sample_rate) for example in readable(strings)]
    return list(continuation_trials(utterances, strings.sample_rate, origin=origin, num_trials=count, seed=seed).trials)


def _trials_of_utterances(
    protocol: Protocol, recordings: Sequence[AudioDataset], count: int, origin: Origin, seed: int
) -> list[Trial]:
    if protocol == "continuation":
        raise ValueError("recordings are continued behind a word, and nobody knows where theirs end")
    sample_rate = recordings[0].sample_rate
    examples = (example for clips in recordings for example in readable(clips))
    utterances = [_utterance(example, sample_rate) for example in examples if example["text"].strip()]
    return list(reference_trials(utterances, sample_rate, origin=origin, num_trials=count, seed=seed).trials)


def _of_length(words: WordStringConfig, num_words: int, count: int, seed: int) -> WordStringConfig:
    return replace(words, min_words=num_words, max_words=num_words, num_utterances=count, same_speaker=True, seed=seed)


def _utterance(example: dict[str, Any], sample_rate: int) -> Utterance:
    boundaries = example.get("boundaries")
    ends = None if boundaries is None else tuple((boundaries[:, 1].double() / sample_rate).tolist())
    waveform = torch.as_tensor(example["audio"])[: example["num_samples"]]
    return Utterance(waveform=waveform, text=example["text"], speaker=example["speaker"], word_ends=ends)
