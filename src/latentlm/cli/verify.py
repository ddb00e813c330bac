"""Check every checkpoint, model and cache below a folder: all files present, none altered, none added.

Exit code 0 if everything is whole, 1 if something is not or there is nothing to check.
"""

import argparse
import os
import re
from collections.abc import Iterator
from pathlib import Path

from latentlm.data import DataError, LatentDataset
from latentlm.storage import MANIFEST_NAME, StorageError, verify_folder

TAKES_RECIPE = False

_LATENT_SHARD = re.compile(r"latents-\d+\.safetensors")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The folder to look in."""
    parser.add_argument("folder", type=Path, help="a run, a checkpoint, a model or a folder of latents")


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Print one line per folder found; 0 if all are whole."""
    if not arguments.folder.is_dir():
        raise ValueError(f"{arguments.folder} is no folder")
    num_whole = num_bad = 0
    for folder in _folders_with_weights(arguments.folder):
        try:
            content = _check(folder)
        except (StorageError, DataError) as error:
            num_bad += 1
            print(f"BAD    {error}")
        else:
            num_whole += 1
            print(f"whole  {folder} ({content})")
    if num_whole + num_bad == 0:
        print(f"{arguments.folder} holds no checkpoint, model or cache")
        return 1
    print(f"{num_whole} whole, {num_bad} bad")
    return 1 if num_bad else 0


def _check(folder: Path) -> str:
    """What a whole folder holds, in words. A cache of latents has an index instead of a manifest."""
    if any(_LATENT_SHARD.fullmatch(path.name) for path in folder.iterdir()):
        return f"{len(LatentDataset(folder))} examples of cached latents; counts and shapes checked, not hashes"
    manifest = verify_folder(folder)
    size = sum(entry.size for entry in manifest.files.values())
    # Models are folders without a step; the trainer's checkpoints begin at 1.
    step = f"step {manifest.step}, " if manifest.step else ""
    return f"{step}{len(manifest.files)} files, {size / 1e6:.1f} MB"


def _folders_with_weights(root: Path) -> Iterator[Path]:
    """Folders with a manifest, and folders with weights that should have one; a manifest speaks for all below it."""
    for directory, folders, files in os.walk(root):
        if MANIFEST_NAME in files or any(name.endswith(".safetensors") for name in files):
            yield Path(directory)
            folders.clear()
        # Hidden folders are saves that a kill interrupted: nobody reads them, the next run removes them.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
