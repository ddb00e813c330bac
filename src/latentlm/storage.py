"""Folders that are whole or absent: what checkpoints, models and latent caches are written through (POSIX systems).

`publish_folder` fills a staging folder beside its target, writes a manifest (size and SHA-256 of every file) last,
syncs everything to disk and renames. A kill, a full disk or a power cut at any moment leaves the old state or the new
one, never half of one. `verify_folder` proves a folder against its manifest: safetensors has no checksum of its own and
loads nearly every file with a flipped bit without a word.

    .step_00000200.staging-x1y2/  ──fsync files, manifest, folder──▶ rename ──▶ step_00000200/ ──fsync parent

Files are safetensors and JSON only; nothing here can execute what it reads.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 1

# Far above any JSON of ours, far below what could hurt: the whole file is read into memory.
MAX_JSON_BYTES = 64 * 2**20
_HASH_CHUNK_BYTES = 2**20

_STEP_FOLDER = re.compile(r"step_(\d{8,})")
_LEFTOVER = re.compile(r"\.(?P<target>.+)\.(?P<role>staging|replaced)-[^.]+")


class StorageError(ValueError):
    """A file or folder was refused, or could not be written.

    Attributes:
        code: A stable word for programs: "missing", "unsafe_name", "bad_manifest", "newer_format", "wrong_step",
            "size_mismatch", "hash_mismatch", "unlisted_file", "unreadable", "exists" or "write_failed".
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class FileEntry:
    """One file of a manifest: its size in bytes and its SHA-256 as hex."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a published folder holds."""

    step: int
    files: dict[str, FileEntry]
    """Relative POSIX path to size and hash; the manifest itself is not among them."""
    format_version: int = FORMAT_VERSION


# Single files


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors, from any device.

    Raises:
        StorageError: code "write_failed", for example on a full disk.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(contiguous, path, metadata)
    except (OSError, SafetensorError) as error:
        wanted = sum(tensor.numel() * tensor.element_size() for tensor in contiguous.values())
        raise write_failed(path, error, wanted) from error


def read_tensors(path: Path, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """Read every tensor of a safetensors file.

    Raises:
        StorageError: code "missing" or "unreadable".
    """
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except FileNotFoundError as error:
        raise StorageError("missing", f"{path} does not exist") from error
    except (OSError, SafetensorError) as error:
        raise StorageError("unreadable", f"{path} is not a readable safetensors file: {error}") from error


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON with keys in the order given.

    Raises:
        StorageError: code "write_failed".
    """
    data = (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
    try:
        path.write_bytes(data)
    except OSError as error:
        raise write_failed(path, error, len(data)) from error


def read_json(path: Path) -> Any:
    """Read a JSON file of at most `MAX_JSON_BYTES`.

    Raises:
        StorageError: code "missing" or "unreadable".
    """
    return _parse_json(path, _read_small(path))


def write_file_atomically(path: Path, data: bytes) -> None:
    """Replace one file as a whole: readers see the old content or the new one, also after a power cut.

    Raises:
        StorageError: code "write_failed".
    """
    temporary = path.with_name(f".{path.name}.staging-{os.getpid()}")
    try:
        try:
            temporary.write_bytes(data)
            _fsync(temporary)
            os.rename(temporary, path)
            _fsync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise write_failed(path, error, len(data)) from error


# Folders


def publish_folder(target: Path, write: Callable[[Path], None], *, step: int = 0, replace: bool = False) -> None:
    """Create `target` as a whole: either everything that `write` puts into it, on disk and with a manifest, or nothing.

    Args:
        target: The folder to create; its parents are created too.
        write: Fills the staging folder that it is given. Whatever it raises leaves no trace on disk.
        step: Recorded in the manifest.
        replace: Replace an existing folder. It stays until the new one is ready to take its name.

    Raises:
        StorageError: code "exists" without `replace`; code "write_failed" when the disk refuses.
    """
    if target.exists() and not replace:
        raise StorageError("exists", f"{target} exists already; remove it, or choose another folder")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.staging-", dir=target.parent))
        try:
            write(staging)
            _seal(staging, step)
            if target.exists():
                _replace(target, staging)
            else:
                os.rename(staging, target)
                _fsync(target.parent)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise write_failed(target, error, None) from error


def verify_folder(folder: Path, *, allow_unlisted: bool = False, links_within: Path | None = None) -> Manifest:
    """Check every file of a published folder against its manifest.

    Args:
        folder: The folder.
        allow_unlisted: Accept files that the manifest does not name.
        links_within: Where symbolic links may lead; by default, nowhere outside `folder`.

    Returns:
        The manifest.

    Raises:
        StorageError: Naming the file, if anything is missing, altered, extra, a link, or of a newer format.
    """
    manifest = read_manifest(folder)
    for name, entry in manifest.files.items():
        path = folder / name
        refuse_escape(path, links_within or folder)
        if not path.is_file():
            raise StorageError("missing", f"{path} is missing, but the manifest lists it")
        size = path.stat().st_size
        if size != entry.size:
            raise StorageError("size_mismatch", f"{path} has {size} bytes, but the manifest says {entry.size}")
        if _sha256(path) != entry.sha256:
            raise StorageError("hash_mismatch", f"{path} is damaged: its SHA-256 is not the one in the manifest")
    if not allow_unlisted:
        for name in _files_below(folder):
            if name not in manifest.files:
                raise StorageError("unlisted_file", f"{folder / name} is not in the manifest")
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read a folder's manifest without looking at the files it lists.

    Raises:
        StorageError: code "missing", "newer_format", "unsafe_name" or "bad_manifest".
    """
    path = folder / MANIFEST_NAME
    data = _read_small(path)
    content = _parse_json(path, data)
    if isinstance(content, dict) and isinstance(version := content.get("format_version"), int):
        check_format_version(version, FORMAT_VERSION, path)
    try:
        files = {str(name): FileEntry(**entry) for name, entry in content["files"].items()}
        manifest = Manifest(step=content["step"], files=files, format_version=content["format_version"])
        unaltered = data == _manifest_bytes(manifest)
    except (KeyError, TypeError, AttributeError) as error:
        raise StorageError("bad_manifest", f"{path} is not a manifest: {error!r}") from error
    if not unaltered:
        raise StorageError("bad_manifest", f"{path} is damaged: its own SHA-256 does not hold")
    for name in files:
        parts = PurePosixPath(name).parts
        if not parts or PurePosixPath(name).is_absolute() or ".." in parts or "\\" in name or "\0" in name:
            raise StorageError("unsafe_name", f"{path} lists {name!r}, which is not a name inside the folder")
    return manifest


def refuse_escape(path: Path, root: Path) -> None:
    """Refuse a path that leads out of `root`, be it by "..", by being absolute or through a symbolic link.

    Raises:
        StorageError: code "unsafe_name".
    """
    if not path.resolve().is_relative_to(root.resolve()):
        raise StorageError("unsafe_name", f"{path} leads out of {root}")


def check_format_version(found: int, supported: int, path: Path) -> None:
    """Refuse a format that a newer version of this package wrote.

    Raises:
        StorageError: code "newer_format".
    """
    if found > supported:
        raise StorageError(
            "newer_format", f"{path} has format_version {found}, but this version reads up to {supported}; upgrade"
        )


# Series of folders, one per step


def step_folder(parent: Path, step: int) -> Path:
    """The folder of a step: `parent/step_00000123`."""
    return parent / f"step_{step:08d}"


def list_step_folders(parent: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every folder named for a step, newest first, good or not."""
    names = os.listdir(parent) if parent.is_dir() else []
    matches = [match for name in names if (match := _STEP_FOLDER.fullmatch(name))]
    return sorted(((int(match[1]), parent / match[0]) for match in matches), reverse=True)


def newest_verified(parent: Path, on_rejected: Callable[[Path, StorageError], None]) -> Path | None:
    """The newest step folder that verifies and whose manifest has the step of its name; None if there is none.

    Args:
        parent: Holds the step folders.
        on_rejected: Told of every newer folder that was refused, and why.
    """
    for step, folder in list_step_folders(parent):
        try:
            manifest = verify_folder(folder)
            if manifest.step != step:
                raise StorageError("wrong_step", f"{folder / MANIFEST_NAME} belongs to step {manifest.step}")
        except StorageError as error:
            on_rejected(folder, error)
        else:
            return folder
    return None


def remove_published(folder: Path) -> None:
    """Remove a published folder. It loses its name first, so that a kill leaves a leftover, not a torn folder."""
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.staging-", dir=folder.parent))
    os.rename(folder, aside / folder.name)
    shutil.rmtree(aside)


def remove_leftovers(parent: Path) -> None:
    """Remove what killed saves left in `parent`. Call it only while nobody else writes there.

    A folder that was set aside for a replacement which never came gets its name back.
    """
    for path in sorted(parent.glob(".*")):
        match = _LEFTOVER.fullmatch(path.name)
        if match is None:
            continue
        target = parent / match["target"]
        if match["role"] == "replaced" and not target.exists():
            os.rename(path, target)
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


# Parts


def _seal(folder: Path, step: int) -> None:
    """Sync every file, then write and sync the manifest, then sync the folders."""
    files = {}
    for name in _files_below(folder):
        _fsync(folder / name)
        files[name] = FileEntry(size=(folder / name).stat().st_size, sha256=_sha256(folder / name))
    (folder / MANIFEST_NAME).write_bytes(_manifest_bytes(Manifest(step=step, files=files)))
    _fsync(folder / MANIFEST_NAME)
    for directory, _, _ in os.walk(folder):
        _fsync(Path(directory))


def _replace(target: Path, staging: Path) -> None:
    """Give `staging` the name of the existing `target`. rename() cannot replace a folder that holds files, so the old
    one steps aside first; a kill between the two renames is mended by `remove_leftovers`."""
    aside = staging.with_name(staging.name.replace(".staging-", ".replaced-"))
    os.rename(target, aside)
    os.rename(staging, target)
    _fsync(target.parent)
    shutil.rmtree(aside)


def _manifest_bytes(manifest: Manifest) -> bytes:
    """A manifest's only spelling, with a hash of itself: a changed byte anywhere in the file shows."""
    content = asdict(manifest)
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**content, "manifest_sha256": digest}, indent=1, sort_keys=True) + "\n").encode()


def _files_below(folder: Path) -> Iterator[str]:
    """Relative POSIX names of everything in a folder that is not a folder, links included; manifest left out."""
    for directory, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(directory) / name).is_symlink()]
        for name in sorted(files + links):
            relative = (Path(directory) / name).relative_to(folder).as_posix()
            if relative != MANIFEST_NAME:
                yield relative


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_HASH_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise StorageError("unreadable", f"{path} cannot be read: {error}") from error
    return digest.hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_small(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_JSON_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StorageError("missing", f"{path} does not exist") from error
    except OSError as error:
        raise StorageError("unreadable", f"{path} cannot be read: {error}") from error
    if len(data) > MAX_JSON_BYTES:
        raise StorageError("unreadable", f"{path} is larger than the {MAX_JSON_BYTES} bytes allowed for JSON")
    return data


def _parse_json(path: Path, data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:  # RecursionError: JSON nested 100,000 deep
        raise StorageError("unreadable", f"{path} is not valid JSON: {error}") from error


def write_failed(path: Path, error: Exception, wanted: int | None) -> StorageError:
    """The error for a write that the system refused: the path, the bytes wanted (None: unknown) and the bytes free."""
    free = "an unknown number of"
    with contextlib.suppress(OSError):
        free = str(shutil.disk_usage(path.parent).free)
    size = "" if wanted is None else f" ({wanted} bytes)"
    hint = "; the disk or quota is full" if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) else ""
    return StorageError("write_failed", f"cannot write {path}{size}: {error}{hint}; {free} bytes are free there")


@contextlib.contextmanager
def waiting_lock(path: Path) -> Iterator[None]:
    """Hold a lock file, waiting for another process that holds it. The lock dies with its process, the file stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        # A record lock: unlike flock it is not inherited by data workers, which may outlive a killed parent.
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield
