"""Pictures to tensors: colours, orientation, sizes, ranges, flips."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from latentlm.data.images import (
    fit,
    fitted_size,
    flip_keyed,
    image_shape,
    load_image,
    load_image_of_any_shape,
    to_unit_range,
)
from latentlm.data.records import BadRecord


def png(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def load(image: bytes | np.ndarray, *, size: int = 4, channels: int = 3, resize="center_crop") -> np.ndarray:
    return load_image(image, "picture", image_size=size, num_channels=channels, resize=resize)


def one_colour(colour, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (4, 4), colour)


@pytest.mark.parametrize(
    ("image", "options", "rgb"),
    [
        (one_colour((10, 20, 30)), {}, (10, 20, 30)),
        (one_colour((10, 20, 30, 0), "RGBA"), {}, (255, 255, 255)),
        (one_colour((0, 0, 0, 128), "RGBA"), {}, (127, 127, 127)),
        (one_colour((40, 0), "LA"), {}, (255, 255, 255)),
        (one_colour(40, "L"), {}, (40, 40, 40)),
        (one_colour(1, "1"), {}, (255, 255, 255)),
        (one_colour((10, 20, 30)), {"transparency": (10, 20, 30)}, (255, 255, 255)),
        (one_colour((200, 100, 0)).convert("P", palette=Image.Palette.ADAPTIVE), {}, (200, 100, 0)),
        (one_colour((200, 100, 0)).convert("P", palette=Image.Palette.ADAPTIVE), {"transparency": 0}, (255, 255, 255)),
    ],
    ids=["rgb", "clear", "half black", "grey clear", "grey", "bit", "colour key", "palette", "clear palette"],
)
def test_any_colour_mode_becomes_rgb_over_white(image, options, rgb):
    assert (load(png(image, **options)) == rgb).all()


def test_sixteen_bit_grey_keeps_its_high_byte():
    wide = np.full((4, 4), 0x80FF, dtype=np.uint16)
    assert (load(png(Image.fromarray(wide)), channels=1) == 0x80).all()


def test_cmyk_jpeg_becomes_rgb():
    buffer = io.BytesIO()
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(buffer, "JPEG", quality=95)
    pixels = load(buffer.getvalue(), size=8).astype(int)
    assert (np.abs(pixels - (255, 0, 0)) <= 4).all()  # JPEG at quality 95 moves flat colours by a level or two


def test_rgb_becomes_grey_by_luma():
    # ITU-R 601 luma, Pillow's documented rule: 0.299 R + 0.587 G + 0.114 B = 149.685.
    assert (load(png(one_colour((255, 100, 130))), channels=1) == 150).all()


def test_exif_orientation_is_applied():
    image = Image.new("L", (4, 2))
    image.putpixel((0, 0), 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to view
    upright = load(png(image, exif=exif), size=4, channels=1, resize="stretch")
    assert upright[0].argmax() == 3
    assert upright[0, 3] == upright.max()


def test_an_animation_gives_its_first_frame():
    buffer = io.BytesIO()
    frames = [one_colour((0, 0, 0)), one_colour((255, 255, 255))]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert (load(buffer.getvalue()) == 0).all()


def test_a_one_pixel_picture_is_accepted_and_resized():
    assert (load(png(Image.new("RGB", (1, 1), (1, 2, 3))), size=16) == (1, 2, 3)).all()


def test_center_crop_takes_the_middle_and_stretch_takes_all():
    stripes = np.zeros((6, 18), dtype=np.uint8)
    stripes[:, 6:12] = 200
    assert (load(stripes, size=6, channels=1) == 200).all()
    stretched = load(stripes, size=6, channels=1, resize="stretch")
    assert stretched[:, 0].max() < 20
    assert stretched[:, 2].min() > 180


def test_shrinking_averages_instead_of_picking_pixels():
    checkerboard = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    shrunk = load(checkerboard, size=8, channels=1).astype(int)
    assert np.abs(shrunk - 127.5).max() < 3  # rounding of two passes; picking pixels would give 0 and 255


def test_a_very_thin_picture_costs_no_more_than_its_square():
    """1 x 60000 scaled to height 64 and only then cropped would be 64 x 3,840,000."""
    thin = np.arange(60000, dtype=np.uint8).reshape(1, -1)
    assert load(thin, size=64, channels=1).shape == (64, 64, 1)


@settings(deadline=None, max_examples=40)
@given(
    width=st.integers(1, 50),
    height=st.integers(1, 50),
    size=st.integers(1, 40),
    resize=st.sampled_from(["center_crop", "stretch"]),
)
def test_any_shape_fits_any_size_and_a_flat_picture_stays_flat(width, height, size, resize):
    fitted = fit(Image.new("L", (width, height), 77), size, resize)
    assert fitted.size == (size, size)
    assert set(np.asarray(fitted).reshape(-1).tolist()) == {77}


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 1), (4, 4, 3), (4, 4, 4)])
def test_arrays_of_one_three_or_four_channels_are_pictures(shape):
    assert load(np.full(shape, 255, dtype=np.uint8)).shape == (4, 4, 3)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((4, 4), dtype=np.float32), "type float32, expected uint8"),
        (np.zeros((4,), dtype=np.uint8), "shape"),
        (np.zeros((4, 4, 2), dtype=np.uint8), "shape"),
        (np.zeros((0, 4), dtype=np.uint8), "shape"),
    ],
)
def test_other_arrays_are_bad_records(array, reason):
    with pytest.raises(BadRecord, match=reason):
        load(array)


def test_pixels_reach_both_ends_of_the_unit_range():
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 3, 1)
    expected = torch.tensor([-1.0, -0.6, 1.0]).reshape(1, 1, 3)
    torch.testing.assert_close(to_unit_range(pixels), expected, rtol=0, atol=1e-7)  # float32 rounding of 0.4 - 1


def test_flips_depend_on_seed_epoch_and_key_but_not_on_the_batch():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(200, 1, 2, 3, generator=generator)
    keys, epochs = torch.arange(200), torch.zeros(200, dtype=torch.int64)
    flipped = flip_keyed(images, seed=1, epochs=epochs, keys=keys)
    chosen = (flipped != images).flatten(1).any(1)
    assert (flipped[chosen] == images[chosen].flip(-1)).all()
    assert 70 <= int(chosen.sum()) <= 130  # half of 200; 4 standard deviations are 28
    backwards = flip_keyed(images.flip(0), seed=1, epochs=epochs, keys=keys.flip(0)).flip(0)
    torch.testing.assert_close(backwards, flipped, rtol=0, atol=0)
    assert (flip_keyed(images, seed=2, epochs=epochs, keys=keys) != flipped).any()
    assert (flip_keyed(images, seed=1, epochs=epochs + 1, keys=keys) != flipped).any()


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 16), st.integers(1, 12))
def test_a_picture_of_any_shape_gets_sides_of_patches(width: int, height: int, multiple: int, sides: int) -> None:
    max_side = multiple * sides
    new = fitted_size(width, height, max_side=max_side, multiple=multiple)
    assert all(multiple <= side <= max_side and side % multiple == 0 for side in new)
    scale = min(1.0, max_side / max(width, height))
    for side, old in zip(new, (width, height), strict=True):
        # Half a patch of rounding, or all that a picture smaller than a patch lacks.
        assert abs(side - old * scale) <= max(multiple / 2, multiple - old * scale) + 1e-6


def test_a_picture_that_fits_keeps_its_pixels_and_a_lying_one_is_turned() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    kept = load_image_of_any_shape(pixels, "x", max_side=16, multiple=4, num_channels=3)
    assert np.array_equal(kept, pixels)
    exif = Image.Exif()
    exif[274] = 6  # to be turned by a quarter
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", exif=exif)
    assert image_shape(buffer.getvalue(), "x") == (8, 12)
    assert load_image_of_any_shape(buffer.getvalue(), "x", max_side=16, multiple=4, num_channels=1).shape == (12, 8, 1)
    assert image_shape(pixels, "x") == (12, 8)


def test_the_shape_of_what_is_no_picture_is_a_bad_record() -> None:
    for data, reason in ((b"", "empty file"), (b"GIF89a", "damaged|not an image"), (b"no picture", "not an image")):
        with pytest.raises(BadRecord, match=reason):
            image_shape(data, "x")
    large = io.BytesIO()
    Image.new("1", (300, 200)).save(large, "PNG")
    with pytest.raises(BadRecord, match="above the limit of 100"):
        image_shape(large.getvalue(), "x", max_pixels=100)
