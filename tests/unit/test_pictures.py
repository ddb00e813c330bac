"""Pictures for people: pixel values, grid layout, files."""

import pytest
import torch
from PIL import Image

from latentlm.pictures import picture_grid, save_picture, to_uint8


def test_the_range_minus_one_to_one_fills_the_range_of_a_byte():
    images = torch.tensor([-1.0, 0.0, 1.0, 3.0]).view(1, 1, 2, 2)
    assert to_uint8(images)[0, 0].flatten().tolist() == [0, 128, 255, 255]


def test_pixels_that_are_not_finite_are_magenta():
    images = torch.zeros(1, 3, 1, 2)
    images[0, 1, 0, 0] = torch.nan
    assert to_uint8(images)[0, :, 0, 0].tolist() == [255, 0, 255]
    assert to_uint8(images)[0, :, 0, 1].tolist() == [128, 128, 128]


def test_grid_holds_each_image_at_its_place_between_white_margins():
    images = torch.linspace(-1, 0, 5).view(5, 1, 1, 1).expand(5, 1, 8, 8)
    grid = picture_grid(images, columns=3, margin=2, min_side=16)
    assert grid.shape == (3, 2 + 2 * (16 + 2), 2 + 3 * (16 + 2))
    expected = to_uint8(images)[:, 0, 0, 0]
    for i in range(5):
        top, left = 2 + 18 * (i // 3), 2 + 18 * (i % 3)
        assert (grid[:, top : top + 16, left : left + 16] == expected[i]).all()
    assert (grid[:, 20:, 2 + 2 * 18 :] == 255).all(), "the place without an image stays white"
    assert (grid[:, :2] == 255).all()
    assert (grid[:, :, 18:20] == 255).all()


def test_large_images_are_not_enlarged_and_the_default_sheet_is_about_square():
    assert picture_grid(torch.zeros(7, 3, 80, 70), margin=0).shape == (3, 3 * 80, 3 * 70)


def test_a_tiny_picture_is_enlarged_by_repeating_pixels():
    picture = picture_grid(torch.tensor([-1.0, 1.0]).view(1, 1, 1, 2), margin=0, min_side=3)
    assert picture[0].tolist() == [[0, 0, 0, 255, 255, 255]] * 3


def test_a_saved_picture_reads_back_unchanged(tmp_path):
    picture = torch.randint(256, (3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    save_picture(tmp_path / "picture.png", picture)
    with Image.open(tmp_path / "picture.png") as image:
        assert image.size == (7, 5)
        assert [image.getpixel((x, y)) for y in range(5) for x in range(7)] == [
            tuple(pixel) for pixel in picture.permute(1, 2, 0).reshape(-1, 3).tolist()
        ]


def test_images_with_two_channels_and_empty_grids_are_refused():
    with pytest.raises(ValueError, match="1 or 3 channels"):
        to_uint8(torch.zeros(1, 2, 4, 4))
    with pytest.raises(ValueError, match="at least one image"):
        picture_grid(torch.zeros(0, 1, 4, 4))
