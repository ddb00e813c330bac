"""The vector quantizer: nearest codes, moving averages, restarts, straight-through gradients, several ranks."""

import math
import multiprocessing
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from latentlm.tokenizers.quantizer import QuantizerConfig, VectorQuantizer, entropy_bits


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_quantizer(**settings) -> VectorQuantizer:
    return VectorQuantizer(QuantizerConfig(**{"num_codes": 8, "code_dim": 3, **settings}))


def with_codes(quantizer: VectorQuantizer, codes: Tensor, cluster_size: float = 1.0) -> VectorQuantizer:
    """The quantizer with these codes, each as if chosen by `cluster_size` vectors of every batch so far."""
    quantizer.codes.copy_(codes)
    quantizer.cluster_size.fill_(cluster_size)
    quantizer.code_sum.copy_(codes * cluster_size)
    return quantizer


def state_of(quantizer: VectorQuantizer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}


def test_the_nearest_code_is_nearest() -> None:
    codes = normal(50, 5, seed=1) * torch.linspace(0.2, 3, 50)[:, None]  # of many lengths: a dot product is not enough
    quantizer = with_codes(make_quantizer(num_codes=50, code_dim=5, normalize=False), codes).eval()
    vectors = normal(4, 70, 5)
    brute_force = (vectors[:, :, None] - codes).square().sum(-1).argmin(-1)
    assert torch.equal(quantizer.nearest(vectors), brute_force)
    result = quantizer(vectors, seed=0)
    assert torch.equal(result.codes, brute_force)
    # Straight through adds and takes away the vector, which rounds in float32.
    torch.testing.assert_close(result.vectors, codes[brute_force], atol=1e-5, rtol=0)
    torch.testing.assert_close(result.commitment, (vectors - codes[brute_force]).square().mean(-1))


def test_with_normalization_the_nearest_code_has_the_largest_cosine() -> None:
    quantizer = make_quantizer(num_codes=50, code_dim=5)
    codes = quantizer.points(normal(50, 5, seed=1))
    with_codes(quantizer, codes).eval()
    vectors = normal(200, 5) * torch.linspace(0.1, 30, 200)[:, None]
    cosines = torch.nn.functional.cosine_similarity(vectors[:, None], codes, dim=-1)
    result = quantizer(vectors, seed=0)
    assert torch.equal(result.codes, cosines.argmax(-1))
    # On a sphere of radius sqrt(D) the squared distance is 2 D (1 - cosine).
    torch.testing.assert_close(result.commitment, 2 * (1 - cosines.amax(-1)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(result.vectors.square().mean(-1), torch.ones(200))


def test_large_batches_are_looked_up_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for rows_at_a_time in (1000, 7):
        monkeypatch.setattr("latentlm.tokenizers.quantizer._ROWS_AT_A_TIME", rows_at_a_time)
        quantizer = make_quantizer()
        codes = torch.stack([quantizer(normal(100, 3, seed=seed), seed=seed).codes for seed in range(3)])
        found.append((codes, quantizer.codes))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])  # float32 sums in another order


@pytest.mark.parametrize("normalize", [False, True])
def test_two_batches_move_the_averages_as_the_closed_form_says(normalize: bool) -> None:
    decay, start = 0.7, normal(8, 3, seed=9)
    quantizer = make_quantizer(normalize=normalize, ema_decay=decay, restart_below=0.0)
    start = quantizer.points(start)
    with_codes(quantizer, start, cluster_size=2.0)
    sizes, sums, codes = torch.full((8,), 2.0), 2.0 * start, start
    for seed in (1, 2):
        vectors = normal(40, 3, seed=seed)
        points = quantizer.points(vectors)
        chosen = (points[:, None] - codes).square().sum(-1).argmin(-1)
        quantizer(vectors, seed=seed)
        for code in range(8):
            members = points[chosen == code]
            sizes[code] = decay * sizes[code] + (1 - decay) * len(members)
            sums[code] = decay * sums[code] + (1 - decay) * members.sum(0)
        codes = quantizer.points(sums / sizes[:, None])
        torch.testing.assert_close(quantizer.cluster_size, sizes)
        torch.testing.assert_close(quantizer.code_sum, sums)
        # Laplace smoothing with 1e-5 moves a code of size 1 by about that share.
        torch.testing.assert_close(quantizer.codes, codes, atol=1e-4, rtol=1e-4)


def test_gradients_pass_straight_through() -> None:
    quantizer = make_quantizer(normalize=False)
    vectors, upstream = normal(2, 30, 3).requires_grad_(), normal(2, 30, 3, seed=5)
    quantizer(vectors, seed=0).vectors.backward(upstream)
    assert torch.equal(vectors.grad, upstream)  # pyright: ignore[reportArgumentType]


def test_with_normalization_gradients_are_those_of_the_normalised_vector() -> None:
    quantizer = make_quantizer()
    upstream = normal(30, 3, seed=5)
    gradients = []
    for quantize in (True, False):
        vectors = normal(30, 3).requires_grad_()
        (quantizer(vectors, seed=0).vectors if quantize else quantizer.points(vectors)).backward(upstream)
        gradients.append(vectors.grad)
    assert torch.equal(*gradients)


def test_commitment_pulls_the_vector_towards_its_code() -> None:
    quantizer = with_codes(make_quantizer(normalize=False), normal(8, 3, seed=1)).eval()
    vectors = normal(30, 3).requires_grad_()
    result = quantizer(vectors, seed=0)
    result.commitment.sum().backward()
    expected = 2 * (vectors - quantizer.codes[result.codes]) / 3
    torch.testing.assert_close(vectors.grad, expected)


def test_a_new_codebook_is_filled_with_different_vectors_of_the_first_batches() -> None:
    quantizer = make_quantizer(num_codes=50, normalize=False, ema_decay=0.9)
    batches = [normal(30, 3, seed=seed) for seed in (1, 2)]
    first = quantizer(batches[0], seed=1)
    assert first.restarted_share.item() == pytest.approx(30 / 50)
    assert first.commitment.max().item() == 0  # every vector became a code of its own
    second = quantizer(batches[1], seed=2)
    assert second.restarted_share.item() == pytest.approx(20 / 50)
    exact = (batches[1][:, None] == quantizer.codes).all(-1).any(-1)
    assert exact.sum() <= 20  # the other ten found another code, which then moved
    assert (quantizer.cluster_size > 0).all()


def test_dead_codes_move_onto_vectors_of_the_batch_and_the_same_seed_chooses_the_same_ones() -> None:
    codes = torch.cat([normal(5, 3, seed=1), torch.full((3, 3), 100.0)])
    vectors = normal(200, 3)
    results = []
    for seed in (4, 4, 5):
        quantizer = with_codes(make_quantizer(normalize=False, ema_decay=0.5, restart_below=0.2), codes)
        steps_alive = 0
        while quantizer(vectors, seed=seed).restarted_share == 0:
            assert (quantizer.codes[5:] - 100).abs().max() < 0.1  # nobody chose them: they stay where they were
            steps_alive += 1
        results.append(quantizer.codes[5:].clone())
        assert steps_alive > 0
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_a_restarted_code_is_a_vector_of_the_batch() -> None:
    quantizer = with_codes(make_quantizer(normalize=False, ema_decay=0.0), torch.zeros(8, 3), cluster_size=0.0)
    quantizer.cluster_size[0] = 8.0
    vectors = normal(20, 3)
    result = quantizer(vectors, seed=0)
    assert result.restarted_share.item() == 7 / 8
    assert (result.commitment == 0).sum() >= 7


def test_vectors_that_are_not_finite_leave_no_trace() -> None:
    quantizer = make_quantizer()
    for seed in range(3):
        quantizer(normal(20, 3, seed=seed), seed=seed)
    before = state_of(quantizer)
    vectors = normal(20, 3)
    vectors[3, 1] = torch.nan
    quantizer(vectors, seed=3)
    for name, tensor in quantizer.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_well_separated_clusters_are_learned_with_all_codes_used() -> None:
    num_clusters, noise = 12, 0.01
    centres = 3 * normal(num_clusters, 4, seed=3)
    # Two codes in one cluster have half a share each: a local minimum of k-means, which restarts below 0.7 break up.
    quantizer = make_quantizer(num_codes=num_clusters, code_dim=4, normalize=False, ema_decay=0.8, restart_below=0.7)
    for seed in range(150):
        generator = torch.Generator().manual_seed(100 + seed)
        members = torch.randint(num_clusters, (256,), generator=generator)
        vectors = centres[members] + noise * torch.randn(256, 4, generator=generator)
        result = quantizer(vectors, seed=seed)
    assert result.used_share.item() == 1
    # Within a cluster the mean square is noise² = 1e-4; a centre without a code would cost its squared distance, > 1.
    assert result.commitment.mean().item() < 2 * noise**2
    assert quantizer.perplexity().item() == pytest.approx(num_clusters, rel=0.1)  # shares wander by sampling
    assert (torch.cdist(centres, quantizer.codes).amin(1) < noise).all()


def test_the_codebook_moves_in_training_mode_alone() -> None:
    quantizer = make_quantizer()
    quantizer(normal(100, 3), seed=0)
    before = state_of(quantizer)
    quantizer.eval()(normal(100, 3, seed=1), seed=1)
    quantizer.train().nearest(normal(100, 3, seed=1))
    assert all(torch.equal(tensor, before[name]) for name, tensor in quantizer.state_dict().items())
    quantizer(normal(100, 3, seed=1), seed=1)
    assert not torch.equal(quantizer.codes, before["codes"])


def test_everything_is_float32_under_autocast() -> None:
    exact, rounded = make_quantizer(), make_quantizer()
    for seed in range(3):
        vectors = normal(100, 3, seed=seed).bfloat16()
        expected = exact(vectors.float(), seed=seed)
        with torch.autocast("cpu", torch.bfloat16):
            result = rounded(vectors, seed=seed)
        assert result.vectors.dtype == result.commitment.dtype == torch.float32
        assert torch.equal(result.codes, expected.codes)
    assert torch.equal(exact.codes, rounded.codes)


def test_numbers_beyond_the_codebook_are_refused() -> None:
    quantizer = make_quantizer()
    for wrong in (-1, 8):
        with pytest.raises(ValueError, match=r"holds 0 to 7"):
            quantizer.lookup(torch.tensor([[0, wrong]]))
    assert quantizer.lookup(torch.zeros(2, 0, dtype=torch.int64)).shape == (2, 0, 3)


def test_entropy_counts_bits() -> None:
    assert entropy_bits(torch.tensor([5.0, 5.0, 5.0, 5.0, 0.0])).item() == pytest.approx(2)
    assert entropy_bits(torch.tensor([3.0, 0.0])).item() == 0
    assert entropy_bits(torch.zeros(4)).item() == 0
    assert entropy_bits(torch.tensor([1.0, 3.0])).item() == pytest.approx(0.25 * 2 + 0.75 * math.log2(4 / 3))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"num_codes": 0}, "at least 1"),
        ({"code_dim": 1}, "only two codes"),
        ({"ema_decay": 1.0}, r"ema_decay is 1.0"),
        ({"restart_below": -0.1}, "restart_below"),
    ],
)
def test_nonsense_settings_are_refused(bad: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuantizerConfig(**bad)


# Two ranks: the same three batches, each rank seeing every second vector.


def _quantize_batches(quantizer: VectorQuantizer, part: slice) -> dict[str, Tensor]:
    for seed in range(3):
        quantizer(normal(64, 3, seed=seed)[part], seed=seed)
    return quantizer.state_dict()


def _settled() -> VectorQuantizer:
    """Nothing dies here: restarts take vectors of rank 0 alone, so that a run on one rank would differ."""
    quantizer = make_quantizer(ema_decay=0.5, restart_below=0.0)
    return with_codes(quantizer, quantizer.points(normal(8, 3, seed=9)))


def _run_as_rank(root: Path, rank: int) -> None:
    import torch.distributed as dist

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{root / 'store'}", rank=rank, world_size=2)
    part = slice(rank, None, 2)
    quantizers = {"settled": _settled(), "new": make_quantizer()}
    states = {case: _quantize_batches(quantizer, part) for case, quantizer in quantizers.items()}
    torch.save(states, root / f"rank_{rank}.pt")
    if rank == 0:  # evaluations run on one rank alone: it must not wait for the other, which is about to leave
        quantizers["new"].eval()(normal(8, 3), seed=0)
    dist.destroy_process_group()


def test_ranks_share_one_codebook_which_follows_the_vectors_of_all(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_run_as_rank, args=(tmp_path, rank)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    first, second = (torch.load(tmp_path / f"rank_{rank}.pt", weights_only=True) for rank in (0, 1))
    for case in ("settled", "new"):
        for name, tensor in first[case].items():
            assert torch.equal(tensor, second[case][name]), (case, name)
    alone = _quantize_batches(_settled(), slice(None))
    for name, tensor in first["settled"].items():
        torch.testing.assert_close(tensor, alone[name])  # float32 sums in another order
