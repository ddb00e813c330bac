"""The loop around the step: what a run folder holds, what is evaluated, and when a run stops."""

import itertools
import math
import multiprocessing
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from toy_training import ToyObjective, ToyRecipe, make_loader, make_recipe, make_trainer, read_metrics

from latentlm.config import load_recipe
from latentlm.storage import list_step_folders, read_tensors, verify_folder
from latentlm.training.objective import Objective
from latentlm.training.run_guard import exclusive_run
from latentlm.training.trainer import TooManyBadStepsError, TrainerConfig, TrainingOutcome, resolve_device


def test_a_run_folder_holds_recipe_metrics_samples_checkpoints_and_both_models(tmp_path: Path) -> None:
    recipe = make_recipe(sample_every=3)
    trainer = make_trainer(tmp_path, recipe)
    assert trainer.fit() == TrainingOutcome(step=8, stopped_by=None)
    assert sorted(name for name in os.listdir(tmp_path) if name != ".lock") == [
        "checkpoints",
        "metrics.jsonl",
        "model",
        "model_raw",
        "recipe.yaml",
        "samples",
    ]
    assert load_recipe(tmp_path / "recipe.yaml", [], {"toy": ToyRecipe}) == recipe
    assert [row["step"] for row in read_metrics(tmp_path)] == list(range(1, 9))
    assert [step for step, _ in list_step_folders(tmp_path / "checkpoints")] == [8, 6]
    assert sorted(os.listdir(tmp_path / "samples")) == ["step_000003.png", "step_000006.png", "step_000008.png"]
    assert np.array_equal(np.array(Image.open(tmp_path / "samples" / "step_000003.png")), np.full((4, 5, 3), 128))
    for name, weights in (
        ("model", trainer.ema.state_dict()),
        ("model_raw", dict(trainer.objective.named_parameters())),
    ):
        verify_folder(tmp_path / name)
        saved = read_tensors(tmp_path / name / "model.safetensors")
        assert torch.equal(saved["body.0.weight"], weights["body.0.weight"])
    assert not torch.equal(trainer.ema.state_dict()["body.0.weight"], trainer.objective.body[0].weight)


def test_a_finished_run_started_again_changes_nothing(tmp_path: Path) -> None:
    make_trainer(tmp_path, make_recipe()).fit()
    metrics = (tmp_path / "metrics.jsonl").read_bytes()
    assert make_trainer(tmp_path, make_recipe()).fit() == TrainingOutcome(step=8, stopped_by=None)
    assert (tmp_path / "metrics.jsonl").read_bytes() == metrics


def test_evaluations_see_averaged_weights_in_evaluation_mode_and_their_numbers_are_logged(tmp_path: Path) -> None:
    seen: list[tuple[int, bool, bool, bool]] = []

    def evaluate(objective: Objective, step: int) -> Mapping[str, float]:
        assert isinstance(objective, ToyObjective)
        average = trainer.ema.state_dict()["body.0.weight"]
        seen.append((step, torch.equal(objective.body[0].weight, average), objective.training, torch.is_grad_enabled()))
        return {"quality": step / 10, "nothing": math.nan}

    trainer = make_trainer(tmp_path, make_recipe(evaluate_every=4, num_steps=6), evaluations=[evaluate])
    trainer.fit()
    assert seen == [(4, True, False, False), (6, True, False, False)]
    assert trainer.objective.training
    assert [row for row in read_metrics(tmp_path) if "evaluation" in row] == [
        {"step": 4, "evaluation": {"quality": 0.4, "nothing": "nan"}},
        {"step": 6, "evaluation": {"quality": 0.6, "nothing": "nan"}},
    ]


def test_results_fetched_together_give_the_same_log_and_run_as_results_fetched_one_by_one(tmp_path: Path) -> None:
    """On an accelerator the log waits for many steps; its lines must still stand in order, evaluations among them."""

    def evaluate(objective: Objective, step: int) -> Mapping[str, float]:
        return {"step": step}

    for name, fetch_every in (("one_by_one", 1), ("together", 100)):
        recipe = make_recipe(num_steps=11, checkpoint_every=7, evaluate_every=3, log_every=4)
        trainer = make_trainer(tmp_path / name, recipe, evaluations=[evaluate])
        trainer.fetch_every = fetch_every
        trainer.fit()
    assert read_metrics(tmp_path / "together") == read_metrics(tmp_path / "one_by_one")
    steps = [row["step"] for row in read_metrics(tmp_path / "together")]
    assert steps == [1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9, 9, 10, 11, 11]


def test_frozen_children_stay_in_evaluation_mode(tmp_path: Path) -> None:
    modes: set[tuple[bool, bool]] = set()

    class Watched(ToyObjective):
        def counts(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor | float]:
            modes.add((self.body.training, self.teacher.training))
            return super().counts(batch)

    recipe = make_recipe(sample_every=2)
    make_trainer(tmp_path, recipe, objective=Watched(recipe)).fit()
    assert modes == {(True, False)}


class Explodes(ToyObjective):
    """Not a number from step 4 (counted from 0) on."""

    bad_steps: frozenset[int] = frozenset(range(4, 100))

    def losses(
        self, batch: Mapping[str, Tensor], *, step: int, totals: Mapping[str, Tensor | float]
    ) -> dict[str, dict[str, Tensor]]:
        losses = super().losses(batch, step=step, totals=totals)
        factor = math.nan if step in self.bad_steps else 1.0
        return {"model": {"total": losses["model"]["total"] * factor}}


def test_a_run_stops_after_too_many_bad_steps_in_a_row_with_good_weights(tmp_path: Path) -> None:
    recipe = make_recipe(num_steps=20, checkpoint_every=5)
    objective = Explodes(recipe)
    trainer = make_trainer(tmp_path, recipe, objective=objective)
    with pytest.raises(TooManyBadStepsError, match=r"3 steps in a row, up to step 7.*model/total is nan"):
        trainer.fit()
    assert all(p.isfinite().all() for p in objective.parameters())
    rows = read_metrics(tmp_path)
    assert [row["skipped"] for row in rows] == [False] * 4 + [True] * 3
    assert rows[-1]["model/total"] == "nan"
    # The count goes with the checkpoint of step 5, which one bad step precedes: two more end the run again.
    with pytest.raises(TooManyBadStepsError, match="up to step 7"):
        make_trainer(tmp_path, recipe, objective=Explodes(recipe)).fit()


def test_single_bad_steps_are_survived(tmp_path: Path) -> None:
    recipe = make_recipe(num_steps=12)
    objective = Explodes(recipe)
    objective.bad_steps = frozenset({1, 2, 5, 6, 11})
    assert make_trainer(tmp_path, recipe, objective=objective).fit().step == 12


def test_a_loader_that_ends_is_an_error(tmp_path: Path) -> None:
    def short_loader(start_batch: int) -> Iterator[Mapping[str, Any]]:
        return itertools.islice(make_loader(start_batch), 3)

    with pytest.raises(ValueError, match="ended at step 4 of 8"):
        make_trainer(tmp_path, make_recipe(), make_loader=short_loader).fit()


def _hold(run_dir: Path, is_held: Any, may_end: Any) -> None:
    with exclusive_run(run_dir):
        is_held.set()
        may_end.wait(60)


def test_a_second_process_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    is_held, may_end = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(tmp_path, is_held, may_end))
    holder.start()
    try:
        assert is_held.wait(60)
        with pytest.raises(ValueError, match=r"another process .* is training in"):
            make_trainer(tmp_path, make_recipe()).fit()
    finally:
        may_end.set()
        holder.join()
    make_trainer(tmp_path, make_recipe()).fit()


def test_activation_checkpointing_is_forwarded_to_the_objective(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, make_recipe(activation_checkpointing=True))
    assert isinstance(trainer.objective, ToyObjective)
    assert trainer.objective.use_checkpointing


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_run_in_reduced_precision_learns_and_resumes_bit_for_bit(tmp_path: Path, precision: str) -> None:
    recipe = make_recipe(precision=precision, num_steps=30, checkpoint_every=10)
    make_trainer(tmp_path / "whole", recipe).fit()

    def short_loader(start_batch: int) -> Iterator[Mapping[str, Any]]:
        return itertools.islice(make_loader(start_batch), 25)

    with pytest.raises(ValueError, match="ended"):
        make_trainer(tmp_path / "cut", recipe, make_loader=short_loader).fit()
    make_trainer(tmp_path / "cut", recipe).fit()
    whole, cut = read_metrics(tmp_path / "whole"), read_metrics(tmp_path / "cut")
    assert cut == whole
    losses = [row["model/total"] for row in whole]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"sample_every": 0}, "sample_every must be at least 1"),
        ({"keep_checkpoints": 1}, "at least 2"),
        ({"ema_half_life_ratio": -0.1}, "cannot be negative"),
        ({"num_workers": -2}, "num_workers must be at least 0"),
    ],
)
def test_nonsense_settings_are_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainerConfig(**{"num_steps": 5, "batch_size": 2, **bad})


def test_auto_is_a_cuda_device_only_where_there_is_one() -> None:
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_device("cpu") == torch.device("cpu")
