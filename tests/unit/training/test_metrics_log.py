"""metrics.jsonl: exact numbers, no step twice, and a torn last line forgiven."""

import json
import struct
from pathlib import Path

import pytest
import torch
from toy_training import make_recipe, make_trainer

from latentlm.training.metrics_log import MetricsLog, truncate_metrics
from latentlm.training.step import StepRecord


def open_log(run_dir: Path, start_step: int = 0, *, tensorboard: bool = False) -> MetricsLog:
    return MetricsLog(run_dir, num_steps=10, start_step=start_step, items_per_step=4, tensorboard=tensorboard)


def record(step: int, loss: float = 0.5) -> StepRecord:
    return StepRecord(step=step, values={"model/total": loss}, skipped=False, bad=False)


def read_steps(run_dir: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_losses_keep_every_bit(tmp_path: Path) -> None:
    losses = torch.rand(20, generator=torch.Generator().manual_seed(0)).tolist()
    log = open_log(tmp_path)
    log.add_steps([record(step, loss) for step, loss in enumerate(losses)])
    log.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [struct.pack("d", row["model/total"]) for row in rows] == [struct.pack("d", loss) for loss in losses]


def test_a_resumed_log_has_no_step_twice_and_no_torn_line(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log.add_steps([record(step) for step in range(1, 8)])
    log.add_evaluation(4, {"quality": 1})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "mod')
    log = open_log(tmp_path, start_step=5)
    log.add_steps([record(6)])
    log.close()
    assert read_steps(tmp_path) == [1, 2, 3, 4, 5, 6]


def test_a_new_run_cuts_everything_and_a_missing_file_is_no_error(tmp_path: Path) -> None:
    truncate_metrics(tmp_path / "metrics.jsonl", 0)
    log = open_log(tmp_path)
    log.add_steps([record(1)])
    log.close()
    open_log(tmp_path, start_step=0).close()
    assert read_steps(tmp_path) == []


def test_tensorboard_files_are_written_where_it_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    log = open_log(tmp_path, tensorboard=True)
    log.add_steps([record(1)])
    log.show(record(1))
    log.add_evaluation(1, {"quality": 0.25})
    log.add_samples(1, torch.zeros(3, 4, 4, dtype=torch.uint8))
    log.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {tag: [one.value for one in events.Scalars(tag)] for tag in ("model/total", "evaluation/quality")} == {
        "model/total": [0.5],
        "evaluation/quality": [0.25],
    }
    assert events.Tags()["images"] == ["samples"]


def test_the_bar_shows_losses_rate_and_time_to_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_trainer(tmp_path, make_recipe(log_every=4)).fit()
    bar = capsys.readouterr().err
    assert "8/8" in bar
    assert "model/total=" in bar
    assert "model/lr=" in bar
    assert "items/s=" in bar
