"""A training that starts from a model that was trained before: the same weights, or a refusal."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_documents import tiny_multimodal_recipe
from tiny_models import randomise, tiny_image_tokenizer

from latentlm.catalog import build
from latentlm.training.objectives.multimodal import MultimodalObjective


def objective_of(folder: Path, **changes: Any) -> MultimodalObjective:
    objective, _, _ = build(tiny_multimodal_recipe(folder, **changes))
    assert isinstance(objective, MultimodalObjective)
    return objective


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data` and with a model of random weights in `model`."""
    folder = tmp_path_factory.mktemp("trained")
    objective = objective_of(folder / "data")
    randomise(objective.model)
    objective.save_pretrained(folder / "model")
    return folder


def test_all_weights_of_a_run_are_taken_and_the_data_may_differ(trained: Path) -> None:
    start = objective_of(trained / "data", init_from=str(trained / "model"), max_length=64)
    fresh = objective_of(trained / "data")
    randomise(fresh.model)
    for name, value in fresh.model.state_dict().items():
        assert torch.equal(start.model.state_dict()[name], value), name
    assert all(parameter.requires_grad for parameter in start.model.parameters())


def test_low_rank_changes_begin_at_the_weights_of_the_run(trained: Path) -> None:
    adapted = objective_of(trained / "data", init_from=str(trained / "model"), lora={"rank": 2})
    merged = adapted.pipeline().model
    plain = objective_of(trained / "data", init_from=str(trained / "model")).model
    for name, value in plain.state_dict().items():
        assert torch.equal(merged.state_dict()[name], value), name  # B is zero: not one bit changes


def test_another_size_is_refused(trained: Path) -> None:
    with pytest.raises(ValueError, match=r"transformer.layers.*of shape"):
        objective_of(trained / "data", init_from=str(trained / "model"), model__transformer__intermediate_size=32)


def test_another_vocabulary_is_refused(trained: Path) -> None:
    vocabulary = {"switch_tokens": True, "max_grid_side": 3}
    with pytest.raises(ValueError, match=r"init_from: .* has the vocabulary .*max_grid_side=0"):
        objective_of(trained / "data", init_from=str(trained / "model"), model__vocabulary=vocabulary)


def test_another_tokenizer_of_pictures_is_refused(trained: Path, tmp_path: Path) -> None:
    tiny_image_tokenizer(seed=1).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="trained with other tokenizers of image; give the recipe the one in"):
        objective_of(trained / "data", init_from=str(trained / "model"), tokenizer=str(tmp_path / "other"))


def test_a_folder_that_is_no_model_is_refused(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="model_type 'bert'"):
        objective_of(trained / "data", init_from=str(tmp_path))
