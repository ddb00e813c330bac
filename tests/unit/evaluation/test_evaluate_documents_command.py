"""`latentlm evaluate` on a tiny untrained model of documents: the protocol's measures, as tables and as JSON."""

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from document_pipelines import DIGIT_POOL
from fake_inception import put_in_place
from tiny_clip import save_tiny_clip
from tiny_documents import tiny_multimodal_recipe
from tiny_judges import tiny_judges

from latentlm.catalog import build
from latentlm.cli import evaluate
from latentlm.cli.evaluate_documents import recipe_beside
from latentlm.cli.recipes import packaged_recipe
from latentlm.config import dump_recipe
from latentlm.data.documents.composed import ComposedDataConfig
from latentlm.experiments import document_run
from latentlm.training.objectives.documents import DocumentSourceConfig

COMPOSED = ComposedDataConfig(pools={"digit": DIGIT_POOL}, num_documents=50, num_held_out_documents=50)
SMALL = ["num_validation_pictures=20", "num_captions=8", "num_classified=4", "num_questions=6", "num_few_shot=3"]
SMALL += ["num_switching=4", "num_train_documents=40", "max_caption_tokens=6", "max_answer_tokens=4"]
SMALL += ["dual_encoder={num_steps: 2, width: 8, text_width: 8, num_features: 8}"]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a finished run's: text, and composed digits."""
    folder = tmp_path_factory.mktemp("run")
    recipe = tiny_multimodal_recipe(folder)
    text = recipe.sources["text"]
    text = replace(text, data=replace(text.data, test_path=str(folder / "text.txt")))
    sources = {"text": text, "digits": DocumentSourceConfig(composed=COMPOSED)}
    objective, _, recipe = build(replace(recipe, sources=sources, max_length=160))
    (folder / "recipe.yaml").write_text(dump_recipe(recipe))
    for name in ("model", "model_at/1"):
        objective.save_pretrained(folder / name)
    shutil.rmtree(folder / "tokenizer")  # the model's own folder has one
    return folder


@pytest.fixture(autouse=True)
def judged(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What judges were asked for."""
    judges, asked = tiny_judges(), []

    def load_judges(data: Any, **_: Any) -> Any:
        asked.append(data)
        return judges

    monkeypatch.setattr(document_run, "load_judges", load_judges)
    return asked


def call(*words: object, options: list[str] = SMALL) -> int:
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    flags = [word for option in options for word in ("--option", option)]
    return evaluate.run(parser.parse_args([*map(str, words), *flags]), [])


def test_all_measures_are_printed_and_written_with_their_numbers_and_baselines(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores"
    drawing = ["--cfg-scale", 1, 2, "--steps", 2, "--num-samples", 30, "--seed", 3, "--batch-size", 20]
    assert call(run_dir / "model", "--judges", tmp_path / "cache", "--out", out, *drawing) == 0
    assert {path.name for path in out.iterdir()} == {"scores.json", "scores.md", "pictures.png"}
    content = json.loads((out / "scores.json").read_text())
    assert (content["kind"], content["options"]["seed"], content["options"]["num_pictures"]) == ("latentlm", 3, 30)
    drawn = content["result"]["text_to_image"]
    assert [trial["changes"]["cfg_scale"] for trial in drawn["trials"]] == [1.0, 2.0]
    assert drawn["sampling"]["solver"]["num_inference_steps"] == 2
    assert drawn["scores"]["all"]["num_images"] == 30
    printed = capsys.readouterr().out
    for heading in (
        "## Text",
        "## Captions, given pictures",
        "## Pictures of captions",
        "## Captions that the model writes",
        "## Questions about pictures",
        "## Names from examples in the context",
        "## Switching by itself",
    ):
        assert printed.count(f"{heading}\n") == 1
    majority = content["result"]["questions"]["which"]["majority"]
    assert f"{majority['estimate']:.1%} [{majority['low']:.1%}, {majority['high']:.1%}] |" in printed
    assert "| another's (blind) | 8 |" in printed
    assert "Test documents of seed 3" in printed
    assert "trained for 2 steps" in printed
    assert printed.split("\nscores.json and")[0].strip() in (out / "scores.md").read_text()


def test_a_model_kept_on_the_way_is_measured_as_such(run_dir: Path, tmp_path: Path) -> None:
    measures = ["--measures", "image_to_text"]
    for name in ("model", "model_at/1"):
        assert call(run_dir / name, *measures, "--out", tmp_path / name) == 0
    last, kept = (json.loads((tmp_path / name / "scores.json").read_text()) for name in ("model", "model_at/1"))
    assert (last["options"]["step"], kept["options"]["step"]) == (None, 1)
    assert kept["result"]["trained"]["steps"] == 1
    assert kept["result"]["image_to_text"] == last["result"]["image_to_text"]
    assert not (tmp_path / "model" / "pictures.png").exists()


def test_weights_that_the_user_brings_add_their_scores_of_drawn_and_real_pictures(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = save_tiny_clip(pytest.importorskip("transformers"), tmp_path)
    put_in_place(monkeypatch)
    (tmp_path / "inception.pth").write_bytes(b"")
    command = [run_dir / "model", "--measures", "text_to_image", "--num-samples", 30, "--steps", 2]
    brought = ["--clip-weights", clip, "--inception-weights", tmp_path / "inception.pth"]
    assert call(*command, *brought, "--out", tmp_path / "scores") == 0
    content = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert content["options"]["clip_weights"] == str(clip)
    drawn = content["result"]["text_to_image"]
    rows = ["scores", "floor", "ceiling"]
    assert list(drawn["clip"]) == list(drawn["inception"]) == rows
    assert [drawn["clip"][row]["num_pictures"] for row in rows] == [30] * 3
    assert drawn["inception"]["floor"]["fid"] < drawn["inception"]["scores"]["fid"], "an untrained model draws noise"
    page = (tmp_path / "scores" / "scores.md").read_text()
    assert f"| real test pictures | 30 | {drawn['clip']['floor']['clip_score']:.2f} |" in page
    assert f"| drawn | {drawn['inception']['scores']['fid']:.2f} |" in page


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--clip-weights", "nowhere"], r"no file nowhere/config\.json; the CLIP score reads a folder"),
        (["--inception-weights", "nowhere.pth"], r"--inception-weights: there is no file nowhere\.pth"),
        (["--clip-weights", "x", "--measures", "text"], "--clip-weights scores pictures of captions, but --measures"),
        (["--inception-weights", "x", "--measures", "text"], "--inception-weights scores pictures of captions"),
    ],
)
def test_weights_that_are_not_there_or_have_nothing_to_see_are_refused_before_anything_is_measured(
    run_dir: Path, tmp_path: Path, judged: list[Any], flags: list[str], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        call(run_dir / "model", "--out", tmp_path / "scores", *flags)
    assert not judged
    assert not (tmp_path / "scores").exists()


def test_judges_of_several_pools_are_trained_on_what_the_image_tokenizer_saw(
    run_dir: Path, tmp_path: Path, judged: list[Any]
) -> None:
    names = [name + "!" for name in DIGIT_POOL.names]
    two = replace(COMPOSED, pools={"digit": DIGIT_POOL, "shout": replace(DIGIT_POOL, names=names)})
    objective, _, recipe = build(
        replace(
            tiny_multimodal_recipe(tmp_path / "two"),
            sources={"digits": DocumentSourceConfig(composed=two)},
            max_length=160,
        )
    )
    objective.save_pretrained(tmp_path / "two" / "model")
    tokenizer = tmp_path / "tokenizer_run"
    shutil.copytree(tmp_path / "two" / "tokenizer", tokenizer / "model")
    recipe = replace(recipe, tokenizer=str(tokenizer / "model"))
    (tmp_path / "two" / "recipe.yaml").write_text(dump_recipe(recipe))
    command = [tmp_path / "two" / "model", "--measures", "text_to_image", "--out", tmp_path / "scores"]
    with pytest.raises(ValueError, match=r"several pools are judged together, .* give --judge-recipe"):
        call(*command)
    shutil.copy(packaged_recipe("image_digits_tokenizer.yaml"), tokenizer / "recipe.yaml")
    with pytest.raises(ValueError, match="the judges know 10 classes, but the pools digit, shout have 20"):
        call(*command, "--num-samples", 4, "--steps", 2)
    assert [(data.source, data.image_size) for data in judged] == [("digits", 8)]


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--raw"], "there is no --raw: its recipe"),
        (["--part", "validation"], "there is no --part validation"),
        (["--test-data", "x.npz"], "there is no --test-data"),
        (["--measures", "smell"], "measures names smell, but there are text"),
        (["--option", "num_smells=3"], "num_smells is not a field"),
        (["--option", "seed"], "--option seed: write NAME=VALUE"),
        (["--recipe", "image_digits.yaml"], r"but image_digits\.yaml is a recipe of kind 'latentlm'"),
    ],
)
def test_what_does_not_fit_a_model_of_documents_is_refused(
    run_dir: Path, tmp_path: Path, flags: list[str], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        call(run_dir / "model", "--out", tmp_path / "scores", *flags)
    assert not (tmp_path / "scores").exists()


def test_the_recipe_lies_beside_every_model_of_a_run_or_must_be_given(run_dir: Path, tmp_path: Path) -> None:
    for name in ("model", "model_raw", "model_at/1"):
        assert recipe_beside(run_dir / name) == run_dir / "recipe.yaml"
    shutil.copytree(run_dir / "model", tmp_path / "alone" / "model")
    assert recipe_beside(tmp_path / "alone" / "model") is None
    with pytest.raises(ValueError, match=r"no recipe\.yaml beside .*: give --recipe FILE"):
        call(tmp_path / "alone" / "model", "--out", tmp_path / "scores")
    given = ["--recipe", run_dir / "recipe.yaml", "--measures", "image_to_text"]
    assert call(tmp_path / "alone" / "model", *given, "--out", tmp_path / "scores") == 0
