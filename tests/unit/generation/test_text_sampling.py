import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentlm.generation.requests import TextSamplingConfig
from latentlm.generation.text_sampling import sample_ids, sample_untruncated

LOGITS = torch.tensor([2.0, 0.0, 1.0, -1.0, 3.0])
EVERYTHING = torch.ones(5, dtype=torch.bool)
GREEDY = TextSamplingConfig(temperature=0.0)
PROBABILITIES = torch.tensor([0.1, 0.4, 0.2, 0.3])
EXTREMES = torch.tensor([2.0**-24, 1 - 2.0**-24])  # what `keyed_uniform` can give


def frequencies(config: TextSamplingConfig, allowed: torch.Tensor = EVERYTHING, count: int = 4000) -> torch.Tensor:
    uniforms = (torch.arange(count) + 0.5) / count  # stratified: counts are exact up to one draw
    drawn = sample_ids(LOGITS.expand(count, 5), config, uniforms, allowed=allowed)
    return torch.bincount(drawn, minlength=5) / count


def test_sampling_follows_the_softmax() -> None:
    for temperature in (1.0, 0.5, 2.0):
        expected = (LOGITS / temperature).softmax(-1)
        actual = frequencies(TextSamplingConfig(temperature=temperature))
        assert torch.allclose(actual, expected, atol=6e-4)  # two boundary draws of 4,000


def test_greedy_takes_the_most_likely_allowed_id() -> None:
    allowed = torch.tensor([True, True, True, True, False])
    assert sample_ids(LOGITS, GREEDY, torch.tensor(0.5)) == 4
    assert sample_ids(LOGITS, GREEDY, torch.tensor(0.5), allowed=allowed) == 0


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
    assert allowed[int(sample_ids(LOGITS, config, torch.tensor(uniform), allowed=torch.tensor(allowed)))]


def test_top_p_looks_at_what_top_k_has_left() -> None:
    uniforms = (torch.arange(700) + 0.5) / 700
    logits = PROBABILITIES.log().expand(700, 4)
    # Of the 0.9 that top_k leaves, 0.4 and 0.3 are more than three quarters.
    drawn = sample_ids(logits, TextSamplingConfig(top_k=3, top_p=0.75), uniforms)
    assert drawn.bincount(minlength=4).tolist() == [0, 400, 0, 300]


def test_min_p_is_a_share_of_the_likeliest() -> None:
    # 0.234 and 0.086 are 0.37 and 0.135 of 0.636.
    kept = frequencies(TextSamplingConfig(min_p=0.3)) > 0
    assert kept.tolist() == [True, False, False, False, True]
    assert (frequencies(TextSamplingConfig(min_p=0.1)) > 0).sum() == 3


def test_a_batch_is_drawn_position_by_position() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, uniform = torch.randn(3, 4, 50, generator=generator), torch.rand(3, 4, generator=generator)
    allowed = torch.rand(3, 1, 50, generator=generator) < 0.5
    config = TextSamplingConfig(temperature=0.7, top_k=20, top_p=0.9)
    together = sample_ids(logits, config, uniform, allowed=allowed)
    for i in range(3):
        for j in range(4):
            assert together[i, j] == sample_ids(logits[i, j], config, uniform[i, j], allowed=allowed[i, 0])


def test_untruncated_ids_are_counted_from_the_first() -> None:
    uniform = torch.tensor([0.05, 0.15, 0.45, 0.55, 0.65, 0.75, 0.95])
    logits = PROBABILITIES.log()
    assert sample_untruncated(logits.expand(7, 4), 1.0, uniform).tolist() == [0, 1, 1, 2, 2, 3, 3]
    # Squared and normalised: 1/30, 16/30, 4/30, 9/30, with edges at 0.033, 0.567, 0.7.
    assert sample_untruncated(logits.expand(7, 4), 0.5, uniform).tolist() == [1, 1, 1, 1, 2, 3, 3]
    assert sample_untruncated(logits.expand(7, 4), 0.0, uniform).tolist() == [1] * 7


def test_an_id_of_probability_zero_is_never_drawn() -> None:
    logits = torch.full((2, 4096), -torch.inf)
    logits[:, 100:300] = 0
    assert sample_untruncated(logits, 1.0, EXTREMES).tolist() == [100, 299]
    drawn = sample_ids(logits, TextSamplingConfig(), EXTREMES)
    assert ((drawn >= 100) & (drawn < 300)).all()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_damaged_logits_are_refused(temperature: float) -> None:
    logits, uniform = torch.tensor([0.0, torch.nan]), torch.tensor(0.5)
    with pytest.raises(ValueError, match="NaN"):
        sample_ids(logits, TextSamplingConfig(temperature=temperature), uniform)
    with pytest.raises(ValueError, match="NaN"):
        sample_untruncated(logits, temperature, uniform)
