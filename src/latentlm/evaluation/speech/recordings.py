"""Clips with what is said in them and by whom, in memory: what judges are trained on and tried on.

Shapes: S samples.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Recordings:
    """Clips of one sample rate.

    Attributes:
        waveforms: A clip each, in [-1, 1].
        texts: What is said, as it should be recognised: words in lower case.
        speakers: Who says it.
        sample_rate: Hz.

    Raises:
        ValueError: If there are not as many texts and speakers as clips.
    """

    waveforms: Sequence[Float[Tensor, "_"]]
    texts: Sequence[str]
    speakers: Sequence[str]
    sample_rate: int

    def __post_init__(self) -> None:
        if not len(self.waveforms) == len(self.texts) == len(self.speakers):
            raise ValueError(
                f"{len(self.waveforms)} clips need as many texts and speakers, but there are {len(self.texts)} and "
                f"{len(self.speakers)}"
            )

    def __len__(self) -> int:
        return len(self.waveforms)

    @staticmethod
    def from_examples(examples: Iterable[Mapping[str, Any]], sample_rate: int) -> "Recordings":
        """From the examples of an audio data set with transcripts and speakers.

        Args:
            examples: With `audio`, of which `num_samples` are real, `text` and `speaker`.
            sample_rate: Hz; the data set's.
        """
        waveforms, texts, speakers = [], [], []
        for example in examples:
            waveforms.append(torch.as_tensor(example["audio"])[: int(example["num_samples"])].float())
            texts.append(str(example["text"]))
            speakers.append(str(example["speaker"]))
        return Recordings(waveforms=waveforms, texts=texts, speakers=speakers, sample_rate=sample_rate)

    def take(self, indices: Sequence[int]) -> "Recordings":
        """The clips at these places, in this order."""
        return Recordings(
            waveforms=[self.waveforms[index] for index in indices],
            texts=[self.texts[index] for index in indices],
            speakers=[self.speakers[index] for index in indices],
            sample_rate=self.sample_rate,
        )

    def of_speakers(self, speakers: Collection[str]) -> "Recordings":
        """The clips of these speakers."""
        return self._where(lambda index: self.speakers[index] in speakers)

    def without_speakers(self, speakers: Collection[str]) -> "Recordings":
        """The clips of all others: a judge of a speaker may be one that has never heard them."""
        return self._where(lambda index: self.speakers[index] not in speakers)

    def degraded(self, degrade: Callable[[Tensor, int, torch.Generator], Tensor], *, seed: int = 0) -> "Recordings":
        """The same recordings, each sent through a degradation on its own.

        Args:
            degrade: A row of `degradations.DEGRADATIONS`.
            seed: Of its draws.
        """
        generator = torch.Generator().manual_seed(seed)
        copies = [degrade(clip[None], self.sample_rate, generator)[0] for clip in self.waveforms]
        return Recordings(waveforms=copies, texts=self.texts, speakers=self.speakers, sample_rate=self.sample_rate)

    def digest(self) -> str:
        """SHA-256 over every sample, text and speaker, as hex."""
        total = hashlib.sha256(str(self.sample_rate).encode())
        for hashed, text, speaker in zip(self._hashes(), self.texts, self.speakers, strict=True):
            total.update(hashed + repr((text, speaker)).encode())
        return total.hexdigest()

    def refuse_overlap(self, others: "Recordings") -> None:
        """Make sure that a judge is not tried on what it was trained on.

        Raises:
            ValueError: If a clip is in both, sample for sample.
        """
        if shared := len(set(self._hashes()) & set(others._hashes())):
            raise ValueError(f"{shared} clips are in the training set of the judge and in what it is tried on")

    def _where(self, keep: Callable[[int], bool]) -> "Recordings":
        return self.take([index for index in range(len(self)) if keep(index)])

    def _hashes(self) -> list[bytes]:
        return [hashlib.sha256(clip.contiguous().numpy().tobytes()).digest() for clip in self.waveforms]
