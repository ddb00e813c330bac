"""What the tests share: one thread per process, and tiny models."""

import pytest
import torch
from tiny_models import randomise, tiny_class_config, tiny_mixed_config

from latentlm.models.latentlm import LatentLM
from latentlm.sequence import SequenceBuilder
from latentlm.tokenizers.text import ByteTokenizer

# The tests run one process per core.
torch.set_num_threads(1)


@pytest.fixture
def class_model() -> LatentLM:
    return randomise(LatentLM(tiny_class_config())).eval()


@pytest.fixture
def mixed_model() -> LatentLM:
    return randomise(LatentLM(tiny_mixed_config())).eval()


@pytest.fixture
def mixed_builder(mixed_model: LatentLM) -> SequenceBuilder:
    return SequenceBuilder(mixed_model.config.vocabulary, list(mixed_model.config.modalities), ByteTokenizer())
