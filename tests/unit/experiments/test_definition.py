"""Experiment files: what is read, and what is refused in a sentence."""

from pathlib import Path

import pytest

from latentlm.config import ConfigError
from latentlm.experiments import read_experiment

GOOD = """\
kind: experiment
name: small
title: A title
question: What?
data: Digits.
budget: Little.
runs:
  model: {recipe: image_digits.yaml, set: {optim.lr: 1.0e-3, trainer.seed: "{seed}"}, matrix: {seed: [0, 1]}}
measurements:
  scores: {of: model, protocol: image_generator, options: {cfg_scales: [1.0, 2.0]}}
tables:
  - {title: T, of: scores, rows: [method], columns: [{title: A, path: result.a, better: higher}]}
"""


def write(folder: Path, text: str, name: str = "small.yaml") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_a_file_is_read_with_its_defaults(tmp_path: Path) -> None:
    definition = read_experiment(write(tmp_path, GOOD))
    assert definition.runs["model"].set == {"optim.lr": 1e-3, "trainer.seed": "{seed}"}
    assert definition.measurements["scores"].options == {"cfg_scales": [1.0, 2.0]}
    (table,) = definition.tables
    assert (table.over, table.columns[0].format, table.columns[0].better) == ("seed", ".3f", "higher")


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("name: small", "name: other", "name is 'other', but results are found by the file's: 'small'"),
        ("name: small", "name: a/b", "'a/b' becomes part of file names"),
        ("of: scores", "of: score", "'T' shows the measurement 'score'; there are: scores"),
        ("  scores:", "  model:", "a run and a measurement are both called model"),
        ("matrix:", "matrx:", "runs.model.matrx is not a field; did you mean runs.model.matrix?"),
        ("better: higher", "better: bigger", "better takes one of 'lower', 'higher' or null"),
        ("budget: Little.", "", "budget (str) is required"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_a_sentence(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_experiment(write(tmp_path, GOOD.replace(old, new)))
    assert sentence in str(refused.value)
