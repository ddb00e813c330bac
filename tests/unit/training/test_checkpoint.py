"""Damaged checkpoints are refused by name and the previous good one is taken; other recipes and models are refused."""

import dataclasses
import json
import logging
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from toy_training import ToyObjective, ToyRecipe, final_state, make_recipe, make_trainer

from latentlm.storage import StorageError, read_tensors, verify_folder, write_tensors
from latentlm.training.checkpoint import CheckpointFolder, Progress, TrainingParts

NEWEST, PREVIOUS = "step_00000008", "step_00000006"
Damage = Callable[[Path, random.Random], str]


def parts_of(objective: ToyObjective, recipe: ToyRecipe) -> TrainingParts:
    trainer = make_trainer(Path("unused"), recipe, objective=objective)
    return trainer._parts()


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with checkpoints of steps 6 and 8."""
    run_dir = tmp_path_factory.mktemp("run")
    make_trainer(run_dir, make_recipe()).fit()
    assert sorted(os.listdir(run_dir / "checkpoints")) == [PREVIOUS, NEWEST]
    return run_dir


@pytest.fixture
def run_dir(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def flip_a_bit(folder: Path, rng: random.Random) -> str:
    # Spread over the files, each file as likely as another, so that small ones are hit too.
    path = rng.choice(sorted(folder.iterdir()))
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return path.name


def truncate(folder: Path, rng: random.Random) -> str:
    path = rng.choice(sorted(folder.iterdir()))
    os.truncate(path, rng.randrange(path.stat().st_size))
    return path.name


def append_a_page(folder: Path, rng: random.Random) -> str:
    path = rng.choice(sorted(folder.iterdir()))
    with path.open("ab") as file:
        file.write(b" " * 4096)
    return path.name


def zero_a_page(folder: Path, rng: random.Random) -> str:
    path = rng.choice(sorted(folder.iterdir()))
    data = path.read_bytes()
    start = rng.randrange(len(data))
    path.write_bytes(data[:start] + bytes(len(data[start : start + 4096])) + data[start + 4096 :])
    # A page that was zero already is no damage.
    return path.name if path.read_bytes() != data else flip_a_bit(folder, rng)


def lose_a_file(folder: Path, rng: random.Random) -> str:
    path = rng.choice(sorted(folder.iterdir()))
    path.unlink()
    return path.name


def add_a_file(folder: Path, rng: random.Random) -> str:
    name = f"extra{rng.randrange(100)}.safetensors"
    write_tensors(folder / name, {"x": torch.zeros(1)})
    return name


def rename_a_file(folder: Path, rng: random.Random) -> str:
    path = rng.choice(sorted(folder.iterdir()))
    path.rename(folder / "renamed.json")
    return path.name


def take_a_file_of_another_step(folder: Path, rng: random.Random) -> str:
    # Every file but none of these differs between steps.
    name = rng.choice(
        ["manifest.json", "model.safetensors", "ema.safetensors", "optimizer_model.safetensors", "state.json"]
    )
    shutil.copy(folder.parent / PREVIOUS / name, folder / name)
    # With another step's manifest it is the first listed file that does not fit.
    return name if name != "manifest.json" else "ema.safetensors"


def take_another_steps_name(folder: Path, rng: random.Random) -> str:
    shutil.rmtree(folder)
    shutil.copytree(folder.parent / PREVIOUS, folder)
    return "manifest.json"


@pytest.mark.parametrize(
    ("damage", "number"),
    [
        (flip_a_bit, 60),
        (truncate, 15),
        (append_a_page, 8),
        (zero_a_page, 8),
        (lose_a_file, 7),
        (add_a_file, 2),
        (rename_a_file, 7),
        (take_a_file_of_another_step, 8),
        (take_another_steps_name, 1),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_damaged_checkpoint_is_refused_by_name_and_the_previous_one_is_taken(
    run_dir: Path, caplog: pytest.LogCaptureFixture, damage: Damage, number: int
) -> None:
    rng = random.Random(f"{damage.__name__} 1")
    recipe = make_recipe()
    parts = parts_of(ToyObjective(recipe), recipe)
    checkpoints = run_dir / "checkpoints"
    shutil.copytree(checkpoints / NEWEST, run_dir / "good")
    for _ in range(number):
        shutil.rmtree(checkpoints / NEWEST)
        shutil.copytree(run_dir / "good", checkpoints / NEWEST)
        verify_folder(checkpoints / NEWEST)
        named = damage(checkpoints / NEWEST, rng)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            progress = CheckpointFolder(checkpoints, keep=2).restore_newest(parts)
        assert progress == Progress(step=6)
        assert "step_00000008 is REJECTED" in caplog.text
        assert named in caplog.text
        assert "falling back to the last good checkpoint, step_00000006" in caplog.text


def test_after_a_fall_back_the_run_ends_as_if_nothing_had_happened(run_dir: Path, finished_run: Path) -> None:
    flip_a_bit(run_dir / "checkpoints" / NEWEST, random.Random(0))
    make_trainer(run_dir, make_recipe()).fit()
    assert final_state(run_dir) == final_state(finished_run)
    verify_folder(run_dir / "checkpoints" / NEWEST)


def test_a_run_whose_every_checkpoint_is_damaged_does_not_start_over_in_silence(run_dir: Path) -> None:
    for name in (NEWEST, PREVIOUS):
        os.truncate(run_dir / "checkpoints" / name / "model.safetensors", 10)
    with pytest.raises(ValueError, match=r"no checkpoint .* can be trusted.*step_00000008.*step_00000006"):
        make_trainer(run_dir, make_recipe()).fit()


def test_a_field_that_a_later_version_adds_may_be_at_its_default(tmp_path: Path) -> None:
    recipe = make_recipe()
    parts = parts_of(ToyObjective(recipe), recipe)
    trainer = {name: value for name, value in parts.recipe["trainer"].items() if name != "ema_half_life_ratio"}
    checkpoints = CheckpointFolder(tmp_path / "checkpoints", keep=2)
    checkpoints.save(dataclasses.replace(parts, recipe={**parts.recipe, "trainer": trainer}), Progress(step=3))
    assert checkpoints.restore_newest(parts) == Progress(step=3)
    changed = make_recipe(ema_half_life_ratio=0.5)
    with pytest.raises(ValueError, match=r"trainer\.ema_half_life_ratio was absent and is 0\.5 now"):
        checkpoints.restore_newest(parts_of(ToyObjective(changed), changed))


@pytest.mark.parametrize(
    ("recipe", "named"),
    [
        (make_recipe(lr=0.02), r"optim\.lr was 0\.01 and is 0\.02 now"),
        (make_recipe(dropout=0.3), r"dropout was 0\.2 and is 0\.3 now"),
        (make_recipe(hidden_size=9, seed=5), r"hidden_size was 8 and is 9 now; trainer\.seed was 0 and is 5 now"),
        (make_recipe(num_steps=80), r"trainer\.num_steps was 8 and is 80 now"),
    ],
)
def test_another_recipe_is_refused_and_the_field_named(run_dir: Path, recipe: ToyRecipe, named: str) -> None:
    with pytest.raises(ValueError, match=f"belongs to another recipe: {named}"):
        make_trainer(run_dir, recipe).fit()


def test_another_model_under_the_same_recipe_is_refused_and_the_tensors_named(run_dir: Path) -> None:
    larger = ToyObjective(make_recipe(hidden_size=9))
    with pytest.raises(ValueError, match=r"model\.safetensors does not fit.*body\.0\.weight of shape \(8, 4\)"):
        make_trainer(run_dir, make_recipe(), objective=larger).fit()
    renamed = ToyObjective(make_recipe())
    renamed.head = nn.Sequential(renamed.body)
    del renamed.body
    renamed.embedding.requires_grad_(False)
    with pytest.raises(ValueError, match=r"misses head\.0\.0\.weight"):
        CheckpointFolder(run_dir / "checkpoints", keep=2).restore_newest(parts_of_renamed(renamed))


def parts_of_renamed(objective: ToyObjective) -> TrainingParts:
    recipe = make_recipe()
    parts = parts_of(ToyObjective(recipe), recipe)
    return TrainingParts(objective, parts.optimizers, parts.ema, parts.scaler, parts.recipe)


def test_a_newer_format_is_refused_as_such(run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = make_recipe()
    store = CheckpointFolder(run_dir / "checkpoints", keep=2)
    path = run_dir / "checkpoints" / NEWEST / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 2}))
    store.restore_newest(parts_of(ToyObjective(recipe), recipe))
    assert "reads up to 1; upgrade" in caplog.text


def test_frozen_children_are_left_out_and_everything_else_is_there(finished_run: Path) -> None:
    folder = finished_run / "checkpoints" / NEWEST
    model = read_tensors(folder / "model.safetensors")
    assert not any(name.startswith("teacher") for name in model)
    assert "num_batches" in model
    trainable = {name for name, p in ToyObjective(make_recipe()).named_parameters() if p.requires_grad}
    assert trainable < set(model)
    assert set(read_tensors(folder / "ema.safetensors")) == trainable
    optimizer = read_tensors(folder / "optimizer_model.safetensors")
    assert set(optimizer) == {f"{name}/{key}" for name in trainable for key in ("step", "exp_avg", "exp_avg_sq")}
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}


def test_old_checkpoints_go_only_after_the_newest_was_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe()
    parts = parts_of(ToyObjective(recipe), recipe)
    store = CheckpointFolder(tmp_path, keep=2)
    for step in (1, 2):
        store.save(parts, Progress(step=step))

    def bad_disk(folder: Path) -> None:
        raise StorageError("hash_mismatch", f"{folder} came back different")

    with monkeypatch.context() as patch:
        patch.setattr("latentlm.training.checkpoint.verify_folder", bad_disk)
        with pytest.raises(StorageError, match="came back different"):
            store.save(parts, Progress(step=3))
    assert sorted(os.listdir(tmp_path)) == ["step_00000001", "step_00000002", "step_00000003"]
    store.save(parts, Progress(step=3))
    assert sorted(os.listdir(tmp_path)) == ["step_00000002", "step_00000003"]


def test_a_damaged_newer_checkpoint_does_not_push_out_a_good_older_one(run_dir: Path) -> None:
    flip_a_bit(run_dir / "checkpoints" / NEWEST, random.Random(0))
    recipe = make_recipe()
    parts = parts_of(ToyObjective(recipe), recipe)
    store = CheckpointFolder(run_dir / "checkpoints", keep=2)
    store.restore_newest(parts)
    store.save(parts, Progress(step=7))
    assert sorted(os.listdir(run_dir / "checkpoints")) == [PREVIOUS, "step_00000007", NEWEST]


def test_leftovers_of_killed_saves_are_removed_at_the_start(run_dir: Path) -> None:
    for leftover in (run_dir / "checkpoints" / ".step_00000010.staging-abc", run_dir / ".model.staging-xyz"):
        leftover.mkdir()
        (leftover / "model.safetensors").write_bytes(b"half")
    (run_dir / "samples").mkdir(exist_ok=True)
    half_picture = run_dir / "samples" / ".step_000050.png.staging-123"
    half_picture.write_bytes(b"half")
    make_trainer(run_dir, make_recipe()).fit()
    assert not half_picture.exists()
    assert sorted(os.listdir(run_dir / "checkpoints")) == [PREVIOUS, NEWEST]
    assert [name for name in os.listdir(run_dir) if name.startswith(".")] == [".lock"]


def test_the_state_of_an_unknown_parameter_is_refused(run_dir: Path) -> None:
    recipe = make_recipe()
    objective = ToyObjective(recipe)
    parts = parts_of(objective, recipe)
    objective.embedding.requires_grad_(False)
    frozen = parts_of(objective, recipe)
    mixed = TrainingParts(objective, frozen.optimizers, parts.ema, parts.scaler, parts.recipe)
    with pytest.raises(ValueError, match=r"the state of embedding\.weight, which this optimizer does not own"):
        CheckpointFolder(run_dir / "checkpoints", keep=2).restore_newest(mixed)
