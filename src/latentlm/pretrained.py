"""Models on disk and on the hub: `config.json` + `model.safetensors`, read and written the same way for every model.

config.json is the config dataclass's content plus `kind` (which class) and `format_version`. A folder written here also
holds a manifest, and one with a manifest must agree with it; a folder made by hand needs none. Only JSON and
safetensors are ever downloaded or read, so a stranger's folder can be wrong but cannot run code.
"""

import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from latentlm.config import from_mapping, to_mapping
from latentlm.storage import (
    MANIFEST_NAME,
    StorageError,
    check_format_version,
    publish_folder,
    read_json,
    read_tensors,
    refuse_escape,
    verify_folder,
    write_json,
    write_tensors,
)

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
FORMAT_VERSION = 1

# What may come from, or go to, a hub repository.
HUB_PATTERNS = ("*.json", "*.safetensors", "README.md")

# The hub's own rule for "owner/name": no "..", no leading dot or dash, two parts.
_HUB_ID = re.compile(r"(?!.*(\.\.|--))[A-Za-z0-9_][A-Za-z0-9._-]*/[A-Za-z0-9_][A-Za-z0-9._-]*(?<![.-])")

_Module = nn.Module if TYPE_CHECKING else object

# Not typing.Self: the run-time checks of the tests decorate methods one by one and do not know their class.
PretrainedT = TypeVar("PretrainedT", bound="Pretrained")


class HubUpload(ABC):
    """What can be saved to a folder can be uploaded to the hub."""

    kind: str
    """What config.json calls it."""

    @abstractmethod
    def save_pretrained(self, folder: str | Path) -> None:
        """Write everything that loading needs into `folder`."""

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        revision: str | None = None,
        commit_message: str | None = None,
        token: str | None = None,
    ) -> str:
        """Upload to a hub repository, creating it if needed; returns the commit's address.

        Args:
            repo_id: "owner/name".
            private: Create the repository as private.
            revision: Branch to commit to.
            commit_message: Defaults to one that names the kind.
            token: Defaults to the one that `hf auth login` stored.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            self.save_pretrained(folder)
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                revision=revision,
                commit_message=commit_message or f"Upload {self.kind}",
                allow_patterns=list(HUB_PATTERNS),
            )
        return commit.commit_url


class Pretrained(HubUpload, _Module):
    """Mixin of an `nn.Module` built as `cls(config)`: gives it `save_pretrained`, `from_pretrained`, `push_to_hub`.

    Attributes:
        kind: Name of the class in config.json.
        config_class: Its config dataclass.
        config: The config it was built with.
    """

    config_class: ClassVar[type]
    config: Any

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json, model.safetensors and a manifest; an existing folder is replaced as a whole.

        Raises:
            StorageError: If the folder exists and is not a model folder, or the disk refuses.
        """
        publish_model(Path(folder), self.write_files)

    def write_files(self, folder: Path) -> None:
        """Write config.json and model.safetensors into a folder that exists; for publishers of several models."""
        write_json(
            folder / CONFIG_NAME, {"kind": self.kind, "format_version": FORMAT_VERSION, **to_mapping(self.config)}
        )
        write_tensors(folder / WEIGHTS_NAME, unique_tensors(self), {"format": "pt"})

    @classmethod
    def from_pretrained(
        cls: type[PretrainedT],
        source: str | Path,
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        device: str | torch.device = "cpu",
    ) -> PretrainedT:
        """Load a model, in evaluation mode, from a local folder or a hub repository.

        Args:
            source: A folder, or a hub id "owner/name".
            revision: Branch, tag or commit of a hub repository. Pin a commit for code that others will run.
            local_files_only: Use the local hub cache and never the network.
            device: Where the weights go.

        Raises:
            ValueError: In a sentence, if the folder holds another kind of model, a newer format, an unknown config
                field, damaged files, or tensors that are missing, unexpected or of another shape.
        """
        folder = resolve_folder(source, revision=revision, local_files_only=local_files_only)
        return cls.from_folder(folder, device=device)

    @classmethod
    def from_folder(cls: type[PretrainedT], folder: Path, *, device: str | torch.device = "cpu") -> PretrainedT:
        """`from_pretrained` of a folder that `resolve_folder` gave, or of one inside it: nothing is hashed again."""
        content = read_model_config(folder)
        if content["kind"] != cls.kind:
            raise ValueError(f"{folder} holds a {content['kind']!r}, not a {cls.kind!r}")
        settings = {name: value for name, value in content.items() if name not in ("kind", "format_version")}
        config = from_mapping(cls.config_class, settings, where=str(folder / CONFIG_NAME))
        # Initial weights are drawn and then overwritten; the caller's random numbers must not notice.
        with torch.random.fork_rng(devices=[]):
            model = cls(config)
        load_exactly(model, read_tensors(folder / WEIGHTS_NAME), folder / WEIGHTS_NAME)
        return model.to(device).eval()


def publish_model(folder: Path, write: Callable[[Path], None]) -> None:
    """Publish a model folder, replacing an existing one as a whole, but never a folder of something else.

    Args:
        folder: The model folder.
        write: Fills the staging folder that it is given.

    Raises:
        StorageError: If something exists there that is not a model folder, or the disk refuses.
    """
    if folder.exists():
        is_ours = folder.is_dir() and ((folder / CONFIG_NAME).is_file() or not any(folder.iterdir()))
        if not is_ours:
            raise StorageError("exists", f"{folder} exists and holds no model; refusing to replace it")
    publish_folder(folder, write, replace=True)


def resolve_folder(
    source: str | Path, *, revision: str | None = None, local_files_only: bool = False, verify: bool = True
) -> Path:
    """The local folder of a model: `source` itself, or the hub's download of it, checked against its manifest if any.

    Args:
        source: A folder, or a hub id "owner/name".
        revision: Branch, tag or commit of a hub repository.
        local_files_only: Use the local hub cache and never the network.
        verify: Check the manifest, which reads every file. False is for callers whose next step does.

    Raises:
        ValueError: If it is neither a folder nor a hub id, cannot be downloaded, or fails verification.
    """
    folder = Path(source)
    if not folder.is_dir():
        if not _HUB_ID.fullmatch(str(source)):
            raise ValueError(f"{source} is neither a folder here nor a hub id of the form owner/name")
        folder = _download(str(source), revision, local_files_only)
    links_within = link_root(folder)
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        refuse_escape(folder / name, links_within)
    if verify and (folder / MANIFEST_NAME).is_file():
        manifest = verify_folder(folder, allow_unlisted=True, links_within=links_within)
        for name in (CONFIG_NAME, WEIGHTS_NAME):
            if name not in manifest.files:
                raise StorageError("bad_manifest", f"{folder / MANIFEST_NAME} does not list {name}")
    return folder


def link_root(folder: Path) -> Path:
    """Where links inside a model folder may lead: nowhere else, or anywhere in a repository of the hub's cache.

    That cache is <repository>/snapshots/<commit>/, made of links to <repository>/blobs/.
    """
    snapshot = next((path for path in (folder, *folder.parents) if path.parent.name == "snapshots"), None)
    return folder if snapshot is None else snapshot.parents[1]


def read_model_config(folder: Path) -> dict[str, Any]:
    """Content of a model folder's config.json, with `kind` (which class to load it with) and `format_version`.

    Raises:
        ValueError: If it is missing, not a model's config, or of a newer format.
    """
    path = folder / CONFIG_NAME
    if not path.is_file() and (folder / "model" / CONFIG_NAME).is_file():
        raise ValueError(f"{folder} is a run, not the model that it trained; did you mean {folder / 'model'}?")
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("kind"), str):
        raise ValueError(f"{path} names no `kind`, so this is not a model folder of ours")
    version = content.get("format_version")
    if not isinstance(version, int):
        raise ValueError(f"{path} has no format_version")
    check_format_version(version, FORMAT_VERSION, path)
    return content


def _download(repo_id: str, revision: str | None, local_files_only: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            repo_id, revision=revision, local_files_only=local_files_only, allow_patterns=list(HUB_PATTERNS)
        )
    except LocalEntryNotFoundError as error:
        raise ValueError(
            f"there is no folder {repo_id}, and as a hub id it is not in the hub cache, and the hub was not reached"
        ) from error
    except HfHubHTTPError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"there is no folder {repo_id}, and as a hub id the hub refused it: {reason}") from error
    return Path(folder)


def unique_tensors(module: nn.Module, *, leave_out: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """The state dict with each shared tensor under its first name only, as safetensors wants it.

    Args:
        module: Any module.
        leave_out: Names of children whose tensors are not wanted.
    """
    unique: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if name.split(".")[0] not in leave_out and id(tensor) not in seen:
            seen.add(id(tensor))
            unique[name] = tensor
    return unique


def load_exactly(module: nn.Module, tensors: dict[str, Tensor], path: Path, *, leave_out: tuple[str, ...] = ()) -> None:
    """Copy tensors into a module whose `unique_tensors` they must match name for name and shape for shape.

    Args:
        module: The module.
        tensors: Read from `path`.
        path: For error messages.
        leave_out: Children that `tensors` does not hold.

    Raises:
        ValueError: Naming what is missing, unexpected or of another shape.
    """
    expected = unique_tensors(module, leave_out=leave_out)
    problems = [f"misses {name}" for name in expected if name not in tensors]
    problems += [f"has an unexpected {name}" for name in tensors if name not in expected]
    for name, tensor in tensors.items():
        if name in expected and tensor.shape != expected[name].shape:
            wanted = tuple(expected[name].shape)
            problems.append(f"has {name} of shape {tuple(tensor.shape)} where the config asks for {wanted}")
    if problems:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise ValueError(f"{path} does not fit its config: it {shown}")
    module.load_state_dict(tensors, strict=False)
