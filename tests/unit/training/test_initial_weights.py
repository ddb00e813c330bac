"""A training that starts from a model that was trained before: the same weights, or a refusal."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_documents import tiny_multimodal_recipe
from tiny_models import randomise, tiny_image_tokenizer
from tiny_text import added, tiny_bpe

from latentlm.catalog import build
from latentlm.cli.main import main
from latentlm.config import dump_recipe
from latentlm.models.latentlm import LatentLM
from latentlm.models.transformer import TransformerConfig
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


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A Qwen2 checkpoint in Hugging Face's layout, with its vocabulary; other sizes than the tiny recipe's."""
    folder, vocabulary = tmp_path / "checkpoint", tiny_bpe()
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary.definition))
    config = {
        "model_type": "qwen2",
        "vocab_size": vocabulary.num_ids + 3,  # padding, as theirs has
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 40,
        "tie_word_embeddings": True,
        "eos_token_id": vocabulary.eos_id,
    }
    (folder / "config.json").write_text(json.dumps(config))
    weights = randomise(torch.nn.Embedding(vocabulary.num_ids + 3, 24), seed=1).weight.detach()
    sizes = TransformerConfig(
        hidden_size=24, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=40, qkv_bias=True
    )
    model = LatentLM(replace(build(tiny_multimodal_recipe(tmp_path / "data"))[2].model, transformer=sizes))
    tensors = {f"model.{name}": tensor for name, tensor in randomise(model).transformer.state_dict().items()}
    save_file({**tensors, "model.embed_tokens.weight": weights}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("same_folder", [True, False])
def test_texts_begin_as_those_of_the_checkpoint_or_a_warning_says_that_they_do_not(
    same_folder: bool, checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Llama 3 begins texts by one special token and ends them by another; its config names both."""
    vocabulary = tiny_bpe()
    begin = added(vocabulary.num_ids, "<|begin_of_text|>", special=True)
    definition = {**vocabulary.definition, "added_tokens": [*vocabulary.definition["added_tokens"], begin]}
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"bos_token_id": begin["id"]}))
    (tmp_path / "alone").mkdir()
    for folder in (checkpoint, tmp_path / "alone"):
        (folder / "tokenizer.json").write_text(json.dumps(definition))
    path = checkpoint if same_folder else tmp_path / "alone"
    tokenizer = {"kind": "huggingface", "path": str(path), "eos_token": "<|endoftext|>"}
    with caplog.at_level(logging.WARNING):
        objective = objective_of(tmp_path / "data", init_from=str(checkpoint), text_tokenizer=tokenizer)
    warned = [message for message in caplog.messages if f"texts that begin with the id {begin['id']}" in message]
    assert (objective.text_tokenizer.bos_id == begin["id"]) == same_folder
    assert len(warned) == (0 if same_folder else 1)


def test_a_checkpoint_of_another_size_than_the_recipe_needs_no_more_than_its_folder(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    given = tiny_multimodal_recipe(
        tmp_path / "data",
        init_from=str(checkpoint),
        text_tokenizer={"kind": "huggingface", "path": str(checkpoint)},
    )
    with caplog.at_level(logging.WARNING):
        objective, _, recipe = build(given)
    assert isinstance(objective, MultimodalObjective)
    assert any("hidden_size 24 instead of 16" in message for message in caplog.messages)
    # The recipe that is saved says what was built.
    transformer = recipe.model.transformer
    assert (transformer.hidden_size, transformer.num_layers, transformer.intermediate_size) == (24, 2, 40)
    assert (transformer.kv_heads, transformer.qkv_bias, recipe.model.tie_embeddings) == (2, True, True)
    assert objective.model.config == recipe.model
    stored = load_file(checkpoint / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    assert torch.equal(objective.model.state_dict()["transformer.layers.1.mlp.up_proj.weight"], stored)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    caplog.clear()
    assert build(recipe)[2] == recipe
    assert not [message for message in caplog.messages if "backbone" in message], "nothing is left to replace"
    # What is planned before a training is what is trained.
    capsys.readouterr()
    (tmp_path / "given.yaml").write_text(dump_recipe(given))
    for name in ("given", "recipe"):
        assert main(["plan", str(tmp_path / f"{name}.yaml")]) == 0
    first, again = capsys.readouterr().out.split("parameters\n")[1:]
    assert first == again
    total = sum(parameter.numel() for parameter in objective.model.parameters())
    assert f"{total:,}" in first
