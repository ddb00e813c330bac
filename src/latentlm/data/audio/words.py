"""Utterances joined from recordings of single words: digit strings of spoken digits.

    clips (one word each) ─draw speaker, words, takes, pauses▶ "three one four" in one voice, with word boundaries

Everything is a pure function of (config, clips, seed, epoch, index). The pair form gives a prompt and a target of one
speaker that share no recording: what zero-shot protocols ask for, where no corpus has utterances of the speaker.

Shapes: S samples, W words.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from latentlm.data.audio.datasets import AudioDataset, AudioExamples
from latentlm.data.audio.levels import normalize_level
from latentlm.data.loader import Batch
from latentlm.data.records import DataError
from latentlm.nn.keyed_noise import combine_keys, keyed_uniform

_STREAM = 0x3046
_PROMPT, _TARGET, _SPEAKER = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class WordStringConfig:
    num_utterances: int = 10_000
    """Length of an epoch; another epoch has other utterances, except in evaluation, which sees the first."""
    min_words: int = 2
    max_words: int = 6
    min_gap_seconds: float = 0.05
    """The shortest pause between two words."""
    max_gap_seconds: float = 0.25
    """The longest; also of the silence before the first word and after the last."""
    same_speaker: bool = True
    """Whether all words of an utterance are one speaker's."""
    level_db: float | None = -23.0
    """Active level of every word, dB of full scale: recordings of one speaker differ too. None leaves it."""
    seed: int = 0
    """Another one, other utterances."""

    def __post_init__(self) -> None:
        if self.num_utterances < 1:
            raise ValueError(f"num_utterances is {self.num_utterances}, must be at least 1")
        if not 1 <= self.min_words <= self.max_words:
            raise ValueError(f"need 1 <= min_words={self.min_words} <= max_words={self.max_words}")
        if not 0 <= self.min_gap_seconds <= self.max_gap_seconds:
            raise ValueError(f"need 0 <= min_gap_seconds={self.min_gap_seconds} <= {self.max_gap_seconds}")


class WordStrings(AudioExamples):
    """Joined utterances.

    An example has `audio`, `num_samples`, `key`, `text` (the words with blanks between), `speaker` (empty for several),
    `words` (a list), `clips` (their indices) and `boundaries`, Int64 [W, 2]: first and one after the last sample of
    each word.

    Args:
        clips: Whole recordings of one word each, whose text is that word.
        config: How they are joined.

    Raises:
        DataError: If a clip has no text, clips are crops, or a speaker has too few of them.
    """

    def __init__(self, clips: AudioDataset, config: WordStringConfig) -> None:
        super().__init__(rejected=clips.rejected, max_bad_records=clips.max_bad_records)
        if clips.config.crop_seconds is not None:
            raise DataError("words are joined from whole recordings: leave crop_seconds out")
        self.clips = clips
        self.config = config
        self.sample_rate = clips.sample_rate
        texts = clips.texts
        if not all(text.strip() for text in texts):
            raise DataError(f"{clips.config.path}: every clip needs a word; name its column: columns={{text: word}}")
        self._texts = texts
        names = clips.speakers if config.same_speaker else [""] * len(clips)
        # speaker -> word -> clips; sorted, so that the order of the file does not matter to what is drawn
        self._by_speaker: dict[str, dict[str, list[int]]] = {}
        for index, (speaker, word) in enumerate(zip(names, texts, strict=True)):
            self._by_speaker.setdefault(speaker, {}).setdefault(word, []).append(index)
        self._speakers = sorted(self._by_speaker)
        self._check_counts(config.max_words)

    def __len__(self) -> int:
        return self.config.num_utterances

    def read(self, index: int, *, seed: int, epoch: int) -> dict[str, Any]:
        """See `AudioExamples.read`."""
        speaker, key = self._begin(index, seed, epoch)
        clips = self._draw_clips(speaker, key, _TARGET, self.config.min_words, self.config.max_words, taken=())
        return {**self._joined(clips, int(combine_keys(key, _TARGET))), "key": index, "speaker": speaker}

    def augment(self, batch: Batch, *, seed: int, epochs: Tensor) -> Batch:
        """As the clips' config says, each utterance as a whole."""
        return self.clips.augment(batch, seed=seed, epochs=epochs)

    def _check_counts(self, num_clips: int) -> None:
        for speaker, by_word in self._by_speaker.items():
            if sum(map(len, by_word.values())) < num_clips:
                raise DataError(f"{self.clips.config.path}: {speaker!r} has fewer clips than an example's {num_clips}")

    def _begin(self, index: int, seed: int, epoch: int) -> tuple[str, int]:
        """The speaker of an utterance, and the key that all its other draws hang on."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} utterances")
        key = int(combine_keys(_STREAM, self.config.seed, seed, epoch, index))
        (draw,) = _uniform(key, _SPEAKER, 1)
        return self._speakers[int(draw * len(self._speakers))], key

    def _draw_clips(
        self, speaker: str, key: int, role: int, min_words: int, max_words: int, *, taken: Sequence[int]
    ) -> list[int]:
        """Clips of a speaker: words are equally likely, takes of a word too, and none is used twice."""
        by_word = self._by_speaker[speaker]
        words = sorted(by_word)
        count_draw, *draws = _uniform(key, role, 1 + 2 * max_words)
        count = min_words + int(count_draw * (max_words - min_words + 1))
        chosen: list[int] = []
        for place in range(count):
            first = int(draws[2 * place] * len(words))
            for word in words[first:] + words[:first]:  # in small sets a word may have no take left: then the next one
                takes = [clip for clip in by_word[word] if clip not in chosen and clip not in taken]
                if takes:
                    chosen.append(takes[int(draws[2 * place + 1] * len(takes))])
                    break
        return chosen

    def _joined(self, clips: Sequence[int], key: int) -> dict[str, Any]:
        config = self.config
        pieces: list[Tensor] = []
        boundaries = []
        span = config.max_gap_seconds - config.min_gap_seconds
        gaps = [config.min_gap_seconds + span * draw for draw in _uniform(key, _STREAM, len(clips) + 1)]
        position = 0
        for clip, gap in zip([*clips, None], gaps, strict=True):
            pieces.append(torch.zeros(round(gap * self.sample_rate)))
            position += len(pieces[-1])
            if clip is not None:
                pieces.append(self._clip(clip))
                boundaries.append((position, position + len(pieces[-1])))
                position += len(pieces[-1])
        words = [self._texts[clip] for clip in clips]
        return {
            "audio": torch.cat(pieces),
            "num_samples": position,
            "text": " ".join(words),
            "words": words,
            "clips": list(clips),
            "boundaries": torch.tensor(boundaries),
        }

    def _clip(self, index: int) -> Float[Tensor, "S"]:
        audio = self.clips[index]["audio"]
        if self.config.level_db is None:
            return audio
        return torch.from_numpy(normalize_level(np.ascontiguousarray(audio), self.sample_rate, self.config.level_db))


class WordPairs(WordStrings):
    """A prompt and a target utterance of one speaker, of different recordings.

    An example is that of the target, as `WordStrings` gives it, with `prompt_audio`, `prompt_num_samples`,
    `prompt_text`, `prompt_words`, `prompt_clips` and `prompt_boundaries` beside it.

    Args:
        clips: As for `WordStrings`.
        config: How both are joined; its word counts are the target's.
        min_prompt_words: At least so many words in a prompt.
        max_prompt_words: At most so many.

    Raises:
        DataError: As `WordStrings`.
        ValueError: If the counts are out of order, or utterances are to have several speakers.
    """

    def __init__(
        self, clips: AudioDataset, config: WordStringConfig, *, min_prompt_words: int = 5, max_prompt_words: int = 5
    ) -> None:
        if not config.same_speaker:
            raise ValueError("a prompt is of the target's speaker: same_speaker cannot be false")
        if not 1 <= min_prompt_words <= max_prompt_words:
            raise ValueError(f"need 1 <= {min_prompt_words=} <= {max_prompt_words=}")
        super().__init__(clips, config)
        self._check_counts(config.max_words + max_prompt_words)
        self._prompt_words = (min_prompt_words, max_prompt_words)

    def read(self, index: int, *, seed: int, epoch: int) -> dict[str, Any]:
        """See `AudioExamples.read`."""
        target = super().read(index, seed=seed, epoch=epoch)
        speaker, key = self._begin(index, seed, epoch)
        clips = self._draw_clips(speaker, key, _PROMPT, *self._prompt_words, taken=target["clips"])
        prompt = self._joined(clips, int(combine_keys(key, _PROMPT)))
        return {**target, **{f"prompt_{name}": value for name, value in prompt.items()}}

    def augment(self, batch: Batch, *, seed: int, epochs: Tensor) -> Batch:
        """As `WordStrings.augment`; prompt and target become the same other voice."""
        target = super().augment(batch, seed=seed, epochs=epochs)
        prompt = {"audio": batch["prompt_audio"], "num_samples": batch["prompt_num_samples"], "key": batch["key"]}
        return {**target, "prompt_audio": super().augment(prompt, seed=seed, epochs=epochs)["audio"]}


def _uniform(key: int, role: int, count: int) -> list[float]:
    return keyed_uniform(0, combine_keys(key, role), (count,), stream=_STREAM).double().tolist()
