"""Readers of recordings, behind one table: format name -> `(path, split, columns) -> AudioSource`."""

from collections.abc import Callable
from pathlib import Path

from latentlm.data.audio.decoding import AUDIO_SUFFIXES
from latentlm.data.audio.sources.folders import AudioFolder
from latentlm.data.audio.sources.manifests import MANIFEST_SUFFIXES, AudioManifest
from latentlm.data.audio.sources.records import AudioRecord, AudioSource
from latentlm.data.audio.sources.tables import open_audio_hf_dataset, open_audio_parquet, open_audio_webdataset
from latentlm.data.records import DataError

AUDIO_OPENERS: dict[str, Callable[[Path, str, dict[str, str]], AudioSource]] = {
    "audio_folder": AudioFolder,
    "parquet": open_audio_parquet,
    "webdataset": open_audio_webdataset,
    "hf_dataset": open_audio_hf_dataset,
    "manifest": AudioManifest,
}

__all__ = ["AUDIO_OPENERS", "AudioManifest", "AudioRecord", "AudioSource", "detect_audio_format"]

_SUFFIXES = {"parquet": (".parquet",), "webdataset": (".tar",), "manifest": MANIFEST_SUFFIXES}


def detect_audio_format(path: Path, split: str) -> str:
    """The name in `AUDIO_OPENERS` of the format that `path` looks like.

    Raises:
        DataError: If it looks like none.
    """
    if path.is_file():
        for name, suffixes in _SUFFIXES.items():
            if path.name.endswith(suffixes):
                return name
        raise DataError(f"{path}: cannot tell the format from the name; give one of {', '.join(AUDIO_OPENERS)}")
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return "hf_dataset"
    for folder in (path, path / "data", path / split):
        names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        for name, suffixes in _SUFFIXES.items():
            # A folder of recordings may well hold a JSON file about them.
            if name != "manifest" and any(entry.endswith(suffixes) for entry in names):
                return name
    if any(found.name.lower().endswith(AUDIO_SUFFIXES) for found in path.rglob("*")):
        return "audio_folder"
    if any(found.name.endswith(MANIFEST_SUFFIXES) for found in path.iterdir()):
        return "manifest"
    raise DataError(f"{path}: found no sound ({', '.join(AUDIO_SUFFIXES)}), no Parquet, tar or manifest files")
