"""Reads Llama, Qwen2 and Qwen3 checkpoints in Hugging Face's layout into the backbone of a `LatentLM`.

    config.json ──config_from_hf──▶ TransformerConfig, facts         model.layers.*, model.norm ──▶ transformer
    model.safetensors, or shards and their index ──load_hf_backbone──▶ model.embed_tokens, lm_head ──▶ text rows

Names and layouts are ours already (see `models.transformer`); what remains is the vocabulary. Text ids come first in
both tables, so the checkpoint's rows go to the first `num_text_ids` rows. The ids behind them, switch tokens and
classes, are new to the checkpoint: see `load_hf_backbone` for what they start from. Input projections and diffusion
heads stay as they are. Nothing is downloaded, and only JSON and safetensors are read: no file can run code.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from latentlm.config import from_mapping, to_mapping
from latentlm.models.latentlm import LatentLM
from latentlm.models.transformer import TransformerConfig
from latentlm.pretrained import CONFIG_NAME, WEIGHTS_NAME, link_root
from latentlm.storage import read_json, refuse_escape

MODEL_TYPES = ("llama", "qwen2", "qwen3")
INDEX_NAME = "model.safetensors.index.json"
TOKENIZER_NAME = "tokenizer.json"
GENERATION_NAME = "generation_config.json"

NEW_ROW_NOISE = 0.1
"""Share of a new id's fresh random row that is added to the mean row; enough to tell new ids apart."""

_ROPE_SCALING_FIELDS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")
_EMBEDDING, _LM_HEAD = "embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True, kw_only=True)
class HFCheckpointFacts:
    """What a checkpoint's config.json says beyond the shape of the Transformer."""

    model_type: str
    """One of `MODEL_TYPES`."""
    vocab_size: int
    """Rows of its embedding table: the tokenizer's ids, often padded to a round number."""
    tie_embeddings: bool
    """Its softmax head is the embedding table."""
    max_position_embeddings: int | None
    """Longest sequence in tokens that it was made for."""
    bos_id: int | None
    """The id that its documents begin with, if any."""
    eos_ids: tuple[int, ...]
    """The ids that end a document or a turn: those of generation_config.json where it names some, since chat models
    end their turns by other ids there; otherwise those of config.json."""


def config_from_hf(folder: str | Path) -> tuple[TransformerConfig, HFCheckpointFacts]:
    """The backbone's config, and what else a recipe has to know, from a local checkpoint folder's config.json.

    Args:
        folder: As written by transformers' `save_pretrained`, version 4 or 5, or a snapshot of the hub.

    Raises:
        ValueError: If a file is missing or damaged, or the architecture has a part that our Transformer has not.
    """
    path = Path(folder) / CONFIG_NAME
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no mapping, so it is no model config")
    model_type = content.get("model_type")
    if model_type not in MODEL_TYPES:
        raise ValueError(f"{path} is of model_type {model_type!r}; supported are {', '.join(MODEL_TYPES)}")
    rope = _rope(content, path)
    _refuse_unsupported(content, rope, path)
    try:
        transformer = {
            "hidden_size": content["hidden_size"],
            "num_layers": content["num_hidden_layers"],
            "num_heads": content["num_attention_heads"],
            "num_kv_heads": content.get("num_key_value_heads"),
            "intermediate_size": content["intermediate_size"],
            # Qwen3's default is a number, the others' follows from the sizes.
            "head_size": content.get("head_dim", 128 if model_type == "qwen3" else None),
            "norm_eps": content.get("rms_norm_eps", 1e-6),
            "qkv_bias": model_type == "qwen2",
            "qk_norm": model_type == "qwen3",
            "rope_theta": rope.get("rope_theta", 10_000.0),
            "rope_scaling": _rope_scaling(content, rope),
        }
        facts = {
            "model_type": model_type,
            "vocab_size": content["vocab_size"],
            "tie_embeddings": content.get("tie_word_embeddings", False),
            "max_position_embeddings": content.get("max_position_embeddings"),
            "bos_id": content.get("bos_token_id"),
            "eos_ids": _eos_ids(Path(folder), content),
        }
    except KeyError as error:
        raise ValueError(f"{path} does not say {error.args[0]}") from error
    return (
        from_mapping(TransformerConfig, transformer, where=str(path)),
        from_mapping(HFCheckpointFacts, facts, where=str(path)),
    )


def _eos_ids(folder: Path, content: Mapping[str, Any]) -> list[Any]:
    """What ends a text, as transformers' `generate` sees it: generation_config.json goes before config.json."""
    path = folder / GENERATION_NAME
    generation = read_json(path) if path.is_file() else {}
    if not isinstance(generation, dict):
        raise ValueError(f"{path} holds no mapping, so it says nothing of how texts end")
    eos = generation.get("eos_token_id")
    eos = content.get("eos_token_id") if eos is None else eos
    return eos if isinstance(eos, list) else [] if eos is None else [eos]


def _rope(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Settings of the rotary positions: `rope_parameters` since transformers 5, two fields before."""
    rope = content.get("rope_parameters") or content.get("rope_scaling") or {}
    if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
        raise ValueError(f"{path} sets rotary positions per kind of layer, which is not supported")
    theta = content.get("rope_theta")
    return rope if theta is None else {"rope_theta": theta, **rope}


def _rope_type(rope: Mapping[str, Any]) -> str:
    # "type" is the older spelling of "rope_type".
    return rope.get("rope_type") or rope.get("type") or "default"


def _rope_scaling(content: Mapping[str, Any], rope: Mapping[str, Any]) -> dict[str, Any] | None:
    if _rope_type(rope) == "default":
        return None
    # transformers takes the model's own length where the original one is not given.
    known = {"original_max_position_embeddings": content.get("max_position_embeddings"), **rope}
    return {name: known[name] for name in _ROPE_SCALING_FIELDS}


def _refuse_unsupported(content: Mapping[str, Any], rope: Mapping[str, Any], path: Path) -> None:
    layer_types = content.get("layer_types") or []
    wrong = {
        "quantized weights (quantization_config)": content.get("quantization_config") is not None,
        "mixtures of experts": any(content.get(name) for name in ("num_experts", "num_local_experts")),
        "attention over sliding windows": bool(content.get("use_sliding_window"))
        or any(kind != "full_attention" for kind in layer_types),
        "biases on all four attention projections (attention_bias)": bool(content.get("attention_bias")),
        "biases in the feed-forward network (mlp_bias)": bool(content.get("mlp_bias")),
        f"the activation {content.get('hidden_act')!r}": content.get("hidden_act", "silu") != "silu",
        f"rotary positions of type {_rope_type(rope)!r}": _rope_type(rope) not in ("default", "llama3"),
        "rotation of a part of each head (partial_rotary_factor)": rope.get("partial_rotary_factor", 1.0) != 1.0,
    }
    if found := [part for part, is_there in wrong.items() if is_there]:
        raise ValueError(
            f"{path} asks for {', '.join(found)}; supported are {', '.join(MODEL_TYPES)} with full attention, SwiGLU, "
            "unquantized weights, and rotary positions of type default or llama3"
        )


@torch.no_grad()
def load_hf_backbone(model: LatentLM, folder: str | Path) -> None:
    """Copy a checkpoint's layers, final norm, token embeddings and softmax head into a model, tensor by tensor.

    Of both tables the first `num_text_ids` rows are copied. Rows behind them are padding that no text reaches (Qwen3's
    tables have 151,936 rows for 151,669 ids) and are dropped, unless the folder's tokenizer.json has more ids than
    `num_text_ids`: then the recipe is wrong and the checkpoint refused. Without that file `num_text_ids` is believed.

    New ids (switch tokens, classes) start from the mean of the copied rows, plus `NEW_ROW_NOISE` times their fresh row:
    a logit of an average token, so that they take next to no probability from text before they are trained, where rows
    around zero could outweigh it all (Hewitt 2021, "Initializing new word embeddings for pretrained language models").

    Without text in the vocabulary (`num_text_ids: 0`) the tables stay as they are and the backbone alone is copied.
    Weights are cast to the model's type. A model that was refused is unchanged.

    Args:
        model: Its `config.transformer` is that of `config_from_hf`; on its device already.
        folder: With config.json, and model.safetensors or its shards with their index.

    Raises:
        ValueError: If model and checkpoint differ in config, names or shapes, or a file is missing or damaged.
    """
    folder = Path(folder)
    if model.device.type == "meta":
        raise ValueError("the model is on the meta device, where weights cannot be copied to; build it on a real one")
    transformer, facts = config_from_hf(folder)
    _refuse_other_config(model.config.transformer, transformer, folder)
    num_text_ids = model.config.vocabulary.num_text_ids
    _refuse_cut_vocabulary(num_text_ids, facts, folder)
    if model.config.tie_embeddings and num_text_ids and not facts.tie_embeddings:
        raise ValueError(f"{folder} has a softmax head of its own; build the model with tie_embeddings: false")
    targets = _targets(model, facts)
    with _open_weights(folder) as files:
        sources = {name.removeprefix("model."): (file, name) for name, file in files.items()}
        _refuse_other_tensors(sources, targets, facts, folder)
        for name, parameters in targets.items():
            file, stored_name = sources[name]
            tensor = file.get_tensor(stored_name)
            for parameter in parameters:
                if name in (_EMBEDDING, _LM_HEAD):
                    _write_rows(parameter, tensor, num_text_ids)
                else:
                    parameter.copy_(tensor)


def _write_rows(table: Tensor, tensor: Tensor, num_text_ids: int) -> None:
    """Copy the text rows; the rows behind become their mean and a little of what they were."""
    table[:num_text_ids].copy_(tensor[:num_text_ids])
    mean = tensor[:num_text_ids].mean(dim=0, dtype=torch.float32).to(table.device)
    table[num_text_ids:].copy_(mean + NEW_ROW_NOISE * table[num_text_ids:].float())


def _targets(model: LatentLM, facts: HFCheckpointFacts) -> dict[str, list[Tensor]]:
    """Name in the checkpoint, without "model.", to the parameters that it fills."""
    targets: dict[str, list[Tensor]] = {name: [parameter] for name, parameter in model.transformer.named_parameters()}
    if model.config.vocabulary.num_text_ids:
        targets[_EMBEDDING] = [model.embed_tokens.weight]
        if model.lm_head is not None:
            # A shared table fills both of ours, which then go their own ways.
            targets.setdefault(_EMBEDDING if facts.tie_embeddings else _LM_HEAD, []).append(model.lm_head.weight)
    return targets


def _refuse_other_config(ours: TransformerConfig, theirs: TransformerConfig, folder: Path) -> None:
    # Spelled out or derived, a size is the same.
    old, new = (
        to_mapping(replace(config, head_size=config.head_dim, num_kv_heads=config.kv_heads))
        for config in (theirs, ours)
    )
    if differences := [f"{name} is {new[name]} instead of {old[name]}" for name in old if old[name] != new[name]]:
        raise ValueError(
            f"the model's transformer does not fit {folder}: {_first_few(differences)}; take it from config_from_hf"
        )


def _refuse_cut_vocabulary(num_text_ids: int, facts: HFCheckpointFacts, folder: Path) -> None:
    if num_text_ids == 0:
        return
    if num_text_ids > facts.vocab_size:
        raise ValueError(
            f"the model has {num_text_ids} text ids but {folder} only {facts.vocab_size}; is this its tokenizer?"
        )
    num_ids = _num_tokenizer_ids(folder)
    if num_ids is not None and num_ids > facts.vocab_size:
        raise ValueError(f"the tokenizer of {folder} has {num_ids} ids but its embedding table {facts.vocab_size} rows")
    if num_ids is not None and num_text_ids < num_ids:
        raise ValueError(
            f"the model has {num_text_ids} text ids but the tokenizer of {folder} has {num_ids}; set num_text_ids to it"
        )


def _num_tokenizer_ids(folder: Path) -> int | None:
    """One more than the largest id of tokenizer.json, added tokens included; None without that file."""
    path = folder / TOKENIZER_NAME
    if not path.is_file():
        return None
    content = read_json(path)
    try:
        vocab = content["model"]["vocab"]  # id by piece, or for Unigram a list of (piece, score)
        ids = list(vocab.values()) if isinstance(vocab, dict) else list(range(len(vocab)))
        ids += [token["id"] for token in content.get("added_tokens") or []]
        return 1 + max(ids)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is no tokenizer of Hugging Face's layout: {error!r}") from error


@contextlib.contextmanager
def _open_weights(folder: Path) -> Iterator[dict[str, Any]]:
    """Every tensor's name to the open file that holds it; files are mapped, not read."""
    links_within = link_root(folder)
    listed: dict[str, str] = {}
    if (folder / WEIGHTS_NAME).is_file():
        shards = [WEIGHTS_NAME]
    elif (folder / INDEX_NAME).is_file():
        listed = _read_index(folder / INDEX_NAME)
        shards = sorted(set(listed.values()))
    elif any(folder.glob("*.bin")):
        raise ValueError(
            f"{folder} has PyTorch files only, which can run code; convert them where you trust them: "
            f'python -c "from transformers import AutoModelForCausalLM as M; '
            f"M.from_pretrained('{folder}').save_pretrained('converted')\""
        )
    else:
        raise ValueError(f"{folder} has neither {WEIGHTS_NAME} nor {INDEX_NAME}")
    with contextlib.ExitStack() as stack:
        files: dict[str, Any] = {}
        for shard in shards:
            refuse_escape(folder / shard, links_within)
            try:
                file = stack.enter_context(safe_open(folder / shard, framework="pt"))
            except (OSError, SafetensorError) as error:
                raise ValueError(f"{folder / shard} is missing or not a readable safetensors file: {error}") from error
            files |= dict.fromkeys(file.keys(), file)
        if absent := [f"{name} is not in {shard}" for name, shard in listed.items() if name not in files]:
            raise ValueError(f"{folder / INDEX_NAME} does not fit its files: {_first_few(absent)}")
        yield files


def _read_index(path: Path) -> dict[str, str]:
    """Tensor name to the file that holds it."""
    index = read_json(path)
    listed = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(listed, dict) or not all(isinstance(shard, str) for shard in listed.values()):
        raise ValueError(f"{path} has no weight_map from tensors to files")
    return listed


def _refuse_other_tensors(
    sources: Mapping[str, tuple[Any, str]],
    targets: Mapping[str, list[Tensor]],
    facts: HFCheckpointFacts,
    folder: Path,
) -> None:
    """Compare names, shapes and types, which stand in the headers, before anything is copied."""
    problems = [f"it misses {name}" for name in targets if name not in sources]
    for name, (file, stored_name) in sources.items():
        if name in targets:
            header = file.get_slice(stored_name)
            shape, wanted = tuple(header.get_shape()), tuple(targets[name][0].shape)
            if name in (_EMBEDDING, _LM_HEAD):
                wanted = (facts.vocab_size, wanted[1])
            if shape != wanted:
                problems.append(f"{stored_name} has shape {shape} instead of {wanted}")
            elif header.get_dtype() not in _FLOAT_DTYPES:
                problems.append(f"{stored_name} is of type {header.get_dtype()}, not of floating point")
        # The tables are not wanted by every model; frequencies, which old files hold, follow from the config.
        elif name not in (_EMBEDDING, _LM_HEAD) and not name.endswith("rotary_emb.inv_freq"):
            problems.append(f"it has an unexpected {stored_name}")
    if problems:
        raise ValueError(f"the weights of {folder} do not fit: {_first_few(problems)}")


def _first_few(items: list[str]) -> str:
    return "; ".join(items[:5]) + (f"; and {len(items) - 5} more" if len(items) > 5 else "")
