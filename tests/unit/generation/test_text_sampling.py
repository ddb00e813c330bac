import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentlm.generation.requests import TextSamplingConfig
from latentlm.generation.text_sampling import sample_token

LOGITS = torch.tensor([2.0, 0.0, 1.0, -1.0, 3.0])
EVERYTHING = torch.ones(5, dtype=torch.bool)


def frequencies(config: TextSamplingConfig, allowed: torch.Tensor = EVERYTHING, count: int = 4000) -> torch.Tensor:
    uniforms = (torch.arange(count) + 0.5) / count  # stratified: counts are exact up to one draw
    drawn = [sample_token(LOGITS, allowed, config, uniform) for uniform in uniforms]
    return torch.bincount(torch.tensor(drawn), minlength=5) / count


def test_sampling_follows_the_softmax() -> None:
    for temperature in (1.0, 0.5, 2.0):
        expected = (LOGITS / temperature).softmax(-1)
        actual = frequencies(TextSamplingConfig(temperature=temperature))
        assert torch.allclose(actual, expected, atol=6e-4)  # two boundary draws of 4,000


def test_greedy_takes_the_most_likely_allowed_id() -> None:
    allowed = torch.tensor([True, True, True, True, False])
    assert sample_token(LOGITS, EVERYTHING, TextSamplingConfig(temperature=0.0), torch.tensor(0.5)) == 4
    assert sample_token(LOGITS, allowed, TextSamplingConfig(temperature=0.0), torch.tensor(0.5)) == 0


def test_top_k_keeps_k_ids_and_renormalises() -> None:
    expected = torch.zeros(5)
    expected[[4, 0]] = LOGITS[[4, 0]].softmax(-1)
    assert torch.allclose(frequencies(TextSamplingConfig(top_k=2)), expected, atol=6e-4)


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    # Probabilities in order: 0.636 (id 4), 0.234 (id 0), 0.086, 0.032, 0.012.
    kept = frequencies(TextSamplingConfig(top_p=0.7)) > 0
    assert kept.tolist() == [True, False, False, False, True]
    kept = frequencies(TextSamplingConfig(top_p=0.6)) > 0
    assert kept.tolist() == [False, False, False, False, True]


@settings(deadline=None, max_examples=60)
@given(
    st.floats(1e-7, 1 - 1e-7),
    st.lists(st.booleans(), min_size=5, max_size=5).filter(any),
    st.integers(1, 5),
    st.floats(0.01, 1),
)
def test_forbidden_ids_never_come(uniform: float, allowed: list[bool], top_k: int, top_p: float) -> None:
    config = TextSamplingConfig(top_k=top_k, top_p=top_p)
    assert allowed[sample_token(LOGITS, torch.tensor(allowed), config, torch.tensor(uniform))]
