import torch

from latentlm.nn.adaln import AdaLNModulation, modulate
from latentlm.nn.norm import RMSNorm
from latentlm.nn.rope import apply_rotary, rotary_frequencies, rotary_tables
from latentlm.nn.timestep_embedding import TimestepEmbedding, sinusoid


def test_rms_norm_gives_unit_mean_square() -> None:
    x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0)) * 7
    assert torch.allclose(RMSNorm(16)(x).square().mean(-1), torch.ones(3, 5), atol=1e-5)  # eps 1e-6 in the root


def test_a_norm_without_weights_equals_one_with_ones() -> None:
    x = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(RMSNorm(16)(x), RMSNorm(16, elementwise_affine=False)(x))


def test_rms_norm_of_large_half_precision_values_does_not_overflow() -> None:
    x = torch.full((1, 16), 300.0, dtype=torch.float16)  # 300² does not fit float16
    assert torch.allclose(RMSNorm(16)(x).float(), torch.ones(1, 16), atol=1e-3)  # float16 rounding


def test_rotation_keeps_lengths_and_depends_on_distance_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 8, generator=generator)
    frequencies = rotary_frequencies(8)

    def score(i: int, j: int) -> torch.Tensor:
        rotated = [
            apply_rotary(x, *rotary_tables(torch.tensor([[position]]), frequencies)) for x, position in ((q, i), (k, j))
        ]
        assert torch.allclose(rotated[0].norm(), q.norm(), rtol=1e-5)
        return (rotated[0] * rotated[1]).sum()

    assert torch.allclose(score(3, 1), score(12, 10), atol=1e-5)  # float32 sines of angles up to 12
    assert not torch.allclose(score(3, 1), score(3, 2), atol=1e-3)


def test_inclusive_exponents_reach_one() -> None:
    assert torch.allclose(rotary_frequencies(8, inclusive=True)[-1], torch.tensor(1e-4))
    assert torch.allclose(rotary_frequencies(8)[-1], torch.tensor(1e-3))


def test_timesteps_keep_their_low_bits_in_bfloat16_models() -> None:
    embedding = TimestepEmbedding(32).to(torch.bfloat16)
    near = embedding(torch.tensor([998, 999]))
    assert near.dtype == torch.bfloat16
    assert not torch.equal(near[0], near[1])  # as bfloat16 numbers 998 and 999 are the same


def test_sinusoid_starts_with_cosines() -> None:
    assert torch.equal(sinusoid(torch.tensor([0.0]), 6), torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0, 0.0]]))


def test_modulation_is_the_identity_at_initialisation() -> None:
    shift, scale, gate = AdaLNModulation(8, 3)(torch.ones(2, 8))
    x = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(modulate(x, shift, scale), x)
    assert not gate.any()
