"""The recordings that a speech tokenizer is trained on: opened by part, joined and mixed, and looked at for measures.

Shapes: B batch, S samples.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from typing import Any, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from latentlm.data.audio import (
    AudioDataConfig,
    AudioExamples,
    AudioMixtureConfig,
    WordStringConfig,
    WordStrings,
    audio_loader_factory,
    make_audio_loader,
    open_audio,
)
from latentlm.data.audio.crops import Crops
from latentlm.data.datasets import Part
from latentlm.data.records import DataError
from latentlm.training import distributed
from latentlm.training.trainer import TrainerConfig

NUM_MEASURED_CLIPS = 2_000
"""Clips on which statistics and reports are measured."""
MEASURE_BATCH_SIZE = 32
"""Clips of one batch of `ClipSources`, at most."""

_NUM_PREVIEW_CLIPS = 4

_log = logging.getLogger(__name__)

Clips = Iterable[tuple[Float[Tensor, "B S"], Int[Tensor, "B"]]]
"""Batches of waveforms in [-1, 1] and their keys."""


class ClipSources(NamedTuple):
    """The clips an objective looks at outside its training steps; all of one length."""

    preview: Float[Tensor, "B S"]
    """A few for the samples of the log."""
    training: Callable[[], Clips]
    """Opens up to `NUM_MEASURED_CLIPS` that are trained on."""
    held_out: Callable[[], Clips]
    """Opens up to `NUM_MEASURED_CLIPS` that are not, where the data have such a part."""


def open_clips(
    mixture: AudioMixtureConfig, trainer: TrainerConfig
) -> tuple[ClipSources, Callable[[int], Iterator[Mapping[str, Any]]]]:
    """Open the recordings of a recipe.

    Args:
        mixture: The groups, cropped to one length.
        trainer: Batch size, seed and workers.

    Returns:
        The clips to measure on; and a loader factory, start batch to iterator.

    Raises:
        ValueError: If the recordings cannot be used; the message names the file.
        ImportError: If an audio library is missing; the message names the extra.
    """
    weights = [mixture.weights.get(name, 1.0) for name in mixture.groups]
    train = [_open_part(group, mixture.words.get(name), "train") for name, group in mixture.groups.items()]
    held_out = [
        _open_held_out(group, mixture.words.get(name)) if group.validation_ratio > 0 or group.split_file else dataset
        for (name, group), dataset in zip(mixture.groups.items(), train, strict=True)
    ]

    def clips(groups: list[AudioExamples], limit: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Up to `limit` readable clips, in an order that mixes speakers, and groups by their weights."""
        remaining = min(limit, sum(map(len, groups)))
        batch_size = min(MEASURE_BATCH_SIZE, remaining)
        with closing(make_audio_loader(groups, weights, batch_size=batch_size, seed=0)) as batches:
            while remaining > 0:
                batch = next(batches)
                yield batch["audio"][:remaining], batch["key"][:remaining]
                remaining -= len(batch["audio"])

    sources = ClipSources(
        preview=next(clips(held_out, _NUM_PREVIEW_CLIPS))[0],
        training=lambda: clips(train, NUM_MEASURED_CLIPS),
        held_out=lambda: clips(held_out, NUM_MEASURED_CLIPS),
    )
    make_batches = audio_loader_factory(
        train,
        weights,
        batch_size=trainer.batch_size,
        seed=trainer.seed,
        num_workers=trainer.num_workers,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
    return sources, make_batches


def _open_part(config: AudioDataConfig, words: WordStringConfig | None, part: Part) -> AudioExamples:
    """Crops of recordings, or of utterances that are joined from them."""
    if words is None:
        return open_audio(config, part=part)
    assert config.crop_samples is not None  # checked by the recipe
    recordings = open_audio(replace(config, crop_seconds=None), part=part)
    return Crops(WordStrings(recordings, words), config.crop_samples)


def _open_held_out(config: AudioDataConfig, words: WordStringConfig | None) -> AudioExamples:
    """As in training, if there are enough words of every speaker; else recordings as they are."""
    try:
        return _open_part(config, words, "validation")
    except DataError as error:
        if words is None:
            raise
        _log.warning("held-out clips of %s are single words: %s", config.path, error)
        return open_audio(config, part="validation")
