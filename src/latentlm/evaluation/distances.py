"""How far a set of generated images is from a set of real ones, in the feature space of some network.

All of it in float64 and for features of few dimensions (64 or fewer): from n samples in D dimensions the Fréchet
distance of two equal distributions is not 0 but of the order D²/n, so it says something only beside its floor, the
distance of real test images at the same n.

Shapes: N generated, M real, D feature dimensions.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_CHUNK = 512
"""Rows of a matrix of pairs that are held at once: 5,000 against 5,000 in float64 then take 20 MB instead of 200."""


def frechet_distance(generated: Float[Tensor, "N D"], real: Float[Tensor, "M D"]) -> float:
    """Squared 2-Wasserstein distance of the Gaussians fitted to two sets of features (Heusel et al. 2017).

    Raises:
        ValueError: If a set has fewer than two items or a feature is not finite.
    """
    statistics = []
    for name, features in (("generated", generated), ("real", real)):
        _check(name, features)
        features = features.double()
        statistics += [features.mean(dim=0), features.T.cov()]
    return frechet_distance_of_gaussians(*statistics)


def frechet_distance_of_gaussians(
    mean_a: Float[Tensor, " D"],
    covariance_a: Float[Tensor, "D D"],
    mean_b: Float[Tensor, " D"],
    covariance_b: Float[Tensor, "D D"],
) -> float:
    """|mean_a - mean_b|² + tr(A + B - 2 (A B)^½) of the covariances A and B.

    tr (A B)^½ is taken as tr (A^½ B A^½)^½: that product is symmetric, so eigenvalues of symmetric matrices are all it
    needs, and singular covariances (fewer samples than dimensions, dead features) do no harm.
    """
    eigenvalues, eigenvectors = torch.linalg.eigh(covariance_a.double())
    root_a = (eigenvectors * eigenvalues.clamp_min(0).sqrt()) @ eigenvectors.T
    product = root_a @ covariance_b.double() @ root_a
    # Rounding makes zero eigenvalues slightly negative.
    trace_of_root = torch.linalg.eigvalsh((product + product.T) / 2).clamp_min(0).sqrt().sum()
    distance = (mean_a.double() - mean_b.double()).square().sum()
    distance = distance + covariance_a.trace() + covariance_b.trace() - 2 * trace_of_root
    return max(distance.item(), 0.0)


def kernel_distance(generated: Float[Tensor, "N D"], real: Float[Tensor, "M D"]) -> float:
    """Kernel inception distance: unbiased squared MMD with the kernel (x·y / D + 1)³ (Binkowski et al. 2018).

    Over all pairs, block by block: a few seconds for 5,000 items, and without the random subsets (and their noise)
    that 2048-dimensional Inception features need. Unbiased: its mean is 0 for equal distributions at any N and M, so
    single values can be negative.

    Raises:
        ValueError: If a set has fewer than two items or a feature is not finite.
    """
    _check("generated", generated)
    _check("real", real)
    generated, real = generated.double(), real.double()

    def sum_of_kernel(a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([((rows @ b.T / b.shape[1] + 1) ** 3).sum() for rows in a.split(_CHUNK)]).sum()

    def mean_of_pairs(a: Tensor) -> Tensor:
        of_itself = ((a.square().sum(dim=1) / a.shape[1] + 1) ** 3).sum()
        return (sum_of_kernel(a, a) - of_itself) / (len(a) * (len(a) - 1))  # a pair is two different items

    across = sum_of_kernel(generated, real) / (len(generated) * len(real))
    return (mean_of_pairs(generated) + mean_of_pairs(real) - 2 * across).item()


def precision_and_recall(
    generated: Float[Tensor, "N D"], real: Float[Tensor, "M D"], *, num_neighbors: int = 3
) -> tuple[float, float]:
    """Share of generated items that lie among the real ones, and of real ones among the generated (Kynkäänniemi 2019).

    An item lies among a set if some member of the set is nearer to it than that member's `num_neighbors`-th neighbour
    within the set.

    Raises:
        ValueError: If a set has too few items for its neighbourhoods, or a feature is not finite.
    """

    def share_among(items: Tensor, members: Tensor) -> float:
        if len(members) <= num_neighbors:
            raise ValueError(f"{num_neighbors} neighbours need more than {len(members)} items")
        # Each member is its own nearest item, at distance 0: skip it.
        radii = torch.cat(
            [torch.cdist(rows, members).kthvalue(num_neighbors + 1, dim=1).values for rows in members.split(_CHUNK)]
        )
        inside = [(torch.cdist(rows, members) <= radii).any(dim=1) for rows in items.split(_CHUNK)]
        return torch.cat(inside).double().mean().item()

    _check("generated", generated)
    _check("real", real)
    generated, real = generated.double(), real.double()
    return share_among(generated, real), share_among(real, generated)


def mean_distance_within_classes(features: Float[Tensor, "N D"], labels: Int[Tensor, " N"]) -> float:
    """Mean Euclidean distance between two items of one class, averaged over the classes: intra-class diversity.

    Classes with a single item do not count.

    Raises:
        ValueError: If no class has two items, or a feature is not finite.
    """
    _check("generated", features)
    means = []
    for label in labels.unique():
        members = features[labels == label].double()
        if len(members) > 1:
            total = torch.stack([torch.cdist(rows, members).sum() for rows in members.split(_CHUNK)]).sum()
            means.append(total / (len(members) * (len(members) - 1)))
    if not means:
        raise ValueError("diversity within classes needs a class with at least two items")
    return torch.stack(means).mean().item()


def _check(name: str, features: Tensor) -> None:
    if len(features) < 2:
        raise ValueError(f"a distance needs at least two {name} items, but got {len(features)}")
    if not features.isfinite().all():
        raise ValueError(f"the features of the {name} items are not all finite; did the model diverge?")
