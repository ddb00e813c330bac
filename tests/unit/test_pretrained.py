"""save_pretrained and from_pretrained: round trips, and a sentence for everything that does not fit."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from latentlm.pretrained import Pretrained, resolve_folder
from latentlm.storage import MANIFEST_NAME, StorageError


@dataclass(frozen=True, kw_only=True)
class PairConfig:
    """Two layers."""

    hidden_size: int = 3
    tied: bool = False


class Pair(Pretrained, nn.Module):
    """Two layers that may share their weights, and a buffer."""

    kind = "pair"
    config_class = PairConfig

    def __init__(self, config: PairConfig) -> None:
        super().__init__()
        self.config = config
        self.first = nn.Linear(config.hidden_size, config.hidden_size)
        self.second = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("scale", torch.tensor(float("nan")))
        if config.tied:
            self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.second(self.first(x)))


class Other(Pair):
    kind = "other"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved model."""
    Pair(PairConfig()).save_pretrained(tmp_path / "pair")
    return tmp_path / "pair"


def edit_config(folder: Path, **changes: object) -> None:
    """Change config.json by hand, which is allowed once the manifest is gone."""
    (folder / MANIFEST_NAME).unlink()
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **changes}))


@pytest.mark.parametrize("tied", [False, True])
def test_a_loaded_model_equals_the_saved_one_bit_for_bit(tmp_path: Path, tied: bool) -> None:
    model = Pair(PairConfig(hidden_size=5, tied=tied))
    model.scale.fill_(2.5)
    model.save_pretrained(tmp_path / "pair")
    loaded = Pair.from_pretrained(tmp_path / "pair")
    assert loaded.config == model.config
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    assert (loaded.first.weight is loaded.second.weight) == tied


def test_a_model_folder_holds_json_and_safetensors_only(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "manifest.json", "model.safetensors"]
    content = json.loads((folder / "config.json").read_text())
    assert content == {"kind": "pair", "format_version": 1, "hidden_size": 3, "tied": False}


def test_loading_draws_nothing_from_the_global_generator(folder: Path) -> None:
    before = torch.get_rng_state()
    Pair.from_pretrained(folder)
    assert torch.equal(before, torch.get_rng_state())


def test_saving_again_replaces_the_folder_but_never_a_folder_of_something_else(folder: Path, tmp_path: Path) -> None:
    Pair(PairConfig(hidden_size=4)).save_pretrained(folder)
    assert Pair.from_pretrained(folder).config.hidden_size == 4
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    with pytest.raises(StorageError, match="holds no model"):
        Pair(PairConfig()).save_pretrained(tmp_path / "thesis")


def test_a_folder_without_manifest_is_accepted_and_one_with_a_manifest_must_hold(folder: Path, tmp_path: Path) -> None:
    by_hand = tmp_path / "by_hand"
    shutil.copytree(folder, by_hand)
    (by_hand / MANIFEST_NAME).unlink()
    (by_hand / "README.md").write_text("mine")
    Pair.from_pretrained(by_hand)
    (folder / "README.md").write_text("not in the manifest, and never read")
    Pair.from_pretrained(folder)
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(StorageError, match=r"model\.safetensors is damaged"):
        Pair.from_pretrained(folder)


def test_another_kind_of_model_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="holds a 'pair', not a 'other'"):
        Other.from_pretrained(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 99}, "upgrade"),
        ({"format_version": "one"}, "format_version"),
        ({"kind": 3}, "kind"),
        ({"hiden_size": 3}, "hidden_size"),
        ({"hidden_size": "large"}, "hidden_size"),
        ({"hidden_size": 4}, r"first\.weight of shape \(3, 3\).*\(4, 4\)"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(folder: Path, changes: dict[str, object], message: str) -> None:
    edit_config(folder, **changes)
    with pytest.raises(ValueError, match=message):
        Pair.from_pretrained(folder)


def test_missing_and_unexpected_tensors_are_named(folder: Path) -> None:
    (folder / MANIFEST_NAME).unlink()
    tensors = load_file(folder / "model.safetensors")
    tensors["third.bias"] = tensors.pop("second.bias")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"misses second\.bias; has an unexpected third\.bias"):
        Pair.from_pretrained(folder)


def test_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / MANIFEST_NAME).unlink()
    shutil.move(folder / "model.safetensors", tmp_path / "secret.safetensors")
    (folder / "model.safetensors").symlink_to(tmp_path / "secret.safetensors")
    with pytest.raises(StorageError, match="leads out of"):
        Pair.from_pretrained(folder)


@pytest.mark.parametrize("source", ["no-such-folder", "../up/model", "/abs/olute", "a/../b", "a/b/c", "owner/.hidden"])
def test_what_is_neither_a_folder_nor_a_hub_id_is_refused_without_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="neither a folder here nor a hub id"):
        resolve_folder(source)


def test_a_hub_repository_is_downloaded_by_patterns_and_its_cache_links_are_followed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's client is replaced at its border; the cache is laid out as its own: snapshots/ linking to blobs/."""
    snapshot = tmp_path / "models--owner--pair" / "snapshots" / "0123abcd"
    blobs = tmp_path / "models--owner--pair" / "blobs"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in folder.iterdir():
        shutil.copy(path, blobs / path.name)
        (snapshot / path.name).symlink_to(blobs / path.name)
    asked: dict[str, object] = {}

    def snapshot_download(repo_id: str, **options: object) -> str:
        asked.update(repo_id=repo_id, **options)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    Pair.from_pretrained("owner/pair", revision="0123abcd")
    assert asked == {
        "repo_id": "owner/pair",
        "revision": "0123abcd",
        "local_files_only": False,
        "allow_patterns": ["*.json", "*.safetensors", "README.md"],
    }
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to("/etc/hostname")
    with pytest.raises(StorageError, match="leads out of"):
        Pair.from_pretrained("owner/pair")


def test_a_repository_that_is_not_in_the_cache_is_a_sentence_when_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="not in the hub cache") as caught:
        Pair.from_pretrained("owner/never-downloaded", local_files_only=True)
    assert isinstance(caught.value.__cause__, LocalEntryNotFoundError)


def test_pushing_uploads_a_model_folder_by_patterns(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[str, object] = {}

    class Api:
        """Stands at the border of the network."""

        def __init__(self, token: str | None = None) -> None: ...

        def create_repo(self, repo_id: str, **options: object) -> None:
            calls["create"] = (repo_id, options)

        def upload_folder(self, **options: object) -> object:
            calls["files"] = sorted(path.name for path in Path(str(options["folder_path"])).iterdir())
            calls["patterns"] = options["allow_patterns"]
            return type("Commit", (), {"commit_url": "https://hub/commit"})()

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert Pair(PairConfig()).push_to_hub("owner/pair", private=True) == "https://hub/commit"
    assert calls["create"] == ("owner/pair", {"private": True, "exist_ok": True})
    assert calls["files"] == ["config.json", "manifest.json", "model.safetensors"]
    assert calls["patterns"] == ["*.json", "*.safetensors", "README.md"]


def test_the_folder_of_a_run_is_answered_with_the_model_in_it(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "run" / "model")
    with pytest.raises(ValueError, match=r"run is a run, not the model that it trained; did you mean .*/run/model\?"):
        Pair.from_pretrained(tmp_path / "run")


def test_a_misspelt_folder_that_looks_like_a_hub_id_is_told_as_both(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(repo_id: str, **options: object) -> str:
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(ValueError, match="there is no folder runs/my_modl, and as a hub id it is not in the hub cache"):
        Pair.from_pretrained("runs/my_modl")
