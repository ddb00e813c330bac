"""Our image metrics against outside authorities: SciPy's Gaussian filter and matrix square root, and scikit-learn."""

import numpy as np
import pytest
import torch

from latentlm.evaluation.distances import frechet_distance, kernel_distance, precision_and_recall
from latentlm.evaluation.reconstruction import ssim

ndimage = pytest.importorskip("scipy.ndimage")
linalg = pytest.importorskip("scipy.linalg")
pairwise = pytest.importorskip("sklearn.metrics.pairwise")


def random(*shape: int, seed: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(seed)).random(shape)


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_agrees_with_wang_2004_written_with_scipy(channels):
    """The reference MATLAB code, with SciPy's filter: mean over the windows that lie inside the picture."""
    real = random(4, channels, 24, 20, seed=0)  # in [0, 1], the range 1 of the original
    noisy = np.clip(real + 0.3 * (random(*real.shape, seed=1) - 0.5), 0, 1)

    def blur(image: np.ndarray) -> np.ndarray:
        # Radius 5 is the 11 x 11 window; what the filter invents beyond the border is cut off.
        return ndimage.gaussian_filter(image, sigma=1.5, radius=5)[5:-5, 5:-5]

    values = []
    for x, y in zip(noisy.reshape(-1, 24, 20), real.reshape(-1, 24, 20), strict=True):
        c1, c2 = 0.01**2, 0.03**2
        mu_x, mu_y = blur(x), blur(y)
        var_x, var_y, cov = blur(x * x) - mu_x**2, blur(y * y) - mu_y**2, blur(x * y) - mu_x * mu_y
        values.append(
            ((2 * mu_x * mu_y + c1) * (2 * cov + c2) / ((mu_x**2 + mu_y**2 + c1) * (var_x + var_y + c2))).mean()
        )
    ours = ssim(torch.from_numpy(noisy * 2 - 1), torch.from_numpy(real * 2 - 1))
    # float64 on both sides.
    assert ours == pytest.approx(np.mean(values), abs=1e-10)


def test_frechet_distance_agrees_with_scipys_matrix_square_root():
    """The formula as the usual FID code has it (Heusel et al. 2017)."""
    a, b = random(300, 12, seed=0), random(200, 12, seed=1) ** 2
    covariance_a, covariance_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(covariance_a @ covariance_b).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(covariance_a + covariance_b - 2 * root)
    # Well-conditioned 12 x 12 matrices in float64.
    assert frechet_distance(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(expected, abs=1e-9)


def test_kernel_distance_agrees_with_scikit_learns_kernel():
    a, b = random(60, 12, seed=0), random(50, 12, seed=1)
    kernels = [pairwise.polynomial_kernel(x, y, degree=3, coef0=1) for x, y in ((a, a), (b, b), (a, b))]
    own = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in kernels[:2]]
    expected = sum(own) - 2 * kernels[2].mean()
    # The order of float64 sums.
    assert kernel_distance(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(expected, abs=1e-11)


def test_precision_and_recall_agree_with_scikit_learns_neighbours():
    neighbors = pytest.importorskip("sklearn.neighbors")
    real, generated = random(80, 5, seed=0), random(70, 5, seed=1) * 1.2

    def share(items: np.ndarray, members: np.ndarray) -> float:
        tree = neighbors.NearestNeighbors(n_neighbors=4).fit(members)
        radii = tree.kneighbors(members)[0][:, 3]  # the first neighbour is the member itself
        return float((pairwise.euclidean_distances(items, members) <= radii).any(axis=1).mean())

    expected = (share(generated, real), share(real, generated))
    # Shares of the same members: equal but for the rounding of the division.
    assert precision_and_recall(torch.from_numpy(generated), torch.from_numpy(real)) == pytest.approx(expected)
