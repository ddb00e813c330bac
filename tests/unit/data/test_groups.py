"""Groups of pictures of one class."""

from dataclasses import replace

import torch

from latentlm.data import ImageDataConfig, PictureGroups, loader_factory, open_images

DIGITS = ImageDataConfig(image_size=8, num_channels=1, source="digits")


def test_a_group_begins_with_its_own_picture_and_stays_in_its_class() -> None:
    pictures = open_images(DIGITS, part="train")
    batch = PictureGroups(pictures, 5).take([0, 7, 100])
    assert batch["image"].shape == (3, 5, 1, 8, 8)
    own = pictures.take([0, 7, 100])
    assert own is not None
    assert torch.equal(batch["image"][:, 0], own["image"])
    assert torch.equal(batch["label"], own["label"])
    everything = pictures.take(range(len(pictures)))
    assert everything is not None
    for group, label in zip(batch["image"], batch["label"], strict=True):
        of_class = everything["image"][everything["label"] == label].flatten(1)
        assert all((of_class == picture.flatten()).all(dim=1).any() for picture in group)


def test_companions_differ_between_groups_and_not_between_calls() -> None:
    groups = PictureGroups(open_images(DIGITS, part="train"), 20)
    first, again = groups.take([3, 4]), groups.take([4, 3])
    assert torch.equal(first["image"][0], again["image"][1])
    assert torch.equal(first["key"][0], again["key"][1])
    assert not torch.equal(groups.take([3])["image"][0, 1:], groups.take([13])["image"][0, 1:])
    assert len(first["key"].unique()) == 40, "every place has noise of its own"


def test_batches_are_the_same_with_and_without_workers() -> None:
    groups = PictureGroups(open_images(DIGITS, part="train"), 3)
    alone, helped = (
        next(iter(loader_factory(groups, batch_size=4, seed=1, num_workers=workers)(2))) for workers in (0, 1)
    )
    assert torch.equal(alone["image"], helped["image"])
    assert torch.equal(alone["key"], helped["key"])


def test_every_picture_of_a_group_is_mirrored_by_a_key_of_its_own() -> None:
    pictures = open_images(replace(DIGITS, horizontal_flip=True), part="train")
    groups = PictureGroups(pictures, 4)
    plain, epochs = groups.take(list(range(50))), torch.arange(50) // 25
    batch = groups.augment(plain, seed=0, epochs=epochs)
    assert batch.keys() == plain.keys()
    is_mirrored = (batch["image"] == plain["image"].flip(-1)).flatten(2).all(-1)
    is_kept = (batch["image"] == plain["image"]).flatten(2).all(-1)
    assert (is_mirrored | is_kept).all()
    assert is_mirrored.any(dim=0).all(), "at every place of a group"
    assert is_kept.any(dim=0).all()
    assert abs(is_mirrored.double().mean() - 0.5) < 0.142  # four standard errors of 200
    part = {name: values[:10] for name, values in plain.items()}
    again = groups.augment(part, seed=0, epochs=epochs[:10])
    assert torch.equal(again["image"], batch["image"][:10]), "whatever the batch"
    assert not torch.equal(groups.augment(plain, seed=0, epochs=epochs + 1)["image"], batch["image"])


def test_held_out_groups_are_not_mirrored() -> None:
    groups = PictureGroups(open_images(replace(DIGITS, horizontal_flip=True), part="validation"), 4)
    plain = groups.take([0, 1, 2])
    assert torch.equal(groups.augment(plain, seed=0, epochs=torch.zeros(3, dtype=torch.long))["image"], plain["image"])
