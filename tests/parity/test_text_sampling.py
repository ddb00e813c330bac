"""Truncation of the next token's distribution against transformers' logits processors, in the order it applies them."""

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from latentlm.generation.requests import TextSamplingConfig
from latentlm.generation.text_sampling import penalise_repetition, sample_ids

NUM_DRAWS = 20_000
VOCABULARY = 40


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7},
        {"top_k": 7},
        {"top_p": 0.8},
        {"min_p": 0.2},
        {"temperature": 1.3, "top_k": 12, "top_p": 0.7, "min_p": 0.1, "repetition_penalty": 1.4},
    ],
)
def test_the_distribution_is_that_of_transformers(options: dict[str, float]) -> None:
    logits = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(0)) * 2
    seen = torch.tensor([3, 3, 17, 30])
    config = TextSamplingConfig(**options)  # pyright: ignore[reportArgumentType]
    processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(config.repetition_penalty)])
    processors.append(TemperatureLogitsWarper(config.temperature))
    if config.top_k is not None:
        processors.append(TopKLogitsWarper(config.top_k))
    if config.top_p < 1:
        processors.append(TopPLogitsWarper(config.top_p))
    if config.min_p > 0:
        processors.append(MinPLogitsWarper(config.min_p))
    expected = processors(seen[None], logits[None].clone())[0].softmax(-1)

    penalised = penalise_repetition(logits, seen, config.repetition_penalty)
    uniforms = (torch.arange(NUM_DRAWS) + 0.5) / NUM_DRAWS
    drawn = sample_ids(penalised.expand(NUM_DRAWS, -1), config, uniforms)
    frequencies = drawn.bincount(minlength=VOCABULARY) / NUM_DRAWS
    # Evenly spaced uniform numbers: a frequency is off by one draw at each end of its interval at most.
    torch.testing.assert_close(frequencies, expected, atol=2.5 / NUM_DRAWS, rtol=0)
