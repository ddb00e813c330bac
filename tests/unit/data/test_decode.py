"""The limits: what is refused, by name and reason, before it costs memory. Hostile files are made here, by hand."""

import gzip
import io
import struct
import tracemalloc
import warnings
import zipfile
import zlib

import numpy as np
import pytest
from numpy.lib import format as npy_format
from PIL import Image

from latentlm.data.decode import (
    IMAGE_FORMATS,
    MAX_RECORD_BYTES,
    decode_image,
    read_file,
    read_idx,
    read_npz_array,
)
from latentlm.data.images import load_image
from latentlm.data.records import BadRecord, DataError


def encoded(image: Image.Image, image_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def noise(height: int = 20, width: int = 30) -> Image.Image:
    generator = np.random.Generator(np.random.PCG64(0))
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def black_png(width: int, height: int) -> bytes:
    """A valid 1-bit PNG of any size: a few kilobytes, whatever it unfolds to."""
    compressor = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    pixels = b"".join(compressor.compress(row) for _ in range(height)) + compressor.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def chunks_of(png: bytes) -> list[tuple[bytes, bytes]]:
    chunks, place = [], 8
    while place + 8 <= len(png):
        length = struct.unpack(">I", png[place : place + 4])[0]
        chunks.append((png[place + 4 : place + 8], png[place + 8 : place + 8 + length]))
        place += 12 + length
    return chunks


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
def test_every_listed_format_is_read(image_format):
    assert decode_image(encoded(noise(), image_format), "good").size == (30, 20)


@pytest.mark.parametrize("image_format", ["TIFF", "PPM", "ICO", "TGA", "PCX"])
def test_a_format_that_is_not_listed_is_refused(image_format):
    with pytest.raises(BadRecord, match=r"not an image .PNG, JPEG"):
        decode_image(encoded(noise(), image_format), "other")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"this is a text file that somebody called cat.png\n" * 10, "not an image"),
        (encoded(noise(200, 200), "JPEG")[:3000], "damaged image"),
        (encoded(noise())[:200], "damaged image"),
        (encoded(noise())[:20], "not an image|damaged image"),
        (b"\x89PNG\r\n\x1a\n", "not an image|damaged image"),
        (bytes(MAX_RECORD_BYTES + 1), "larger than 64 MiB"),
    ],
    ids=["empty", "text", "truncated jpeg", "truncated png", "half a header", "only a signature", "too many bytes"],
)
def test_a_broken_file_is_named_with_its_reason(data, reason):
    with pytest.raises(BadRecord, match=reason) as caught:
        decode_image(data, "folder/cat.png")
    assert caught.value.name == "folder/cat.png"
    assert str(caught.value).startswith("folder/cat.png: ")


# 20000 x 20000 is above Pillow's own limit as well, 9000 x 9000 passes there in silence, 13000 x 13000 with a warning.
@pytest.mark.parametrize("side", [20000, 13000, 9000, 4097])
def test_a_picture_bomb_is_refused_by_its_header_without_spending_memory(side):
    bomb = black_png(side, side)
    assert len(bomb) < 200_000
    tracemalloc.start()  # sees Python's memory; that Pillow decodes nothing is seen by the time limit of the tests
    with pytest.raises(BadRecord, match="max_pixels"):
        decode_image(bomb, "bomb.png")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_the_limit_of_pixels_can_be_raised_and_lowered():
    picture = black_png(300, 200)
    assert decode_image(picture, "x", max_pixels=60_000).size == (300, 200)
    with pytest.raises(BadRecord, match="300 x 200 pixels, above the limit of 59,999"):
        decode_image(picture, "x", max_pixels=59_999)


def test_a_header_that_claims_less_than_the_data_hold_is_not_believed():
    chunks = dict(chunks_of(black_png(64, 64)))
    small = struct.pack(">IIBBBBB", 8, 8, 1, 0, 0, 0, 0)
    forged = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", small) + png_chunk(b"IDAT", chunks[b"IDAT"])
    try:
        image = decode_image(forged + png_chunk(b"IEND", b""), "forged")
    except BadRecord:
        return
    assert image.size == (8, 8)  # no more than the header announced was decoded


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "GIF"])
def test_mutated_files_give_a_picture_or_a_bad_record(image_format):
    """Checksums are repaired in PNGs: plain mutation would never get past them."""
    good = encoded(noise().quantize(256) if image_format == "PNG" else noise(), image_format)
    generator = np.random.Generator(np.random.PCG64(1))
    outcomes = set()
    for _ in range(300):
        mutated = bytearray(good)
        for place in generator.integers(len(good), size=2).tolist():
            mutated[place] = int(generator.integers(256))
        data = bytes(mutated)
        if image_format == "PNG":
            data = data[:8] + b"".join(png_chunk(name, content) for name, content in chunks_of(data))
        try:
            load_image(data, "mutated", image_size=8, num_channels=3, resize="center_crop")
            outcomes.add("read")
        except BadRecord:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_pillows_own_warnings_are_not_shown_for_files_that_are_refused():
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with pytest.raises(BadRecord):
            decode_image(black_png(13000, 13000), "bomb.png")
    assert shown == []


def test_reading_a_file_refuses_what_is_no_plain_file(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(BadRecord, match="empty file"):
        read_file(tmp_path / "empty.png")
    for name in ("folder.png", "dangling.png", "missing.png"):
        with pytest.raises(BadRecord, match="not a regular file"):
            read_file(tmp_path / name)


def write_npz(path, members: dict[str, bytes]) -> zipfile.ZipFile:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return zipfile.ZipFile(path)


def npy(shape: tuple[int, ...], data: bytes, descr: str = "|u1") -> bytes:
    buffer = io.BytesIO()
    npy_format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue() + data


def test_an_array_of_objects_is_refused_without_being_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("executed").touch, ())

    np.savez(tmp_path / "trap.npz", images=np.array([Trap()], dtype=object))
    with (
        zipfile.ZipFile(tmp_path / "trap.npz") as archive,
        pytest.raises(DataError, match="pickled Python objects, which are never loaded"),
    ):
        read_npz_array(archive, "images", "trap.npz")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (npy((1000, 1000), b"few"), r"claims shape \(1000, 1000\)"),
        (npy((2**62, 4), b"few"), "claims shape"),
        (npy((3,), b"ab"), "claims shape|damaged"),
        (b"\x93NUMPY\x01\x00\xff\xff{", "damaged"),
        (b"\x93NUMPY\x09\x00", "damaged"),
        (b"\x93NUMPY\x01\x00\x08\x00((((((((", "damaged"),
        (b"", "damaged"),
    ],
)
def test_a_forged_array_header_is_refused(tmp_path, data, reason):
    with write_npz(tmp_path / "forged.npz", {"images": data}) as archive, pytest.raises(DataError, match=reason):
        read_npz_array(archive, "images", "forged.npz")


def test_an_array_bomb_is_refused_by_its_ratio(tmp_path):
    """100 MiB of zeros deflate to 100 KiB; as many bytes that do not compress so well would be read."""
    size = 100 * 2**20
    with write_npz(tmp_path / "bomb.npz", {"images": npy((size,), bytes(size))}) as archive:
        with pytest.raises(DataError, match="decompression bomb"):
            read_npz_array(archive, "images", "bomb.npz")
        with pytest.raises(DataError, match="no array 'labels'"):
            read_npz_array(archive, "labels", "bomb.npz")


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzipped"])
def test_idx_is_read_and_its_size_must_be_exact(tmp_path, pack):
    path = tmp_path / "train-images-idx3-ubyte"
    header = struct.pack(">HBB3I", 0, 8, 3, 2, 3, 4)
    pixels = bytes(range(24))
    path.write_bytes(pack(header + pixels))
    np.testing.assert_array_equal(read_idx(path), np.arange(24).reshape(2, 3, 4))
    for wrong, reason in (
        (header + pixels[:-1], "more than the file holds|holds less"),
        (header + pixels + b"x", "holds more"),
        (struct.pack(">HBB", 0, 9, 3) + pixels, "not an IDX file of unsigned bytes"),
        (struct.pack(">HBB3I", 0, 8, 3, 2**31, 2**31, 4), "above the limit"),
        (header[:7], "cannot be read as IDX"),
        (b"", "cannot be read as IDX"),
    ):
        path.write_bytes(pack(wrong))
        with pytest.raises(DataError, match=reason):
            read_idx(path)


def test_a_gzipped_idx_that_is_cut_short_is_refused(tmp_path):
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(struct.pack(">HBB3I", 0, 8, 3, 2, 3, 4) + bytes(range(24)))[:-10])
    with pytest.raises(DataError, match="cannot be read as IDX"):
        read_idx(path)
