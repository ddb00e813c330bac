"""Cached latents: what a tokenizer's encoder made of a data set, kept on disk.

A cache holds the posterior's mean (and log-std where it is learned), never a sample: the noise of the sigma-VAE is
drawn afresh every time a latent is read. It carries the fingerprint of its tokenizer: latents of another look alike.

Folder: `latents-00000.safetensors`, ... with `latent_mean` [n, N, C], `label` [n], `key` [n] and optionally
`latent_log_std` [n, N, C]; and `index.json`, which is rewritten (atomically) after each shard. A shard that the index
does not name was interrupted, and is written again.

Shapes: B batch, N latents per example, C latent_dim.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from latentlm.data.loader import Batch, MapDataset
from latentlm.data.records import DataError

FORMAT_VERSION = 1
_INDEX = "index.json"


class LatentWriter:
    """Writes a cache shard by shard; opened again on the same folder, it goes on after the last whole shard.

    Args:
        folder: Created if it is not there.
        tokenizer_fingerprint: Of the tokenizer that makes the latents.
        label_names: Name of each class.
        shard_size: Examples per shard.

    Raises:
        DataError: If the folder holds a cache of another tokenizer, another format, or a finished one.
    """

    def __init__(
        self, folder: Path, *, tokenizer_fingerprint: str, label_names: Sequence[str], shard_size: int = 8192
    ) -> None:
        self._folder = folder
        self._shard_size = shard_size
        self._pending: list[dict[str, Tensor]] = []
        folder.mkdir(parents=True, exist_ok=True)
        self._index: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "tokenizer_fingerprint": tokenizer_fingerprint,
            "label_names": list(label_names),
            "position": 0,
            "complete": False,
            "shards": [],
        }
        if (folder / _INDEX).exists():
            found = _read_index(folder)
            for name in ("tokenizer_fingerprint", "label_names"):
                if found[name] != self._index[name]:
                    raise DataError(f"{folder} was begun with another {name}; encode into another folder")
            if found["complete"]:
                raise DataError(f"{folder} is already complete; encode into another folder")
            self._index = found
        self._position = self.position

    @property
    def position(self) -> int:
        """The `position` of the last whole shard: where in the data set to go on encoding."""
        return self._index["position"]

    def append(
        self,
        *,
        latent_mean: Float[Tensor, "B N C"],
        label: Int64[Tensor, "B"],
        key: Int64[Tensor, "B"],
        position: int,
        latent_log_std: Float[Tensor, "B N C"] | None = None,
    ) -> None:
        """Add a batch.

        Args:
            latent_mean: In any float type, which is kept on disk.
            label: Class ids.
            key: Of the records.
            position: How much of the data set is encoded with this batch (`read_once` yields it).
            latent_log_std: For tokenizers that learn their variance; in all batches or in none.
        """
        batch = {"latent_mean": latent_mean, "label": label, "key": key}
        if latent_log_std is not None:
            batch["latent_log_std"] = latent_log_std
        self._pending.append({name: tensor.detach().cpu() for name, tensor in batch.items()})
        self._position = position
        if sum(len(part["key"]) for part in self._pending) >= self._shard_size:
            self._write_shard()

    def close(self) -> None:
        """Write what is pending and mark the cache complete."""
        if self._pending:
            self._write_shard()
        self._index["complete"] = True
        self._write_index()

    def _write_shard(self) -> None:
        fields = self._pending[0].keys()
        shard = {name: torch.cat([part[name] for part in self._pending]).contiguous() for name in fields}
        file_name = f"latents-{len(self._index['shards']):05d}.safetensors"
        _publish(self._folder / file_name, lambda path: save_file(shard, path))
        entry = {
            "file": file_name,
            "num_records": len(shard["key"]),
            "latent_shape": list(shard["latent_mean"].shape[1:]),
            "fields": sorted(shard),
        }
        self._index["shards"].append(entry)
        self._index["position"] = self._position
        self._write_index()
        self._pending = []

    def _write_index(self) -> None:
        text = json.dumps(self._index, indent=1)
        _publish(self._folder / _INDEX, lambda path: path.write_text(text))


def _publish(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file so that `path` is either absent (or as before) or whole, also after a kill or a power cut."""
    staging = path.with_name(f".{path.name}.partial")
    write(staging)
    with staging.open("rb") as file:
        os.fsync(file.fileno())
    staging.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class LatentDataset(MapDataset):
    """Examples `{"latent_mean": Float [N, C], "label", "key"}`, with `latent_log_std` [N, C] where it was learned.

    Args:
        folder: A complete cache, as `LatentWriter` leaves it.
        tokenizer_fingerprint: Of the tokenizer that a model is about to be trained with; None skips the comparison.

    Raises:
        DataError: If the folder is no cache, incomplete, damaged, or of another tokenizer.
    """

    def __init__(self, folder: Path, *, tokenizer_fingerprint: str | None = None) -> None:
        super().__init__()
        index = _read_index(folder)
        if not index["complete"]:
            raise DataError(f"{folder} is not complete; run the encoding again, it goes on where it stopped")
        self.tokenizer_fingerprint: str = index["tokenizer_fingerprint"]
        if tokenizer_fingerprint not in (None, self.tokenizer_fingerprint):
            raise DataError(
                f"{folder} holds latents of the tokenizer {self.tokenizer_fingerprint}, not of "
                f"{tokenizer_fingerprint}; encode the data again with the tokenizer at hand"
            )
        self.label_names: tuple[str, ...] = tuple(index["label_names"])
        shapes = {tuple(shard["latent_shape"]) for shard in index["shards"]}
        fields = {tuple(shard["fields"]) for shard in index["shards"]}
        if len(shapes) != 1 or len(fields) != 1:
            raise DataError(f"{folder} is empty, or its shards differ: latent shapes {shapes}, fields {fields}")
        self.latent_shape: tuple[int, int] = shapes.pop()
        self._fields = fields.pop()
        self._folder = folder
        self._shards = [(shard["file"], shard["num_records"]) for shard in index["shards"]]
        self._starts = np.cumsum([0, *(count for _, count in self._shards)])
        self._opened: dict[int, dict[str, Tensor]] = {}
        for number in range(len(self._shards)):
            self._shard(number)  # a damaged shard should stop the run now, not an hour into it

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}}

    @property
    def num_classes(self) -> int:
        """Number of classes: labels are in [0, num_classes)."""
        return len(self.label_names)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One example. Raises IndexError outside [0, len)."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} latents")
        example = {name: tensor[0] for name, tensor in self.take([index]).items()}
        return {**example, "label": int(example["label"]), "key": int(example["key"])}

    def take(self, indices: Sequence[int]) -> Batch:
        """The batch of these examples; latents in float32 whatever is on disk."""
        shards = np.searchsorted(self._starts, np.asarray(indices), side="right") - 1
        rows = np.asarray(indices) - self._starts[shards]
        places = list(zip(shards.tolist(), rows.tolist(), strict=True))
        batch = {name: torch.stack([self._shard(shard)[name][row] for shard, row in places]) for name in self._fields}
        return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in batch.items()}

    def _shard(self, number: int) -> dict[str, Tensor]:
        """The tensors of one shard, mapped from the file rather than read."""
        if number not in self._opened:
            file_name, num_records = self._shards[number]
            expected = {name: (num_records, *self.latent_shape) for name in self._fields if name.startswith("latent")}
            expected |= {"label": (num_records,), "key": (num_records,)}
            try:
                with safe_open(self._folder / file_name, framework="pt") as file:
                    tensors = {name: file.get_tensor(name) for name in self._fields}
            except (OSError, SafetensorError) as error:
                raise DataError(f"{self._folder / file_name}: damaged or missing ({error})") from error
            shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            if shapes != expected:
                raise DataError(f"{self._folder / file_name}: holds {shapes}, the index says {expected}")
            self._opened[number] = tensors
        return self._opened[number]


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / _INDEX
    try:
        index = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{folder}: no cache of latents, {_INDEX} cannot be read ({error})") from error
    if not isinstance(index, dict) or index.get("format_version") != FORMAT_VERSION:
        raise DataError(f"{path}: not a cache of latents in format version {FORMAT_VERSION}")
    types = {"tokenizer_fingerprint": str, "label_names": list, "position": int, "complete": bool, "shards": list}
    for name, kind in types.items():
        if not isinstance(index.get(name), kind):
            raise DataError(f"{path}: {name} is missing or not a {kind.__name__}")
    shard_types = {"file": str, "num_records": int, "latent_shape": list, "fields": list}
    for shard in index["shards"]:
        if not isinstance(shard, dict) or not all(
            isinstance(shard.get(name), kind) for name, kind in shard_types.items()
        ):
            raise DataError(f"{path}: the list of shards is damaged")
        if Path(shard["file"]).name != shard["file"]:
            raise DataError(f"{path}: names the file {shard['file']!r}, which is not in this folder")
    return index
