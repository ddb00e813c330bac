"""What Hugging Face's folders say is understood or refused in a sentence, and rows of tables go where they belong."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import randomise, tiny_class_config, tiny_mixed_config

from latentlm.models.hf_checkpoint import NEW_ROW_NOISE, config_from_hf, load_hf_backbone
from latentlm.models.latentlm import LatentLM, LatentLMConfig
from latentlm.models.transformer import RopeScaling, TransformerConfig

NUM_TEXT_IDS = tiny_mixed_config().vocabulary.num_text_ids
NUM_ROWS = 260  # three of padding

# The backbone of `tiny_mixed_config`.
TINY = {
    "model_type": "llama",
    "vocab_size": NUM_ROWS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
}

LLAMA_3_1_8B = {
    "model_type": "llama",
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14_336,
    "rms_norm_eps": 1e-5,
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "max_position_embeddings": 131_072,
    "bos_token_id": 128_000,
    "eos_token_id": [128_001, 128_008, 128_009],
    "tie_word_embeddings": False,
    "rope_theta": 500_000.0,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
}

QWEN_2_5_HALF_B = {
    "model_type": "qwen2",
    "vocab_size": 151_936,
    "hidden_size": 896,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "intermediate_size": 4864,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "max_position_embeddings": 32_768,
    "bos_token_id": 151_643,
    "eos_token_id": 151_643,
    "tie_word_embeddings": True,
    "rope_theta": 1_000_000.0,
    "sliding_window": 32_768,
    "use_sliding_window": False,
    "max_window_layers": 24,
}

QWEN_3_06B = {
    "model_type": "qwen3",
    "vocab_size": 151_936,
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "attention_bias": False,
    "max_position_embeddings": 40_960,
    "eos_token_id": 151_645,
    "tie_word_embeddings": True,
    "rope_scaling": None,
    "rope_theta": 1_000_000,
    "sliding_window": None,
    "use_sliding_window": False,
}


def write_config(folder: Path, content: Mapping[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def tiny_weights(*, std: float = 0.15, tied: bool = False) -> dict[str, torch.Tensor]:
    """A checkpoint of the tiny backbone, with the names of transformers."""
    source = randomise(LatentLM(tiny_mixed_config()), std=std, seed=5)
    weights = {f"model.{name}": tensor for name, tensor in source.transformer.state_dict().items()}
    generator = torch.Generator().manual_seed(6)
    weights["model.embed_tokens.weight"] = torch.randn(NUM_ROWS, 32, generator=generator) + 1
    if not tied:
        weights["lm_head.weight"] = torch.randn(NUM_ROWS, 32, generator=generator) - 1
    return weights


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file(tiny_weights(), tmp_path / "model.safetensors")
    return write_config(tmp_path, TINY)


def new_model(config: LatentLMConfig | None = None) -> LatentLM:
    return randomise(LatentLM(tiny_mixed_config() if config is None else config), seed=9)


def snapshot(model: LatentLM) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


# Configs


def test_llama_3_1_is_understood(tmp_path: Path) -> None:
    config, facts = config_from_hf(write_config(tmp_path, LLAMA_3_1_8B))
    assert config == TransformerConfig(
        hidden_size=4096,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        intermediate_size=14_336,
        rope_theta=500_000.0,
        norm_eps=1e-5,
        rope_scaling=RopeScaling(
            factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
        ),
    )
    assert (facts.vocab_size, facts.tie_embeddings, facts.max_position_embeddings) == (128_256, False, 131_072)
    assert (facts.bos_id, facts.eos_ids) == (128_000, (128_001, 128_008, 128_009))


def test_qwen2_has_biases_and_may_name_a_window_that_it_does_not_use(tmp_path: Path) -> None:
    config, facts = config_from_hf(write_config(tmp_path, QWEN_2_5_HALF_B))
    assert config.qkv_bias
    assert not config.qk_norm
    assert (config.head_dim, config.rope_theta) == (64, 1_000_000.0)
    assert facts.tie_embeddings
    assert facts.eos_ids == (151_643,)


def test_qwen3_has_norms_of_queries_and_keys_and_heads_of_their_own_width(tmp_path: Path) -> None:
    config, _ = config_from_hf(write_config(tmp_path, QWEN_3_06B))
    assert config.qk_norm
    assert not config.qkv_bias
    assert (config.head_dim, config.hidden_size // config.num_heads) == (128, 64)


def test_the_spelling_of_transformers_5_means_the_same(tmp_path: Path) -> None:
    old, _ = config_from_hf(write_config(tmp_path, LLAMA_3_1_8B))
    new = {key: value for key, value in LLAMA_3_1_8B.items() if not key.startswith("rope_")}
    new["rope_parameters"] = {"rope_theta": 500_000.0, **LLAMA_3_1_8B["rope_scaling"]}
    assert config_from_hf(write_config(tmp_path, new))[0] == old


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen2_moe"}, "model_type 'qwen2_moe'; supported are llama, qwen2, qwen3"),
        ({"model_type": "mistral"}, "model_type 'mistral'; supported are llama, qwen2, qwen3"),
        ({"num_experts": 8}, "mixtures of experts"),
        ({"quantization_config": {"bits": 4}}, "quantized weights"),
        ({"use_sliding_window": True}, "sliding windows"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding windows"),
        ({"attention_bias": True}, "biases on all four attention projections"),
        ({"mlp_bias": True}, "biases in the feed-forward network"),
        ({"hidden_act": "gelu"}, "the activation 'gelu'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rotary positions of type 'linear'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rotary positions of type 'yarn'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "does not say low_freq_factor"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "per kind of layer"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "a part of each head"),
        ({"hidden_size": "wide"}, "hidden_size takes int"),
        ({"vocab_size": None}, "vocab_size takes int"),
        ({"num_attention_heads": 5}, "not a multiple of num_heads"),
    ],
)
def test_what_our_transformer_has_not_is_refused_by_name(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        config_from_hf(write_config(tmp_path, TINY | changes))


def test_a_config_that_leaves_out_a_size_is_refused(tmp_path: Path) -> None:
    content = {key: value for key, value in TINY.items() if key != "intermediate_size"}
    with pytest.raises(ValueError, match=r"config.json does not say intermediate_size"):
        config_from_hf(write_config(tmp_path, content))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factor": 0.5}, "must be at least 1"),
        ({"original_max_position_embeddings": 0}, "must be at least 1"),
        ({"low_freq_factor": 4.0}, "must be positive and below"),
        ({"low_freq_factor": 0.0}, "must be positive and below"),
    ],
)
def test_rotary_scaling_that_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    good = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    with pytest.raises(ValueError, match=message):
        RopeScaling(**good | changes)


def test_a_head_size_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="head_size is 0"):
        TransformerConfig(hidden_size=32, num_layers=1, num_heads=4, intermediate_size=64, head_size=0)


# Weights


def test_text_rows_and_layers_are_the_checkpoint_s_and_the_rest_is_fresh(folder: Path) -> None:
    model, weights = new_model(), tiny_weights()
    before = snapshot(model)
    load_hf_backbone(model, folder)
    after = model.state_dict()
    for table, stored in (("embed_tokens.weight", "model.embed_tokens.weight"), ("lm_head.weight", "lm_head.weight")):
        assert torch.equal(after[table][:NUM_TEXT_IDS], weights[stored][:NUM_TEXT_IDS])
    for name, tensor in after.items():
        if name.startswith("transformer."):
            assert torch.equal(tensor, weights[f"model.{name.removeprefix('transformer.')}"])
        elif name.startswith(("input_projs.", "diffusion_heads.")):
            assert torch.equal(tensor, before[name])


def test_new_ids_start_near_the_mean_of_the_text_rows(folder: Path) -> None:
    model, weights = new_model(), tiny_weights()
    fresh = model.embed_tokens.weight.detach()[NUM_TEXT_IDS:].clone()
    load_hf_backbone(model, folder)
    mean = weights["model.embed_tokens.weight"][:NUM_TEXT_IDS].mean(0)
    # Padding rows, of which there are three, stay out of the mean; 1e-6: float32 sums of 257 rows.
    assert torch.allclose(model.embed_tokens.weight[NUM_TEXT_IDS:], mean + NEW_ROW_NOISE * fresh, atol=1e-6)


@torch.no_grad()
def test_new_ids_take_little_probability_from_text_where_fresh_rows_take_nearly_all(tmp_path: Path) -> None:
    weights = tiny_weights()
    # As in trained models, a direction of the hidden states makes all logits of text low.
    weights["model.norm.weight"] = torch.ones(32)
    weights["lm_head.weight"] = 0.1 * weights["lm_head.weight"] - 1
    save_file(weights, tmp_path / "model.safetensors")
    model = new_model()
    assert model.lm_head is not None
    fresh = model.lm_head.weight.clone()
    load_hf_backbone(model, write_config(tmp_path, TINY))
    hidden_states = 1 + 0.1 * torch.randn(50, 32, generator=torch.Generator().manual_seed(0))
    num_new = model.config.vocabulary.size - NUM_TEXT_IDS

    def new_share() -> float:
        return float(model.logits(hidden_states).softmax(-1)[:, NUM_TEXT_IDS:].sum(-1).mean())

    assert new_share() < 2 * num_new / model.config.vocabulary.size  # about as much as an average id each
    model.lm_head.weight[NUM_TEXT_IDS:] = fresh[NUM_TEXT_IDS:]
    assert new_share() > 0.99


def test_shards_give_the_same_model_as_one_file(folder: Path, tmp_path: Path) -> None:
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    shards: dict[str, dict[str, torch.Tensor]] = {}
    for index, (name, tensor) in enumerate(tiny_weights().items()):
        shard = f"model-{index % 3 + 1:05d}-of-00003.safetensors"
        shards.setdefault(shard, {})[name] = tensor
    for shard, tensors in shards.items():
        save_file(tensors, sharded / shard)
    listed = {name: shard for shard, tensors in shards.items() for name in tensors}
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    write_config(sharded, TINY)
    one, many = new_model(), new_model()
    load_hf_backbone(one, folder)
    load_hf_backbone(many, sharded)
    assert all(torch.equal(tensor, many.state_dict()[name]) for name, tensor in one.state_dict().items())
    (sharded / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model-00002-of-00003.safetensors is missing or not a readable"):
        load_hf_backbone(many, sharded)


@pytest.mark.parametrize(("stored", "wanted"), [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
def test_weights_are_cast_to_the_model_s_type(stored: torch.dtype, wanted: torch.dtype, tmp_path: Path) -> None:
    weights = {name: tensor.to(stored) for name, tensor in tiny_weights().items()}
    save_file(weights, tmp_path / "model.safetensors")
    model = new_model().to(wanted)
    load_hf_backbone(model, write_config(tmp_path, TINY))
    assert {tensor.dtype for tensor in model.state_dict().values()} == {wanted}
    assert torch.equal(model.transformer.norm.weight, weights["model.norm.weight"].to(wanted))


def test_a_shared_table_fills_a_model_with_two_tables_and_one_with_one(tmp_path: Path) -> None:
    save_file(tiny_weights(tied=True), tmp_path / "model.safetensors")
    write_config(tmp_path, TINY | {"tie_word_embeddings": True})
    two, one = new_model(), new_model(replace(tiny_mixed_config(), tie_embeddings=True))
    load_hf_backbone(two, tmp_path)
    load_hf_backbone(one, tmp_path)
    assert two.lm_head is not None
    table = tiny_weights()["model.embed_tokens.weight"][:NUM_TEXT_IDS]
    for weight in (two.embed_tokens.weight, two.lm_head.weight, one.embed_tokens.weight):
        assert torch.equal(weight[:NUM_TEXT_IDS], table)


def test_two_tables_do_not_fit_a_model_with_one(folder: Path) -> None:
    with pytest.raises(ValueError, match="softmax head of its own; build the model with tie_embeddings: false"):
        load_hf_backbone(new_model(replace(tiny_mixed_config(), tie_embeddings=True)), folder)


def test_a_base_model_without_prefix_gives_its_backbone_to_a_model_without_text(tmp_path: Path) -> None:
    # Old files also hold the rotary frequencies, which follow from the config.
    weights = {name.removeprefix("model."): tensor for name, tensor in tiny_weights(tied=True).items()}
    weights["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(weights, tmp_path / "model.safetensors")
    model = new_model(replace(tiny_class_config(), transformer=tiny_mixed_config().transformer))
    table = model.embed_tokens.weight.detach().clone()
    load_hf_backbone(model, write_config(tmp_path, TINY))
    assert torch.equal(model.embed_tokens.weight, table)
    assert torch.equal(model.transformer.norm.weight, weights["norm.weight"])


@pytest.mark.parametrize(
    ("num_ids", "message"),
    [
        (NUM_TEXT_IDS, None),
        (NUM_TEXT_IDS - 1, None),  # rows that the tokenizer does not reach may be kept
        (NUM_TEXT_IDS + 1, f"{NUM_TEXT_IDS} text ids but the tokenizer of .* has {NUM_TEXT_IDS + 1}; set num_text_ids"),
        (NUM_ROWS + 1, f"has {NUM_ROWS + 1} ids but its embedding table {NUM_ROWS} rows"),
    ],
)
def test_rows_are_dropped_only_if_no_text_reaches_them(num_ids: int, message: str | None, folder: Path) -> None:
    content = {"model": {"type": "BPE", "vocab": {"a": 0}}, "added_tokens": [{"id": num_ids - 1, "content": "<end>"}]}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    if message is None:
        load_hf_backbone(new_model(), folder)
    else:
        with pytest.raises(ValueError, match=message):
            load_hf_backbone(new_model(), folder)


def test_a_tokenizer_with_more_ids_than_rows_is_another_one_s(tmp_path: Path) -> None:
    save_file(tiny_weights(), tmp_path / "model.safetensors")
    write_config(tmp_path, TINY | {"vocab_size": 200})
    with pytest.raises(ValueError, match=f"{NUM_TEXT_IDS} text ids but .* only 200; is this its tokenizer"):
        load_hf_backbone(new_model(), tmp_path)


def _without(name: str, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in weights.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: _without("model.norm.weight", w), "misses norm.weight"),
        (lambda w: _without("lm_head.weight", w), "misses lm_head.weight"),
        (
            lambda w: w | {"model.layers.0.self_attn.q_proj.bias": torch.ones(32)},
            r"unexpected model.layers.0.self_attn.q_proj.bias",
        ),
        (
            lambda w: w | {"model.norm.weight": torch.ones(33)},
            r"model.norm.weight has shape \(33,\) instead of \(32,\)",
        ),
        (
            lambda w: w | {"lm_head.weight": w["lm_head.weight"][:-1].clone()},
            r"lm_head.weight has shape \(259, 32\) instead of \(260, 32\)",
        ),
        (
            lambda w: w | {"model.norm.weight": torch.ones(32, dtype=torch.int8)},
            "model.norm.weight is of type I8, not of floating point",
        ),
        (lambda w: {}, "misses layers.0.input_layernorm.weight; .* and 16 more"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_leave_the_model_unchanged(
    change: Any, message: str, tmp_path: Path
) -> None:
    save_file(change(tiny_weights()), tmp_path / "model.safetensors")
    write_config(tmp_path, TINY)
    model = new_model()
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        load_hf_backbone(model, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_model_of_another_config_is_refused_with_the_differences(folder: Path) -> None:
    write_config(folder, TINY | {"rms_norm_eps": 1e-5, "rope_theta": 500_000.0})
    expected = r"rope_theta is 10000.0 instead of 500000.0; norm_eps is 1e-06 instead of 1e-05"
    with pytest.raises(ValueError, match=expected):
        load_hf_backbone(new_model(), folder)


def test_sizes_may_be_spelled_out_or_derived(folder: Path) -> None:
    write_config(folder, TINY | {"head_dim": 8})
    load_hf_backbone(new_model(), folder)


def test_a_model_on_the_meta_device_is_refused(folder: Path) -> None:
    with torch.device("meta"):
        model = LatentLM(tiny_mixed_config())
    with pytest.raises(ValueError, match="meta device"):
        load_hf_backbone(model, folder)


def test_a_model_with_every_addition_is_saved_and_loaded(tmp_path: Path) -> None:
    scaling = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
    backbone = replace(tiny_mixed_config().transformer, head_size=16, qkv_bias=True, qk_norm=True, rope_scaling=scaling)
    model = new_model(replace(tiny_mixed_config(), transformer=backbone))
    model.save_pretrained(tmp_path / "model")
    loaded = LatentLM.from_pretrained(tmp_path / "model")
    assert loaded.config == model.config
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())


# Files


def test_pickled_weights_are_refused_with_the_command_that_converts_them(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    write_config(tmp_path, TINY)
    with pytest.raises(ValueError, match=r"can run code; convert them .*save_pretrained\('converted'\)"):
        load_hf_backbone(new_model(), tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"neither model.safetensors nor model.safetensors.index.json"):
        load_hf_backbone(new_model(), write_config(tmp_path, TINY))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"model.norm.weight": "../outside.safetensors"}}, "leads out of"),
        ({"weight_map": {"model.gone.weight": "some.safetensors"}}, "model.gone.weight is not in some.safetensors"),
        ({"weight_map": {"model.norm.weight": 3}}, "has no weight_map"),
        ([], "has no weight_map"),
    ],
)
def test_an_index_that_lies_is_refused(index: object, message: str, tmp_path: Path) -> None:
    inside = tmp_path / "checkpoint"
    inside.mkdir()
    save_file(tiny_weights(), tmp_path / "outside.safetensors")
    save_file(tiny_weights(), inside / "some.safetensors")
    (inside / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=message):
        load_hf_backbone(new_model(), write_config(inside, TINY))


@pytest.mark.parametrize("content", ["{", "[]", '{"model": {}}', '{"model": {"vocab": {"a": "b"}}}'])
def test_a_damaged_tokenizer_file_is_refused(content: str, folder: Path) -> None:
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer.json is (no tokenizer|not valid JSON)"):
        load_hf_backbone(new_model(), folder)
