"""The verbs one after another on the embedded digits, with runs far too short to learn anything."""

import importlib.util
import json
from pathlib import Path

import pytest
from hostile_files import huge_png
from PIL import Image

from latentlm.cli.main import main

SHORT = ["--trainer.num_steps", "4", "--trainer.sample_every", "null", "--trainer.tensorboard", "false"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained tokenizer, a cache of latents, and a model trained on it."""
    folder = tmp_path_factory.mktemp("runs")
    tokenizer = ["--tokenizer", str(folder / "tokenizer" / "model")]
    latents = ["--latents", str(folder / "latents")]
    for command in (
        ["train", "image_digits_tokenizer.yaml", *SHORT, "--out", str(folder / "tokenizer")],
        ["encode", "image_digits.yaml", *tokenizer, "--out", str(folder / "latents"), "--shard-size", "500"],
        ["train", "image_digits.yaml", *SHORT, *tokenizer, *latents, "--out", str(folder / "model")],
    ):
        assert main(command) == 0
    return folder


def grey_levels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.convert("L").tobytes()


def test_a_run_leaves_recipe_metrics_checkpoints_and_a_model(folder: Path) -> None:
    for run in ("tokenizer", "model"):
        assert (folder / run / "recipe.yaml").is_file()
        lines = [json.loads(line) for line in (folder / run / "metrics.jsonl").read_text().splitlines()]
        assert sum("model/total" in line or "tokenizer/total" in line for line in lines) == 4
        assert list((folder / run / "checkpoints").glob("step_*"))
        assert (folder / run / "model" / "config.json").is_file()


def test_the_saved_recipe_is_a_recipe(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "model" / "recipe.yaml"
    assert main(["train", str(path), "--print-recipe"]) == 0
    assert capsys.readouterr().out == path.read_text()


def test_a_finished_run_is_not_trained_again(folder: Path) -> None:
    before = (folder / "tokenizer" / "metrics.jsonl").read_text()
    assert main(["train", "image_digits_tokenizer.yaml", *SHORT, "--out", str(folder / "tokenizer")]) == 0
    assert (folder / "tokenizer" / "metrics.jsonl").read_text() == before


def test_generate_writes_pictures_that_depend_on_label_and_seed_alone(folder: Path, tmp_path: Path) -> None:
    model = str(folder / "model" / "model")
    several = ["--labels", "3,7,null", "--seed", "5", "--steps", "2", "--cfg-scale", "1.5"]
    assert main(["generate", model, *several, "--out", str(tmp_path / "several")]) == 0
    names = ["000_class3.png", "001_class7.png", "002_classnull.png"]
    assert {path.name for path in (tmp_path / "several").iterdir()} == {*names, "grid.png", "generation.json"}
    record = json.loads((tmp_path / "several" / "generation.json").read_text())
    assert record["images"][1] == {"file": names[1], "label": 7, "seed": 6}
    assert record["sampling"]["cfg_scale"] == 1.5
    assert record["sampling"]["solver"]["num_inference_steps"] == 2

    alone = ["--labels", "7", "--seed", "6", "--steps", "2", "--cfg-scale", "1.5"]
    assert main(["generate", model, *alone, "--out", str(tmp_path / "alone")]) == 0
    first, second = grey_levels(tmp_path / "several" / names[1]), grey_levels(tmp_path / "alone" / "000_class7.png")
    assert len(first) == 8 * 8
    # Rounding differs with the batch: at most one of 256 grey levels.
    assert max(abs(a - b) for a, b in zip(first, second, strict=True)) <= 1


def test_generate_refuses_a_folder_in_use_and_a_misspelt_solver(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(folder / "model" / "model")
    assert main(["generate", model, "--out", str(folder)]) == 2
    assert "exists already and is not empty" in capsys.readouterr().err
    assert main(["generate", model, "--solver", "dpm", "--out", str(tmp_path / "new")]) == 2
    assert "solver.name takes one of 'ddpm', " in capsys.readouterr().err


def test_verify_finds_everything_whole(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(folder)]) == 0
    output = capsys.readouterr().out
    assert "examples of cached latents" in output
    assert ", 0 bad" in output


def test_encode_again_is_refused_because_the_cache_is_complete(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = ["--tokenizer", str(folder / "tokenizer" / "model"), "--out", str(folder / "latents")]
    assert main(["encode", "image_digits.yaml", *again]) == 2
    assert "already complete" in capsys.readouterr().err


def test_encode_and_train_say_which_flag_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("encode", "train"):
        assert main([verb, "image_digits.yaml", "--out", str(tmp_path / "new")]) == 2
        assert "--tokenizer" in capsys.readouterr().err
    assert main(["train", "image_digits.yaml"]) == 2
    assert "--out DIR is missing" in capsys.readouterr().err


def test_plan_counts_a_paper_sized_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "paper/image_scaling_3b.yaml", "--num-latents", "256"]) == 0
    output = capsys.readouterr().out
    total = int(output.split("total")[1].split()[0].replace(",", ""))
    assert total == pytest.approx(3.68e9, rel=0.02)  # Section 3.1: 3.68B
    assert "FLOPs of the run" in output


def test_plan_takes_the_latents_per_image_from_the_tokenizer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = str(folder / "tokenizer" / "model")
    assert main(["plan", "image_digits.yaml", "--tokenizer", tokenizer]) == 0
    assert "FLOPs per image of " in capsys.readouterr().out
    assert main(["plan", "image_digits.yaml"]) == 0
    assert "pass --num-latents N or --tokenizer FOLDER" in capsys.readouterr().out
    assert main(["plan", "image_digits_tokenizer.yaml"]) == 0
    assert "encode" in capsys.readouterr().out


def test_help_of_a_recipe_lists_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "image_digits.yaml", "--help"])
    output = capsys.readouterr().out
    assert "--drop_cond_prob  (float; default: 0.1)" in output
    assert "--out DIR" in output


def test_training_on_a_folder_uses_the_good_pictures_and_names_the_broken_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pictures = tmp_path / "pictures"
    for name, colour in (("cat", (200, 30, 30)), ("dog", (30, 30, 200))):
        (pictures / name).mkdir(parents=True)
        for number in range(6):
            Image.new("RGB", (20, 24), colour).save(pictures / name / f"{number}.jpg")
    Image.new("RGB", (1, 1)).save(pictures / "cat" / "tiny.png")
    whole = (pictures / "cat" / "0.jpg").read_bytes()
    broken = {
        "empty.jpg": b"",
        "truncated.jpg": whole[: len(whole) // 2],
        "text.png": b"this is no picture",
        "huge.png": huge_png(20_000),
    }
    for name, content in broken.items():
        (pictures / "dog" / name).write_bytes(content)
    sizes = ["--data.image_size", "16", "--tokenizer.image_size", "16", "--trainer.batch_size", "8"]
    small = ["--tokenizer.encoder.num_layers", "1", "--tokenizer.decoder.num_layers", "1"]
    flags = ["--data.path", str(pictures), "--data.validation_ratio", "0", *sizes, *small, *SHORT]
    with caplog.at_level("WARNING", logger="latentlm.data"):
        assert main(["train", "image_folder_tokenizer.yaml", *flags, "--out", str(tmp_path / "run")]) == 0
    for name in broken:
        assert sum(name in record.getMessage() for record in caplog.records) == 1, name
    assert "tiny.png" not in caplog.text


def test_the_example_that_chooses_guidance_prints_its_table(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(__file__).parents[2] / "examples" / "choose_guidance.py"
    spec = importlib.util.spec_from_file_location("choose_guidance", path)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    monkeypatch.setattr(example, "NUM_SAMPLES", 12)
    monkeypatch.setattr("sys.argv", [str(path), str(folder / "model" / "model"), "--scales", "1.0", "1.5"])
    example.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row.split("|")[1].strip() for row in rows] == ["guidance", "1.0", "1.5", "validation digits"]
