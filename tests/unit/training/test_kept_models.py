"""Averaged models of steps on the way: what `trainer.keep_steps` leaves in a run folder, disturbing nothing."""

import itertools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from toy_training import ToyRecipe, final_state, make_loader, make_recipe, make_trainer

from latentlm.storage import read_tensors, verify_folder
from latentlm.training.trainer import KEPT_FOLDER, TrainerConfig, kept_model


def kept(run_dir: Path) -> dict[str, bytes]:
    """Step to the bytes of its weights."""
    folders = sorted((run_dir / KEPT_FOLDER).iterdir())
    return {folder.name: (folder / "model.safetensors").read_bytes() for folder in folders}


def recipe_keeping(*steps: int, **trainer: Any) -> ToyRecipe:
    return make_recipe(keep_steps=steps, **trainer)


def test_the_averaged_model_of_every_named_step_is_kept_as_a_model_folder(tmp_path: Path) -> None:
    make_trainer(tmp_path, recipe_keeping(3, 5, 8)).fit()
    assert sorted(kept(tmp_path)) == ["3", "5", "8"]
    for step in (3, 5, 8):
        verify_folder(kept_model(tmp_path, step))
    last, model = (read_tensors(f / "model.safetensors") for f in (kept_model(tmp_path, 8), tmp_path / "model"))
    assert {name: tensor.tolist() for name, tensor in last.items()} == {n: t.tolist() for n, t in model.items()}
    # The step that is also that of a checkpoint has its averages.
    averages = read_tensors(tmp_path / "checkpoints" / "step_00000008" / "ema.safetensors")
    assert last["body.0.weight"].equal(averages["body.0.weight"])


def test_a_run_that_keeps_models_is_otherwise_the_run_that_does_not(tmp_path: Path) -> None:
    make_trainer(tmp_path / "plain", make_recipe()).fit()
    make_trainer(tmp_path / "keeping", recipe_keeping(3, 4)).fit()
    assert final_state(tmp_path / "keeping") == final_state(tmp_path / "plain")


@pytest.mark.parametrize("cut_at", range(1, 8))
def test_a_cut_and_resumed_run_keeps_the_same_models(tmp_path: Path, cut_at: int) -> None:
    recipe = recipe_keeping(1, 3, 4, 7, checkpoint_every=4)

    def short_loader(start_batch: int) -> Iterator[Mapping[str, Any]]:
        return itertools.islice(make_loader(start_batch), cut_at)

    make_trainer(tmp_path / "whole", recipe).fit()
    with pytest.raises(ValueError, match="the loader ended"):
        make_trainer(tmp_path / "cut", recipe, make_loader=short_loader).fit()
    make_trainer(tmp_path / "cut", recipe).fit()
    assert kept(tmp_path / "cut") == kept(tmp_path / "whole")


def test_what_a_killed_save_left_is_removed(tmp_path: Path) -> None:
    leftover = tmp_path / KEPT_FOLDER / ".3.staging-abcdefgh"
    leftover.mkdir(parents=True)
    make_trainer(tmp_path, recipe_keeping(3)).fit()
    assert os.listdir(tmp_path / KEPT_FOLDER) == ["3"]


def test_other_steps_to_keep_are_another_run(tmp_path: Path) -> None:
    make_trainer(tmp_path, recipe_keeping(3)).fit()
    with pytest.raises(ValueError, match=r"another recipe: trainer.keep_steps was \[3\] and is \[3, 5\] now"):
        make_trainer(tmp_path, recipe_keeping(3, 5)).fit()


@pytest.mark.parametrize("step", [0, 9])
def test_a_step_that_the_run_does_not_have_is_refused(step: int) -> None:
    with pytest.raises(ValueError, match=f"keep_steps names step {step}, but the run has the steps 1 to 8"):
        TrainerConfig(num_steps=8, batch_size=1, keep_steps=(2, step))
