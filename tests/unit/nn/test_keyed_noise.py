import numpy as np
import torch

from latentlm.nn.keyed_noise import combine_keys, keyed_normal, keyed_uniform, signed_int64

MASK = (1 << 64) - 1


def splitmix64(state: int) -> int:
    """The published finaliser on Python's unbounded integers."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


def test_one_key_mixes_as_splitmix64_on_python_integers() -> None:
    golden, mix_1 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9
    for key in (0, 1, 12345, 2**63 - 1, -7):
        expected = splitmix64((0 * mix_1 + splitmix64((key + golden) & MASK)) & MASK)
        assert int(combine_keys(torch.tensor(key))) & MASK == expected


def test_an_item_draws_the_same_whatever_stands_around_it() -> None:
    keys = torch.arange(50)
    everything = keyed_normal(3, keys, (4, 2))
    shuffled = keys[torch.randperm(50, generator=torch.Generator().manual_seed(0))]
    assert torch.equal(keyed_normal(3, shuffled, (4, 2)), everything[shuffled])
    assert torch.equal(keyed_normal(3, keys[7], (4, 2)), everything[7])


def test_seeds_streams_and_keys_give_different_numbers() -> None:
    keys = torch.arange(1000)
    draws = [keyed_uniform(seed, keys, (8,), stream=stream) for seed in (0, 1) for stream in (0, 1)]
    for first in range(4):
        for second in range(first):
            correlation = np.corrcoef(draws[first].flatten(), draws[second].flatten())[0, 1]
            assert abs(correlation) < 0.045  # four standard errors of 8,000 independent pairs
    assert len(set(draws[0].flatten().tolist())) > 7900  # few collisions among 2^23 values


def test_order_of_keys_matters() -> None:
    assert int(combine_keys(1, 2)) != int(combine_keys(2, 1))


def test_uniform_numbers_are_open_and_flat() -> None:
    uniform = keyed_uniform(0, torch.arange(20_000), (10,)).double()
    assert uniform.min() > 0
    assert uniform.max() < 1
    counts = torch.histc(uniform, bins=20, min=0, max=1)
    chi_square = float(((counts - 10_000) ** 2 / 10_000).sum())
    assert chi_square < 43.8  # 0.1% point at 19 degrees of freedom


def test_normal_numbers_have_the_moments_of_a_normal() -> None:
    normal = keyed_normal(1, torch.arange(50_000), (4,)).double()
    count = normal.numel()
    # Three standard errors of mean, variance and fourth moment under N(0, 1).
    assert abs(normal.mean()) < 3 / count**0.5
    assert abs(normal.var() - 1) < 3 * (2 / count) ** 0.5
    assert abs((normal**4).mean() - 3) < 3 * (96 / count) ** 0.5


def test_seeds_may_differ_from_item_to_item() -> None:
    seeds = [3, -1, 2**63 - 1]
    together = keyed_normal(torch.tensor(seeds), torch.arange(3), (4,), stream=2)
    for item, seed in enumerate(seeds):
        # Vectorised and single logarithms may differ in the last bit.
        assert torch.allclose(together[item], keyed_normal(seed, torch.tensor(item), (4,), stream=2), atol=1e-6)


def test_any_integer_is_a_seed() -> None:
    assert int(combine_keys(2**64 + 5)) == int(combine_keys(5))
    assert signed_int64(2**64 - 1) == -1
