"""The command line: what it costs, what it says, and how it refuses."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_documents import tiny_multimodal_recipe
from tiny_kinds import GENERATORS, save_tiny_tokenizers, tiny_pipeline, token_kind
from tiny_speech import tiny_speech_codec

from latentlm.catalog import build
from latentlm.cli.generate import choose_labels
from latentlm.cli.main import VERBS, main
from latentlm.cli.recipes import read_recipe
from latentlm.data import LatentWriter
from latentlm.generation.document_pipeline import DocumentPipeline
from latentlm.storage import publish_folder, read_json, write_tensors


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


PROMPT = ["generate", "nowhere", "--out", "new", "--prompt", "a shoe"]
LABELS = ["generate", "nowhere", "--out", "new", "--labels", "3"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["trian"], "'trian' is not a verb; did you mean 'train'?"),
        (["xyz"], "'xyz' is not a verb; the verbs are train, encode, "),
        (["train", "nowhere.yaml"], "there is no recipe nowhere.yaml"),
        (["train", "--optim.lr", "1"], "the recipe comes first: latentlm train RECIPE --optim.lr 1 ..."),
        (["verify", "nowhere"], "nowhere is no folder"),
        (["generate", "nowhere", "--out", "new", "--steps", "0"], "--steps is 0; it must be at least 1"),
        ([*PROMPT, "--labels", "3"], "--labels is for pictures of classes, but there is a --prompt"),
        ([*PROMPT, "--num-images", "3"], "--num-images is for pictures of classes, but there is a --prompt"),
        ([*LABELS, "--image-size", "8x8"], "--image-size says how a --prompt is answered, but there is none"),
        ([*PROMPT, "--columns", "2"], "--columns is for pictures of classes, but there is a --prompt"),
        ([*PROMPT, "--images", "-1"], "--images is -1; it must be at least 0"),
        ([*PROMPT, "--max-images", "-1"], "--max-images is -1; it must be at least 0"),
        ([*PROMPT, "--max-new-tokens", "-1"], "--max-new-tokens is -1; it must be at least 0"),
        ([*LABELS, "--temperature", "0"], "--temperature says how a --prompt is answered, but there is none"),
        ([*LABELS, "--images", "0"], "--images says how a --prompt is answered, but there is none"),
        ([*LABELS, "--stop", "x"], "--stop says how a --prompt is answered, but there is none"),
        (["plan", "image_digits.yaml", "--num_latents", "64"], "--num_latents is no flag; did you mean --num-latents?"),
        (["train", "image_digits.yaml", "--print_recipe"], "--print_recipe is no flag; did you mean --print-recipe?"),
        (["plan", "image_digits.yaml", "--num_steps", "64"], "--num_steps is not a field; did you mean --trainer.num_"),
        (
            ["plan", "dit_fashion.yaml", "--num-latents", "64"],
            "--num-latents is for recipes of kind 'latentlm'; what a",
        ),
        (["plan", "multimodal_emoji.yaml", "--num-latents", "64"], "--num-latents is for recipes of kind 'latentlm'"),
        (
            ["plan", "image_folder.yaml"],
            "the recipe leaves the classes to its data: pass --model.vocabulary.num_classes N, their number",
        ),
        (
            ["encode", "multimodal_emoji.yaml", "--tokenizer", "t", "--out", "new"],
            "multimodal_emoji.yaml is of the kind 'multimodal', but encode takes recipes of labelled pictures",
        ),
        (
            ["encode", "speech_digits.yaml", "--out", "new"],
            "speech_digits.yaml is of the kind 'multimodal', but encode takes recipes of labelled pictures; recordings",
        ),
        (["experiment", "toy.yaml", "--jobs", "-1", "--dry-run"], "--jobs is -1; it must be at least 1"),
        (["voice", "nobody.wav", "--model", "nowhere"], "nobody.wav does not exist, or is no file"),
        (["say", "three", "--voice", "nobody.wav", "--model", "nowhere"], "nobody.wav does not exist, or is no file"),
        (["synthesize", "nofile.txt", "--out", "x"], "nofile.txt: cannot be read (No such file or directory)\n"),
    ],
)
def test_an_error_is_one_sentence_and_exit_code_2(arguments, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"latentlm: {sentence}")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("recipe", "flag", "value", "sentence"),
    [
        ("image_digits", "model.transformer.hidden_size", "-128", "model.transformer: hidden_size is -128; it must be"),
        ("image_digits", "model.transformer.intermediate_size", "-4", "model.transformer: intermediate_size is -4"),
        ("image_digits", "model.transformer.num_heads", "0", "model.transformer: num_heads is 0; it must be at least"),
        ("image_digits", "model.transformer.num_layers", "-1", "model.transformer: num_layers is -1; it must be at"),
        ("image_digits", "model.transformer.num_kv_heads", "0", "model.transformer: num_kv_heads is 0; it must be at"),
        ("image_digits", "model.modalities.image.head.num_layers", "-4", "model.modalities.image.head: num_layers is"),
        (
            "image_digits",
            "model.modalities.image.head.hidden_size",
            "-4",
            "model.modalities.image.head: hidden_size is",
        ),
        ("image_digits", "model.modalities.image.head.intermediate_size", "0", "model.modalities.image.head: intermed"),
        ("image_digits", "model.modalities.image.loss_weight", "-1", "model.modalities.image: loss_weight is -1.0; it"),
        ("image_digits", "model.modalities.image.continue_loss_weight", "-1", "model.modalities.image: continue_loss"),
        ("image_digits", "trainer.num_workers", "-2", "trainer: num_workers must be at least 0, but is -2"),
        ("multimodal_emoji", "sources.captions.weight", "-1", "sources.captions: weight is -1.0; leave the source out"),
    ],
)
def test_a_size_that_cannot_be_is_refused_while_the_recipe_is_read(
    recipe: str, flag: str, value: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", f"{recipe}.yaml", f"--{flag}", value, "--print-recipe"]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_the_help_of_a_verb_shows_a_flag_that_means_something_there(capsys: pytest.CaptureFixture[str]) -> None:
    for verb, flag in (("train", "--optim.lr"), ("encode", "--data.path"), ("plan", "--trainer.batch_size")):
        with pytest.raises(SystemExit):
            main([verb, "--help"])
        assert f"its fields are flags: {flag}" in " ".join(capsys.readouterr().out.split())


def test_compose_says_what_it_takes_instead_of_a_recipe(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["compose", "image_digits.yaml", "--out", str(tmp_path / "new.jsonl")]) == 2
    assert "compose takes a file of the kind 'composed_documents': pools and tasks" in capsys.readouterr().err


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
    for name, step in (("checkpoints/step_00000001", 1), ("model", 0)):
        publish_folder(
            tmp_path / name, lambda folder: write_tensors(folder / "a.safetensors", {"x": torch.ones(3)}), step=step
        )
    assert main(["verify", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert "2 whole, 0 bad" in output
    assert f"{tmp_path / 'model'} (1 files" in output, "a model is of no step"
    assert "step_00000001 (step 1, " in output
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


def test_a_number_is_no_misspelt_name_of_a_class_that_is_called_by_a_number() -> None:
    digits = tuple(str(digit) for digit in range(10))
    assert choose_labels("7", None, 10, digits) == [7]
    with pytest.raises(ValueError, match="'12' is none of the model's classes, 0 to 9, or null"):
        choose_labels("12", None, 10, digits)


# -- generate and plan, on models of every kind -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_tiny_tokenizers(tmp_path_factory.mktemp("tokenizers"))


@pytest.fixture(scope="module")
def models(tokenizers: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A folder for every kind of generator, with random weights."""
    root = tmp_path_factory.mktemp("models")
    for kind in GENERATORS:
        tiny_pipeline(kind, tokenizers[token_kind(kind)]).save_pretrained(root / kind)
    return {kind: str(root / kind) for kind in GENERATORS}


def sampling_written(out: Path) -> dict:
    return json.loads((out / "generation.json").read_text())["sampling"]


@pytest.mark.parametrize("kind", GENERATORS)
def test_generate_draws_with_a_model_of_any_kind(kind: str, models: dict[str, str], tmp_path: Path) -> None:
    flags = ["--labels", "3,null", "--seed", "7", "--cfg-scale", "2.5"]
    assert main(["generate", models[kind], *flags, "--out", str(tmp_path / "new")]) == 0
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert names == {"000_class3.png", "001_classnull.png", "grid.png", "generation.json"}
    assert sampling_written(tmp_path / "new")["cfg_scale"] == 2.5


@pytest.mark.parametrize(
    ("kind", "flags", "path", "value"),
    [
        ("latentlm", ["--steps", "4"], "solver.num_inference_steps", 4),
        ("dit", ["--steps", "4"], "solver.num_inference_steps", 4),
        ("mar", ["--steps", "4"], "num_iterations", 4),
        ("maskgit", ["--steps", "4"], "num_iterations", 4),
        ("latentlm", ["--solver", "ddim"], "solver.name", "ddim"),
        ("dit", ["--solver", "heun", "--steps", "1"], "solver.name", "heun"),
        ("mar", ["--solver", "euler"], "solver.name", "euler"),
        ("mar", ["--set", "solver.num_inference_steps=5"], "solver.num_inference_steps", 5),
        ("dit", ["--set", "guidance.step_schedule=linear_increasing"], "guidance.step_schedule", "linear_increasing"),
        ("givt", ["--set", "temperature=0.9"], "temperature", 0.9),
        ("givt", ["--set", "temperature=9e-1", "--set", "num_candidates = 7"], "num_candidates", 7),
        ("vq_ar", ["--set", "top_k=3"], "top_k", 3),
        ("vq_ar", ["--set", "top_k=null"], "top_k", None),
        ("maskgit", ["--set", "choice_temperature=0"], "choice_temperature", 0.0),
    ],
)
def test_generate_writes_the_option_that_a_flag_means_for_this_kind(
    kind: str, flags: list[str], path: str, value: object, models: dict[str, str], tmp_path: Path
) -> None:
    assert main(["generate", models[kind], "--labels", "1", *flags, "--out", str(tmp_path / "new")]) == 0
    found = sampling_written(tmp_path / "new")
    for name in path.split("."):
        found = found[name]
    assert found == value


@pytest.mark.parametrize(
    ("kind", "flags", "sentence"),
    [
        ("givt", ["--steps", "4"], "a 'givt' draws its tokens one by one: there are no steps to choose"),
        ("vq_ar", ["--steps", "4"], "a 'vq_ar' draws its tokens one by one: there are no steps to choose"),
        ("maskgit", ["--steps", "5"], "num_iterations is 5 but the picture has 4 codes"),
        ("maskgit", ["--solver", "ddim"], "sampling of a 'maskgit' has no option solver.name"),
        ("vq_ar", ["--solver", "ddim"], "sampling of a 'vq_ar' has no option solver.name"),
        ("dit", ["--set", "temperature=0.9"], "sampling of a 'dit': temperature is not a field"),
        (
            "givt",
            ["--set", "temprature=0.9"],
            "sampling of a 'givt': temprature is not a field; did you mean temperature?",
        ),
        ("givt", ["--set", "temperature=hot"], "sampling of a 'givt': temperature takes float, but got 'hot'"),
        ("givt", ["--set", "temperature=0"], "sampling of a 'givt': temperature is 0.0; a standard deviation cannot"),
        ("givt", ["--set", "temperature"], "--set temperature: write NAME=VALUE, such as temperature=0.9"),
        ("givt", ["--set", "temperature=["], "--set temperature=[: '[' is not a value as YAML writes it"),
        (
            "dit",
            ["--set", "solver=ddim"],
            "sampling of a 'dit': solver takes a mapping of SolverConfig's fields, but got",
        ),
        ("mar", ["--cfg-scale", "nan"], "sampling of a 'mar': cfg_scale is nan"),
    ],
)
def test_generate_refuses_options_that_a_kind_does_not_have_and_writes_nothing(
    kind: str,
    flags: list[str],
    sentence: str,
    models: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["generate", models[kind], *flags, "--out", str(tmp_path / "new")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"latentlm: {sentence}")
    assert not (tmp_path / "new").exists()


@pytest.fixture(scope="module")
def document_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("documents")
    objective, _, _ = build(tiny_multimodal_recipe(folder))
    objective.save_pretrained(folder / "model")
    return str(folder / "model")


def test_generate_answers_prompts_of_text_and_pictures(document_model: str, tmp_path: Path) -> None:
    Image.new("L", (8, 8), 200).save(tmp_path / "shoe.png")
    prompts = ["--prompt", "@@ is no file", "--prompt", "What is", f"@{tmp_path / 'shoe.png'}", "? It is"]
    flags = ["--images", "1", "--max-new-tokens", "4", "--max-images", "0", "--steps", "2", "--top-k", "5"]
    assert main(["generate", document_model, *prompts, *flags, "--out", str(tmp_path / "new")]) == 0
    written = read_json(tmp_path / "new" / "answers.json")["answers"]
    assert [answer["seed"] for answer in written] == [0, 1]
    for number, answer in enumerate(written):
        assert answer["answer"][0] == {"picture": f"{number:03d}_0.png"}
        with Image.open(tmp_path / "new" / f"{number:03d}_0.png") as picture:
            assert picture.size == (8, 8)
        assert f"![picture]({number:03d}_0.png)" in (tmp_path / "new" / "answers.md").read_text()
    again = ["generate", document_model, *prompts, *flags, "--out", str(tmp_path / "again")]
    assert main(again) == 0
    assert read_json(tmp_path / "again" / "answers.json") == read_json(tmp_path / "new" / "answers.json")


def test_generate_sets_any_sampling_option_beside_a_prompt(
    document_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {}
    sampled: list[dict[str, Any]] = []
    stream = DocumentPipeline.stream

    def spy(self: Any, prompts: Any, **given: Any) -> Any:
        options.update(given)
        sampled.append(dict(self.sampling))
        return stream(self, prompts, **given)

    monkeypatch.setattr(DocumentPipeline, "stream", spy)
    Image.new("L", (8, 8), 200).save(tmp_path / "shoe.png")
    prompt = ["--prompt", "a", "--images", "1", "--image-size", "8x8", "--max-new-tokens", "3", "--max-images", "0"]
    flags = ["--min-p", "0.1", "--repetition-penalty", "1.2", "--negative-prompt", "not", f"@{tmp_path / 'shoe.png'}"]
    # Both together or not at all: other solvers than ddim have no eta.
    changes = ["image.solver.eta=0.5", "image.solver.name=ddim", "text.eos_ids=[46]", "text.top_k=5"]
    sets = [word for change in changes for word in ("--set", change)]
    assert main(["generate", document_model, *prompt, *flags, *sets, "--out", str(tmp_path / "new")]) == 0
    solver = sampled[0]["image"].solver
    assert (solver.name, solver.eta, solver.num_inference_steps) == ("ddim", 0.5, 2)
    assert (sampled[0]["text"].eos_ids, sampled[0]["text"].top_k) == ((46,), 5)
    assert (options["image_size"], options["min_p"], options["repetition_penalty"]) == ((8, 8), 0.1, 1.2)
    assert options["negative_prompt"] == ["not", tmp_path / "shoe.png"]


def test_evaluate_asks_for_the_recipe_of_a_model_of_documents(
    document_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", document_model, "--out", str(tmp_path / "new")]) == 2
    assert "its documents are not known: give --recipe FILE" in capsys.readouterr().err


def test_generate_says_what_a_prompt_lacks(
    document_model: str, models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = ["--out", str(tmp_path / "new")]
    for arguments, message in (
        ([document_model], "knows no classes; give it a --prompt"),
        ([models["dit"], "--prompt", "a"], "reads no prompts; give --labels"),
        ([document_model, "--prompt", "@nowhere.png"], "nowhere.png: not a regular file"),
        ([document_model, "--prompt", "a", "--max-new-tokens", "0"], "asks for nothing"),
        ([document_model, "--prompt", "a", "--set", "top_k=3"], "this model knows image.NAME, text.NAME"),
        ([document_model, "--prompt", "a", "--set", "text.topk=3"], "topk is not a field; did you mean top_k?"),
        ([document_model, "--prompt", "a", "--image-size", "8x"], "write height and width in pixels, such as 64x48"),
        ([document_model, "--prompt", "a", "--image-size", "8x8"], "give their number: images=1"),
        ([document_model, "--prompt", "a", "--images", "1", "--image-size", "8x16"], "leave image_size out"),
    ):
        assert main(["generate", *arguments, *new]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_evaluate_refuses_flags_of_other_models_before_it_opens_any_data(
    models: dict[str, str], tokenizers: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = str(tokenizers["latents"])
    for arguments, message in (
        ([models["latentlm"], "--measures", "txt"], "holds a 'latentlm', for which there is no --measures"),
        ([models["dit"], "--option", "num_questions=1"], "holds a 'dit', for which there is no --option"),
        ([tokenizer, "--judge-recipe", "x.yaml"], "holds a 'image_tokenizer', for which there is no --judge-recipe"),
        ([tokenizer, "--part", "validation"], "a tokenizer has nothing to choose on validation pictures"),
        ([tokenizer, "--cfg-scale", "2"], "holds a 'image_tokenizer', which draws nothing; leave --cfg-scale out"),
        ([tokenizer, "--raw"], "holds a 'image_tokenizer', which draws nothing; leave --raw out"),
    ):
        # Nothing says which data set it is: whatever was opened would end in another sentence.
        assert main(["evaluate", *arguments, "--out", str(tmp_path / "new")]) == 2
        assert message in capsys.readouterr().err


def test_generate_says_that_a_tokenizer_draws_nothing(
    tokenizers: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in tokenizers.values():
        assert main(["generate", str(folder), "--out", str(tmp_path / "new")]) == 2
        assert re.search(r"holds a '(vq_)?image_tokenizer', which draws nothing", capsys.readouterr().err)


SPACE_OF_LATENTS = ["--model.space.rows", "2", "--model.space.columns", "2", "--model.space.latent_dim", "6"]
SPACE_OF_CODES = ["--model.space.rows", "2", "--model.space.columns", "2", "--model.space.num_codes", "16"]
CLASSES = ["--model.space.num_classes", "10"]


def numbers_of(plan: str) -> dict[str, float]:
    """Line title to number of what `latentlm plan` printed."""
    lines = (line.rsplit(maxsplit=1) for line in plan.splitlines() if line.startswith("  "))
    return {title.strip(): float(number.replace(",", "")) for title, number in lines}


def test_plan_counts_a_model_of_documents_by_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "multimodal_digits_and_garments.yaml"]) == 0
    found = numbers_of(capsys.readouterr().out)
    # Width 192, 6 layers, rows of 256: 6 FLOPs per weight and token, and attention's two products, 12 T² D per layer.
    weights = 6 * (4 * 192**2 + 3 * 192 * 768) + 192 * 268
    expected = 6 * 256 * weights + 6 * 12 * 256**2 * 192
    assert found["text alone"] == pytest.approx(expected, rel=0.01)
    assert found["FLOPs per step, of text alone"] == pytest.approx(16 * found["text alone"], rel=1e-3)
    assert found["what each latent of image adds"] > 0


def test_plan_counts_a_tokenizer_of_sound_by_the_second(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--tokenizer.channels", "[8]", "--tokenizer.depths", "[0]", "--tokenizer.strides", "[]"]
    assert main(["plan", "speech_digits_tokenizer.yaml", *flags]) == 0
    found = numbers_of(capsys.readouterr().out)
    # 160 frames of 129 levels and two numbers of pitch a second; kernels of 7 between 8 channels and 32 dimensions.
    assert found["encode"] == pytest.approx(2 * 160 * ((129 + 2) * 8 + 7 * 8 * 32), rel=1e-3)
    assert found["training, forward and backward, reconstruction only"] == pytest.approx(
        3 * (found["encode"] + found["decode"]), rel=1e-3
    )
    # 12 crops of a second.
    per_second = found["training, forward and backward, reconstruction only"]
    assert found["FLOPs per step"] == pytest.approx(12 * per_second, rel=1e-3)


@pytest.mark.parametrize(
    ("recipe", "flags"),
    [
        ("transfusion_digits_and_garments.yaml", []),
        ("vq_mllm_digits_and_garments.yaml", ["--model.vocabulary.num_codes", "512"]),
        ("mel_ar_digits.yaml", []),
        ("codec_lm_digits.yaml", ["--model.num_codes", "256", "--model.num_quantizers", "4"]),
        ("vq_fashion_tokenizer.yaml", []),
        ("mel_vocoder_digits.yaml", []),
    ],
)
def test_plan_counts_the_parameters_of_every_other_kind(
    recipe: str, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", recipe, *flags]) == 0
    found = numbers_of(capsys.readouterr().out)
    assert 1e6 < found["total"] < 2e7
    parts = list(found)[: list(found).index("total")]
    assert found["total"] == sum(found[name] for name in parts)


def test_plan_says_what_a_model_of_codes_leaves_open(capsys: pytest.CaptureFixture[str]) -> None:
    for recipe, flags in (
        ("codec_lm_digits.yaml", "pass --speech_tokenizer FOLDER, or --model.num_codes N --model.num_quantizers N"),
        ("vq_mllm_emoji.yaml", "pass --tokenizer FOLDER, or --model.vocabulary.num_codes N"),
    ):
        assert main(["plan", recipe]) == 2
        assert flags in capsys.readouterr().err


def test_plan_takes_the_codes_of_a_model_from_the_tokenizer_that_the_recipe_names(
    tokenizers: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codec = tiny_speech_codec()
    codec.save_pretrained(tmp_path / "codec")
    by_number = ["--model.num_codes", str(codec.num_codes), "--model.num_quantizers", str(codec.num_quantizers)]
    for recipe, by_tokenizer, numbers in (
        ("vq_mllm_emoji.yaml", ["--tokenizer", str(tokenizers["codes"])], ["--model.vocabulary.num_codes", "16"]),
        ("codec_lm_digits.yaml", ["--speech_tokenizer", str(tmp_path / "codec")], by_number),
    ):
        assert main(["plan", recipe, *by_tokenizer]) == 0
        expected = capsys.readouterr().out
        assert main(["plan", recipe, *numbers]) == 0
        assert capsys.readouterr().out == expected


@pytest.mark.parametrize("kind", ["dit", "mar", "givt", "vq_ar", "maskgit"])
def test_plan_counts_an_image_model_by_its_tokenizer_or_its_space_alike(
    kind: str, tokenizers: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, tokenizer = f"{kind}_fashion.yaml", str(tokenizers[token_kind(kind)])
    # Four tokens a picture: no more iterations than that.
    short = ["--generation.num_iterations", "2"] if kind in ("mar", "maskgit") else []
    assert main(["plan", recipe, *short, "--tokenizer", tokenizer, *CLASSES]) == 0
    by_tokenizer = capsys.readouterr().out
    space = SPACE_OF_LATENTS if token_kind(kind) == "latents" else SPACE_OF_CODES
    assert main(["plan", recipe, *short, *space, *CLASSES]) == 0
    assert capsys.readouterr().out == by_tokenizer
    assert "FLOPs per image of 4 tokens" in by_tokenizer

    found = numbers_of(by_tokenizer)
    digits = ["--data.source", "digits", "--data.path", "null", "--data.test_path", "null", "--data.split_file", "null"]
    flags = [*short, "--tokenizer", tokenizer, *digits, "--data.image_size", "8"]
    objective, _, built = build(read_recipe(recipe, flags))
    assert found["total"] == sum(parameter.numel() for parameter in objective.model.parameters())
    flops, trainer = objective.pipeline().flops(), built.trainer  # pyright: ignore[reportAttributeAccessIssue]
    per_run = flops.training * trainer.batch_size * trainer.num_steps
    # Printed with four digits.
    assert found["training, forward and backward"] == pytest.approx(flops.training, rel=1e-3)
    assert found["generation, with the recipe's guidance and steps"] == pytest.approx(flops.generation, rel=1e-3)
    assert found["FLOPs of the run"] == pytest.approx(per_run, rel=1e-3)


def test_plan_says_what_an_image_model_leaves_open(
    tokenizers: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    latents, codes = (["--tokenizer", str(tokenizers[name])] for name in ("latents", "codes"))
    for flags, sentence in (
        (
            [],
            "pass --model.space.num_classes N, --model.space.rows N, --model.space.columns N, --model.space.latent_dim",
        ),
        (
            latents,
            "what tokens a 'dit' models: pass --model.space.num_classes N; --tokenizer FOLDER, a tokenizer of lat",
        ),
        ([*codes, *CLASSES], "pass --model.space.latent_dim N; --tokenizer FOLDER, a tokenizer of latents, gives all"),
        (
            [*latents, *CLASSES, "--model.space.rows", "3"],
            "the recipe says model.space.rows: 3, but data and tokenizer",
        ),
    ):
        assert main(["plan", "dit_fashion.yaml", *flags]) == 2
        assert sentence in capsys.readouterr().err
