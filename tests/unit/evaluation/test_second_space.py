"""The second space: needs no labels, is reproducible, and sees what samples get wrong."""

import pytest
import torch
from torch.nn import functional as F

from latentlm.evaluation.distances import frechet_distance
from latentlm.evaluation.second_space import RandomFeatures, SecondSpaceConfig

CONFIG = SecondSpaceConfig(num_features=8, width=8)


def blobs(count: int, seed: int) -> torch.Tensor:
    """A bright disc of random place and size on a dark 12 x 12 picture, like a very simple data set."""
    generator = torch.Generator().manual_seed(seed)
    place = torch.rand(2, count, 1, 1, generator=generator) * 6 + 3
    radius = torch.rand(count, 1, 1, generator=generator) * 2 + 1.5
    axis = torch.arange(12.0)
    distance = ((axis[:, None] - place[0]) ** 2 + (axis - place[1]) ** 2).sqrt()
    return ((radius - distance).clamp(-1, 1))[:, None]


@pytest.fixture(scope="module")
def space() -> RandomFeatures:
    space = RandomFeatures(CONFIG, num_channels=1)
    space.fit(blobs(600, seed=0))
    return space


def test_features_have_mean_zero_and_variance_one_where_the_space_was_fitted(space):
    features = space.features(blobs(600, seed=0))
    # Single precision over 600 images; the components of a randomised PCA are orthogonal to about 1e-4.
    torch.testing.assert_close(features.mean(dim=0), torch.zeros(8).double(), atol=1e-3, rtol=0)
    torch.testing.assert_close(features.T.cov(), torch.eye(8).double(), atol=1e-2, rtol=0)


def test_the_same_images_give_the_same_space_whatever_was_drawn_before(space):
    state = torch.random.get_rng_state()
    second = RandomFeatures(CONFIG, num_channels=1)
    second.fit(blobs(600, seed=0))
    assert torch.equal(torch.random.get_rng_state(), state), "the caller's generator was moved"
    images = blobs(20, seed=1)
    assert torch.equal(second.features(images), space.features(images))


@pytest.mark.parametrize("kind", ["noise", "blur", "copies", "missing"])
def test_the_distance_grows_with_the_damage(space, kind):
    real, images = space.features(blobs(1000, seed=1)), blobs(1000, seed=2)
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(images.shape, generator=generator)
    blurred = F.avg_pool2d(images, 3, stride=1, padding=1)
    by_size = images[images.flatten(1).sum(dim=1).argsort()]
    damaged = {
        "noise": [images + 0.3 * noise, images + 0.6 * noise],
        "blur": [0.5 * images + 0.5 * blurred, blurred],
        "copies": [images[torch.arange(1000) % 50], images[torch.arange(1000) % 10]],
        "missing": [by_size[200:], by_size[500:]],
    }[kind]
    floor, some, much = (frechet_distance(space.features(x), real) for x in [images, *damaged])
    # Two draws of one distribution differ by chance; damage must stand out from that.
    assert 2 * floor < some < much


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match="8 principal components need more than 8 images"):
        RandomFeatures(CONFIG, num_channels=1).fit(blobs(8, seed=0))
