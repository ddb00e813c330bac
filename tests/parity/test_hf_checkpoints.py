"""Llama, Qwen2 and Qwen3 checkpoints that transformers wrote give its logits and its greedy texts."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tiny_text import added, tiny_bpe
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from latentlm.generation.generator import Generator
from latentlm.generation.requests import GenerationRequest, TextSamplingConfig
from latentlm.models.diffusion_head import DiffusionHeadConfig
from latentlm.models.hf_checkpoint import config_from_hf, load_hf_backbone
from latentlm.models.latentlm import LatentLM, LatentLMConfig, ModalityConfig
from latentlm.sequence import Document, SequenceBuilder, TextPart, VocabularyConfig
from latentlm.tokenizers.text import TextTokenizerConfig, open_text_tokenizer

NUM_TEXT_IDS = 61
NUM_ROWS = 64  # padded to a round number, as real tables are
EOS = 60

SIZES = {
    "vocab_size": NUM_ROWS,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": EOS,
    "pad_token_id": None,
    "attn_implementation": "eager",
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 1_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}


def llama(**changes: object) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SIZES | changes))


def qwen2(**changes: object) -> PreTrainedModel:
    return Qwen2ForCausalLM(Qwen2Config(**SIZES | changes))


def qwen3(**changes: object) -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(**SIZES | {"head_dim": 16} | changes))


MODELS = {
    "llama": lambda: llama(),
    "llama, tied": lambda: llama(tie_word_embeddings=True, rms_norm_eps=1e-5),
    "llama, wide heads": lambda: llama(head_dim=12, num_key_value_heads=6),
    "llama 3.1": lambda: llama(rope_parameters=LLAMA3_ROPE),
    "qwen2": lambda: qwen2(rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0}),
    "qwen2, tied": lambda: qwen2(tie_word_embeddings=True),
    "qwen3": lambda: qwen3(),
    "qwen3, tied": lambda: qwen3(tie_word_embeddings=True),
}


class LetterTokenizer:
    """Every id below the end mark is one letter."""

    num_ids = NUM_TEXT_IDS
    eos_id = EOS
    bos_id = EOS

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - ord("A") for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(ord("A") + token) for token in ids if token != self.eos_id)


PROMPTS = ("LATENT", "A", "abcdefghijklmnop")


@pytest.fixture(params=MODELS)
def theirs(request: pytest.FixtureRequest) -> PreTrainedModel:
    return random_model(request.param)


def random_model(name: str) -> PreTrainedModel:
    """The same weights every time."""
    return randomised(MODELS[name]())


def randomised(model: PreTrainedModel) -> PreTrainedModel:
    """The model, its weights by one seed."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5, generator=generator)
            else:  # biases included, which are zero in a new Qwen2
                parameter.normal_(std=0.2, generator=generator)
    return model.eval()


def load(folder: Path, num_text_ids: int = NUM_TEXT_IDS) -> LatentLM:
    transformer, facts = config_from_hf(folder)
    config = LatentLMConfig(
        vocabulary=VocabularyConfig(num_text_ids=num_text_ids, switch_tokens=True),
        transformer=transformer,
        modalities={"image": ModalityConfig(latent_dim=4, head=DiffusionHeadConfig(num_layers=1))},
        tie_embeddings=facts.tie_embeddings,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LatentLM(config).eval()
    load_hf_backbone(model, folder)
    return model


@torch.no_grad()
def test_logits_equal_those_of_transformers(theirs: PreTrainedModel, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    builder = SequenceBuilder(ours.config.vocabulary, ["image"], LetterTokenizer())
    letters = torch.randint(EOS, (200,), generator=torch.Generator().manual_seed(1)).tolist()
    sequence = builder.build(Document((TextPart(LetterTokenizer().decode(letters)),)))
    batch = builder.collate([[sequence]])
    expected = theirs(input_ids=batch.input_ids).logits[..., :NUM_TEXT_IDS]
    actual = ours.logits(ours.hidden_states(batch))[..., :NUM_TEXT_IDS]
    assert expected.std() > 0.5  # the weights do real work
    # Float32 rounding through three layers, of logits that reach 10.
    assert torch.allclose(actual, expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_greedy_text_equals_that_of_transformers(theirs: PreTrainedModel, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path)
    ours, tokenizer = load(tmp_path), LetterTokenizer()
    generator = Generator(ours, SequenceBuilder(ours.config.vocabulary, ["image"], tokenizer))
    requests = [
        GenerationRequest(
            prompt=Document((TextPart(prompt),)), max_new_tokens=24, text=TextSamplingConfig(temperature=0.0)
        )
        for prompt in PROMPTS
    ]
    for prompt, document in zip(PROMPTS, generator.generate(requests), strict=True):
        # Documents with text begin with the end mark of the one before.
        start = torch.tensor([[EOS, *tokenizer.encode(prompt)]])
        expected = theirs.generate(
            start,
            attention_mask=torch.ones_like(start),
            do_sample=False,
            max_new_tokens=24,
            suppress_tokens=list(range(NUM_TEXT_IDS, NUM_ROWS)),
        )[0, start.shape[1] :].tolist()
        text = "".join(part.text for part in document.parts if isinstance(part, TextPart))
        assert text == tokenizer.decode(expected)


@torch.no_grad()
def test_every_end_id_of_a_chat_checkpoint_ends_a_text_as_in_transformers(tmp_path: Path) -> None:
    theirs = random_model("qwen2")
    tokenizer, prompt = LetterTokenizer(), "LATENT"
    start = torch.tensor([[EOS, *tokenizer.encode(prompt)]])
    options = {"attention_mask": torch.ones_like(start), "do_sample": False, "max_new_tokens": 12}
    options["suppress_tokens"] = list(range(NUM_TEXT_IDS, NUM_ROWS))
    freely = theirs.generate(start, **options)[0, start.shape[1] :].tolist()
    turn = next(token for token in freely if token not in (EOS, freely[0]))
    theirs.generation_config.eos_token_id = [EOS, turn]
    theirs.save_pretrained(tmp_path)
    _, facts = config_from_hf(tmp_path)
    assert facts.eos_ids == (EOS, turn)
    expected = theirs.generate(start, **options)[0, start.shape[1] :].tolist()
    assert expected[-1] == turn
    ours = load(tmp_path)
    generator = Generator(ours, SequenceBuilder(ours.config.vocabulary, ["image"], tokenizer))
    text = TextSamplingConfig(temperature=0.0, eos_ids=facts.eos_ids)
    request = GenerationRequest(prompt=Document((TextPart(prompt),)), max_new_tokens=12, text=text)
    (part,) = generator.generate([request])[0].parts
    assert part == TextPart(tokenizer.decode(expected[:-1]))


@torch.no_grad()
def test_texts_begin_with_the_token_that_the_checkpoint_s_folder_names(tmp_path: Path) -> None:
    """As Llama 3's do. What we build of a prompt, and the greedy text behind it, are those of transformers."""
    base = tiny_bpe().definition
    begin = added(tiny_bpe().num_ids, "<|begin_of_text|>", special=True)
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": begin["content"], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            begin["content"]: {"id": begin["content"], "ids": [begin["id"]], "tokens": [begin["content"]]}
        },
    }
    definition = {**base, "added_tokens": [*base["added_tokens"], begin], "post_processor": template}
    (tmp_path / "definition.json").write_text(json.dumps(definition))
    their_tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "definition.json"), bos_token=begin["content"], eos_token="<|endoftext|>"
    )
    folder = tmp_path / "checkpoint"
    their_tokenizer.save_pretrained(folder)
    marks = {"bos_token_id": begin["id"], "eos_token_id": tiny_bpe().eos_id}
    theirs = randomised(llama(vocab_size=begin["id"] + 1, **marks))
    theirs.save_pretrained(folder)

    tokenizer = open_text_tokenizer(TextTokenizerConfig(kind="huggingface", path=str(folder)))
    assert tokenizer.bos_id == begin["id"] != tokenizer.eos_id
    ours = load(folder, tokenizer.num_ids)
    builder = SequenceBuilder(ours.config.vocabulary, ["image"], tokenizer)
    prompt = Document((TextPart("The cat sat on"),))
    start = their_tokenizer("The cat sat on", return_tensors="pt").input_ids
    assert builder.build(prompt, open_ended=True).input_ids.tolist() == start[0].tolist()
    request = GenerationRequest(prompt=prompt, max_new_tokens=24, text=TextSamplingConfig(temperature=0.0))
    (document,) = Generator(ours, builder).generate([request])
    expected = theirs.generate(start, attention_mask=torch.ones_like(start), do_sample=False, max_new_tokens=24)[
        0, start.shape[1] :
    ].tolist()
    text = "".join(part.text for part in document.parts if isinstance(part, TextPart))
    assert text == tokenizer.decode(expected)


def test_every_kind_of_frequency_occurs_under_the_rope_scaling_of_these_tests() -> None:
    head_dim = SIZES["hidden_size"] // SIZES["num_attention_heads"]
    exponents = torch.arange(0, head_dim, 2) / head_dim
    turns = LLAMA3_ROPE["original_max_position_embeddings"] * LLAMA3_ROPE["rope_theta"] ** -exponents / (2 * torch.pi)
    low, high = LLAMA3_ROPE["low_freq_factor"], LLAMA3_ROPE["high_freq_factor"]
    assert (turns > high).any()
    assert (turns < low).any()
    assert ((turns > low) & (turns < high)).any()
