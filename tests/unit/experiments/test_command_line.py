"""`latentlm experiment`: lists, plans, runs one job and renders, on two steps of the digits tokenizer."""

import argparse
import json
from pathlib import Path

import pytest

from latentlm.cli import experiment, protocols

FILE = """\
kind: experiment
name: small
title: Small
question: Does it run?
data: scikit-learn's digits.
budget: Two steps.
runs:
  tokenizer:
    recipe: image_digits_tokenizer.yaml
    set: {trainer.num_steps: 2, trainer.batch_size: 4, trainer.seed: "{seed}", trainer.sample_every: null,
          trainer.tensorboard: false, trainer.device: cpu, trainer.precision: float32}
    matrix: {seed: [0, 1]}
measurements:
  files: {of: tokenizer, protocol: count_files}
tables:
  - {title: Files, of: files, rows: [method], columns: [{title: Files, path: result.files, format: d}]}
"""


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The verb on a small experiment, in a folder of its own, with one protocol."""
    (tmp_path / "small.yaml").write_text(FILE)
    monkeypatch.setitem(protocols.PROTOCOLS, "count_files", count_files)
    folders = ["--out", str(tmp_path / "out"), "--results", str(tmp_path / "results")]

    def run(*flags: str) -> int:
        parser = argparse.ArgumentParser()
        experiment.add_arguments(parser)
        return experiment.run(parser.parse_args([str(tmp_path / "small.yaml"), *folders, *flags]), [])

    return run


def count_files(context) -> dict[str, int]:
    return {"files": len(list((context.run_dir / "model").iterdir()))}


def test_a_cell_is_trained_measured_and_shown(call, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--dry-run", "--only", "*seed=1") == 0
    planned = capsys.readouterr().out.splitlines()
    assert planned[0].startswith(f"train    tokenizer-seed=1  in {tmp_path}/out/runs/tokenizer-seed=1-")
    assert planned[1:] == ["measure  files.tokenizer-seed=1  after tokenizer-seed=1", "2 jobs"]
    assert call("--cell", "files.tokenizer-seed=1") == 0
    capsys.readouterr()
    assert call("--list") == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == "files.tokenizer-seed=0  missing"
    assert second.startswith("files.tokenizer-seed=1  done      train ")
    assert call("--render") == 0
    assert "1 of 2 cells are measured" in (tmp_path / "results" / "small.md").read_text()
    record = json.loads((tmp_path / "results" / "small" / "cells" / "files.tokenizer-seed=1.json").read_text())
    assert record["result"]["files"] >= 2
    assert record["cost"]["items_seen"] == 8
    assert record["definition"]["run"]["recipe"]["trainer"]["seed"] == 1


def test_nothing_left_to_do_starts_no_process_and_writes_the_page(call, tmp_path: Path) -> None:
    for seed in (0, 1):
        assert call("--cell", f"files.tokenizer-seed={seed}") == 0
    assert call() == 0
    assert "All 2 cells are measured." in (tmp_path / "results" / "small.md").read_text()
    assert list((tmp_path / "out" / "logs" / "small").iterdir()) == []


def test_an_experiment_that_does_not_exist_is_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"there is no experiment nowhere.yaml, neither here nor among those"):
        experiment.find_experiment("nowhere.yaml")
