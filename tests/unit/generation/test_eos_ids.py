"""Chat checkpoints end their turns by several ids: read from their folder, kept with the model, and obeyed."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_documents import tiny_multimodal_recipe
from tiny_models import randomise
from torch import Tensor

from latentlm.catalog import build
from latentlm.generation.pipeline import LatentLMPipeline
from latentlm.generation.pipeline_folder import TEXT
from latentlm.generation.requests import TextSamplingConfig
from latentlm.models.hf_checkpoint import config_from_hf
from latentlm.models.latentlm import LatentLM, LatentLMConfig
from latentlm.models.transformer import TransformerConfig
from latentlm.sequence import VocabularyConfig

END, TURN = 256, 10  # end-of-text of bytes; a line break, as if it ended turns
CHECKPOINT = {
    "model_type": "llama",
    "vocab_size": 257,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "eos_token_id": END,
}


def pipeline_saying(ids: Sequence[int]) -> LatentLMPipeline:
    """Bytes alone; after a prompt of n bytes the likeliest ids are these in turn."""
    config = LatentLMConfig(
        vocabulary=VocabularyConfig(num_text_ids=257, switch_tokens=True),
        transformer=TransformerConfig(hidden_size=16, num_layers=1, num_heads=2, intermediate_size=24),
        modalities={},
    )
    model = randomise(LatentLM(config))
    queue = list(ids)

    def logits(hidden_states: Tensor) -> Tensor:
        result = torch.zeros(*hidden_states.shape[:-1], config.vocabulary.size)
        result[..., queue.pop(0)] = 100.0
        return result

    model.logits = logits  # pyright: ignore[reportAttributeAccessIssue]
    return LatentLMPipeline(model, {})


@pytest.mark.parametrize(
    ("eos_ids", "text"), [((), "a\nb"), ((TURN,), "a"), ((ord("b"), TURN), "a"), ((ord("b"),), "a\n")]
)
def test_a_text_ends_at_the_first_of_its_end_ids(eos_ids: tuple[int, ...], text: str) -> None:
    pipeline = pipeline_saying([ord("a"), TURN, ord("b"), END])
    pipeline.sampling[TEXT] = TextSamplingConfig(eos_ids=eos_ids)
    (answer,) = [event for event in pipeline.stream(["x"], do_sample=False) if hasattr(event, "finish_reason")]
    assert (answer.parts, answer.finish_reason) == ((text,), "eos")


def test_end_ids_are_kept_with_the_model(tmp_path: Path) -> None:
    pipeline = pipeline_saying([])
    pipeline.sampling[TEXT] = TextSamplingConfig(eos_ids=(TURN,))
    pipeline.save_pretrained(tmp_path / "model")
    assert LatentLMPipeline.from_pretrained(tmp_path / "model").sampling[TEXT].eos_ids == (TURN,)


def test_a_negative_end_id_is_refused() -> None:
    with pytest.raises(ValueError, match=r"eos_ids is \(-1,\)"):
        TextSamplingConfig(eos_ids=(-1,))


WriteCheckpoint = Callable[..., Path]


@pytest.fixture
def write_checkpoint(tmp_path: Path) -> WriteCheckpoint:
    """A checkpoint in Hugging Face's layout, with or without a generation_config.json."""

    def write(generation: object = None) -> Path:
        folder = tmp_path / "checkpoint"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(CHECKPOINT))
        if generation is not None:
            (folder / "generation_config.json").write_text(json.dumps(generation))
        return folder

    return write


@pytest.mark.parametrize(
    ("generation", "eos_ids"),
    [
        (None, (END,)),
        ({"temperature": 0.6}, (END,)),
        ({"eos_token_id": None}, (END,)),
        ({"eos_token_id": TURN}, (TURN,)),
        ({"eos_token_id": [TURN, END]}, (TURN, END)),
    ],
)
def test_the_end_ids_of_generation_config_go_before_those_of_config(
    write_checkpoint: WriteCheckpoint, generation: object, eos_ids: tuple[int, ...]
) -> None:
    _, facts = config_from_hf(write_checkpoint(generation))
    assert facts.eos_ids == eos_ids


def test_a_damaged_generation_config_is_refused(write_checkpoint: WriteCheckpoint) -> None:
    with pytest.raises(ValueError, match=r"generation_config\.json holds no mapping"):
        config_from_hf(write_checkpoint([TURN]))


def test_end_ids_that_are_no_numbers_are_refused(write_checkpoint: WriteCheckpoint) -> None:
    with pytest.raises(ValueError, match=r"eos_ids takes .*int"):
        config_from_hf(write_checkpoint({"eos_token_id": ["<|im_end|>"]}))


@pytest.mark.parametrize(("chosen", "expected"), [((), (TURN,)), ((98,), (98,))])
def test_a_model_that_starts_from_a_chat_checkpoint_ends_its_texts_as_that_does(
    write_checkpoint: WriteCheckpoint, tmp_path: Path, chosen: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    folder = write_checkpoint({"eos_token_id": [TURN, END]})
    recipe = tiny_multimodal_recipe(
        tmp_path / "data",
        init_from=str(folder),
        text_generation={"eos_ids": list(chosen)},
        model__transformer__norm_eps=1e-6,
    )
    model = LatentLM(build(tiny_multimodal_recipe(tmp_path / "data", model__transformer__norm_eps=1e-6))[2].model)
    weights = {f"model.{name}": tensor for name, tensor in model.transformer.state_dict().items()}
    weights |= {"model.embed_tokens.weight": torch.zeros(257, 16), "lm_head.weight": torch.ones(257, 16)}
    save_file(weights, folder / "model.safetensors")
    objective, _, recipe = build(recipe)
    assert recipe.text_generation.eos_ids == expected
    assert objective.pipeline().sampling[TEXT].eos_ids == expected
