"""Distances between sets of features: closed forms, null distributions, refusals."""

import math

import pytest
import torch

from latentlm.evaluation import distances
from latentlm.evaluation.distances import (
    frechet_distance,
    frechet_distance_of_gaussians,
    kernel_distance,
    mean_distance_within_classes,
    precision_and_recall,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_frechet_distance_of_commuting_gaussians_is_the_closed_form():
    # With shared eigenvectors the distance is |m_a - m_b|² + sum (sqrt a_i - sqrt b_i)².
    rotation = torch.linalg.qr(normal(4, 4)).Q
    variances_a, variances_b = torch.tensor([1.0, 4.0, 9.0, 0.0]).double(), torch.tensor([4.0, 4.0, 1.0, 2.0]).double()
    mean_a, mean_b = normal(4, seed=1), normal(4, seed=2)
    distance = frechet_distance_of_gaussians(
        mean_a, rotation * variances_a @ rotation.T, mean_b, rotation * variances_b @ rotation.T
    )
    expected = (mean_a - mean_b).square().sum() + (variances_a.sqrt() - variances_b.sqrt()).square().sum()
    # The square root of a zero eigenvalue's rounding error (1e-16) is 1e-8; 1e-6 leaves room for a few of them.
    assert distance == pytest.approx(expected.item(), abs=1e-6)


def test_frechet_distance_of_general_gaussians_agrees_with_the_matrix_square_root():
    factors = normal(2, 5, 5)
    a, b = factors @ factors.mT + torch.eye(5).double()
    # Eigenvalues of a product of positive matrices are positive: their roots sum to tr (A B)^½.
    root_trace = torch.linalg.eigvals(a @ b).real.sqrt().sum()
    expected = a.trace() + b.trace() - 2 * root_trace
    zero = torch.zeros(5).double()
    # Well-conditioned float64: 1e-9 is far above rounding and far below any difference of formula.
    assert frechet_distance_of_gaussians(zero, a, zero, b) == pytest.approx(expected.item(), abs=1e-9)


def test_frechet_distance_of_a_set_to_itself_is_zero_even_with_fewer_samples_than_dimensions():
    features = normal(10, 40)
    # 30 eigenvalues are zero up to 1e-15; the sum of the square roots of such errors stays below 1e-5.
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-5)


def test_frechet_distance_sees_a_shift_by_its_square():
    features = normal(500, 3)
    shift = torch.tensor([1.0, -2.0, 0.5]).double()
    assert frechet_distance(features + shift, features) == pytest.approx(shift.square().sum().item(), abs=1e-6)


def test_kernel_distance_is_zero_on_average_for_equal_distributions():
    values = torch.tensor(
        [kernel_distance(normal(40, 6, seed=2 * i), normal(60, 6, seed=2 * i + 1)) for i in range(200)]
    )
    standard_error = values.std() / math.sqrt(len(values))
    # Three standard errors; the biased estimator (diagonal kept) would be off by more than ten.
    assert values.mean().abs() < 3 * standard_error
    assert (values < 0).any(), "an unbiased estimate of zero is sometimes negative"


def test_kernel_distance_grows_with_a_shift():
    real, generated = normal(200, 6, seed=1), normal(200, 6, seed=2)
    near, far = kernel_distance(generated, real), kernel_distance(generated + 1, real)
    assert far > 10 * abs(near)


def test_precision_falls_when_samples_leave_the_data_and_recall_when_they_collapse():
    real = normal(200, 2)
    assert precision_and_recall(real, real) == (1.0, 1.0)
    outside = precision_and_recall(normal(200, 2, seed=1) + 100, real)
    assert outside == (0.0, 0.0)
    precision, recall = precision_and_recall(0.01 * normal(200, 2, seed=1), real)
    assert precision == 1.0
    assert recall < 0.1


def test_neighbourhoods_reach_to_the_kth_other_member():
    real = torch.tensor([0.0, 1.0, 3.0, 7.0]).double().view(4, 1)
    # Radii to the second neighbour: 3, 2, 3, 6. So -3 (by 0) and 12 (by 7) are among the real items, the others not.
    precision, _ = precision_and_recall(
        torch.tensor([-3.0, -3.1, 12.0, 13.1]).double().view(4, 1), real, num_neighbors=2
    )
    assert precision == 0.5


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance, precision_and_recall])
def test_features_that_are_not_finite_or_too_few_are_refused(distance):
    with pytest.raises(ValueError, match="at least two generated"):
        distance(normal(1, 3), normal(10, 3))
    with pytest.raises(ValueError, match="real items are not all finite"):
        distance(normal(10, 3), torch.full((10, 3), torch.nan))


def test_neighbourhoods_larger_than_the_set_are_refused():
    with pytest.raises(ValueError, match="3 neighbours need more than 3"):
        precision_and_recall(normal(10, 2), normal(3, 2))


def test_kernel_distance_and_neighbourhoods_do_not_depend_on_the_blocks(monkeypatch):
    generated, real = normal(50, 4), normal(40, 4, seed=1)
    whole = kernel_distance(generated, real), precision_and_recall(generated, real)
    monkeypatch.setattr(distances, "_CHUNK", 7)
    assert kernel_distance(generated, real) == pytest.approx(whole[0], abs=1e-12)  # the order of float64 sums
    assert precision_and_recall(generated, real) == whole[1]


def test_kernel_distance_is_its_definition():
    generated, real = normal(4, 3), normal(5, 3, seed=1)

    def kernel(a, b) -> float:
        return ((a @ b / 3 + 1) ** 3).item()

    own = [kernel(x, y) for s in (generated, real) for i, x in enumerate(s) for j, y in enumerate(s) if i != j]
    cross = [kernel(x, y) for x in generated for y in real]
    expected = sum(own[:12]) / 12 + sum(own[12:]) / 20 - 2 * sum(cross) / 20
    assert kernel_distance(generated, real) == pytest.approx(expected, abs=1e-12)  # the order of float64 sums


def test_distance_within_classes_is_the_mean_over_pairs_then_over_classes():
    features = torch.tensor([0.0, 2.0, 4.0, 100.0, 101.0, 7.0]).double().view(6, 1)
    labels = torch.tensor([0, 0, 0, 1, 1, 2])  # the single item of class 2 has no pair
    # Class 0: pairs 2, 4, 2; class 1: 1. cdist takes roots of rounding errors: 1e-6.
    assert mean_distance_within_classes(features, labels) == pytest.approx((8 / 3 + 1) / 2, abs=1e-6)
    with pytest.raises(ValueError, match="at least two items"):
        mean_distance_within_classes(features[:3], torch.tensor([0, 1, 2]))
