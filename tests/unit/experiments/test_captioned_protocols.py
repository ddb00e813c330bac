"""Runs of captioned and of edited pictures, measured: a tiny untrained model, and pipelines whose answers are known."""

import base64
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from document_pipelines import Scripted
from experiment_paths import shown_paths
from PIL import Image
from tiny_document_kinds import DOCUMENT_KINDS, recipe_of_kind
from tiny_documents import tiny_multimodal_recipe
from tiny_judges import tiny_judges
from tiny_models import tiny_image_tokenizer
from torch import Tensor

from latentlm.catalog import build, load
from latentlm.config import from_mapping
from latentlm.data.documents import open_documents
from latentlm.evaluation.judges import Judges
from latentlm.experiments import captioned_run
from latentlm.experiments.captioned_options import CaptionedOptions, EditedOptions
from latentlm.experiments.captioned_protocol import captioned_pictures
from latentlm.experiments.edited_protocol import edited_pictures, in_hashed_order
from latentlm.experiments.protocol import MeasureContext
from latentlm.experiments.results import look_up
from latentlm.training.objectives.documents import DocumentSourceConfig

CAPTIONS = ["{caption}, {style}{image}", "{image}{caption}, {style}"]
EDITS = [
    "{image:style=plain} as negative:{image:style=negative}",
    "{other.image:style=negative} is the style,{image:style=plain} the thing:{image:style=negative}",
]
JUDGED = {
    "source": "captions",
    "judge_data": {"source": "digits", "columns": {"label": "group"}},
    "kinds_by": "split_kind",
    "dual_encoder": {"num_steps": 2, "width": 8, "text_width": 8, "num_features": 8},
    "num_validation_pictures": 8,
    "batch_size": 10,
}
FACTS = ["caption", "base_caption", "group", "style"]
EDITING = {"edits": "edits", "facts": ["caption", "style"], "num_edits": 6}
NUM_TEST = 20
"""Test pictures: ten digits in two styles."""


@pytest.fixture(scope="module")
def judges() -> Judges:
    return tiny_judges()


def write_digits(path: Path, judges: Judges, numbers: range) -> str:
    """Digits and their negatives: the second style."""
    lines = []
    for number in numbers:
        picture, digit = judges.test.images[number], int(judges.test.labels[number])
        for style, pixels in (("plain", picture), ("negative", -picture)):
            buffer = io.BytesIO()
            Image.fromarray(((pixels[0] + 1) * 127.5).round().byte().numpy()).save(buffer, "PNG")
            facts = {"caption": f"digit {digit}, no {number}", "base_caption": f"digit {digit}", "group": str(digit)}
            kind = "novel" if number % 2 else "composition"
            encoded = base64.b64encode(buffer.getvalue()).decode()
            lines.append({"image_base64": encoded, "style": style, "split_kind": kind, **facts})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, judges: Judges) -> dict[str, Any]:
    """The folder of an untrained run and its recipe, by kind of model."""
    folder = tmp_path_factory.mktemp("run")
    files = {
        "path": write_digits(folder / "train.jsonl", judges, range(40)),
        "test_path": write_digits(folder / "test.jsonl", judges, range(40, 40 + NUM_TEST // 2)),
        "validation_ratio": 0.3,
        "every_template": True,
    }
    sources = {
        "captions": {"data": {**files, "templates": CAPTIONS}},
        "edits": {"data": {**files, "templates": EDITS, "join": {"by": "caption"}}},
    }
    recipe = tiny_multimodal_recipe(folder, max_length=64)
    opened = {name: from_mapping(DocumentSourceConfig, source) for name, source in sources.items()}
    found = {}
    for kind in DOCUMENT_KINDS:
        of_kind = recipe_of_kind(kind, replace(recipe, sources=opened), folder / kind)
        objective, _, resolved = build(of_kind)
        objective.save_pretrained(folder / kind / "model")
        found[kind] = SimpleNamespace(folder=folder / kind, recipe=resolved)
    return found


@pytest.fixture
def make_context(
    tmp_path: Path, runs: dict[str, Any], judges: Judges, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., MeasureContext]:
    monkeypatch.setattr(captioned_run, "load_judges", lambda data, *, cache_dir, progress: judges)

    def make(options: Mapping[str, Any], *, load: Any = load, kind: str = "multimodal") -> MeasureContext:
        return MeasureContext(
            cell="cell",
            axes={},
            run_dir=runs[kind].folder,
            recipe=runs[kind].recipe,
            options={**JUDGED, **options},
            scratch_dir=tmp_path / "scratch",
            cache_dir=tmp_path / "cache",
            assets_dir=tmp_path / "assets",
            load=load,
            progress=False,
        )

    return make


MakeContext = Callable[..., MeasureContext]
measure_captions = partial(captioned_pictures, build=build)
measure_edits = partial(edited_pictures, build=build)


@pytest.mark.parametrize("kind", DOCUMENT_KINDS)
def test_every_measure_of_captioned_pictures_is_recorded_by_kind(make_context: MakeContext, kind: str) -> None:
    trials = [{"cfg_scale": 1.0}, {"cfg_scale": 2.0}]
    context = make_context({"facts": FACTS, "max_caption_tokens": 5, "trials": trials}, kind=kind)
    result = measure_captions(context)
    json.dumps(result, allow_nan=False)
    assert list(result) == ["text_to_image", "image_to_text", "captions", "trained", "parameters", "seconds"]
    assert_trained(result, context)
    drawn = result["text_to_image"]
    assert {kind: rows["drawn"]["num_images"] for kind, rows in drawn["kinds"].items()} == {
        "all": NUM_TEST,
        "composition": NUM_TEST // 2,
        "novel": NUM_TEST // 2,
    }
    assert [trial["changes"] for trial in drawn["trials"]] == trials
    assert drawn["sampling"]["cfg_scale"] == drawn["chosen"]["cfg_scale"]
    assert drawn["kinds"]["novel"]["consistency"]["real_test"]["num_captions"] == NUM_TEST, "ranked among all kinds"
    assert drawn["kinds"]["novel"]["others"]["num_images"] == NUM_TEST // 2
    likelihoods = result["image_to_text"]
    for row in ("model", "blind"):
        assert (
            sum(likelihoods[kind][row]["num_targets"] for kind in ("composition", "novel"))
            == (likelihoods["all"][row]["num_targets"])
        )
    assert list(result["captions"]["novel"]["model"]) == ["exact", *FACTS]
    assert list(result["captions"]["novel"]["majority"]) == FACTS
    assert all(context.picture_path(kind).is_file() for kind in ("all", "composition", "novel"))
    for name in ("documents_emoji", "documents_emoji_64"):
        paths = shown_paths(name, "captioned_pictures")
        assert paths
        assert [path for path in paths if look_up(result, path) is None] == []


def assert_trained(result: Mapping[str, Any], context: MeasureContext) -> None:
    trained, batch_size = result["trained"], context.recipe.trainer.batch_size
    assert (trained["steps"], trained["tokens"]) == (2, 2 * batch_size * context.recipe.max_length)
    assert trained["flops"] > 0


@pytest.mark.parametrize("kind", DOCUMENT_KINDS)
def test_every_kind_of_model_edits_pictures(make_context: MakeContext, kind: str) -> None:
    context = make_context({**EDITING, "trials": [{"cfg_scale": 1.0}, {"cfg_scale": 2.0}]}, kind=kind)
    result = measure_edits(context)
    json.dumps(result, allow_nan=False)
    assert list(result) == ["judges", "num_targets", "1", "2", "trained", "parameters"]
    assert_trained(result, context)
    for count in ("1", "2"):
        edited = result[count]["kinds"]["all"]["edited"]
        assert list(edited["at_1"]) == ["estimate", "low", "high", "num"]
        assert (edited["num"], edited["nearest"]["style"]["num"]) == (6, 6)
        assert all(np.isfinite(trial["selector_kernel"]) for trial in result[count]["trials"])
    assert context.picture_path("edits2_all").is_file()


def scripted(reply: Callable[[Any], Any]) -> Callable[[Path], Any]:
    """Loads a pipeline that answers by a function of the prompt."""
    pipeline = Scripted(lambda prompt, options: ((reply(prompt),), "spans"))
    pipeline.tokenizers = {"image": tiny_image_tokenizer()}
    pipeline.model = torch.nn.Linear(3, 2)
    pipeline.prompts = SimpleNamespace(says_size=False)  # type: ignore[assignment]
    return lambda folder: pipeline


def as_pillow(picture: Tensor) -> Image.Image:
    return Image.fromarray(np.asarray(((picture[0] + 1) * 127.5).round().byte()))


def last_picture(prompt: Any) -> Tensor:
    return [part for part in prompt if isinstance(part, Tensor)][-1]


def test_an_editor_that_makes_the_target_has_every_edit_right(make_context: MakeContext) -> None:
    editor = scripted(lambda prompt: as_pillow(-last_picture(prompt)))
    result = measure_edits(make_context(EDITING, load=editor))
    json.dumps(result, allow_nan=False)
    assert result["num_targets"] == NUM_TEST // 2
    assert list(result)[2:4] == ["1", "2"], "words alone, and a picture with the style"
    paths = shown_paths("documents_editing", "edited_pictures")
    assert paths
    assert [path for path in paths if look_up(result, path) is None] == []
    for count in ("1", "2"):
        of_all = result[count]["kinds"]["all"]
        edited, source = of_all["edited"], of_all["source"]
        assert edited["num"] == 6
        assert edited["nearer_to_target"]["estimate"] == 1
        assert edited["pixel_error"] < 1e-4, "a byte per pixel is 1/127.5 exact"
        assert edited["at_1"]["estimate"] == 1
        assert source["nearer_to_target"]["estimate"] == 0
        assert source["pixel_error"] > 0.1
        assert of_all["copied"]["num"] == of_all["ceiling"]["num"] == 6
        kinds = result[count]["kinds"]
        assert kinds["novel"]["edited"]["num"] + kinds["composition"]["edited"]["num"] == 6


def test_a_copier_is_no_nearer_to_the_target_than_the_source(make_context: MakeContext) -> None:
    copier = scripted(lambda prompt: as_pillow(last_picture(prompt)))
    of_all = measure_edits(make_context(EDITING, load=copier))["1"]["kinds"]["all"]
    assert of_all["edited"]["nearer_to_target"]["estimate"] == 0
    assert of_all["edited"]["pixel_error"] == pytest.approx(of_all["source"]["pixel_error"], rel=1e-3)  # bytes


def test_the_setting_is_the_one_nearest_to_real_validation_pictures(make_context: MakeContext) -> None:
    def reply(prompt: Any) -> Image.Image:
        noise = pipeline.sampling["image"].cfg_scale - 1
        picture = -last_picture(prompt)
        generator = torch.Generator().manual_seed(0)
        return as_pillow((picture + noise * torch.randn(picture.shape, generator=generator)).clamp(-1, 1))

    loader = scripted(reply)
    pipeline = loader(Path())
    trials = [{"cfg_scale": 3.0}, {"cfg_scale": 1.0}, {"cfg_scale": 2.0}]
    result = measure_edits(make_context({**EDITING, "trials": trials}, load=loader))["1"]
    assert result["chosen"] == {"cfg_scale": 1.0}
    assert result["kinds"]["all"]["edited"]["pixel_error"] < 1e-4


def test_a_setting_that_cannot_be_drawn_is_recorded_and_not_chosen(make_context: MakeContext) -> None:
    def reply(prompt: Any) -> Image.Image:
        if pipeline.sampling["image"].cfg_scale > 2:
            raise ValueError("the latents hold NaN")
        return as_pillow(last_picture(prompt))

    loader = scripted(reply)
    pipeline = loader(Path())
    trials = [{"cfg_scale": 3.0}, {"cfg_scale": 1.0}]
    result = measure_edits(make_context({**EDITING, "trials": trials}, load=loader))["1"]
    assert result["trials"][0] == {
        "changes": {"cfg_scale": 3.0},
        "selector_kernel": None,
        "failure": "the latents hold NaN",
    }
    assert result["chosen"] == {"cfg_scale": 1.0}


def test_the_first_documents_of_the_hashed_order_are_of_every_template(runs: dict[str, Any]) -> None:
    opened = open_documents(runs["multimodal"].recipe.sources["edits"].data, part="train")
    documents = in_hashed_order([opened[index] for index in range(len(opened))])
    assert {one.fields["template"] for one in documents[:12]} == set(EDITS)
    assert sorted(one.key for one in documents) == sorted(opened[index].key for index in range(len(opened)))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"measures": ["smell"]}, "measures names smell, but there are text_to_image"),
        ({"trials": []}, "trials is empty"),
        ({"judge_data": {"path": "x"}}, "judge_data names no label"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        from_mapping(CaptionedOptions, {**JUDGED, **options})


def test_a_source_that_the_recipe_has_not_is_refused(make_context: MakeContext) -> None:
    copier = scripted(lambda prompt: as_pillow(last_picture(prompt)))
    context = make_context({**EDITING, "edits": "stories"}, load=copier)
    with pytest.raises(ValueError, match="no source of files 'stories'; it has captions, edits"):
        measure_edits(context)
    assert from_mapping(EditedOptions, {**JUDGED, **EDITING}).label_field == "group"
