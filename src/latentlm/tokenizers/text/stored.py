"""A text tokenizer's folder: config.json (`kind`, `format_version`, settings, `fingerprint`) and a vocabulary.

All of it is JSON. The fingerprint is computed anew on reading, so that a vocabulary with one changed entry, which would
load without a word and read every text differently, is refused.
"""

from pathlib import Path
from typing import Any

from latentlm.pretrained import CONFIG_NAME, FORMAT_VERSION, link_root, read_model_config
from latentlm.storage import StorageError, read_json, refuse_escape, write_json


def write_config(folder: Path, *, kind: str, fingerprint: str, **settings: Any) -> None:
    """Write a text tokenizer's config.json.

    Raises:
        StorageError: If the disk refuses.
    """
    content = {"kind": kind, "format_version": FORMAT_VERSION, **settings, "fingerprint": fingerprint}
    write_json(folder / CONFIG_NAME, content)


def is_stored(folder: Path) -> bool:
    """Whether a folder's config.json is one of ours; Hugging Face models have a file of that name too."""
    path = folder / CONFIG_NAME
    content = read_json(path) if path.is_file() else None
    return isinstance(content, dict) and "kind" in content and "format_version" in content


def read_config(folder: Path, *, kind: str | None = None) -> dict[str, Any]:
    """Content of a text tokenizer's config.json.

    Args:
        folder: The folder.
        kind: What it must hold; None if any kind will do.

    Raises:
        ValueError: If it is missing, not ours, of a newer format or of another kind.
    """
    refuse_escape(folder / CONFIG_NAME, link_root(folder))
    content = read_model_config(folder)
    if kind is not None and content["kind"] != kind:
        raise ValueError(f"{folder} holds a {content['kind']!r}, not a text tokenizer of kind {kind!r}")
    return content


def read_vocabulary(path: Path) -> dict[str, Any]:
    """Content of a vocabulary file beside a config.json of ours.

    Raises:
        StorageError: If it is missing, leads out of its folder, or is no JSON object.
    """
    refuse_escape(path, link_root(path.parent))
    content = read_json(path)
    if not isinstance(content, dict):
        raise StorageError("unreadable", f"{path} is damaged: it holds a {type(content).__name__}, not a JSON object")
    return content


def read_setting(config: dict[str, Any], name: str, kind: type, folder: Path) -> Any:
    """One setting of a config.json, of the type it must have.

    Raises:
        StorageError: If it is missing or of another type.
    """
    if not isinstance(config.get(name), kind):
        raise StorageError("unreadable", f"{folder / CONFIG_NAME} is damaged: {name} is no {kind.__name__}")
    return config[name]


def check_fingerprint(found: str, config: dict[str, Any], folder: Path) -> None:
    """Refuse a folder whose vocabulary is not the one that was written.

    Raises:
        StorageError: code "hash_mismatch".
    """
    if config.get("fingerprint") != found:
        raise StorageError(
            "hash_mismatch",
            f"{folder} is damaged: its text tokenizer has the fingerprint {found[:12]}…, "
            f"but {CONFIG_NAME} says {str(config.get('fingerprint'))[:12]}…",
        )
