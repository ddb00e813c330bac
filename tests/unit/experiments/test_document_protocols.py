"""How runs of models of documents are measured: every measure of a tiny untrained run, and drawings that are known."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from document_pipelines import DIGIT_POOL, DIGITS, NAMES, Scripted
from experiment_paths import shown_paths
from PIL import Image
from tiny_document_kinds import recipe_of_kind
from tiny_documents import tiny_multimodal_recipe
from tiny_judges import tiny_judges
from tiny_models import tiny_image_tokenizer

from latentlm.catalog import build, load
from latentlm.cli.protocols import PROTOCOLS
from latentlm.data import open_images
from latentlm.data.documents.composed import ComposedDataConfig
from latentlm.evaluation.document_pictures import asked_labels, own_pictures
from latentlm.evaluation.document_protocol import task_documents
from latentlm.evaluation.judges import Judges
from latentlm.experiments import document_run
from latentlm.experiments.document_options import MEASURES, DocumentModelOptions
from latentlm.experiments.document_protocols import document_model
from latentlm.experiments.document_run import DocumentRun, composed_data, objective_of
from latentlm.experiments.protocol import MeasureContext
from latentlm.experiments.results import look_up
from latentlm.training.objectives.documents import DocumentSourceConfig
from latentlm.training.trainer import kept_model

COMPOSED = ComposedDataConfig(pools={"digit": DIGIT_POOL}, num_documents=50, num_held_out_documents=50)
SMALL = {
    "num_pictures": 40,
    "num_validation_pictures": 30,
    "num_captions": 8,
    "num_classified": 4,
    "num_questions": 12,
    "num_few_shot": 5,
    "num_switching": 6,
    "num_train_documents": 60,
    "max_caption_tokens": 6,
    "max_answer_tokens": 4,
    "batch_size": 20,
    "dual_encoder": {"num_steps": 2, "width": 8, "text_width": 8, "num_features": 8},
}


class PowerCutError(Exception):
    """Ends a measurement without any goodbye."""


@pytest.fixture(scope="module")
def judges() -> Judges:
    return tiny_judges()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of an untrained run and its recipe: text, and composed digits."""
    folder = tmp_path_factory.mktemp("run")
    recipe = tiny_multimodal_recipe(folder)
    (folder / "test.txt").write_text("a test\n\nand another one")
    text = recipe.sources["text"]
    text = replace(text, data=replace(text.data, test_path=str(folder / "test.txt")))
    sources = {"text": text, "digits": DocumentSourceConfig(composed=COMPOSED)}
    recipe = replace(recipe, sources=sources, max_length=160)
    objective, _, recipe = build(recipe)
    objective.save_pretrained(folder / "run" / "model")
    return SimpleNamespace(folder=folder / "run", recipe=recipe, objective=objective)


MakeContext = Callable[..., MeasureContext]


@pytest.fixture
def make_context(tmp_path: Path, run: Any, judges: Judges, monkeypatch: pytest.MonkeyPatch) -> MakeContext:
    monkeypatch.setattr(document_run, "load_judges", lambda data, *, cache_dir, progress: judges)

    def make(
        options: dict[str, Any], *, load: Any = load, name: str = "cell", recipe: Any = run.recipe
    ) -> MeasureContext:
        return MeasureContext(
            cell=name,
            axes={},
            run_dir=run.folder,
            recipe=recipe,
            options=options,
            scratch_dir=tmp_path / "scratch" / name,
            cache_dir=tmp_path / "cache",
            assets_dir=tmp_path / "assets",
            load=load,
            progress=False,
        )

    return make


measure = partial(document_model, build=build)


def test_every_measure_of_a_run_is_recorded_with_its_numbers(make_context: MakeContext, run: Any) -> None:
    context = make_context({**SMALL, "trials": [{"cfg_scale": 1.0}, {"cfg_scale": 2.0}]})
    result = measure(context)
    json.dumps(result, allow_nan=False)
    assert list(result) == [*MEASURES, "trained", "parameters", "seconds"]
    trained = result["trained"]
    assert (trained["steps"], trained["tokens"]) == (2, 2 * 16 * 160)
    # At least two for every weight of the backbone and token, three times over; the head and attention are on top.
    weights = sum(p.numel() for p in run.objective.model.transformer.parameters())
    assert trained["flops"] > 6 * weights * trained["tokens"]
    assert list(result["seconds"]) == list(MEASURES)
    assert result["parameters"] == sum(p.numel() for p in run.objective.model.parameters())
    assert result["text"]["test"]["text"]["num_bytes"] == len("a test") + len("and another one")
    assert result["text"]["validation"]["text"]["num_targets"] > 0
    assert result["image_to_text"]["model"]["num_documents"] == SMALL["num_captions"]
    assert result["image_to_text"]["blind"]["num_targets"] == result["image_to_text"]["model"]["num_targets"]
    assert result["image_to_text"]["classified"]["num"] == SMALL["num_classified"]
    assert result["image_to_text"]["classified"]["chance"] == pytest.approx(0.1)
    assert result["image_to_text"]["classified"]["chance_nats"] == pytest.approx(math.log(10))
    drawn = result["text_to_image"]
    for row in ("scores", "floor", "ceiling"):
        assert {noun: scores["num_images"] for noun, scores in drawn[row].items()} == {"all": 40, "digit": 40}
    assert [trial["changes"] for trial in drawn["trials"]] == context.options["trials"]
    assert drawn["sampling"]["cfg_scale"] == drawn["chosen"]["cfg_scale"] == result["switching"]["chosen"]["cfg_scale"]
    over = drawn["scores"]["all"]["frechet"] - drawn["ceiling"]["all"]["frechet"]
    assert drawn["over_ceiling"]["all"]["frechet"] == pytest.approx(over)
    assert drawn["consistency"]["chance"]["at_1"] == pytest.approx(0.1)
    assert context.picture_path("text_to_image").is_file()
    assert result["captions"]["model"]["num_captions"] == SMALL["num_captions"]
    assert {task: scores["model"]["num"] for task, scores in result["questions"].items()} == dict.fromkeys(
        ("which", "how_many", "is_there"), SMALL["num_questions"]
    )
    assert list(result["few_shot"]) == ["0", "1", "2", "4"]
    for scores in result["few_shot"].values():
        likelier = scores["likelier"]["model"]
        assert (scores["chance"], likelier["chance"], likelier["num"]) == (0.5, 0.5, SMALL["num_few_shot"])
    rows = ("captions", "stories", "to_picture", "to_text")
    assert [result["switching"][row]["everything"]["num"] for row in rows] == [3, 3, SMALL["num_switching"], 3]
    assert result["switching"]["closes_by_construction"] is False
    # Shares have intervals.
    accuracy = drawn["scores"]["all"]["accuracy"]
    assert accuracy["low"] <= accuracy["estimate"] <= accuracy["high"]
    assert list(drawn["consistency"]["real_test"]["at_1"]) == list(accuracy) == ["estimate", "low", "high", "num"]
    assert result["captions"]["model"]["class_named"]["num"] == SMALL["num_captions"]
    # What the pages of experiments show is there; the garments of one of them are no pool of this run.
    for name in ("documents_table3", "documents_tokens", "documents_few_shot"):
        paths = [path for path in shown_paths(name, "document_model") if ".garment." not in path]
        assert len(paths) > 10
        assert [path for path in paths if look_up(result, path) is None] == []


@pytest.mark.parametrize("kind", ["transfusion", "vq_mllm"])
def test_other_kinds_of_model_are_measured_alike(
    kind: str, make_context: MakeContext, run: Any, tmp_path: Path
) -> None:
    objective, _, recipe = build(recipe_of_kind(kind, run.recipe, tmp_path))
    objective.save_pretrained(tmp_path / "run" / "model")
    trials = [{"cfg_scale": 1.0}, {"cfg_scale": 2.0}]
    context = replace(make_context({**SMALL, "trials": trials}, recipe=recipe), run_dir=tmp_path / "run")
    result = measure(context)
    json.dumps(result, allow_nan=False)
    assert list(result) == [*MEASURES, "trained", "parameters", "seconds"]
    # The same documents of the same text tokenizer: as many targets, whatever pictures are to a model.
    counts = [result["image_to_text"][name]["num_targets"] for name in ("model", "blind")]
    assert counts == [sum(len(text) + 1 for text in captions_of_test(context))] * 2
    drawn = result["text_to_image"]
    assert [trial["changes"] for trial in drawn["trials"]] == trials
    assert all(math.isfinite(trial["selector_frechet"]) for trial in drawn["trials"])
    assert drawn["scores"]["all"]["num_images"] == SMALL["num_pictures"]
    assert result["questions"]["which"]["model"]["num"] == SMALL["num_questions"]
    assert result["few_shot"]["4"]["likelier"]["model"]["num"] == SMALL["num_few_shot"]
    switching = result["switching"]
    assert switching["closes_by_construction"] is (kind == "transfusion")
    if kind == "transfusion":  # what it opens has the right length
        assert switching["to_picture"]["closes"]["estimate"] == switching["to_picture"]["opens"]["estimate"]
    for name in ("documents_table3", "documents_few_shot"):
        paths = [path for path in shown_paths(name, "document_model") if ".garment." not in path]
        assert [path for path in paths if look_up(result, path) is None] == []


def captions_of_test(context: MeasureContext) -> list[str]:
    """Captions whose likelihood is measured."""
    documents = task_documents(DIGITS, "image_to_caption", part="test", count=context.options["num_captions"])
    return [document.fields["caption"] for document in documents]


def test_the_command_line_knows_the_protocol(make_context: MakeContext) -> None:
    result = PROTOCOLS["document_model"](make_context({**SMALL, "measures": ["captions"]}))
    assert list(result) == ["captions", "trained", "parameters", "seconds"]


def test_the_model_that_a_run_kept_of_a_step_is_measured_as_the_last_one_is(
    make_context: MakeContext, run: Any, tmp_path: Path
) -> None:
    kept = kept_model(tmp_path, 1)
    run.objective.save_pretrained(kept)
    options = {**SMALL, "measures": ["image_to_text"]}
    last = measure(make_context(options))
    early = measure(replace(make_context({**options, "step": 1}, name="early"), run_dir=tmp_path))
    assert early["trained"] == {name: amount / 2 for name, amount in last["trained"].items()}
    assert early["trained"]["steps"] == 1
    assert early["image_to_text"] == last["image_to_text"]
    with pytest.raises(ValueError, match=r"kept no model of step 2; .*trainer\.keep_steps"):
        measure(replace(make_context({**options, "step": 2}, name="never"), run_dir=tmp_path))


def test_the_objective_is_rebuilt_around_the_runs_own_weights(run: Any) -> None:
    pipeline = load(run.folder / "model")
    objective = objective_of(run.recipe, pipeline, build)
    assert objective.model is pipeline.model
    assert objective.tokenizer is pipeline.tokenizers["image"]


# -- drawings that are known -------------------------------------------------------------------------------------------


def noisy_copier(judges: Judges, journal: list[str], *, cut_at: int | None = None) -> Callable[[Path], Any]:
    """Loads a pipeline that draws real test digits of the class in the caption under noise of std cfg_scale - 1."""

    def reply(prompt: Any, options: dict[str, Any]) -> Any:
        if len(journal) == cut_at:
            raise PowerCutError
        noise = pipeline.sampling["image"].cfg_scale - 1
        journal.append(f"noise {noise:g}")
        if noise > 5:
            raise ValueError("the latents hold NaN")
        (label,) = [label for label, name in enumerate(NAMES) if name in prompt[0]]
        generator = torch.Generator().manual_seed(options["seed"])
        members = judges.test.images[judges.test.labels == label]
        picture = members[int(torch.randint(len(members), (), generator=generator))]
        picture = picture + noise * torch.randn(picture.shape, generator=generator)
        pixels = ((picture[0].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
        return (Image.fromarray(np.asarray(pixels)),), "spans"

    pipeline = Scripted(reply)
    pipeline.tokenizers = {"image": tiny_image_tokenizer()}
    pipeline.model = torch.nn.Linear(3, 2)
    pipeline.prompts = SimpleNamespace(says_size=False)  # type: ignore[assignment]
    return lambda folder: pipeline


NOISES = (0.6, 0.0, 0.3)
DRAWING = {
    **SMALL,
    "measures": ["text_to_image"],
    "trials": [{"cfg_scale": 1.0 + noise} for noise in NOISES],
}


def test_the_setting_with_the_smallest_selector_distance_on_validation_draws_the_test(
    make_context: MakeContext, judges: Judges
) -> None:
    journal: list[str] = []
    result = measure(make_context(DRAWING, load=noisy_copier(judges, journal)))["text_to_image"]
    assert journal == [*(f"noise {noise:g}" for noise in NOISES for _ in range(30)), *["noise 0"] * 40]
    noisy, clean, middle = (trial["selector_frechet"] for trial in result["trials"])
    assert clean < middle < noisy
    assert result["chosen"] == {"cfg_scale": 1.0}


def test_drawn_pictures_have_the_labels_of_their_captions(make_context: MakeContext, judges: Judges) -> None:
    context = make_context({**DRAWING, "trials": [{"cfg_scale": 1.0}]}, load=noisy_copier(judges, []))
    measure(context)
    options = DocumentModelOptions(num_pictures=40)
    asked = DocumentRun(context, options, build).to_draw(40)
    labels = asked_labels([one.fields for one in asked], {"digit": range(10)})
    assert [NAMES[label] in one.prompt[0] for label, one in zip(labels, asked, strict=True)] == [True] * 40


def test_the_floor_shows_no_picture_twice(make_context: MakeContext, judges: Judges) -> None:
    many = 300
    run = DocumentRun(make_context(SMALL, load=noisy_copier(judges, [])), DocumentModelOptions(), build)
    floor = own_pictures(run.to_draw(many), {"digit": range(10)})
    found = {place for image in floor.images for place in same_as(image, judges.test.images)[:1]}
    assert len(found) == many
    # With replacement some hundred of the 539 test pictures come again.
    repeated = own_pictures(run.asked("caption_to_image", many), {"digit": range(10)})
    assert len({place for image in repeated.images for place in same_as(image, judges.test.images)[:1]}) < many - 30


def same_as(image: torch.Tensor, images: torch.Tensor) -> list[int]:
    """Places of equal pictures."""
    return (images == image).flatten(1).all(dim=1).nonzero()[:, 0].tolist()


def test_a_setting_that_cannot_be_drawn_is_recorded_and_not_chosen(make_context: MakeContext, judges: Judges) -> None:
    options = {**DRAWING, "trials": [{"cfg_scale": 9.0}, {"cfg_scale": 1.5}]}
    result = measure(make_context(options, load=noisy_copier(judges, [])))["text_to_image"]
    assert result["trials"][0] == {
        "changes": {"cfg_scale": 9.0},
        "selector_frechet": None,
        "failure": "the latents hold NaN",
    }
    assert result["chosen"] == {"cfg_scale": 1.5}
    options = {**DRAWING, "trials": [{"cfg_scale": 9.0}] * 2}
    with pytest.raises(ValueError, match="not one setting of broken could be drawn: the latents hold NaN"):
        measure(make_context(options, load=noisy_copier(judges, []), name="broken"))


def test_a_misspelt_setting_is_refused_and_not_taken_for_one_that_does_not_work(
    make_context: MakeContext, judges: Judges
) -> None:
    options = {**DRAWING, "trials": [{"cfg_scale": 1.0}, {"cgf_scale": 1.0}]}
    with pytest.raises(ValueError, match="cgf_scale"):
        measure(make_context(options, load=noisy_copier(judges, [])))


@pytest.mark.parametrize("cut_at", [0, 100])
def test_after_a_kill_only_what_was_not_finished_is_drawn(
    make_context: MakeContext, judges: Judges, cut_at: int
) -> None:
    whole: list[str] = []
    expected = measure(make_context(DRAWING, load=noisy_copier(judges, whole), name="whole"))
    journal: list[str] = []
    with pytest.raises(PowerCutError):
        measure(make_context(DRAWING, load=noisy_copier(judges, journal, cut_at=cut_at), name="cut"))
    finished = sum(30 for number in range(3) if 30 * (number + 1) <= cut_at)
    rest: list[str] = []
    result = measure(make_context(DRAWING, load=noisy_copier(judges, rest), name="cut"))
    assert rest == whole[finished:]
    for one in (result, expected):
        one["text_to_image"].pop("pictures_per_second")
    assert result["text_to_image"] == expected["text_to_image"]


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_a_recipe_without_labelled_pictures_is_refused(run: Any) -> None:
    recipe = replace(run.recipe, sources={"text": run.recipe.sources["text"]})
    with pytest.raises(ValueError, match="no source of the recipe is composed"):
        composed_data(recipe)


def test_sources_of_different_pools_are_refused(run: Any) -> None:
    other = replace(COMPOSED, pools={"number": DIGIT_POOL})
    recipe = replace(run.recipe, sources={**run.recipe.sources, "other": DocumentSourceConfig(composed=other)})
    with pytest.raises(ValueError, match="have different pools"):
        composed_data(recipe)


def test_several_pools_need_data_that_put_them_together(make_context: MakeContext, run: Any, judges: Judges) -> None:
    shouted = replace(DIGIT_POOL, names=[name.upper() + "!" for name in NAMES])
    two = replace(COMPOSED, pools={"digit": DIGIT_POOL, "shout": shouted})
    recipe = replace(run.recipe, sources={"digits": DocumentSourceConfig(composed=two)})
    context = make_context(DRAWING, recipe=recipe, load=noisy_copier(judges, []))
    with pytest.raises(ValueError, match="pictures of digit, shout are judged together; give judge_data"):
        _ = DocumentRun(context, DocumentModelOptions(), build).judges


def test_the_only_pool_is_judged_by_its_own_data_at_the_size_of_the_tokenizer(
    make_context: MakeContext, judges: Judges, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, given = make_context(SMALL), []

    def load_judges(data: Any, **_: Any) -> Judges:
        given.append(data)
        return judges

    monkeypatch.setattr(document_run, "load_judges", load_judges)
    _ = DocumentRun(context, DocumentModelOptions(), build).judges
    _ = DocumentRun(context, DocumentModelOptions(judge_data={"source": "digits", "split_seed": 3}), build).judges
    assert [(data.source, data.image_size, data.num_channels) for data in given] == [("digits", 8, 1)] * 2
    assert given[1].split_seed == 3
    assert len(open_images(given[0], part="validation")) > 0


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="measures names smell, but there are text"):
        DocumentModelOptions(measures=["text", "smell"])
    with pytest.raises(ValueError, match="trials is empty"):
        DocumentModelOptions(trials=[])
    with pytest.raises(ValueError, match="step 5 goes with weights: ema"):
        DocumentModelOptions(step=5, weights="raw")


def test_likelihood_of_text_needs_a_source_of_text(make_context: MakeContext, run: Any) -> None:
    recipe = replace(run.recipe, sources={"digits": run.recipe.sources["digits"]})
    with pytest.raises(ValueError, match="no source of the recipe is plain text"):
        measure(make_context({**SMALL, "measures": ["text"]}, recipe=recipe))
