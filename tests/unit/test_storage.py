"""Folders that are whole or absent: publishing, verification, and recovery from every state a crash can leave."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from latentlm import storage
from latentlm.storage import (
    MANIFEST_NAME,
    StorageError,
    newest_verified,
    publish_folder,
    read_json,
    read_tensors,
    remove_leftovers,
    remove_published,
    step_folder,
    verify_folder,
    write_file_atomically,
    write_json,
    write_tensors,
)


def write_step(folder: Path, step: int = 1) -> None:
    write_tensors(
        folder / "weights.safetensors", {"weight": torch.full((50,), float(step)), "scalar": torch.tensor(step)}
    )
    write_json(folder / "state.json", {"step": step})
    (folder / "part").mkdir()
    write_json(folder / "part" / "more.json", list(range(20)))


def publish_step(parent: Path, step: int) -> Path:
    folder = step_folder(parent, step)
    publish_folder(folder, lambda staging: write_step(staging, step), step=step, replace=True)
    return folder


def no_rejections(folder: Path, error: StorageError) -> None:
    raise AssertionError(f"{folder} was rejected: {error}")


def hidden_names(parent: Path) -> list[str]:
    return [path.name for path in parent.iterdir() if path.name.startswith(".")]


def test_a_published_folder_verifies_and_gives_back_what_was_written(tmp_path: Path) -> None:
    folder = publish_step(tmp_path, 7)
    manifest = verify_folder(folder)
    assert manifest.step == 7
    assert sorted(manifest.files) == ["part/more.json", "state.json", "weights.safetensors"]
    assert torch.equal(read_tensors(folder / "weights.safetensors")["weight"], torch.full((50,), 7.0))
    assert read_json(folder / "part" / "more.json") == list(range(20))
    assert not hidden_names(tmp_path)


def test_a_write_that_raises_leaves_no_trace_and_the_old_folder_stays(tmp_path: Path) -> None:
    target = publish_step(tmp_path, 1)

    def fail(staging: Path) -> None:
        write_json(staging / "half.json", {})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish_folder(target, fail, replace=True)
    assert os.listdir(tmp_path) == [target.name]
    assert verify_folder(target).step == 1


def test_an_existing_folder_is_replaced_only_on_request(tmp_path: Path) -> None:
    target = tmp_path / "model"
    publish_folder(target, lambda staging: write_json(staging / "a.json", 1))
    with pytest.raises(StorageError, match="exists already") as caught:
        publish_folder(target, lambda staging: write_json(staging / "b.json", 2))
    assert caught.value.code == "exists"
    publish_folder(target, lambda staging: write_json(staging / "b.json", 2), replace=True)
    assert list(verify_folder(target).files) == ["b.json"]
    assert os.listdir(tmp_path) == ["model"]


def test_an_atomic_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    write_file_atomically(path, b"old")
    write_file_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["recipe.yaml"]


Damage = Callable[[Path], None]


def _flip_bit(name: str) -> Damage:
    def damage(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)

    return damage


def _truncate(folder: Path) -> None:
    os.truncate(folder / "weights.safetensors", 100)


def _drop_file(folder: Path) -> None:
    (folder / "part" / "more.json").unlink()


def _add_file(folder: Path) -> None:
    (folder / "part" / "extra.json").write_text("{}")


def _rename_file(folder: Path) -> None:
    (folder / "state.json").rename(folder / "status.json")


def _drop_manifest(folder: Path) -> None:
    (folder / MANIFEST_NAME).unlink()


def _link_a_file(folder: Path) -> None:
    shutil.move(folder / "state.json", folder.parent / "elsewhere.json")
    (folder / "state.json").symlink_to(folder.parent / "elsewhere.json")


def _link_a_folder(folder: Path) -> None:
    shutil.move(folder / "part", folder.parent / "elsewhere")
    (folder / "part").symlink_to(folder.parent / "elsewhere")


def _fake_manifest(folder: Path, **changes: object) -> None:
    """A manifest whose own hash holds, as a hostile author would write it."""
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    manifest.pop("manifest_sha256")
    manifest.update(changes)
    digest = storage.hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    content = {**manifest, "manifest_sha256": digest}
    (folder / MANIFEST_NAME).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def _list_outside(name: str) -> Damage:
    entry = {"size": 2, "sha256": storage.hashlib.sha256(b"{}").hexdigest()}
    return lambda folder: _fake_manifest(folder, files={name: entry})


@pytest.mark.parametrize(
    ("damage", "code", "named"),
    [
        (_flip_bit("weights.safetensors"), "hash_mismatch", "weights.safetensors"),
        (_flip_bit("part/more.json"), "hash_mismatch", "more.json"),
        (_flip_bit(MANIFEST_NAME), None, MANIFEST_NAME),
        (_truncate, "size_mismatch", "weights.safetensors"),
        (_drop_file, "missing", "more.json"),
        (_add_file, "unlisted_file", "extra.json"),
        (_rename_file, "missing", "state.json"),
        (_drop_manifest, "missing", MANIFEST_NAME),
        (_link_a_file, "unsafe_name", "state.json"),
        (_link_a_folder, "unsafe_name", "part"),
        (_list_outside("../secret.json"), "unsafe_name", "secret.json"),
        (_list_outside("/etc/hostname"), "unsafe_name", "/etc/hostname"),
        (_list_outside("a\\b"), "unsafe_name", MANIFEST_NAME),
        (lambda folder: _fake_manifest(folder, format_version=2), "newer_format", MANIFEST_NAME),
        (lambda folder: _fake_manifest(folder, files=[]), "bad_manifest", MANIFEST_NAME),
        (lambda folder: (folder / MANIFEST_NAME).write_text("[1]"), "bad_manifest", MANIFEST_NAME),
        (lambda folder: (folder / MANIFEST_NAME).write_text("[" * 100_000), "unreadable", MANIFEST_NAME),
    ],
)
def test_a_damaged_folder_is_refused_and_the_file_named(
    tmp_path: Path, damage: Damage, code: str | None, named: str
) -> None:
    folder = publish_step(tmp_path, 1)
    damage(folder)
    with pytest.raises(StorageError) as caught:
        verify_folder(folder)
    assert named in str(caught.value)
    # A flipped bit in the manifest may break its JSON, its hash or its version number.
    assert code is None or caught.value.code == code


def test_every_single_bit_of_a_manifest_is_protected(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    publish_folder(folder, lambda staging: write_json(staging / "a.json", 1))
    data = (folder / MANIFEST_NAME).read_bytes()
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        (folder / MANIFEST_NAME).write_bytes(damaged)
        with pytest.raises(StorageError):
            verify_folder(folder)


def test_the_newest_folder_that_verifies_is_found_and_the_others_are_named(tmp_path: Path) -> None:
    folders = {step: publish_step(tmp_path, step) for step in (1, 2, 3)}
    (tmp_path / "step_notes").mkdir()
    assert newest_verified(tmp_path, no_rejections) == folders[3]
    _flip_bit("state.json")(folders[3])
    shutil.rmtree(folders[2])
    shutil.copytree(folders[1], folders[2])  # whole, but of another step
    rejected: dict[Path, str] = {}
    assert newest_verified(tmp_path, lambda folder, error: rejected.update({folder: error.code})) == folders[1]
    assert rejected == {folders[3]: "hash_mismatch", folders[2]: "wrong_step"}


def test_unreadable_files_are_storage_errors(tmp_path: Path) -> None:
    (tmp_path / "noise.safetensors").write_bytes(b"\xff" * 64)
    for read, name, code in (
        (read_tensors, "noise.safetensors", "unreadable"),
        (read_tensors, "absent.safetensors", "missing"),
        (read_json, "noise.safetensors", "unreadable"),
        (read_json, "absent.json", "missing"),
        (read_json, ".", "unreadable"),
    ):
        with pytest.raises(StorageError) as caught:
            read(tmp_path / name)
        assert caught.value.code == code


class CrashRecorder:
    """Keeps a copy of a folder before and after every operation on files that goes through `os`.

    Each copy knows which files had been synced by then: the contents of the others may still be lost in a power cut.
    """

    OPERATIONS = ("mkdir", "fsync", "rename", "unlink", "rmdir")

    def __init__(self, parent: Path, copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.parent, self.copies = parent, copies
        self.states: list[tuple[Path, set[Path]]] = []
        self.synced: set[int] = {path.stat().st_ino for path in parent.rglob("*")}
        self.originals = {name: getattr(os, name) for name in self.OPERATIONS}
        self.is_copying = False
        for name in self.OPERATIONS:
            monkeypatch.setattr(os, name, self._wrap(name))

    def _wrap(self, name: str) -> Callable[..., object]:
        def operation(*arguments: object, **options: object) -> object:
            if self.is_copying:
                return self.originals[name](*arguments, **options)
            self.copy()
            result = self.originals[name](*arguments, **options)
            if name == "fsync":
                self.synced.add(os.fstat(arguments[0]).st_ino)  # pyright: ignore[reportArgumentType]
            self.copy()
            return result

        return operation

    def copy(self) -> None:
        self.is_copying = True
        state = self.copies / f"{len(self.states):04d}"
        shutil.copytree(self.parent, state)
        files = [path for path in self.parent.rglob("*") if path.is_file()]
        unsynced = {state / path.relative_to(self.parent) for path in files if path.stat().st_ino not in self.synced}
        self.states.append((state, unsynced))
        self.is_copying = False


def _recover(state: Path) -> int:
    """What a new process does first; returns the step that it continues from."""
    remove_leftovers(state)
    folder = newest_verified(state, lambda folder, error: None)
    assert folder is not None, f"nothing to resume from in {os.listdir(state)}"
    assert not hidden_names(state)
    return read_json(folder / "state.json")["step"]


def _try_every_crash(recorder: CrashRecorder, scratch: Path) -> int:
    """Recover from every recorded state, and again with its unsynced files empty, halved and dropped."""
    num_states = 0
    for state, unsynced in recorder.states:
        is_published = (state / "step_00000003").exists()
        for loss in (None, 0.0, 0.5, "drop"):
            if loss is not None and not unsynced:
                continue
            crashed = scratch / f"crash_{num_states}"
            shutil.copytree(state, crashed)
            for path in unsynced:
                file = crashed / path.relative_to(state)
                if loss == "drop":
                    file.unlink()
                elif loss is not None:
                    os.truncate(file, int(file.stat().st_size * float(loss)))
            # Once it has its name the new folder must be good: everything in it was synced before.
            assert _recover(crashed) == (3 if is_published else 2)
            num_states += 1
    return num_states


def _record_one_save(tmp_path: Path) -> CrashRecorder:
    parent, copies = tmp_path / "checkpoints", tmp_path / "copies"
    for step in (1, 2):
        publish_step(parent, step)
    with pytest.MonkeyPatch.context() as monkeypatch:
        recorder = CrashRecorder(parent, copies, monkeypatch)

        def write(staging: Path) -> None:
            write_step(staging, 3)
            recorder.copy()

        publish_folder(step_folder(parent, 3), write, step=3)
        verify_folder(step_folder(parent, 3))
        remove_published(step_folder(parent, 1))
    return recorder


def test_every_state_that_a_crash_during_a_save_can_leave_recovers(tmp_path: Path) -> None:
    recorder = _record_one_save(tmp_path)
    assert _try_every_crash(recorder, tmp_path) >= 60


def test_the_crash_test_notices_a_missing_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_fsync", lambda path: None)
    recorder = _record_one_save(tmp_path)
    with pytest.raises(AssertionError):
        _try_every_crash(recorder, tmp_path)


def test_a_crash_while_replacing_a_folder_leaves_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    target = tmp_path / "run" / "model"
    publish_folder(target, lambda staging: write_step(staging, 1), step=1)
    with pytest.MonkeyPatch.context() as monkeypatch:
        recorder = CrashRecorder(target.parent, tmp_path / "copies", monkeypatch)
        publish_folder(target, lambda staging: write_step(staging, 2), step=2, replace=True)
    steps = []
    for state, _ in recorder.states:
        remove_leftovers(state)
        steps.append(verify_folder(state / "model").step)
        assert not hidden_names(state)
    assert steps == sorted(steps)
    assert {steps[0], steps[-1]} == {1, 2}


@pytest.mark.parametrize("operation", ["mkdir", "fsync", "rename"])
@pytest.mark.parametrize("code", ["ENOSPC", "EDQUOT", "EIO", "EACCES"])
def test_a_refusal_by_the_system_is_told_with_path_and_free_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str, code: str
) -> None:
    publish_step(tmp_path, 1)
    number = getattr(storage.errno, code)

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, operation, refuse)
        with pytest.raises(StorageError, match=r"cannot write .*step_00000002.* bytes are free") as caught:
            publish_step(tmp_path, 2)
    assert caught.value.code == "write_failed"
    remove_leftovers(tmp_path)
    assert newest_verified(tmp_path, no_rejections) == step_folder(tmp_path, 1)
