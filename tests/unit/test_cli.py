"""The command line: what it costs, what it says, and how it refuses."""

import json
import subprocess
import sys

import pytest
import torch

from latentlm.cli.generate import choose_labels
from latentlm.cli.main import VERBS, main
from latentlm.data import LatentWriter
from latentlm.storage import publish_folder, write_tensors


def imported_modules_after(*arguments: str) -> set[str]:
    """Modules that a fresh interpreter holds after this command line; it must end without an error."""
    code = (
        "import sys, json\n"
        "from latentlm.cli.main import main\n"
        "try:\n    code = main(sys.argv[1:])\nexcept SystemExit as end:\n    code = end.code\n"
        "print('\\n' + json.dumps([code, sorted(sys.modules)]))"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    exit_code, modules = json.loads(done.stdout.splitlines()[-1])
    assert exit_code == 0
    return set(modules)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "--help"], ["generate", "--help"]])
def test_help_answers_without_importing_torch(arguments):
    modules = imported_modules_after(*arguments)
    assert not {"torch", "numpy", "jsonargparse", "jaxtyping"} & modules


def test_help_names_every_verb_and_shows_examples(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(f"\n  {verb}" in text for verb in VERBS)
    assert text.count("\n  latentlm ") >= 3


def test_every_verb_has_a_file_that_explains_itself(capsys):
    for verb in VERBS:
        with pytest.raises(SystemExit) as ended:
            main([verb, "--help"])
        assert ended.value.code == 0
        assert f"usage: latentlm {verb}" in capsys.readouterr().out


def test_no_arguments_show_the_help_and_fail(capsys):
    assert main([]) == 2
    assert "verbs:" in capsys.readouterr().out


def test_the_module_runs_like_the_script():
    done = subprocess.run([sys.executable, "-m", "latentlm", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("latentlm ")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["trian"], "'trian' is not a verb; did you mean 'train'?"),
        (["xyz"], "'xyz' is not a verb; the verbs are train, encode, "),
        (["train", "nowhere.yaml"], "there is no recipe nowhere.yaml"),
        (["train", "--optim.lr", "1"], "the recipe comes first: latentlm train RECIPE --optim.lr 1 ..."),
        (["verify", "nowhere"], "nowhere is no folder"),
        (["generate", "nowhere", "--out", "new", "--steps", "0"], "--steps is 0; it must be at least 1"),
    ],
)
def test_an_error_is_one_sentence_and_exit_code_2(arguments, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"latentlm: {sentence}")
    assert captured.err.count("\n") == 1


def test_debug_adds_the_traceback(capsys):
    assert main(["--debug", "trian"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_missing_file_is_named_without_an_error_number(capsys, monkeypatch):
    def run(arguments, overrides):
        with open("/nowhere/file"):
            pass

    monkeypatch.setattr("latentlm.cli.verify.run", run)
    assert main(["verify", "folder"]) == 2
    assert capsys.readouterr().err == "latentlm: /nowhere/file: No such file or directory\n"


def test_an_interrupt_is_no_traceback(capsys, monkeypatch):
    def run(arguments, overrides):
        raise KeyboardInterrupt

    monkeypatch.setattr("latentlm.cli.verify.run", run)
    assert main(["verify", "folder"]) == 130
    assert capsys.readouterr().err == "\nlatentlm: interrupted\n"


def test_a_bug_is_not_dressed_up_as_a_sentence(monkeypatch):
    def run(arguments, overrides):
        raise TypeError("a bug")

    monkeypatch.setattr("latentlm.cli.verify.run", run)
    with pytest.raises(TypeError, match="a bug"):
        main(["verify", "folder"])


def test_flags_that_a_verb_does_not_know_are_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["verify", "folder", "--depth", "3"])
    assert ended.value.code == 2
    assert "unrecognized arguments: --depth 3" in capsys.readouterr().err


def test_verify_accepts_whole_folders_and_names_a_damaged_file(tmp_path, capsys):
    for name in ("checkpoints/step_00000001", "model"):
        publish_folder(tmp_path / name, lambda folder: write_tensors(folder / "a.safetensors", {"x": torch.ones(3)}))
    assert main(["verify", str(tmp_path)]) == 0
    assert "2 whole, 0 bad" in capsys.readouterr().out
    damaged = tmp_path / "model" / "a.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    assert main(["verify", str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert f"BAD    {damaged} is damaged" in output
    assert "1 whole, 1 bad" in output


def test_verify_opens_a_cache_of_latents(tmp_path, capsys):
    writer = LatentWriter(tmp_path, tokenizer_fingerprint="f", label_names=["a"], shard_size=2)
    ones = torch.ones(2, dtype=torch.int64)
    writer.append(latent_mean=torch.ones(2, 4, 3), label=ones, key=ones, position=2)
    assert main(["verify", str(tmp_path)]) == 1
    assert "is not complete" in capsys.readouterr().out
    writer.close()
    assert main(["verify", str(tmp_path)]) == 0
    assert "2 examples of cached latents" in capsys.readouterr().out


def test_verify_fails_on_weights_without_a_manifest_and_on_nothing(tmp_path, capsys):
    assert main(["verify", str(tmp_path)]) == 1
    write_tensors(tmp_path / "model.safetensors", {"x": torch.ones(3)})
    assert main(["verify", str(tmp_path)]) == 1
    assert "manifest.json" in capsys.readouterr().out


def test_labels_repeat_in_turn_until_there_are_enough():
    assert choose_labels("3,7", None, 10) == [3, 7]
    assert choose_labels("3, null", 5, 10) == [3, None, 3, None, 3]
    assert choose_labels(None, 4, 3) == [0, 1, 2, 0]
    assert len(choose_labels(None, None, 3)) == 16


def test_labels_may_be_named_and_a_misspelt_name_is_answered_with_the_nearest() -> None:
    assert choose_labels("dog, 0,null", None, 2, ("cat", "dog")) == [1, 0, None]
    with pytest.raises(ValueError, match="did you mean 'cat'"):
        choose_labels("catt", None, 2, ("cat", "dog"))


@pytest.mark.parametrize("word", ["10", "-1", "three", ""])
def test_a_label_that_the_model_does_not_know_is_refused(word):
    with pytest.raises(ValueError, match="none of the model's classes, 0 to 9"):
        choose_labels(word, None, 10)
