"""How cells about pictures are measured, with a generator that copies real digits under as much noise as it is told."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_judges import DIGITS, tiny_judges
from tiny_models import tiny_image_tokenizer, tiny_vq_image_tokenizer
from torch import Tensor, nn

from latentlm.evaluation.image_protocol import ImageProtocol, draw_samples, real_images, score_samples, select_score
from latentlm.evaluation.image_scores import LabelledImages
from latentlm.evaluation.judges import Judges
from latentlm.experiments import image_protocols
from latentlm.experiments.image_protocols import (
    class_grid,
    held_out_loss,
    image_generator,
    image_tokenizer,
    last_evaluation,
    open_judges,
    resized,
)
from latentlm.experiments.protocol import MeasureContext
from latentlm.generation.image_pipeline import ImagePipeline
from latentlm.nn.flops import ImageFlops
from latentlm.training.trainer import TrainerConfig

NUM_SAMPLES, NUM_VALIDATION_SAMPLES = 40, 60
NOISES = (1.0, 0.05, 0.4)
OPTIONS = {
    "num_samples": NUM_SAMPLES,
    "num_validation_samples": NUM_VALIDATION_SAMPLES,
    "batch_size": 100,
    "trials": [{"cfg_scale": 2.0, "grain.noise": noise} for noise in NOISES],
    "rows": {
        "best": {},
        "raw": {"weights": "raw"},
        "unguided": {"changes": {"cfg_scale": 1.0}},
    },
}


@dataclass(frozen=True, kw_only=True)
class Grain:
    noise: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Sampling:
    cfg_scale: float = 1.0
    grain: Grain = field(default_factory=Grain)


class PowerCutError(Exception):
    """Ends a measurement without any goodbye."""


class Copier(ImagePipeline):
    """Real test digits of the classes it is asked for, under noise; every drawing is a line of the journal."""

    kind = "copier"

    def __init__(self, real: LabelledImages, weights: str, journal: list[str], cut_at: int | None) -> None:
        super().__init__(nn.Linear(3, 2), {"image": tiny_image_tokenizer()}, {"image": Sampling()})
        self.real, self.weights, self.journal, self.cut_at = real, weights, journal, cut_at

    @property
    def num_classes(self) -> int:
        return 10

    def draw_tokens(self, labels: Any, seeds: Any, sampling: Any, grid: Any) -> Tensor:
        raise AssertionError("protocols ask for pictures")

    def flops(self, sampling: Any = None) -> ImageFlops:
        return ImageFlops(training=700, generation=100 if sampling.cfg_scale == 1 else 200)

    def generate_images(
        self, labels: Sequence[int | None], *, seeds: Any = None, sampling: Any = None, batch_size: int = 1, **_: Any
    ) -> Tensor:
        if len(self.journal) == self.cut_at:
            raise PowerCutError
        self.journal.append(f"{self.weights}, {len(labels)} pictures, noise {sampling.grain.noise}")
        pictures = []
        for label, seed in zip(labels, seeds, strict=True):
            generator = torch.Generator().manual_seed(seed)
            members = self.real.images[self.real.labels == label]
            picture = members[int(torch.randint(len(members), (), generator=generator))]
            pictures.append(picture + sampling.grain.noise * torch.randn(picture.shape, generator=generator))
        return torch.stack(pictures)


@pytest.fixture(scope="module")
def judges() -> Judges:
    return tiny_judges()


MakeContext = Callable[..., MeasureContext]


@pytest.fixture
def make_context(tmp_path: Path, judges: Judges, monkeypatch: pytest.MonkeyPatch) -> MakeContext:
    """A cell whose run is a copier, or whatever `load` gives; what is drawn goes to `journal`."""
    monkeypatch.setattr(image_protocols, "load_judges", lambda data, *, cache_dir, progress: judges)

    def make(
        options: Mapping[str, Any] = OPTIONS,
        *,
        journal: list[str] | None = None,
        cut_at: int | None = None,
        load: Callable[[Path], Any] | None = None,
        name: str = "cell",
    ) -> MeasureContext:
        lines = [] if journal is None else journal
        return MeasureContext(
            cell=name,
            axes={},
            run_dir=tmp_path / "run",
            recipe=SimpleNamespace(
                data=DIGITS,
                losses=SimpleNamespace(beta=0.5),
                trainer=TrainerConfig(num_steps=5, batch_size=3, num_accumulation_steps=2),
            ),
            options=options,
            scratch_dir=tmp_path / "scratch" / name,
            cache_dir=tmp_path / "cache",
            assets_dir=tmp_path / "assets",
            load=load or (lambda folder: Copier(judges.test, folder.name, lines, cut_at)),
            progress=False,
        )

    return make


# -- generators --------------------------------------------------------------------------------------------------------


def test_the_trial_with_the_smallest_selector_distance_is_chosen_for_every_row(
    make_context: MakeContext, judges: Judges
) -> None:
    journal: list[str] = []
    result = image_generator(make_context(journal=journal))
    assert journal == [
        *(f"model, 60 pictures, noise {noise}" for noise in NOISES),
        "model, 40 pictures, noise 0.05",
        "model_raw, 40 pictures, noise 0.05",
        "model, 40 pictures, noise 0.05",
    ]
    assert [trial["changes"] for trial in result["trials"]] == OPTIONS["trials"]
    noisiest, best, middle = (trial["selector_frechet"] for trial in result["trials"])
    assert best < middle < noisiest
    assert result["chosen"] == {"cfg_scale": 2.0, "grain.noise": 0.05}
    # The distance is the selector's, on validation labels and seeds.
    protocol = ImageProtocol(num_validation_samples=NUM_VALIDATION_SAMPLES)
    copier = Copier(judges.test, "model", [], None)
    sampling = Sampling(cfg_scale=2.0, grain=Grain(noise=0.05))
    samples = draw_samples(copier, judges, protocol, part="validation", sampling=sampling)
    assert best == pytest.approx(select_score(samples, judges), rel=1e-9)


def test_refinements_are_tried_over_the_best_trial_and_the_best_of_all_is_taken(make_context: MakeContext) -> None:
    options = OPTIONS | {
        "trials": [{"cfg_scale": 2.0, "grain.noise": 0.4}, {"cfg_scale": 3.0, "grain.noise": 0.2}],
        "refinements": [{"grain.noise": 0.7}, {"grain.noise": 0.02}],
    }
    result = image_generator(make_context(options))
    assert [trial["changes"] for trial in result["trials"][2:]] == [
        {"cfg_scale": 3.0, "grain.noise": 0.7},
        {"cfg_scale": 3.0, "grain.noise": 0.02},
    ]
    assert result["chosen"] == {"cfg_scale": 3.0, "grain.noise": 0.02}


def test_a_row_may_ignore_what_was_chosen(make_context: MakeContext) -> None:
    options = OPTIONS | {"rows": {"plain": {"changes": {"cfg_scale": 1.0}, "from_defaults": True}}}
    (row,) = image_generator(make_context(options))["rows"].values()
    assert row["sampling"] == {"cfg_scale": 1.0, "grain": {"noise": 0.0}}


def test_a_setting_that_cannot_be_drawn_is_recorded_and_not_chosen(make_context: MakeContext, judges: Judges) -> None:
    class Fragile(Copier):
        def generate_images(self, labels: Any, *, sampling: Any = None, **others: Any) -> Tensor:
            if sampling.grain.noise == 0.05:
                raise ValueError("the latents hold NaN")
            return super().generate_images(labels, sampling=sampling, **others)

    load = lambda folder: Fragile(judges.test, folder.name, [], None)  # noqa: E731
    result = image_generator(make_context(load=load))
    assert result["trials"][1]["selector_frechet"] is None
    assert result["trials"][1]["failure"] == "the latents hold NaN"
    assert result["chosen"]["grain.noise"] == 0.4
    with pytest.raises(ValueError, match="not one setting of another could be drawn: the latents hold NaN"):
        image_generator(make_context(OPTIONS | {"trials": [{"grain.noise": 0.05}] * 2}, load=load, name="another"))


def test_the_ceiling_is_what_the_tokenizer_lets_through(make_context: MakeContext, judges: Judges) -> None:
    result = image_generator(make_context())
    tokenizer = Copier(judges.test, "model", [], None).image_tokenizer
    real = real_images(judges, "test", NUM_SAMPLES)
    with torch.no_grad():
        latents = tokenizer.sample_keyed(tokenizer.posterior(real.images), 0, torch.arange(NUM_SAMPLES))  # type: ignore[union-attr]
        decoded = tokenizer.decode(latents)
    assert result["ceiling"] == score_samples(LabelledImages(images=decoded, labels=real.labels), judges).as_json()


def test_rows_write_their_changes_over_the_chosen_setting(make_context: MakeContext, judges: Judges) -> None:
    context = make_context()
    rows = image_generator(context)["rows"]
    assert list(rows) == ["best", "raw", "unguided"]
    assert {name: (row["weights"], row["sampling"]["cfg_scale"]) for name, row in rows.items()} == {
        "best": ("ema", 2.0),
        "raw": ("raw", 2.0),
        "unguided": ("ema", 1.0),
    }
    assert all(row["sampling"]["grain"] == {"noise": 0.05} for row in rows.values())
    assert {name: row["generation_flops"] for name, row in rows.items()} == {"best": 200, "raw": 200, "unguided": 100}
    assert all(row["images_per_second"] > 0 for row in rows.values())
    for name, row in rows.items():
        assert row["scores"]["num_images"] == NUM_SAMPLES
        assert context.picture_path(name).is_file()
    protocol = ImageProtocol(num_samples=NUM_SAMPLES)
    sampling = Sampling(cfg_scale=2.0, grain=Grain(noise=0.05))
    samples = draw_samples(Copier(judges.test, "model", [], None), judges, protocol, sampling=sampling)
    assert rows["best"]["scores"] == pytest.approx(score_samples(samples, judges).as_json())


def test_the_floor_is_that_of_as_many_real_pictures_and_the_judges_are_named(
    make_context: MakeContext, judges: Judges
) -> None:
    result = image_generator(make_context())
    real = real_images(judges, "test", NUM_SAMPLES)
    assert result["floor"] == pytest.approx(score_samples(real, judges).as_json())
    assert result["judges"] == {
        "fingerprint": "tiny",
        "image_size": 8,
        "judge_accuracy": 0.1,
        "selector_accuracy": 0.1,
    }
    json.dumps(result, allow_nan=False)


def test_cost_counts_training_by_images_seen_and_one_picture_of_the_chosen_setting(make_context: MakeContext) -> None:
    assert image_generator(make_context())["cost"] == {
        "parameters": 8,
        "training_flops_per_image": 700,
        "training_flops": 700 * 30,
        "images_seen": 5 * 3 * 2,
        "generation_flops": 200,
    }


def test_a_single_trial_is_taken_without_drawing_validation_samples(make_context: MakeContext) -> None:
    journal: list[str] = []
    result = image_generator(make_context({"num_samples": NUM_SAMPLES}, journal=journal))
    assert journal == ["model, 40 pictures, noise 0.0"]
    assert (result["trials"], result["chosen"]) == ([], {})
    assert list(result["rows"]) == ["best"]


@pytest.mark.parametrize("cut_at", range(6))
def test_after_a_kill_only_what_was_not_finished_is_drawn(make_context: MakeContext, cut_at: int) -> None:
    whole: list[str] = []
    expected = image_generator(make_context(journal=whole, name="whole"))
    journal: list[str] = []
    with pytest.raises(PowerCutError):
        image_generator(make_context(journal=journal, cut_at=cut_at))
    assert journal == whole[:cut_at]
    result = image_generator(make_context(journal=journal))
    assert journal == whole, "every drawing was made once"
    for measured in (expected, result):
        for row in measured["rows"].values():
            del row["images_per_second"]
    assert result == expected
    image_generator(make_context(journal=journal, cut_at=len(whole)))  # all is remembered: nothing is drawn


def test_pictures_are_judged_at_another_size_by_way_of_the_models(
    make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = tiny_judges(image_size=16)
    asked: list[int] = []

    def load_judges(data: Any, *, cache_dir: Path, progress: bool) -> Judges:
        asked.append(data.image_size)
        return large

    context = make_context({"num_samples": NUM_SAMPLES, "judge_image_size": 16})
    monkeypatch.setattr(image_protocols, "load_judges", load_judges)
    result = image_generator(context)
    assert asked == [16]
    assert result["judges"]["image_size"] == 16
    real = real_images(large, "test", NUM_SAMPLES)
    through = resized(resized(real, 8), 16)
    assert result["floor"] == pytest.approx(score_samples(through, large).as_json())
    assert result["floor"]["high_frequency"] < score_samples(real, large).high_frequency, "detail was lost on the way"


def test_resizing_keeps_range_labels_and_what_has_the_size_already() -> None:
    flat = LabelledImages(images=torch.full((2, 1, 8, 8), 0.25), labels=torch.tensor([3, 4]))
    assert resized(flat, 8) is flat
    larger = resized(flat, 12)
    # A constant stays one under any resampling, up to the rounding of its float32 weights.
    torch.testing.assert_close(larger.images, torch.full((2, 1, 12, 12), 0.25), atol=1e-6, rtol=0)
    assert torch.equal(larger.labels, flat.labels)
    edges = torch.ones(1, 1, 8, 8)
    edges[..., 4:] = -1
    # Bicubic overshoots at an edge, but pixels lie in [-1, 1].
    assert resized(LabelledImages(images=edges, labels=torch.tensor([0])), 32).images.abs().max() == 1


def test_options_that_do_not_fit_are_refused_with_the_name_of_the_cell(make_context: MakeContext) -> None:
    for options, sentence in (
        ({"trials": []}, "options of cell: a generator needs at least one trial and one row"),
        ({"rows": {}}, "options of cell: a generator needs at least one trial and one row"),
        ({"num_sample": 3}, "options of cell: num_sample is not a field; did you mean num_samples?"),
        ({"rows": {"a": {"weights": "best"}}}, "options of cell: rows.a.weights takes one of 'ema', 'raw'"),
        ({**OPTIONS, "trials": [{"cfg_scal": 1.0}]}, "cfg_scal is not a field; did you mean cfg_scale?"),
        ({"num_samples": 10_000}, "10000 samples were asked for, but the part test has 539 real pictures"),
    ):
        with pytest.raises(ValueError, match=re.escape(sentence)):
            image_generator(make_context(options))


def test_judges_are_those_of_the_runs_data_behind_a_lock(
    make_context: MakeContext, monkeypatch: pytest.MonkeyPatch, judges: Judges
) -> None:
    context, seen = make_context(), []

    def load_judges(data: Any, *, cache_dir: Path, progress: bool) -> Judges:
        seen.append((data, cache_dir, (context.cache_dir / "judges.lock").exists()))
        return judges

    monkeypatch.setattr(image_protocols, "load_judges", load_judges)
    assert open_judges(context) is judges
    open_judges(context, image_size=32)
    folder = context.cache_dir / "judges"
    assert seen == [(DIGITS, folder, True), (replace(DIGITS, image_size=32), folder, True)]


def test_the_grid_has_a_class_per_column_and_as_many_rows_as_the_rarest_class() -> None:
    labels = torch.tensor([2, 0, 1, 1, 0, 2, 1, 0])  # 0 and 1 thrice, 2 twice
    images = (labels.float() / 2 - 0.5).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)  # -0.5, 0 and 0.5
    sheet = class_grid(LabelledImages(images=images, labels=labels))
    step = 64 + 4  # tiles of 64 pixels, margins of 4
    assert sheet.shape == (3, 2 * step + 4, 3 * step + 4)
    centres = sheet[0, 36::step, 36::step]
    assert centres.tolist() == [[64, 128, 191]] * 2
    assert class_grid(LabelledImages(images=images, labels=labels), per_class=1).shape == (3, step + 4, 3 * step + 4)


# -- tokenizers --------------------------------------------------------------------------------------------------------


def test_tokenizers_of_both_kinds_are_reported_under_the_same_names(make_context: MakeContext) -> None:
    for tokenizer, names in ((tiny_image_tokenizer(), ("mean", "sample")), (tiny_vq_image_tokenizer(), ("codes",) * 2)):
        context = make_context({"num_images": 50}, load=lambda folder, tokenizer=tokenizer: tokenizer)
        result = image_tokenizer(context)
        assert result["num_images"] == 50
        assert result["from_mean"] == result["reconstructions"][names[0]]
        assert result["as_models_see"] == result["reconstructions"][names[1]]
        assert result["parameters"] == sum(parameter.numel() for parameter in tokenizer.parameters())
        with Image.open(context.picture_path("reconstructions")) as picture:
            assert picture.size == (10 * 68 + 4, 2 * 68 + 4), "ten digits above their reconstructions"
        json.dumps(result, allow_nan=False)


def test_an_option_that_a_tokenizers_protocol_does_not_have_is_refused(make_context: MakeContext) -> None:
    with pytest.raises(ValueError, match="options of cell: num_samples is unknown; there is num_images"):
        image_tokenizer(make_context({"num_samples": 50}, load=lambda folder: tiny_image_tokenizer()))


# -- held-out loss -----------------------------------------------------------------------------------------------------


def test_the_held_out_loss_is_the_last_of_the_log(make_context: MakeContext) -> None:
    context = make_context({})
    assert context.run_dir is not None
    context.run_dir.mkdir()
    log = context.run_dir / "metrics.jsonl"
    lines = [
        {"step": 1, "model/total": 3.0},
        {"step": 1, "evaluation": {"held_out_loss": 2.0}},
        {"step": 2, "evaluation": {"held_out_loss": 1.5, "psnr": 20}},
        {"step": 2, "evaluation": {"psnr": 21}},
        {"step": 3, "model/total": 1.0},
    ]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert held_out_loss(context) == {"held_out_loss": 1.5}
    assert last_evaluation(log, "psnr") == 21.0
    with pytest.raises(ValueError, match=r"metrics\.jsonl has no accuracy: the run held nothing out"):
        last_evaluation(log, "accuracy")
