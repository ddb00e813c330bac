"""LoRA changes what it is asked to change and nothing else, and merging loses nothing; freezing goes by name."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import randomise, tiny_mixed_config

from latentlm.models.latentlm import LatentLM
from latentlm.sequence import Document, LatentPart, PackedBatch, SequenceBuilder, TextPart
from latentlm.training.lora import LORA_TARGETS, LoraConfig, add_lora, freeze, merge_lora
from latentlm.training.optim import OptimConfig, OptimizerGroups, make_optimizer, parameter_groups

NUM_TEXT_IDS = tiny_mixed_config().vocabulary.num_text_ids


@pytest.fixture(autouse=True)
def _own_random_numbers():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def batch(mixed_builder: SequenceBuilder) -> PackedBatch:
    latents = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    document = Document((TextPart("a picture: "), LatentPart("image", latents), TextPart(" and its end")))
    return mixed_builder.collate([[mixed_builder.build(document)]])


def outputs(model: LatentLM, batch: PackedBatch) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model.hidden_states(batch))


def train(model: LatentLM, batch: PackedBatch, *, num_steps: int = 3) -> None:
    config = OptimConfig(lr=1e-2, weight_decay=0.5)
    optimizer = make_optimizer(OptimizerGroups(config, parameter_groups([model], config)))
    for step in range(num_steps):
        optimizer.zero_grad()
        model(batch, noise_seed=step)["total"].backward()
        optimizer.step()


def tiny_model(**changes: object) -> LatentLM:
    return randomise(LatentLM(replace(tiny_mixed_config(), **changes))).eval()


def qwen_model() -> LatentLM:
    """With biases beside the adapted weights, and norms beside the adapted layers."""
    return tiny_model(transformer=replace(tiny_mixed_config().transformer, qkv_bias=True, qk_norm=True, head_size=16))


def test_a_new_adapter_changes_no_output(mixed_model: LatentLM, batch: PackedBatch) -> None:
    before = outputs(mixed_model, batch)
    add_lora(mixed_model, LoraConfig(rank=4))
    assert torch.equal(outputs(mixed_model, batch), before)


def test_training_moves_adapters_new_rows_and_heads_and_leaves_the_rest(
    mixed_model: LatentLM, batch: PackedBatch
) -> None:
    before = {name: tensor.clone() for name, tensor in mixed_model.state_dict().items()}
    add_lora(mixed_model, LoraConfig(rank=4))
    train(mixed_model, batch)
    after = merge_lora(mixed_model).state_dict()
    tables = ("embed_tokens.weight", "lm_head.weight")
    for name in tables:
        assert torch.equal(after[name][:NUM_TEXT_IDS], before[name][:NUM_TEXT_IDS])  # despite the weight decay
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    targets = {name for name in before if name.startswith("transformer.") and name.split(".")[-2] in LORA_TARGETS}
    heads = {name for name in before if name.startswith(("input_projs.image.", "diffusion_heads.image."))}
    assert targets | heads | set(tables) <= moved
    norms = {name for name in before if name.startswith("transformer.")} - targets
    assert norms
    assert not norms & moved


@pytest.mark.parametrize("make", [lambda: tiny_model(), lambda: tiny_model(tie_embeddings=True), qwen_model])
def test_a_merged_model_is_a_plain_one_with_the_same_outputs(make, batch: PackedBatch) -> None:
    model = make()
    names, untrained = list(model.state_dict()), outputs(model, batch)
    add_lora(model, LoraConfig(rank=4))
    train(model, batch)
    adapted = outputs(model, batch)
    merged = merge_lora(model)
    assert (adapted - untrained).abs().max() > 0.1
    # The same products, summed in another order in float32.
    assert torch.allclose(outputs(merged, batch), adapted, atol=1e-5, rtol=0)
    assert list(merged.state_dict()) == names
    assert type(merged) is LatentLM
    assert all(parameter.requires_grad for parameter in merged.parameters())
    assert torch.equal(outputs(model, batch), adapted)  # the adapted one goes on as it was


def test_a_merged_model_is_saved_and_loaded_as_any_other(
    mixed_model: LatentLM, batch: PackedBatch, tmp_path: Path
) -> None:
    add_lora(mixed_model, LoraConfig(rank=4))
    train(mixed_model, batch)
    merged = merge_lora(mixed_model)
    merged.save_pretrained(tmp_path / "model")
    loaded = LatentLM.from_pretrained(tmp_path / "model")
    assert torch.equal(outputs(loaded, batch), outputs(merged, batch))


def test_only_the_named_layers_of_the_backbone_are_adapted(mixed_model: LatentLM) -> None:
    add_lora(mixed_model, LoraConfig(rank=2, target_modules=("q_proj", "down_proj")))
    adapted = {name.split(".lora_")[0] for name, _ in mixed_model.named_parameters() if ".lora_" in name}
    layers = range(mixed_model.config.transformer.num_layers)
    expected = {f"transformer.layers.{i}.{part}" for i in layers for part in ("self_attn.q_proj", "mlp.down_proj")}
    assert adapted == expected


def test_models_without_text_train_their_whole_table(class_model: LatentLM) -> None:
    add_lora(class_model, LoraConfig(rank=2))
    assert class_model.embed_tokens.weight.requires_grad
    assert list(merge_lora(class_model).state_dict()) == list(LatentLM(class_model.config).state_dict())


def test_dropout_keeps_to_the_mode_of_the_model(mixed_model: LatentLM, batch: PackedBatch) -> None:
    add_lora(mixed_model, LoraConfig(rank=4, dropout=0.5))
    train(mixed_model, batch)
    assert torch.equal(outputs(mixed_model, batch), outputs(mixed_model, batch))
    mixed_model.train()
    assert not torch.equal(outputs(mixed_model, batch), outputs(mixed_model, batch))


def test_adapting_twice_and_merging_nothing_are_refused(mixed_model: LatentLM) -> None:
    with pytest.raises(ValueError, match="no LoRA layers to merge"):
        merge_lora(mixed_model)
    add_lora(mixed_model, LoraConfig(rank=2))
    with pytest.raises(ValueError, match="has LoRA layers already"):
        add_lora(mixed_model, LoraConfig(rank=2))


def test_without_peft_the_error_names_the_extra(mixed_model: LatentLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"latentlm\[hf\]"):
        add_lora(mixed_model, LoraConfig())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "rank 0 must be at least 1"),
        ({"alpha": 0}, "alpha 0 positive"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"target_modules": ("q_proj", "lm_head")}, "target_modules has lm_head; known are q_proj"),
        ({"target_modules": ()}, "target_modules is empty"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoraConfig(**changes)


def test_freezing_goes_by_pattern(mixed_model: LatentLM) -> None:
    frozen = freeze(mixed_model, ["transformer.*", "embed_tokens.weight"])
    still = {name for name, parameter in mixed_model.named_parameters() if not parameter.requires_grad}
    assert set(frozen) == still
    expected = {name for name, _ in mixed_model.named_parameters() if name.startswith("transformer.")}
    assert still == expected | {"embed_tokens.weight"}


def test_a_pattern_that_fits_nothing_is_refused_with_the_nearest_names(mixed_model: LatentLM) -> None:
    with pytest.raises(ValueError, match=r"no parameter fits 'lm_heads.weight'; the nearest names are lm_head.weight"):
        freeze(mixed_model, ["transformer.*", "lm_heads.weight"])
    assert all(parameter.requires_grad for parameter in mixed_model.parameters())
