"""Whose voices a measurement hears: speakers that a run was trained on, and speakers that it never met.

    recipe ─▶ recordings, whole and as they are ─┬ training, validation   heard by the run
                                                 ├ test                   of speakers heard and not
                                                 └ of_speaker(name)       all of one that the run left out

Where a recipe joins single words into utterances, measurements do too. A part of the recordings can be set aside for
judges: then no trial uses them.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from latentlm.config import from_mapping, with_changes
from latentlm.data.audio import (
    AudioDataConfig,
    AudioDataset,
    AudioExamples,
    AudioMixtureConfig,
    WordStringConfig,
    open_audio,
)
from latentlm.data.audio.augmentation import AugmentationConfig
from latentlm.data.records import BadRecord, DataError
from latentlm.evaluation.speech.recordings import Recordings
from latentlm.nn.keyed_noise import keyed_uniform

RECIPE_NAME = "recipe.yaml"
"""What a run folder says of itself."""

_JUDGES_STREAM = 0x1D6E

_log = logging.getLogger(__name__)


class SpeechData:
    """Recordings as they are measured: uncut, unchanged, by part and by speaker.

    Args:
        recordings: As a run was trained on them.
        words: How single words are joined into utterances; None where recordings are utterances.
        others: Whatever else the run, or its tokenizer, was trained on; it is not measured on these.
        was_heard: False if the run was trained on `others` alone.
    """

    def __init__(
        self,
        recordings: AudioDataConfig,
        words: WordStringConfig | None = None,
        *,
        others: Sequence[AudioDataConfig] = (),
        was_heard: bool = True,
    ) -> None:
        whole = replace(recordings, crop_seconds=None, augmentation=AugmentationConfig())
        if words is not None and whole.level_db is None:
            whole = replace(whole, level_db=words.level_db)
        self._config = whole
        self._trained_on = (*((whole,) if was_heard else ()), *others)
        self.words = words
        self.sample_rate = whole.sample_rate

    @staticmethod
    def of(recipe: Any, changes: Mapping[str, Any], words: WordStringConfig | None) -> "SpeechData":
        """Those of a recipe.

        Args:
            recipe: Of a speech tokenizer or of a model that speaks; None where nothing was trained.
            changes: Fields of the recordings' config by dotted name, written over the recipe's, such as
                {sample_rate: 16000}; with a `path`, and where there is no recipe, they are all that is known of
                recordings that the run was not trained on.
            words: Instead of the recipe's; None takes that.

        Raises:
            ValueError: If neither names recordings, or the recipe names several groups of them.
        """
        own = [] if recipe is None else _settings_of(recipe)
        heard = [config for config, _ in own] + ([] if recipe is None else _heard_by_tokenizer(recipe))
        if not own or "path" in changes:
            foreign = from_mapping(AudioDataConfig, changes, where="data")
            return SpeechData(foreign, words, others=heard, was_heard=False)
        if getattr(recipe, "mixture", None) is not None:
            raise ValueError("this tokenizer was trained on a mixture: say on which recordings to measure, data.path")
        changed, *also = [with_changes(one, changes, where="the recordings' config") for one in heard]
        _, own_words = own[0]
        return SpeechData(changed, words or own_words, others=[config for config in also if config != changed])

    def training(self) -> AudioDataset:
        """What the run was trained on, or would be."""
        return open_audio(self._config, part="train")

    def validation(self) -> AudioDataset:
        """Of the same speakers, held out."""
        return open_audio(self._config, part="validation")

    def test(self) -> AudioDataset:
        """The test recordings, those of speakers that the run left out too."""
        return open_audio(replace(self._config, exclude_speakers=[]), part="test")

    @cached_property
    def heard_speakers(self) -> frozenset[str]:
        """Whom the run or its tokenizer was trained on; nobody of recordings that do not tell who speaks."""
        heard: set[str] = set()
        for config in self._trained_on:
            recordings = open_audio(replace(config, crop_seconds=None), part="train")
            try:
                heard.update(recordings.speakers)
            except DataError:
                _log.info("%s does not tell who speaks", config.path)
        return frozenset(heard)

    def of_speaker(self, name: str) -> tuple[AudioDataset, bool]:
        """All recordings of a speaker that the run never heard.

        Returns:
            Those that it left out of the training file, or else those of the test; and whether they are the former.

        Raises:
            ValueError: If the run was trained on the speaker, or there is no such speaker.
        """
        if name in self.heard_speakers:
            raise ValueError(
                f"the run, or its tokenizer, was trained on recordings of {name!r}: it says nothing about voices that "
                "it never heard. Leave the speaker out of both trainings (exclude_speakers)"
            )
        for recordings, is_train_file in ((self._train_file(), True), (self.test(), False)):
            keep = np.array([speaker == name for speaker in recordings.speakers])
            if keep.any():
                return subset(recordings, keep), is_train_file
        raise ValueError(f"there are no recordings of a speaker called {name!r}, neither for training nor for test")

    def for_judges(self, ratio: float, *, without: Sequence[str] = ()) -> AudioDataset:
        """The recordings of the training file that judges learn from, whatever the run left out of them.

        One share for all runs on the same file, so that one judge judges them all.

        Args:
            ratio: Share of the recordings of each speaker, in (0, 1].
            without: Speakers that judges are not to know.
        """
        recordings = self._train_file()
        known = np.array([speaker not in without for speaker in recordings.speakers]) if without else True
        return subset(recordings, is_for_judges(recordings, ratio) & known)

    def for_selectors(self, ratio: float, *, without: Sequence[str]) -> AudioDataset:
        """The rest of the training file, for those who choose settings: no judge and no trial knows it.

        Args:
            ratio: Share of the judges.
            without: Speakers that are measured; the rest of theirs is for trials.
        """
        recordings = self._train_file()
        known = np.array([speaker not in without for speaker in recordings.speakers])
        return subset(recordings, ~is_for_judges(recordings, ratio) & known)

    def _train_file(self) -> AudioDataset:
        """All recordings of the training file, of speakers that the run left out too, as one part."""
        config = replace(self._config, exclude_speakers=[], only_speakers=[])
        undivided = replace(config, validation_ratio=0.0, split_file=None, split_by="record")
        return open_audio(undivided, part="train")


def subset(recordings: AudioDataset, keep: np.ndarray) -> AudioDataset:
    """Some of the recordings, in order.

    Args:
        recordings: Of one part.
        keep: Bool [len(recordings)].

    Raises:
        ValueError: If nothing is left.
    """
    if not keep.any():
        raise ValueError(f"{recordings.config.path}: none of {len(recordings)} recordings is left")
    return AudioDataset(recordings.source, recordings.indices[keep], recordings.config, augment=False)


def is_for_judges(recordings: AudioDataset, ratio: float) -> np.ndarray:
    """Bool [len(recordings)]: which of them judges learn from. It hangs on a recording's place in its file alone."""
    places = torch.from_numpy(recordings.indices)
    return (keyed_uniform(0, places, stream=_JUDGES_STREAM) < ratio).numpy()


def readable(examples: AudioExamples) -> Iterator[dict[str, Any]]:
    """Examples in order; bad recordings are named in the log and left out."""
    for index in range(len(examples)):
        try:
            yield examples[index]
        except BadRecord as error:
            _log.warning("left out: %s", error)


def as_recordings(examples: AudioExamples) -> Recordings:
    """All examples in memory, with their texts and speakers."""
    return Recordings.from_examples(readable(examples), examples.sample_rate)


def joined(parts: Sequence[Recordings]) -> Recordings:
    """Recordings of one sample rate, one after the other."""
    return Recordings(
        waveforms=[clip for part in parts for clip in part.waveforms],
        texts=[text for part in parts for text in part.texts],
        speakers=[speaker for part in parts for speaker in part.speakers],
        sample_rate=parts[0].sample_rate,
    )


def _settings_of(recipe: Any) -> list[tuple[AudioDataConfig, WordStringConfig | None]]:
    """Recordings and words of a tokenizer's groups, or of a model's sources, the first that it speaks from first."""
    sources = [source.speech for source in getattr(recipe, "sources", {}).values() if source.speech is not None]
    spoken = [one for one in sources if any(_speaks(template) for template in one.templates)]
    if sources:
        chosen = (spoken or sources)[0]
        others = [(one.recordings, one.words) for one in sources if one is not chosen]
        return [(chosen.recordings, chosen.words), *others]
    if not isinstance(getattr(recipe, "groups", None), AudioMixtureConfig):
        raise ValueError(f"this recipe of kind {recipe.kind!r} names no recordings to measure on")
    return [(config, recipe.groups.words.get(name)) for name, config in recipe.groups.groups.items()]


def _heard_by_tokenizer(recipe: Any) -> list[AudioDataConfig]:
    """What the tokenizer of a model was trained on, as far as its run still lies around its model."""
    folder = getattr(recipe, "speech_tokenizer", None) or getattr(recipe, "vocoder", None)
    if folder is None:
        return []
    path = Path(folder).parent / RECIPE_NAME
    if not path.is_file():
        _log.warning("there is no %s: nobody knows whose voices the tokenizer has heard", path)
        return []
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    groups = (content.get("mixture") or {}).get("groups") or {"data": content["data"]}
    return [from_mapping(AudioDataConfig, group, where=f"{path}: {name}") for name, group in groups.items()]


def _speaks(template: str) -> bool:
    """Whether it reads a text aloud."""
    return 0 <= template.find("{text}") < template.find("{speech}")
