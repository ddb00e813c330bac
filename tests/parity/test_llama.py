"""Our Transformer with the weights of transformers' LlamaModel gives its hidden states."""

import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from latentlm.models.transformer import Transformer, TransformerConfig


@pytest.mark.parametrize("num_kv_heads", [8, 2, 1])
def test_hidden_states_equal_llama(num_kv_heads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    theirs = LlamaModel(
        LlamaConfig(
            vocab_size=11,
            hidden_size=64,
            num_hidden_layers=3,
            num_attention_heads=8,
            num_key_value_heads=num_kv_heads,
            intermediate_size=160,
            rms_norm_eps=1e-5,
            rope_theta=50_000.0,
        )
    ).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5, generator=generator)
            else:
                parameter.normal_(std=0.15, generator=generator)
    ours = Transformer(
        TransformerConfig(
            hidden_size=64,
            num_layers=3,
            num_heads=8,
            num_kv_heads=num_kv_heads,
            intermediate_size=160,
            rope_theta=50_000.0,
            norm_eps=1e-5,
        )
    ).eval()
    weights = theirs.state_dict()
    del weights["embed_tokens.weight"]
    ours.load_state_dict(weights)
    embeds = torch.randn(2, 40, 64, generator=generator)
    with torch.no_grad():
        expected = theirs(inputs_embeds=embeds).last_hidden_state
        positions = torch.arange(40).expand(2, -1)
        actual = ours(embeds, positions)
    assert expected.std() > 0.1  # the weights do real work
    assert torch.allclose(actual, expected, atol=1e-5, rtol=0)  # float32 rounding through three layers
