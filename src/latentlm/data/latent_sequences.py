"""Cached latents, or codes, of clips of any length, with the words that belong to them: recordings after their encoder.

As in `latents.py` a cache holds the posterior, never a sample, and the fingerprint of its tokenizer. Clips differ in
length, so a shard holds them end to end.

Folder: `latents-00000.safetensors`, ... with `latent_mean` [sum n, C], `length` [m], `key` [m] and optionally
`latent_log_std` [sum n, C]; of a codec `codes` [sum n, Q] in the place of mean and deviation. `records-00000.json`, ...
with the other fields of every clip; and `index.json`, rewritten after each shard. A shard that the index does not name
was interrupted, and is written again.

Shapes: m clips of a shard, n latents or frames of a clip, C latent_dim, Q codes of a frame.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from latentlm.data.records import DataError
from latentlm.storage import write_file_atomically

FORMAT_VERSION = 1
_INDEX = "index.json"


class LatentClip(NamedTuple):
    """One clip of a cache, as a posterior."""

    mean: Float[Tensor, "n C"]
    log_std: Float[Tensor, "n C"] | None
    key: int
    fields: Mapping[str, Any]
    """What else is known of it: `text`, `speaker`, `num_samples`, ..."""

    @property
    def num_tokens(self) -> int:
        """n."""
        return len(self.mean)


class CodeClip(NamedTuple):
    """One clip of a cache, as codes."""

    codes: Int[Tensor, "n Q"]
    key: int
    fields: Mapping[str, Any]
    """As of a `LatentClip`."""

    @property
    def num_tokens(self) -> int:
        """n."""
        return len(self.codes)


Clip = LatentClip | CodeClip
"""One clip; those of a cache are of one class."""


class LatentSequenceWriter:
    """Writes a cache shard by shard; opened again on the same folder, it goes on after the last whole shard.

    Args:
        folder: Created if it is not there.
        modality: Name of the modality, such as "speech".
        tokenizer_fingerprint: Of the tokenizer that makes the latents or codes.
        source_fingerprint: Of the clips; a cache of other clips is refused.
        shard_size: Clips per shard.

    Raises:
        DataError: If the folder holds another cache, or a finished one.
    """

    def __init__(
        self,
        folder: Path,
        *,
        modality: str,
        tokenizer_fingerprint: str,
        source_fingerprint: str,
        shard_size: int = 4096,
    ) -> None:
        self._folder = folder
        self._shard_size = shard_size
        self._pending: list[Clip] = []
        self._index: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "modality": modality,
            "tokenizer_fingerprint": tokenizer_fingerprint,
            "source_fingerprint": source_fingerprint,
            "position": 0,
            "complete": False,
            "shards": [],
        }
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / _INDEX).exists():
            found = _read_index(folder)
            for name in ("modality", "tokenizer_fingerprint", "source_fingerprint"):
                if found[name] != self._index[name]:
                    raise DataError(f"{folder} was begun with another {name}; encode into another folder")
            if found["complete"]:
                raise DataError(f"{folder} is already complete; encode into another folder")
            self._index = found
        self._position = self.position

    @property
    def position(self) -> int:
        """The `position` of the last whole shard: where among the clips to go on encoding."""
        return self._index["position"]

    def append(self, clip: Clip, *, position: int) -> None:
        """Add a clip.

        Args:
            clip: Its latents or codes in any type, which is kept on disk; fields must be JSON.
            position: How many clips of the source are encoded, or given up, with this one.
        """
        self._pending.append(clip)
        self._position = position
        if len(self._pending) >= self._shard_size:
            self._write_shard()

    def close(self) -> None:
        """Write what is pending and mark the cache complete."""
        if self._pending:
            self._write_shard()
        self._index["complete"] = True
        self._write_index()

    def _write_shard(self) -> None:
        clips = self._pending
        tensors = {
            "length": torch.tensor([clip.num_tokens for clip in clips]),
            "key": torch.tensor([clip.key for clip in clips]),
        }
        parts = {
            "latent_mean": [clip.mean for clip in clips if isinstance(clip, LatentClip)],
            "latent_log_std": [
                clip.log_std for clip in clips if isinstance(clip, LatentClip) and clip.log_std is not None
            ],
            "codes": [clip.codes for clip in clips if isinstance(clip, CodeClip)],
        }
        for name, of_clips in parts.items():
            if of_clips:
                assert len(of_clips) == len(clips), (
                    "a tokenizer gives codes, and learns the variance, of all or of none"
                )
                tensors[name] = torch.cat([tensor.detach().cpu() for tensor in of_clips])
        number = len(self._index["shards"])
        entry = {
            "file": f"latents-{number:05d}.safetensors",
            "records": f"records-{number:05d}.json",
            "num_clips": len(clips),
        }
        write_file_atomically(self._folder / entry["file"], save(tensors))
        records = json.dumps([dict(clip.fields) for clip in clips], ensure_ascii=False)
        write_file_atomically(self._folder / entry["records"], records.encode())
        self._index["shards"].append(entry)
        self._index["position"] = self._position
        self._write_index()
        self._pending = []

    def _write_index(self) -> None:
        write_file_atomically(self._folder / _INDEX, json.dumps(self._index, indent=1).encode())


class LatentSequences:
    """The clips of a complete cache, in memory.

    Args:
        folder: As `LatentSequenceWriter` leaves it.
        tokenizer_fingerprint: Of the tokenizer that a model is about to be trained with; None skips the comparison.
        source_fingerprint: Of the clips that are expected; None skips the comparison.

    Raises:
        DataError: If the folder is no cache, incomplete, damaged, of another tokenizer or of other clips.
    """

    def __init__(
        self, folder: Path, *, tokenizer_fingerprint: str | None = None, source_fingerprint: str | None = None
    ) -> None:
        index = _read_index(folder)
        if not index["complete"]:
            raise DataError(f"{folder} is not complete; run the encoding again, it goes on where it stopped")
        expected = {"tokenizer_fingerprint": tokenizer_fingerprint, "source_fingerprint": source_fingerprint}
        for name, value in expected.items():
            if value not in (None, index[name]):
                raise DataError(f"{folder} was made with another {name}; encode the data again into another folder")
        self.modality: str = index["modality"]
        self.clips: list[Clip] = []
        for shard in index["shards"]:
            self.clips += _read_shard(folder, shard)
        self.lengths = np.array([clip.num_tokens for clip in self.clips], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Clip:
        return self.clips[index]


def _read_shard(folder: Path, shard: Mapping[str, Any]) -> list[Clip]:
    path = folder / shard["file"]
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        records = json.loads((folder / shard["records"]).read_bytes())
        lengths = tensors["length"].tolist()
        keys = tensors["key"].tolist()
        if not len(lengths) == len(records) == len(keys) == shard["num_clips"]:
            raise ValueError(f"{len(lengths)} clips and {len(records)} records, the index says {shard['num_clips']}")
        if "codes" in tensors:
            parts = tensors["codes"].split(lengths)
            return [CodeClip(*values) for values in zip(parts, keys, records, strict=True)]
        means = tensors["latent_mean"].float().split(lengths)
        log_stds: Sequence[Tensor | None] = [None] * len(means)
        if "latent_log_std" in tensors:
            log_stds = tensors["latent_log_std"].float().split(lengths)
        return [LatentClip(*values) for values in zip(means, log_stds, keys, records, strict=True)]
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise DataError(f"{path}: damaged or missing ({error})") from error


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / _INDEX
    try:
        index = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{folder}: no cache of latents, {_INDEX} cannot be read ({error})") from error
    if not isinstance(index, dict) or index.get("format_version") != FORMAT_VERSION or "modality" not in index:
        raise DataError(f"{path}: not a cache of clips' latents in format version {FORMAT_VERSION}")
    types = {"modality": str, "tokenizer_fingerprint": str, "source_fingerprint": str, "position": int}
    types |= {"complete": bool, "shards": list}
    for name, kind in types.items():
        if not isinstance(index.get(name), kind):
            raise DataError(f"{path}: {name} is missing or not a {kind.__name__}")
    for shard in index["shards"]:
        names = (shard.get("file"), shard.get("records")) if isinstance(shard, dict) else (None,)
        if not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise DataError(f"{path}: the list of shards is damaged, or names files that are not in this folder")
    return index
