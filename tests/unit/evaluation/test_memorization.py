"""Nearest training images: copies are found, fresh images are not."""

import pytest
import torch

from latentlm.evaluation import memorization
from latentlm.evaluation.memorization import near_threshold, nearest_distances, nearest_train_share


def images(count: int, seed: int) -> torch.Tensor:
    return torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_copies_are_all_near_and_unrelated_images_are_not():
    train = images(700, seed=0)  # more than one chunk
    threshold = near_threshold(train)
    assert nearest_train_share(train[100:650], train, threshold=threshold) == 1.0
    assert nearest_train_share(images(50, seed=1) + 5, train, threshold=threshold) == 0.0


def test_a_slightly_noisy_copy_is_near():
    train = images(300, seed=0)
    noisy = train + 0.01 * images(300, seed=1)
    assert nearest_train_share(noisy, train, threshold=near_threshold(train)) == 1.0


def test_fresh_images_of_the_same_distribution_are_near_about_one_time_in_a_hundred():
    train, fresh = images(1000, seed=0), images(2000, seed=1)
    share = nearest_train_share(fresh, train, threshold=near_threshold(train))
    # Expected 0.01; the threshold rests on 10 training images and the share on 20, so a factor of about 2 is chance.
    assert 0.003 < share < 0.03


def test_leaving_one_out_finds_the_second_nearest_training_image():
    train = torch.tensor([0.0, 1.0, 3.0]).view(3, 1)
    assert nearest_distances(train, train).tolist() == [0.0, 0.0, 0.0]
    assert nearest_distances(train, train, leave_one_out=True).tolist() == [1.0, 1.0, 2.0]


def test_one_training_image_has_no_neighbour():
    with pytest.raises(ValueError, match="more than 1 training images"):
        near_threshold(images(1, seed=0))


def test_preselection_by_blocks_finds_the_same_distances_as_all_pairs(monkeypatch):
    monkeypatch.setattr(memorization, "_CHUNK", 7)
    monkeypatch.setattr(memorization, "_TRAIN_CHUNK", 10)
    train, fresh = images(64, seed=0), images(33, seed=1)
    pairs = (fresh.flatten(1).double()[:, None] - train.flatten(1).double()).norm(dim=2)
    # Both exact in float64.
    torch.testing.assert_close(nearest_distances(fresh, train), pairs.amin(dim=1), atol=1e-12, rtol=0)
    own = (train.flatten(1).double()[:, None] - train.flatten(1).double()).norm(dim=2).fill_diagonal_(torch.inf)
    left_out = nearest_distances(train, train, leave_one_out=True)
    torch.testing.assert_close(left_out, own.amin(dim=1), atol=1e-12, rtol=0)


def test_training_images_at_a_byte_per_pixel_are_the_same_images():
    pixels = torch.randint(256, (50, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    as_floats = pixels.float().div(127.5).sub(1)
    assert torch.equal(nearest_distances(as_floats, pixels), torch.zeros(50).double())
    fresh = images(20, seed=1)
    assert torch.equal(nearest_distances(fresh, pixels), nearest_distances(fresh, as_floats))
