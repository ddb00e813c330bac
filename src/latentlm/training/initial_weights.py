"""What a training of documents starts from: a checkpoint of a language model, or a LatentLM that was trained."""

from pathlib import Path

from latentlm.generation.pipeline import LatentLMPipeline
from latentlm.generation.pipeline_folder import TEXT
from latentlm.models.hf_checkpoint import config_from_hf, load_hf_backbone
from latentlm.models.latentlm import LatentLM
from latentlm.pretrained import CONFIG_NAME, load_exactly, unique_tensors
from latentlm.storage import read_json
from latentlm.tokenizers.text import StoredTextTokenizer


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
    content = read_json(folder / CONFIG_NAME)
    if not isinstance(content, dict) or content.get("kind") != LatentLM.kind:
        load_hf_backbone(model, folder)
        _, facts = config_from_hf(folder)
        return tuple(token for token in facts.eos_ids if token != text_tokenizer.eos_id)
    pipeline = LatentLMPipeline.from_pretrained(folder)
    _refuse_other_tokens(model, text_tokenizer, pipeline, folder)
    load_exactly(model, unique_tensors(pipeline.model), folder)
    return pipeline.sampling[TEXT].eos_ids


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
