"""A small classifier of single spoken words as judge: does a clip still say its digit?

    recordings ─speed, place, degradations─▶ log-mel ─convolutions▶ word

It is trained on degraded copies too, because a judge of clean recordings alone calls what people understand noise. It
never sees test recordings, is never part of a training loss, and nothing is chosen by it. A judge of a speaker that was
left out of training leaves that speaker out too (`Recordings.without_speakers`).

Shapes: N clips, S samples, M mel bands, T frames, K words.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from latentlm.evaluation.speech.degradations import add_noise_floor, change_speed, degrade_randomly
from latentlm.evaluation.speech.interfaces import Clips, resample
from latentlm.evaluation.speech.log_mel import LogMel
from latentlm.evaluation.speech.recordings import Recordings
from latentlm.evaluation.speech.trained_judges import judge_fingerprint, load_or_train
from latentlm.evaluation.speech.word_segmentation import segment_words

FORMAT_VERSION = 1
"""Part of the cached folder's name: raised whenever code here, or of the degradations, changes what is trained."""

_CHUNK = 256
_SHORTEST_SECONDS = 0.03
_MAX_STOP_SECONDS = 0.15
"""Pauses that may lie inside a word; with the margins of the stretches taken off."""
_MAX_STRETCHES = 3
_POOLED = (4, 4)
"""Bands and frames that the linear layer sees: a word has a beginning and an end."""


@dataclass(frozen=True, kw_only=True)
class DigitClassifierConfig:
    """The judge's size and training; one setting for all models that are compared."""

    sample_rate: int = 8000
    """Hz. Clips of other rates are resampled; nothing above half of it is heard."""
    seconds: float = 1.0
    """Of what is looked at; longer clips lose their ends alike."""
    num_mels: int = 32
    width: int = 24
    dropout: float = 0.3
    num_steps: int = 600
    batch_size: int = 64
    lr: float = 3e-3
    weight_decay: float = 0.05
    clean_ratio: float = 0.3
    """Share of the training clips that no degradation is put on."""
    max_speed_change: float = 0.15
    """Augmentation: clips are played up to this much faster or slower, which moves pitch and formants too: without it a
    judge of a handful of speakers hardly understands another one."""
    seed: int = 0


class DigitClassifier(nn.Module):
    """Convolutions over log-mel frames. A `Recogniser` of clips of a single word.

    Args:
        config: Size and training.
        words: What the classes are called.
    """

    label = "digit classifier error"

    def __init__(self, config: DigitClassifierConfig, words: Sequence[str]) -> None:
        super().__init__()
        self.config = config
        self.words = tuple(words)
        self.num_samples = round(config.seconds * config.sample_rate)
        width = config.width
        self.log_mel = LogMel(sample_rate=config.sample_rate, num_mels=config.num_mels)
        self.convolutions = nn.Sequential(
            *_block(1, width),
            nn.MaxPool2d(2),
            *_block(width, 2 * width),
            nn.MaxPool2d(2),
            *_block(2 * width, 2 * width),
        )
        self.class_proj = nn.Linear(2 * width * _POOLED[0] * _POOLED[1], len(self.words))

    def forward(self, waveforms: Float[Tensor, "N S"]) -> Float[Tensor, "N K"]:
        """Logits of clips at the config's rate and length."""
        maps = self.convolutions(self.log_mel(waveforms)[:, None])
        features = F.adaptive_avg_pool2d(maps, _POOLED).flatten(1)
        return self.class_proj(F.dropout(features, self.config.dropout, training=self.training))

    @torch.no_grad()
    def probabilities(self, clips: Clips, sample_rate: int) -> Float64[Tensor, "N K"]:
        """Of each word, for clips of one word each."""
        placed = [self._centred(resample(clip, sample_rate, self.config.sample_rate)) for clip in clips]
        chunks = torch.stack(placed).split(_CHUNK) if placed else ()
        logits = torch.cat([torch.zeros(0, len(self.words)), *(self(chunk) for chunk in chunks)])
        return logits.double().softmax(dim=1)

    def transcribe(self, clips: Clips, sample_rate: int) -> list[str]:
        """The likeliest word of each clip."""
        return [self.words[index] for index in self.probabilities(clips, sample_rate).argmax(dim=1).tolist()]

    def _centred(self, clip: Tensor) -> Tensor:
        return place(clip, self.num_samples, (self.num_samples - len(clip)) // 2)


class DigitStringReader:
    """A `Recogniser` of digit strings: stretches of energy, joined to words as the classifier likes them best.

    Pauses between words may be shorter than the stop inside "six", so energy alone cannot tell what is a word. Of all
    ways to join up to three neighbouring stretches, the one with the surest words is taken, each weighed by its length.

    Args:
        classifier: Of single words.
    """

    label = "digit classifier WER"

    def __init__(self, classifier: DigitClassifier) -> None:
        self._classifier = classifier

    def transcribe(self, clips: Clips, sample_rate: int) -> list[str]:
        """The words of each clip; how many there should be is not known."""
        return [" ".join(self._read(clip, sample_rate)) for clip in clips]

    def _read(self, clip: Tensor, sample_rate: int) -> list[str]:
        spans = segment_words(clip, sample_rate, min_gap_seconds=_SHORTEST_SECONDS, min_word_seconds=_SHORTEST_SECONDS)
        longest = self._classifier.config.seconds * sample_rate
        # (first stretch, one after the last) of what may be a word; a single stretch always may.
        candidates = [
            (first, last)
            for first in range(len(spans))
            for last in range(first + 1, min(first + _MAX_STRETCHES, len(spans)) + 1)
            if last == first + 1
            or (
                spans[last - 1][1] - spans[first][0] <= longest
                and all(
                    spans[place + 1][0] - spans[place][1] <= _MAX_STOP_SECONDS * sample_rate
                    for place in range(first, last - 1)
                )
            )
        ]
        parts = [clip[spans[first][0] : spans[last - 1][1]] for first, last in candidates]
        sureness, classes = self._classifier.probabilities(parts, sample_rate).log().max(dim=1)
        # best[n]: weight and words of the best reading of the first n stretches. Candidates come in order of `first`.
        best: list[tuple[float, list[str]]] = [(0.0, [])] + [(-math.inf, [])] * len(spans)
        for (first, last), part, sure, word in zip(candidates, parts, sureness.tolist(), classes.tolist(), strict=True):
            weight = best[first][0] + len(part) * sure
            if weight > best[last][0]:
                best[last] = (weight, [*best[first][1], self._classifier.words[word]])
        return best[-1][1]


def train_digit_classifier(
    config: DigitClassifierConfig, recordings: Recordings, *, progress: bool = False
) -> DigitClassifier:
    """Train the judge, the same way every time for the same config and recordings.

    Args:
        config: Size and training.
        recordings: Single words; of the part `train` only.
        progress: Show a progress bar.

    Returns:
        The classifier in evaluation mode; its words are the texts, sorted.

    Raises:
        ValueError: If the recordings hold fewer than two different words.
    """
    words = _words_of(recordings)
    labels = torch.tensor([words.index(text) for text in recordings.texts])
    clips = [resample(clip, recordings.sample_rate, config.sample_rate) for clip in recordings.waveforms]
    generator = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # initial weights and dropout; the caller's random state is restored after
        classifier = DigitClassifier(config, words).train()
        optimizer = torch.optim.AdamW(classifier.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=config.lr, total_steps=config.num_steps)
        for _ in tqdm(range(config.num_steps), desc="digit classifier", unit="step", disable=not progress):
            chosen = torch.randint(len(clips), (config.batch_size,), generator=generator)
            placed = torch.stack(
                [
                    _somewhere(change_speed(clips[index], config.max_speed_change, generator), classifier, generator)
                    for index in chosen.tolist()
                ]
            )
            batch = degrade_randomly(
                add_noise_floor(placed, generator), config.sample_rate, generator, clean_ratio=config.clean_ratio
            )
            loss = F.cross_entropy(classifier(batch), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return classifier.eval()


def load_digit_classifier(
    recordings: Recordings, *, cache_dir: Path, config: DigitClassifierConfig | None = None, progress: bool = False
) -> tuple[DigitClassifier, str]:
    """Read the judge of these recordings from the cache, or train it and put it there (a minute or two).

    Args:
        recordings: See `train_digit_classifier`.
        cache_dir: Holds a folder per set of recordings and config.
        config: None is the default.
        progress: Show a progress bar.

    Returns:
        The classifier, and the SHA-256 over config and recordings.

    Raises:
        ValueError: If the recordings cannot be trained on.
        StorageError: If a cached folder is damaged, or the disk refuses.
    """
    config = config or DigitClassifierConfig()
    words = _words_of(recordings)
    fingerprint = judge_fingerprint("digit_classifier", FORMAT_VERSION, config, recordings)
    classifier = load_or_train(
        cache_dir,
        "digit_classifier",
        fingerprint,
        build=lambda: DigitClassifier(config, words),
        train=lambda: train_digit_classifier(config, recordings, progress=progress),
    )
    return classifier, fingerprint


def place(clip: Float[Tensor, " S"], num_samples: int, start: int) -> Float[Tensor, "_"]:
    """A window of `num_samples` with silence around the clip.

    Args:
        clip: Any length.
        num_samples: Of the window.
        start: Where the clip begins in it; negative cuts its beginning off.
    """
    return F.pad(clip, (start, num_samples - start - len(clip)))


def _somewhere(clip: Tensor, classifier: DigitClassifier, generator: torch.Generator) -> Tensor:
    """Around the middle: up to 50 ms off, or wherever a long clip is cut."""
    spare = classifier.num_samples - len(clip)
    reach = round(0.05 * classifier.config.sample_rate)
    shift = int(torch.randint(-reach, reach + 1, (), generator=generator))
    return place(clip, classifier.num_samples, spare // 2 + shift)


def _block(num_inputs: int, num_outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(num_inputs, num_outputs, 3, padding=1), nn.GroupNorm(8, num_outputs), nn.GELU()


def _words_of(recordings: Recordings) -> list[str]:
    words = sorted(set(recordings.texts))
    if len(words) < 2:
        raise ValueError(f"a classifier of words needs recordings of at least two, but got those of {words}")
    return words
