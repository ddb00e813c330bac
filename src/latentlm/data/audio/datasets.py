"""Recordings as examples: the data set that a config opens, and which records make up a part.

An example is `{"audio": Float [S] in [-1, 1], "num_samples": int, "key": int, "text": str, "speaker": str}` at the
config's rate. `key` is the record's place in its source; with `crop_seconds` every example has one length, and
`num_samples` says how much of it is sound, the rest zeros.

Shapes: B batch, S samples.
"""

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from latentlm.data.audio.augmentation import augment_waveforms
from latentlm.data.audio.config import AudioDataConfig
from latentlm.data.audio.decoding import decode_audio, read_header
from latentlm.data.audio.levels import normalize_level
from latentlm.data.audio.sources import AUDIO_OPENERS, AudioManifest, AudioRecord, AudioSource, detect_audio_format
from latentlm.data.datasets import Part, resolve_path
from latentlm.data.loader import Batch, MapDataset
from latentlm.data.records import BadRecord, DataError
from latentlm.data.splits import make_split, read_split
from latentlm.nn.keyed_noise import combine_keys, keyed_uniform

_CROP_STREAM = 0xC409  # keeps crops apart from other keyed draws with the same seed
_SILENT_RMS = 10 ** (-50 / 20)
"""A crop quieter than -50 dB of full scale is a pause: the next place is tried, if `crop_attempts` allows one."""


class AudioExamples(MapDataset):
    """A data set of sound whose examples may differ from epoch to epoch (crops, joined words)."""

    sample_rate: int
    """Hz."""

    @abstractmethod
    def read(self, index: int, *, seed: int, epoch: int) -> dict[str, Any]:
        """One example, a pure function of its arguments.

        Args:
            index: In [0, len).
            seed: Of the run.
            epoch: Which time the data are gone through.

        Raises:
            BadRecord: If the recording cannot be used; the message names it and the reason.
            IndexError: If `index` is outside [0, len).
        """

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The example of seed 0 and epoch 0: the same at every evaluation."""
        return self.read(index, seed=0, epoch=0)


class AudioDataset(AudioExamples):
    """Recordings of one part of a source, decoded on access.

    Args:
        source: Where the records come from.
        indices: Int64, the records of `source` that belong to this part.
        config: How to decode them.
        augment: Whether `config.augmentation` applies (training only).
    """

    def __init__(self, source: AudioSource, indices: np.ndarray, config: AudioDataConfig, *, augment: bool) -> None:
        super().__init__(rejected=source.rejected, max_bad_records=config.max_bad_records)
        self.source = source
        self.indices = indices
        self.config = config
        self.sample_rate = config.sample_rate
        self._augments = augment and config.augmentation.changes_anything
        self._known_seconds = source.seconds()
        self._cache: dict[int, np.ndarray] = {}  # by key, the least recently used first
        self._cached_bytes = 0

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_cache": {}, "_cached_bytes": 0}

    @property
    def speakers(self) -> list[str]:
        """Who speaks in each example, known without decoding; raises DataError if the format does not tell."""
        return self._column("speaker")

    @property
    def texts(self) -> list[str]:
        """What is said in each example, likewise."""
        return self._column("text")

    @property
    def seconds(self) -> np.ndarray:
        """Float64 [len], how long each recording (not its crop) is; NaN where that is known only after opening it."""
        known = self._known_seconds
        return np.full(len(self), np.nan) if known is None else known[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int, *, seed: int, epoch: int) -> dict[str, Any]:
        """See `AudioExamples.read`; never augmented."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} recordings")
        key = int(self.indices[index])
        record = self.source[key]
        config = self.config
        if config.crop_samples is None:
            waveform = self._whole(record, key)
            seconds = len(waveform) / config.sample_rate
            if seconds < config.min_seconds:
                raise BadRecord(record.name, f"{seconds:.2f} s, below min_seconds={config.min_seconds:g}")
        else:
            waveform = self._crop(record, key, seed=seed, epoch=epoch)
        if config.level_db is not None:
            waveform = normalize_level(waveform, config.sample_rate, config.level_db)
        audio = torch.tensor(waveform)  # a copy: the waveform may be the cache's
        if config.crop_samples is not None:
            audio = torch.nn.functional.pad(audio, (0, config.crop_samples - len(audio)))
        return {
            "audio": audio,
            "num_samples": len(waveform),
            "key": key,
            "text": record.text,
            "speaker": record.speaker,
        }

    def augment(self, batch: Batch, *, seed: int, epochs: torch.Tensor) -> Batch:
        """`config.augmentation`, keyed by (seed, epoch, key)."""
        if not self._augments:
            return batch
        keys = combine_keys(seed, epochs, batch["key"])
        audio = augment_waveforms(
            batch["audio"], batch["num_samples"], keys, self.config.augmentation, sample_rate=self.sample_rate
        )
        return {**batch, "audio": audio}

    def _decode(
        self, record: AudioRecord, offset: float, duration: float | None, max_seconds: float
    ) -> Float32[np.ndarray, "S"]:
        return decode_audio(
            record.audio,
            record.name,
            sample_rate=self.config.sample_rate,
            max_seconds=max_seconds,
            offset_seconds=offset,
            duration_seconds=duration,
        )

    def _whole(self, record: AudioRecord, key: int) -> Float32[np.ndarray, "S"]:
        if key in self._cache:
            self._cache[key] = self._cache.pop(key)
            return self._cache[key]
        waveform = self._decode(record, record.offset_seconds, record.duration_seconds, self.config.max_seconds)
        if self.config.cache_mib:
            self._cache[key] = waveform
            self._cached_bytes += waveform.nbytes
            while self._cached_bytes > self.config.cache_mib * 2**20:
                self._cached_bytes -= self._cache.pop(next(iter(self._cache))).nbytes
        return waveform

    def _crop(self, record: AudioRecord, key: int, *, seed: int, epoch: int) -> Float32[np.ndarray, "S"]:
        config = self.config
        crop_samples, crop_seconds = config.crop_samples, config.crop_seconds
        assert crop_samples is not None, "checked by the caller"
        assert crop_seconds is not None, "likewise"
        length = self._length(record, key)
        if length < config.min_seconds:
            raise BadRecord(record.name, f"{length:.2f} s, below min_seconds={config.min_seconds:g}")
        # Decided by the config and the record, not by what happens to be cached: the same crop, the same samples.
        whole = self._whole(record, key) if config.cache_mib and length <= config.max_seconds else None
        one_more = crop_seconds + 2 / config.sample_rate  # rounding to the file's rate must not cost a sample
        places = keyed_uniform(
            int(combine_keys(seed, epoch)), torch.tensor(key), (config.crop_attempts,), stream=_CROP_STREAM
        )
        best, highest = np.zeros(0, dtype=np.float32), -1.0
        for place in places.double().tolist():
            start = place * max(0.0, length - one_more)
            if whole is None:
                waveform = self._decode(record, record.offset_seconds + start, min(one_more, length), one_more + 1.0)
            else:
                waveform = whole[round(start * config.sample_rate) :]
            waveform = waveform[:crop_samples]
            level = float(np.sqrt(np.mean(waveform.astype(np.float64) ** 2)))
            if level > highest:
                best, highest = waveform, level
            if level >= _SILENT_RMS or length <= one_more:
                break
        return best

    def _length(self, record: AudioRecord, key: int) -> float:
        """Seconds of a record, the same at every call: what its source knows, else what its header says."""
        if record.duration_seconds is not None:
            return record.duration_seconds
        if self._known_seconds is not None and not np.isnan(self._known_seconds[key]):
            return float(self._known_seconds[key])
        seconds = read_header(record.audio, record.name).seconds
        if seconds is None:  # a stream: how long it is shows only at its end
            return len(self._whole(record, key)) / self.config.sample_rate
        return max(0.0, seconds - record.offset_seconds)

    def _column(self, name: str) -> list[str]:
        cells = self.source.column(name)
        return [str(cells[index]) for index in self.indices.tolist()]


def open_audio(config: AudioDataConfig, *, part: Part) -> AudioDataset:
    """Open one part of a data set of recordings.

    `train` and `validation` divide the split `config.split`: by `config.split_file`, or by a hash of (split_seed, index
    of the record), or of (split_seed, speaker). The division is made before anything is left out, so that filters never
    move a recording from one part to the other. `test` is the source's own test split, or `config.test_path`.

    Raises:
        DataError: If the data are missing, in no known format, have no such part or column, or nothing is left.
        ImportError: If an extra is not installed; the message names it.
    """
    if part == "test":
        own = config.test_path is not None
        source = open_audio_source(config, config.test_path or config.path, "train" if own else "test")
        indices = np.arange(len(source))
    else:
        source = open_audio_source(config, config.path, config.split)
        indices = _indices_of_part(config, source, part)
    chosen = indices[_wanted(config, source, config.test_filters if part == "test" else config.filters)[indices]]
    if len(chosen) == 0:
        raise DataError(
            f"{config.path}: nothing is left of the part {part!r} ({len(indices)} of {len(source)} records before "
            "filters, speakers and lengths)"
        )
    return AudioDataset(source, chosen, config, augment=part == "train")


def open_audio_source(config: AudioDataConfig, path: str, split: str) -> AudioSource:
    """The records of one split, before they are divided into parts and decoded. Errors as in `open_audio`."""
    found = resolve_path(path)
    name = detect_audio_format(found, split) if config.format == "auto" else config.format
    if name == "manifest":
        root = None if config.audio_root is None else resolve_path(config.audio_root)
        return AudioManifest(found, split, config.columns, root)
    if config.audio_root is not None:
        raise DataError(f"audio_root goes with manifests, and {path} is read as {name}")
    return AUDIO_OPENERS[name](Path(found), split, config.columns)


def _indices_of_part(config: AudioDataConfig, source: AudioSource, part: Part) -> np.ndarray:
    if config.split_by == "speaker":
        names = sorted(set(source.column("speaker")))
        if len(names) < 2:
            raise DataError(f"{config.path}: split_by=speaker needs several speakers, it has {names}")
        number = round(len(names) * config.validation_ratio)
        if config.validation_ratio > 0:
            number = min(max(number, 1), len(names) - 1)
        held_out = set(sorted(names, key=lambda name: _hash(config.split_seed, name))[:number])
        in_validation = np.array([speaker in held_out for speaker in source.column("speaker")])
        return np.flatnonzero(in_validation if part == "validation" else ~in_validation)
    if config.split_file is None:
        split = make_split(len(source), validation_ratio=config.validation_ratio, seed=config.split_seed)
    else:
        split = read_split(config.split_file)
        if split.num_records != len(source):
            raise DataError(
                f"{config.split_file} divides {split.num_records} records ({split.data}), but {config.path} has "
                f"{len(source)}"
            )
    return split.validation if part == "validation" else split.train


def _hash(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()


def _wanted(config: AudioDataConfig, source: AudioSource, filters: dict[str, str | int]) -> np.ndarray:
    """Bool [len(source)]: which records pass what the config asks for."""
    wanted = np.ones(len(source), dtype=bool)
    for name, value in filters.items():
        wanted &= _equal(source.column(name), [str(value)])
    if config.only_speakers:
        wanted &= _equal(source.column("speaker"), config.only_speakers)
    if config.exclude_speakers:
        wanted &= ~_equal(source.column("speaker"), config.exclude_speakers)
    if config.require_text:
        wanted &= ~_equal(source.column("text"), [""])
    seconds = source.seconds()
    if seconds is not None:
        wanted &= ~(seconds < config.min_seconds)  # NaN stays: such a recording is judged when it is opened
        if config.crop_seconds is None:
            wanted &= ~(seconds > config.max_seconds)
    return wanted


def _equal(cells: Sequence[str], values: Sequence[str]) -> np.ndarray:
    return np.isin(np.array(cells, dtype=object), np.array(values, dtype=object))
