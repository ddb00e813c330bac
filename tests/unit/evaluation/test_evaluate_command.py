"""`latentlm evaluate` on tiny untrained models of the digits: what it writes, and what it refuses."""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_models import randomise, tiny_class_config, tiny_image_tokenizer

from latentlm.cli import evaluate
from latentlm.cli.recipes import packaged_recipe
from latentlm.evaluation import judges as judges_module
from latentlm.evaluation.classifier import ClassifierConfig
from latentlm.evaluation.judges import JudgesConfig
from latentlm.evaluation.second_space import SecondSpaceConfig
from latentlm.generation.pipeline import LatentLMPipeline
from latentlm.generation.requests import LatentSamplingConfig
from latentlm.models.latentlm import LatentLM
from latentlm.storage import write_json


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a finished run's: recipe.yaml, model/ and model_raw/, and the tokenizer beside."""
    folder = tmp_path_factory.mktemp("run")
    shutil.copy(packaged_recipe("image_digits.yaml"), folder / "recipe.yaml")
    tokenizer = tiny_image_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    for name, seed in (("model", 0), ("model_raw", 1)):
        model = randomise(LatentLM(tiny_class_config()), seed=seed)
        pipeline = LatentLMPipeline(model, {"image": tokenizer}, {"image": LatentSamplingConfig(cfg_scale=1.5)})
        pipeline.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("judges")


@pytest.fixture(autouse=True)
def tiny_judges(monkeypatch) -> None:
    small = ClassifierConfig(num_steps=10, width=8, num_features=6)
    config = JudgesConfig(
        judge=small, selector=small, second_space=SecondSpaceConfig(num_features=6, width=8, num_fitted=100)
    )
    monkeypatch.setattr(judges_module, "default_judges", lambda image_size: config)


def call(*words: object) -> int:
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    return evaluate.run(parser.parse_args([str(word) for word in words]), [])


def test_a_generator_gets_a_row_per_setting_and_weights_and_a_floor(run_dir, cache, tmp_path, capsys):
    out = tmp_path / "scores"
    settings = ["--cfg-scale", 1, 2, "--steps", 2, "--num-samples", 40, "--seed", 3, "--raw"]
    assert call(run_dir / "model", "--judges", cache, "--out", out, *settings) == 0
    assert {path.name for path in out.iterdir()} == {"scores.json", "scores.md", "samples.png"}
    content = json.loads((out / "scores.json").read_text())
    assert [(row["weights"], row["sampling"]["cfg_scale"]) for row in content["rows"]] == [
        ("ema", 1.0),
        ("ema", 2.0),
        ("raw", 1.0),
        ("raw", 2.0),
    ]
    assert all(row["sampling"]["solver"]["num_inference_steps"] == 2 for row in content["rows"])
    assert content["num_samples"] == 40
    assert content["first_seed"] == 6_000_000
    assert content["rows"][0]["scores"] != content["rows"][2]["scores"]
    printed = capsys.readouterr().out
    assert "| cfg_scale 2, raw weights | " in printed
    assert "40 samples per row (seeds 6000000 to 6000039)" in printed
    assert printed.split("scores.json and")[0].strip() in (out / "scores.md").read_text()


def test_the_same_command_gives_the_same_scores(run_dir, cache, tmp_path):
    for name in ("first", "second"):
        command = [run_dir / "model", "--judges", cache, "--out", tmp_path / name, "--steps", 2, "--num-samples", 20]
        assert call(*command) == 0
    first, second = ((tmp_path / name / "scores.json").read_text() for name in ("first", "second"))
    assert first == second


def test_validation_asks_the_selector_alone(run_dir, cache, tmp_path):
    out = tmp_path / "choice"
    command = [run_dir / "model", "--judges", cache, "--out", out, "--steps", 2, "--num-samples", 20]
    assert call(*command, "--part", "validation", "--cfg-scale", 1, 1.5) == 0
    content = json.loads((out / "scores.json").read_text())
    assert content["rows"][0]["scores"].keys() == {"num_images", "frechet", "accuracy"}
    assert "for choosing settings, not for reporting" in (out / "scores.md").read_text()


def test_a_tokenizer_is_scored_with_the_beta_of_its_report(run_dir, cache, tmp_path):
    folder = tmp_path / "run" / "model"
    shutil.copytree(run_dir / "tokenizer", folder)
    shutil.copy(packaged_recipe("image_digits_tokenizer.yaml"), folder.parent / "recipe.yaml")
    write_json(folder / "tokenizer_report.json", {"beta": 0.125})
    assert call(folder, "--judges", cache, "--out", tmp_path / "scores", "--num-samples", 30) == 0
    content = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert content["num_images"] == 30
    assert content["tokens"]["beta"] == 0.125
    assert not (tmp_path / "scores" / "samples.png").exists()


def test_without_a_recipe_the_data_set_must_be_given(run_dir, tmp_path):
    folder = tmp_path / "alone" / "model"
    shutil.copytree(run_dir / "tokenizer", folder)
    with pytest.raises(ValueError, match=r"no recipe\.yaml beside .*--recipe FILE, or --data PATH with --test-data"):
        call(folder, "--out", tmp_path / "scores")
    pictures = tmp_path / "pictures.npz"
    np.savez(pictures, images=np.zeros((30, 8, 8), dtype=np.uint8), labels=np.arange(30) % 3)
    with pytest.raises(ValueError, match="give the test pictures with --test-data PATH"):
        call(folder, "--data", pictures, "--out", tmp_path / "scores")


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--num-samples", 0], "--num-samples is 0"),
        (["--inception-weights", "x", "--part", "validation"], "a judge never chooses"),
        (["--clip-weights", "x"], "a 'latentlm', whose pictures have no captions; leave --clip-weights out"),
        (["--num-samples", 5000], "5000 samples were asked for, but the part test has 539"),
        (["--num-samples", 20, "--inception-weights", "nowhere.pth"], "there is no file nowhere.pth"),
    ],
)
def test_refusals(run_dir, cache, tmp_path, flags, reason):
    with pytest.raises(ValueError, match=reason):
        call(run_dir / "model", "--judges", cache, "--out", tmp_path / "scores", "--steps", 2, *flags)
    assert not (tmp_path / "scores").exists()


def test_a_folder_in_use_is_refused_before_anything_is_loaded(tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ValueError, match="exists already and is not empty"):
        call("no/such/model", "--out", tmp_path)
