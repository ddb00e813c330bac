"""Laws of every kind of generator in the catalog: what trains is saved, loaded, drawn from, priced and resumed alike.

The kinds come from the table itself. One without tiny sizes in tests/helpers/tiny_kinds.py fails here, by name.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tiny_kinds import GENERATORS, SIZES, save_tiny_tokenizers, tiny_recipe, token_kind
from tiny_models import randomise
from toy_training import final_state

from latentlm.catalog import KINDS, RECIPE_CLASSES, build, load
from latentlm.config import load_recipe
from latentlm.generation.image_pipeline import ImagePipeline
from latentlm.training.trainer import Trainer


class Run(NamedTuple):
    """A finished training of two steps."""

    kind: str
    run_dir: Path
    tokenizer: Path
    recipe: Any
    """As the data completed it."""


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_tiny_tokenizers(tmp_path_factory.mktemp("tokenizers"))


def train(kind: str, tokenizer: Path, run_dir: Path, *, num_batches: int | None = None) -> Any:
    """Train as the command line does; the data end after `num_batches`. Returns the completed recipe."""
    torch.seed()  # each process would start with another state
    objective, make_loader, recipe = build(tiny_recipe(kind, tokenizer, trainer={"sample_every": 2}))

    def loader(start_batch: int) -> Iterator[Mapping[str, Any]]:
        return itertools.islice(make_loader(start_batch), num_batches)

    Trainer(objective, loader, recipe.trainer, run_dir, recipe=recipe, evaluations=objective.evaluations()).fit()
    return recipe


@pytest.fixture(scope="module", params=GENERATORS)
def run(request: pytest.FixtureRequest, tokenizers: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    kind = request.param
    if kind not in SIZES:
        pytest.fail(f"the kind {kind!r} of the catalog has no tiny sizes in tests/helpers/tiny_kinds.py")
    tokenizer, run_dir = tokenizers[token_kind(kind)], tmp_path_factory.mktemp(kind)
    return Run(kind, run_dir, tokenizer, train(kind, tokenizer, run_dir))


@pytest.fixture
def pipeline(run: Run) -> ImagePipeline:
    return load(run.run_dir / "model")


def test_every_row_of_the_table_goes_by_the_name_of_what_it_trains() -> None:
    for name, kind in KINDS.items():
        # A model's folder says its kind, and the table loads it by that name.
        assert KINDS[kind.model_class.kind].model_class is kind.model_class
        assert RECIPE_CLASSES[name] is kind.recipe_class
    assert set(SIZES) <= set(GENERATORS), "sizes of a kind that the catalog does not have"


def test_losses_are_finite_and_weights_move(run: Run) -> None:
    steps = [row for row in final_state(run.run_dir)["metrics"] if "evaluation" not in row]
    assert [row["step"] for row in steps] == [1, 2]
    assert all(math.isfinite(row["model/total"]) and not row["skipped"] for row in steps)
    trained = load(run.run_dir / "model_raw").model.state_dict()
    before = build(tiny_recipe(run.kind, run.tokenizer))[0].model.state_dict()
    assert trained.keys() == before.keys()
    assert any(not torch.equal(weight, before[name]) for name, weight in trained.items())


def test_the_loss_reaches_every_weight_of_the_model_and_none_of_the_tokenizer(run: Run) -> None:
    objective, make_loader, _ = build(tiny_recipe(run.kind, run.tokenizer, trainer={"batch_size": 16}))
    randomise(objective.model)  # at the start zeros, of AdaLN's gates for example, keep gradients from what lies behind
    batch = objective.prepare(next(make_loader(0)), step=0, seed=0)
    objective.losses(batch, step=0, totals=objective.counts(batch))["model"]["total"].backward()
    unreached = [
        name for name, weight in objective.model.named_parameters() if weight.grad is None or not weight.grad.any()
    ]
    assert unreached == []
    assert all(weight.grad is None for weight in objective.tokenizer.parameters())


def test_activation_checkpointing_runs_every_layer_again_and_changes_no_gradient(run: Run) -> None:
    gradients, num_calls = [], {False: Counter(), True: Counter()}
    for recompute in (False, True):
        objective, make_loader, _ = build(tiny_recipe(run.kind, run.tokenizer))
        randomise(objective.model)
        if recompute:
            objective.enable_activation_checkpointing()
        for name, module in objective.model.named_modules():
            if name.endswith("self_attn"):
                counter = num_calls[recompute]
                module.register_forward_pre_hook(lambda *_, counter=counter, name=name: counter.update([name]))
        batch = objective.prepare(next(make_loader(0)), step=0, seed=0)
        objective.losses(batch, step=0, totals=objective.counts(batch))["model"]["total"].backward()
        gradients.append([weight.grad for weight in objective.model.parameters() if weight.grad is not None])
    assert set(num_calls[False].values()) == {1}
    assert num_calls[True] == dict.fromkeys(num_calls[False], 2)
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True)), "the same operations in the same order"


def test_the_loss_of_a_batch_does_not_hang_on_global_random_numbers(run: Run) -> None:
    objective, make_loader, _ = build(tiny_recipe(run.kind, run.tokenizer))
    randomise(objective.model)
    raw, losses = next(make_loader(0)), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        batch = objective.prepare(raw, step=3, seed=0)
        losses.append(objective.losses(batch, step=3, totals=objective.counts(batch))["model"]["total"])
    assert torch.equal(*losses)


def test_the_held_out_loss_is_logged_after_the_last_step(run: Run) -> None:
    (evaluation,) = [row for row in final_state(run.run_dir)["metrics"] if "evaluation" in row]
    assert evaluation["step"] == 2
    assert math.isfinite(evaluation["evaluation"]["held_out_loss"])


def test_what_was_saved_is_loaded_with_its_sampling_and_its_classes(run: Run, pipeline: ImagePipeline) -> None:
    assert isinstance(pipeline, ImagePipeline)
    assert pipeline.kind == run.kind
    assert pipeline.num_classes == 10
    assert pipeline.label_names == tuple("0123456789")
    assert pipeline.sampling == {"image": run.recipe.generation}
    assert pipeline.image_tokenizer.fingerprint() == load(run.tokenizer).fingerprint()
    assert load_recipe(run.run_dir / "recipe.yaml", [], RECIPE_CLASSES) == run.recipe


def test_four_pictures_are_drawn_and_the_same_again(pipeline: ImagePipeline) -> None:
    pictures = pipeline.generate_images([0, 9, None, 3], seed=5)
    assert pictures.shape == (4, 1, 8, 8)
    assert pictures.abs().max() <= 1
    assert torch.equal(pictures, pipeline.generate_images([0, 9, None, 3], seed=5))
    assert not torch.equal(pictures, pipeline.generate_images([0, 9, None, 3], seed=6))


def test_reduced_precision_reaches_the_model_and_its_pictures_stay_close(run: Run, pipeline: ImagePipeline) -> None:
    exact = pipeline.generate_images([0, 9, None, 3], seed=5)
    close = pipeline.generate_images([0, 9, None, 3], seed=5, precision="bfloat16")
    assert close.dtype == torch.float32
    if token_kind(run.kind) == "latents":
        assert not torch.equal(close, exact)
        # bfloat16 has 8 bits: an error of 0.4% a product, over a few solver steps, in pictures that span [-1, 1].
        assert (close - exact).abs().mean() < 0.05


def test_a_picture_is_priced_and_guidance_and_steps_cost_more(pipeline: ImagePipeline) -> None:
    flops = pipeline.flops()
    assert flops.training > 0
    alone = pipeline.flops(pipeline.sampling_with({"cfg_scale": 1.0}))
    assert 0 < alone.generation < flops.generation
    assert alone.training == flops.training
    if pipeline.steps_field is not None:
        more = pipeline.flops(pipeline.sampling_with({pipeline.steps_field: 3}))
        assert more.generation > flops.generation


def test_a_run_cut_after_its_first_step_continues_bit_for_bit(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the loader ended at step 2 of 2"):
        train(run.kind, run.tokenizer, tmp_path, num_batches=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]
    train(run.kind, run.tokenizer, tmp_path)
    whole, cut = final_state(run.run_dir), final_state(tmp_path)
    assert whole.keys() == cut.keys()
    assert [name for name in whole if whole[name] != cut[name]] == []


def test_a_folder_of_an_unknown_kind_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"kind": "perceptron", "format_version": 1}')
    with pytest.raises(ValueError, match=r"holds a .perceptron., which this version does not know; known: .*latentlm"):
        load(tmp_path)
