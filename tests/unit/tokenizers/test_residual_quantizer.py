"""The residual quantizer: nested codes, shrinking residuals, straight-through gradients, dropout by seed and key."""

import pytest
import torch
from torch import Tensor

from latentlm.nn.keyed_noise import combine_keys
from latentlm.tokenizers.quantizer import QuantizerConfig, VectorQuantizer
from latentlm.tokenizers.residual_quantizer import ResidualQuantizer, ResidualQuantizerConfig

DIM = 4


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_quantizer(num_quantizers: int = 4, *, num_codes: int = 16, dropout_ratio: float = 0.5) -> ResidualQuantizer:
    codebook = QuantizerConfig(num_codes=num_codes, code_dim=DIM, normalize=False, ema_decay=0.5)
    return ResidualQuantizer(
        ResidualQuantizerConfig(num_quantizers=num_quantizers, quantizer=codebook, dropout_ratio=dropout_ratio)
    )


def trained(quantizer: ResidualQuantizer, num_batches: int = 20) -> ResidualQuantizer:
    for number in range(num_batches):
        quantizer(normal(8, 16, DIM, seed=100 + number), seed=number, keys=torch.arange(8))
    return quantizer.eval()


def test_every_codebook_brings_the_sum_closer_on_vectors_that_it_never_saw() -> None:
    quantizer = trained(make_quantizer())
    vectors = normal(8, 64, DIM, seed=1)
    codes = quantizer.encode(vectors)
    errors = [(quantizer.lookup(codes[..., :q]) - vectors).square().mean().item() for q in (1, 2, 3, 4)]
    assert errors[0] < 0.6
    # Sixteen codes for four dimensions: one bit a dimension, which takes a Gaussian to 0.36 of its variance at best.
    assert all(later < 0.75 * earlier for earlier, later in zip(errors, errors[1:], strict=False))


def test_codes_are_those_of_greedy_search() -> None:
    quantizer = trained(make_quantizer(2))
    vectors = normal(2, 5, DIM, seed=1)
    codes = quantizer.encode(vectors)
    residual = vectors
    for stage, codebook in enumerate(quantizer.codebooks):
        nearest = (residual[:, :, None] - codebook.codes).square().sum(-1).argmin(-1)
        assert torch.equal(codes[..., stage], nearest)
        residual = residual - codebook.codes[nearest]
    torch.testing.assert_close(quantizer.lookup(codes), vectors - residual)


def test_the_first_codes_are_the_codes_of_fewer_codebooks() -> None:
    quantizer = trained(make_quantizer())
    vectors = normal(2, 5, DIM, seed=1)
    codes = quantizer.encode(vectors)
    for num_quantizers in (1, 2, 3, 4):
        assert torch.equal(quantizer.encode(vectors, num_quantizers=num_quantizers), codes[..., :num_quantizers])


def test_evaluation_uses_all_codebooks_and_moves_none() -> None:
    quantizer = trained(make_quantizer(dropout_ratio=1.0))
    before = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
    vectors = normal(3, 5, DIM, seed=1)
    result = quantizer(vectors, seed=0, keys=torch.arange(3))
    assert (result.num_used_quantizers == 4).all()
    assert torch.equal(result.codes, quantizer.encode(vectors))
    # Straight through adds and takes away the vector, which rounds in float32.
    torch.testing.assert_close(result.vectors, quantizer.lookup(result.codes), atol=1e-5, rtol=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in quantizer.state_dict().items())


def test_one_codebook_is_the_vector_quantizer() -> None:
    residual, plain = make_quantizer(1), VectorQuantizer(make_quantizer(1).config.quantizer)
    for step in range(3):
        vectors = normal(4, 8, DIM, seed=step)
        one, other = residual(vectors, seed=step, keys=torch.arange(4)), plain(vectors, seed=int(combine_keys(step, 0)))
        assert torch.equal(one.codes[..., 0], other.codes)
        assert torch.equal(one.commitment, other.commitment)
        assert torch.equal(residual.codebooks[0].codes, plain.codes)


def test_gradients_go_straight_through_and_commitment_pulls_towards_the_sum() -> None:
    quantizer = trained(make_quantizer())
    vectors = normal(2, 5, DIM, seed=1).requires_grad_()
    result = quantizer(vectors, seed=0, keys=torch.arange(2))
    weights = normal(2, 5, DIM, seed=2)
    (gradient,) = torch.autograd.grad((result.vectors * weights).sum(), vectors, retain_graph=True)
    assert torch.equal(gradient, weights)
    (gradient,) = torch.autograd.grad(result.commitment.sum(), vectors)
    partial = [quantizer.lookup(result.codes[..., :q]) for q in (1, 2, 3, 4)]
    expected = torch.stack([2 / DIM * (vectors - total) for total in partial]).mean(dim=0)
    torch.testing.assert_close(gradient, expected.detach())


def test_dropout_hangs_on_seed_and_key_alone() -> None:
    keys = torch.arange(200) * 7
    found = {}
    for seed in (3, 4):
        result = make_quantizer()(normal(200, 2, DIM), seed=seed, keys=keys)
        found[seed] = result.num_used_quantizers
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))[:50]
    again = make_quantizer()(normal(50, 3, DIM, seed=9), seed=3, keys=keys[order])
    assert torch.equal(again.num_used_quantizers, found[3][order])
    assert not torch.equal(found[3], found[4])


def test_dropout_takes_its_share_and_every_number_of_codebooks() -> None:
    num_used = make_quantizer()(normal(2000, 1, DIM), seed=0, keys=torch.arange(2000)).num_used_quantizers
    counts = num_used.bincount(minlength=5)[1:] / 2000
    # Half uses all; the other half 1 to 4 alike: 1/8, 1/8, 1/8, 5/8, each known to about 1% in 2000 draws.
    torch.testing.assert_close(counts, torch.tensor([0.125, 0.125, 0.125, 0.625]), atol=0.04, rtol=0)
    for ratio, expected in ((0.0, 1), (1.0, 4)):
        used = make_quantizer(dropout_ratio=ratio)(normal(200, 1, DIM), seed=0, keys=torch.arange(200))
        assert len(used.num_used_quantizers.unique()) == expected


def test_an_example_with_few_codebooks_is_the_sum_of_their_codes_and_commits_to_them_alone() -> None:
    quantizer = make_quantizer(dropout_ratio=1.0)
    trained(quantizer).train()
    for codebook in quantizer.codebooks:  # in training mode for the dropout, but with codes that stay
        codebook.eval()
    vectors = normal(6, 5, DIM, seed=1)
    result = quantizer(vectors, seed=1, keys=torch.arange(6))
    assert len(result.num_used_quantizers.unique()) > 1
    for row, num_used in enumerate(result.num_used_quantizers.tolist()):
        sums = [quantizer.lookup(result.codes[row : row + 1, :, :q])[0] for q in range(1, num_used + 1)]
        torch.testing.assert_close(result.vectors[row], sums[-1], atol=1e-5, rtol=0)  # straight through rounds
        expected = torch.stack([(vectors[row] - total).square().mean(-1) for total in sums]).mean(dim=0)
        torch.testing.assert_close(result.commitment[row], expected)


def test_low_precision_vectors_are_quantized_in_float32() -> None:
    quantizer = trained(make_quantizer())
    vectors = normal(2, 5, DIM, seed=1).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        result = quantizer(vectors, seed=0, keys=torch.arange(2))
        assert result.vectors.dtype == result.commitment.dtype == torch.float32
        assert torch.equal(quantizer.encode(vectors), quantizer.encode(vectors.float()))


def test_use_and_restarts_are_told_per_codebook() -> None:
    quantizer = make_quantizer(3)
    result = quantizer(normal(8, 16, DIM), seed=0, keys=torch.arange(8))
    assert result.used_share.shape == result.restarted_share.shape == quantizer.perplexities().shape == (3,)
    assert (result.restarted_share == 1).all()  # new codebooks are all dead codes
    assert ((quantizer.perplexities() > 1) & (quantizer.perplexities() <= 16)).all()


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="normalize: false"):
        ResidualQuantizerConfig(quantizer=QuantizerConfig(num_codes=16, code_dim=DIM))
    with pytest.raises(ValueError, match="num_quantizers is 0"):
        ResidualQuantizerConfig(num_quantizers=0)
    with pytest.raises(ValueError, match=r"dropout_ratio is 1\.5"):
        ResidualQuantizerConfig(dropout_ratio=1.5)
    quantizer = make_quantizer()
    for num_quantizers in (0, 5):
        with pytest.raises(ValueError, match=f"{num_quantizers} codes per vector"):
            quantizer.encode(normal(1, 2, DIM), num_quantizers=num_quantizers)
