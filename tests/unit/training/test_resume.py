"""A run that was interrupted anywhere, any number of times, is the uninterrupted run, bit for bit."""

import signal
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_training import ToyGan, ToyObjective, ToyRecipe, final_state, make_loader, make_recipe, make_trainer

from latentlm.training import checkpoint
from latentlm.training.trainer import Trainer

NUM_STEPS, NUM_MICRO_STEPS = 8, 2
RECIPE = make_recipe(
    num_steps=NUM_STEPS, num_accumulation_steps=NUM_MICRO_STEPS, checkpoint_every=3, sample_every=4, evaluate_every=4
)


class PowerCutError(Exception):
    """Ends a run without any goodbye."""


class Dreamer(ToyObjective):
    """Also draws from NumPy's global generator, as someone's objective will.

    Not from Python's: the run-time type checks of the tests draw from it too. `test_random_state` covers that one.
    """

    def losses(
        self, batch: Mapping[str, Tensor], *, step: int, totals: Mapping[str, Tensor | float]
    ) -> dict[str, dict[str, Tensor]]:
        noise = 0.1 * np.random.standard_normal()  # noqa: NPY002
        return super().losses({**batch, "inputs": batch["inputs"] + noise}, step=step, totals=totals)


def loader_that_fails_at(batch: int, start_batch: int) -> Iterator[Mapping[str, Any]]:
    for index, item in enumerate(make_loader(start_batch), start_batch):
        if index == batch:
            raise PowerCutError
        yield item


def no_evaluation(objective: object, step: int) -> Mapping[str, float]:
    return {"draw": torch.rand(()).item() * 0 + step}


def trainer_in(run_dir: Path, recipe: ToyRecipe = RECIPE, **arguments: Any) -> Trainer:
    # Each process would start with other generator states.
    torch.seed()
    np.random.seed()  # noqa: NPY002
    return make_trainer(run_dir, recipe, **{"objective": Dreamer(recipe), "evaluations": [no_evaluation], **arguments})


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes | list]:
    run_dir = tmp_path_factory.mktemp("uninterrupted")
    trainer_in(run_dir).fit()
    return final_state(run_dir)


@pytest.mark.parametrize("batch", range(1, NUM_STEPS * NUM_MICRO_STEPS))
def test_a_run_cut_at_any_micro_batch_continues_bit_for_bit(
    tmp_path: Path, uninterrupted: dict[str, bytes | list], batch: int
) -> None:
    with pytest.raises(PowerCutError):
        trainer_in(tmp_path, make_loader=partial(loader_that_fails_at, batch)).fit()
    trainer_in(tmp_path).fit()
    assert final_state(tmp_path) == uninterrupted


def test_five_cuts_in_a_row_change_nothing(tmp_path: Path, uninterrupted: dict[str, bytes | list]) -> None:
    for batch in (1, 7, 9, 13, 15):
        with pytest.raises(PowerCutError):
            trainer_in(tmp_path, make_loader=partial(loader_that_fails_at, batch)).fit()
    trainer_in(tmp_path).fit()
    assert final_state(tmp_path) == uninterrupted


def test_a_cut_during_an_evaluation_or_an_export_changes_nothing(
    tmp_path: Path, uninterrupted: dict[str, bytes | list]
) -> None:
    def cut(objective: object, step: int) -> Mapping[str, float]:
        raise PowerCutError

    class CannotSave(Dreamer):
        def save_pretrained(self, folder: Path) -> None:
            raise PowerCutError

    for arguments in ({"evaluations": [cut]}, {"objective": CannotSave(RECIPE)}):
        with pytest.raises(PowerCutError):
            trainer_in(tmp_path, **arguments).fit()
    outcome = trainer_in(tmp_path).fit()
    assert outcome.step == NUM_STEPS
    assert final_state(tmp_path) == uninterrupted


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("batch", [1, 8])
def test_a_signal_ends_the_step_writes_a_checkpoint_and_the_run_continues_bit_for_bit(
    tmp_path: Path, uninterrupted: dict[str, bytes | list], number: signal.Signals, batch: int
) -> None:
    handlers = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]

    def loader_with_signal(start_batch: int) -> Iterator[Mapping[str, Any]]:
        for index, item in enumerate(make_loader(start_batch), start_batch):
            if index == batch:
                signal.raise_signal(number)
            yield item

    outcome = trainer_in(tmp_path, make_loader=loader_with_signal).fit()
    assert outcome == (batch // NUM_MICRO_STEPS + 1, number)
    assert (tmp_path / "checkpoints" / f"step_{outcome.step:08d}").is_dir()
    assert not (tmp_path / "model").exists()
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert trainer_in(tmp_path).fit() == (NUM_STEPS, None)
    assert final_state(tmp_path) == uninterrupted


def test_a_signal_that_ends_the_data_workers_first_still_leaves_a_checkpoint(
    tmp_path: Path, uninterrupted: dict[str, bytes | list]
) -> None:
    def loader_that_dies_with_the_signal(start_batch: int) -> Iterator[Mapping[str, Any]]:
        for index, batch in enumerate(make_loader(start_batch)):
            if index == 9:
                signal.raise_signal(signal.SIGTERM)
                raise RuntimeError("DataLoader worker exited unexpectedly")
            yield batch

    outcome = trainer_in(tmp_path, make_loader=loader_that_dies_with_the_signal).fit()
    assert outcome.stopped_by == signal.SIGTERM
    assert outcome.step > 0
    trainer_in(tmp_path).fit()
    assert final_state(tmp_path) == uninterrupted


# Python 3.12 warns of a fork beside threads; the workers of this loader only make small tensors.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_data_workers_and_their_number_change_nothing(tmp_path: Path, uninterrupted: dict[str, bytes | list]) -> None:
    with pytest.raises(PowerCutError):
        trainer_in(tmp_path, make_loader=partial(loader_that_fails_at, 9)).fit()
    trainer_in(tmp_path, make_loader=partial(make_loader, num_workers=2)).fit()
    assert final_state(tmp_path) == uninterrupted


def test_how_often_a_run_is_watched_changes_no_weight_and_may_change_on_resume(
    tmp_path: Path, uninterrupted: dict[str, bytes | list]
) -> None:
    rarely = make_recipe(num_steps=NUM_STEPS, num_accumulation_steps=NUM_MICRO_STEPS, checkpoint_every=4, log_every=1)
    with pytest.raises(PowerCutError):
        trainer_in(tmp_path, rarely, make_loader=partial(loader_that_fails_at, 9), evaluations=[]).fit()
    trainer_in(tmp_path, evaluations=[]).fit()
    found, expected = final_state(tmp_path), dict(uninterrupted)
    expected["metrics"] = [row for row in uninterrupted["metrics"] if "evaluation" not in row]
    assert found == expected


def test_a_run_right_after_a_skipped_step_continues_bit_for_bit(tmp_path: Path) -> None:
    class Stumbles(Dreamer):
        def losses(
            self, batch: Mapping[str, Tensor], *, step: int, totals: Mapping[str, Tensor | float]
        ) -> dict[str, dict[str, Tensor]]:
            losses = super().losses(batch, step=step, totals=totals)
            return {"model": {"total": losses["model"]["total"] * (float("nan") if step in (1, 2) else 1.0)}}

    recipe = make_recipe(checkpoint_every=1)
    trainer_in(tmp_path / "whole", recipe, objective=Stumbles(recipe)).fit()
    for batch in (2, 3):
        with pytest.raises(PowerCutError):
            trainer_in(
                tmp_path / "cut", recipe, objective=Stumbles(recipe), make_loader=partial(loader_that_fails_at, batch)
            ).fit()
    trainer_in(tmp_path / "cut", recipe, objective=Stumbles(recipe)).fit()
    assert final_state(tmp_path / "cut") == final_state(tmp_path / "whole")
    assert [row["skipped"] for row in final_state(tmp_path / "cut")["metrics"][:4]] == [False, True, True, False]


def test_two_optimizers_of_which_one_starts_late_continue_bit_for_bit(tmp_path: Path) -> None:
    for name, cuts in (("whole", []), ("cut", [2, 5, 7])):
        for batch in cuts:
            with pytest.raises(PowerCutError):
                trainer_in(
                    tmp_path / name,
                    make_recipe(checkpoint_every=1),
                    objective=ToyGan(train_discriminator_from=4),
                    make_loader=partial(loader_that_fails_at, batch),
                ).fit()
        trainer_in(tmp_path / name, make_recipe(checkpoint_every=1), objective=ToyGan(train_discriminator_from=4)).fit()
    assert final_state(tmp_path / "cut") == final_state(tmp_path / "whole")


@pytest.mark.parametrize("forgotten", ["numpy", "torch_cpu"])
def test_these_tests_notice_a_generator_that_is_not_restored(
    tmp_path: Path, uninterrupted: dict[str, bytes | list], monkeypatch: pytest.MonkeyPatch, forgotten: str
) -> None:
    with pytest.raises(PowerCutError):
        trainer_in(tmp_path, make_loader=partial(loader_that_fails_at, 9)).fit()
    restore = checkpoint.restore_random_state

    def forgetful(state: dict[str, Tensor]) -> None:
        current = checkpoint.capture_random_state()
        restore({name: current[name] if name.startswith(forgotten) else value for name, value in state.items()})

    monkeypatch.setattr(checkpoint, "restore_random_state", forgetful)
    trainer_in(tmp_path).fit()
    assert final_state(tmp_path) != uninterrupted
