"""What a training of documents starts from: a checkpoint of a language model, or a LatentLM that was trained.

init_from ──fitted_to_checkpoint▶ sizes of the backbone ──LatentLM▶ a new model ──load_initial_weights▶ weights
"""

import logging
from dataclasses import replace
from pathlib import Path

from latentlm.config import to_mapping
from latentlm.generation.pipeline import LatentLMPipeline
from latentlm.generation.pipeline_folder import TEXT
from latentlm.models.hf_checkpoint import config_from_hf, load_hf_backbone
from latentlm.models.latentlm import LatentLM, LatentLMConfig
from latentlm.pretrained import CONFIG_NAME, load_exactly, unique_tensors
from latentlm.storage import read_json
from latentlm.tokenizers.text import StoredTextTokenizer

_log = logging.getLogger(__name__)


def fitted_to_checkpoint(config: LatentLMConfig, folder: Path) -> LatentLMConfig:
    """A model's config with the backbone of the Llama or Qwen checkpoint that it is to start from.

    The checkpoint wins over the recipe, whose sizes are those of a model from scratch: its Transformer is taken as it
    is, and the softmax head shares the embedding table where the checkpoint's does. The log says what was replaced.

    Args:
        config: As the recipe says.
        folder: As in `load_initial_weights`; the `model` folder of a run changes nothing, its sizes are the recipe's.

    Raises:
        ValueError: If the folder holds no model's config, or one of an architecture that cannot be read.
    """
    if _is_run(folder):
        return config
    transformer, facts = config_from_hf(folder)
    theirs = {**to_mapping(transformer), "tie_embeddings": facts.tie_embeddings}
    ours = {**to_mapping(config.transformer), "tie_embeddings": config.tie_embeddings}
    if replaced := [f"{name} {theirs[name]} instead of {ours[name]}" for name in ours if theirs[name] != ours[name]]:
        _log.warning("init_from: the backbone is that of %s: %s", folder, ", ".join(replaced))
    return replace(config, transformer=transformer, tie_embeddings=facts.tie_embeddings)


def load_initial_weights(model: LatentLM, folder: Path, text_tokenizer: StoredTextTokenizer) -> tuple[int, ...]:
    """Copy the weights of a folder into a new model.

    Args:
        model: To be trained.
        folder: The `model` folder of a run of documents: all of it is copied. Or a Llama or Qwen checkpoint in Hugging
            Face's layout: see `load_hf_backbone`.
        text_tokenizer: The model's.

    Returns:
        Ids that end a text there besides the tokenizer's end-of-text, such as a chat model's end of turn.

    Raises:
        ValueError: If the folder does not fit the model: other tokenizers, another vocabulary, other shapes.
    """
    if not _is_run(folder):
        load_hf_backbone(model, folder)
        _, facts = config_from_hf(folder)
        if facts.bos_id not in (None, text_tokenizer.bos_id):
            _log.warning(
                "init_from: the model of %s knows texts that begin with the id %d, but this text tokenizer begins them "
                "with %d; take the tokenizer of that folder, or name its token: --text_tokenizer.bos_token",
                *(folder, facts.bos_id, text_tokenizer.bos_id),
            )
        return tuple(token for token in facts.eos_ids if token != text_tokenizer.eos_id)
    pipeline = LatentLMPipeline.from_pretrained(folder)
    _refuse_other_tokens(model, text_tokenizer, pipeline, folder)
    load_exactly(model, unique_tensors(pipeline.model), folder)
    return pipeline.sampling[TEXT].eos_ids


def _is_run(folder: Path) -> bool:
    """Whether a folder holds a LatentLM, and not a checkpoint in another layout."""
    content = read_json(folder / CONFIG_NAME)
    return isinstance(content, dict) and content.get("kind") == LatentLM.kind


def _refuse_other_tokens(
    model: LatentLM, text_tokenizer: StoredTextTokenizer, trained: LatentLMPipeline, folder: Path
) -> None:
    """Weights of the same shape mean nothing where ids or latents mean something else."""
    ours, theirs = model.config, trained.model.config
    if theirs.vocabulary != ours.vocabulary:
        raise ValueError(f"init_from: {folder} has the vocabulary {theirs.vocabulary}, the recipe {ours.vocabulary}")
    if trained.text_tokenizer is None or trained.text_tokenizer.fingerprint() != text_tokenizer.fingerprint():
        raise ValueError(f"init_from: {folder} was trained with another text tokenizer; give the recipe that one")
    fingerprints = [
        {name: modality.tokenizer_fingerprint for name, modality in config.modalities.items()}
        for config in (theirs, ours)
    ]
    if fingerprints[0] != fingerprints[1]:
        raise ValueError(
            f"init_from: {folder} was trained with other tokenizers of {', '.join(fingerprints[0]) or 'nothing'}; give "
            f"the recipe the one in {folder / 'tokenizers'}"
        )
