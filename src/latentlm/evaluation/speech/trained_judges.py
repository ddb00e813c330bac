"""Judges of speech that were trained here: once per data and setting, kept on disk, the same every time."""

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from latentlm.config import to_mapping
from latentlm.evaluation.speech.recordings import Recordings
from latentlm.pretrained import load_exactly
from latentlm.storage import publish_folder, read_tensors, verify_folder, write_json, write_tensors

_log = logging.getLogger(__name__)
JudgeT = TypeVar("JudgeT", bound=nn.Module)


def judge_fingerprint(name: str, format_version: int, config: Any, recordings: Recordings) -> str:
    """SHA-256 over everything that a trained judge depends on, as hex; it stands beside every score.

    Args:
        name: Of the sort of judge.
        format_version: Raised whenever code changes what the same config trains.
        config: A config dataclass.
        recordings: What it is trained on.
    """
    facts = [name, format_version, to_mapping(config), recordings.digest()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def load_or_train(
    cache_dir: Path, name: str, fingerprint: str, *, build: Callable[[], JudgeT], train: Callable[[], JudgeT]
) -> JudgeT:
    """Read a judge from the cache, or train it and put it there.

    Args:
        cache_dir: Holds a folder per sort of judge and fingerprint.
        name: Of the sort of judge.
        fingerprint: Of `judge_fingerprint`.
        build: The untrained network; it may draw random numbers, which the caller's state does not notice.
        train: The trained network, when there is none in the cache.

    Returns:
        The judge in evaluation mode.

    Raises:
        StorageError: If a cached folder is damaged, or the disk refuses.
    """
    folder = cache_dir / f"{name}-{fingerprint[:16]}"
    weights = f"{name}.safetensors"
    if not folder.is_dir():
        _log.info("training the %s of these recordings, once; it will be kept in %s", name, folder)
        trained = train()

        def write(staging: Path) -> None:
            write_tensors(staging / weights, dict(trained.state_dict()), {"format": "pt"})
            write_json(staging / f"{name}.json", {"fingerprint": fingerprint})

        cache_dir.mkdir(parents=True, exist_ok=True)
        publish_folder(folder, write, replace=True)  # another process may have trained the same one meanwhile
    verify_folder(folder)
    with torch.random.fork_rng(devices=[]):
        judge = build()
    load_exactly(judge, read_tensors(folder / weights), folder / weights)
    return judge.eval()
