"""Decoders of untrusted files, and every limit they work under.

Nothing here executes what a file says: no pickles, formats by an explicit list, sizes read from the header and refused
*before* memory is spent. A library's own guard is not enough: Pillow lets a 230 KiB PNG grow to 600 MiB unasked.
"""

import gzip
import io
import math
import struct
import tokenize
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.lib import format as npy_format
from PIL import ExifTags, Image, ImageOps

from latentlm.data.records import BadRecord, DataError

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
"""The only image decoders that are ever tried (of GIF and WebP animations, the first frame)."""
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")

MAX_IMAGE_PIXELS = 4096 * 4096
"""About 16 megapixels: 64 MiB as RGBA. The default of `ImageDataConfig.max_pixels`."""
MAX_RECORD_BYTES = 64 * 2**20
"""Of one encoded image, caption or label."""
MAX_ARRAY_BYTES = 16 * 2**30
"""Of one array of a NPZ or IDX file, decompressed."""
MAX_COMPRESSION_RATIO = 200
"""Pixels compress 2 to 20 times; deflate can reach 1000 on nothing but zeros, which is what a bomb is made of."""
_RATIO_MATTERS_ABOVE_BYTES = 64 * 2**20  # small arrays may well be all zero

_FIRST_LYING_ORIENTATION = 5
"""EXIF orientations 5 to 8 are turned by a quarter."""

DECODER_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, AttributeError, ArithmeticError),
    *(RuntimeError, MemoryError, struct.error, zlib.error, zipfile.BadZipFile, tokenize.TokenError),
)
"""What Pillow's plugins, zipfile and NumPy's header parser raise on damaged input."""


def read_file(path: Path) -> bytes:
    """The bytes of one small file.

    Raises:
        BadRecord: If it is missing, not a regular file, empty, or larger than `MAX_RECORD_BYTES`.
    """
    try:
        if not path.is_file():
            raise BadRecord(str(path), "not a regular file")
        with path.open("rb") as file:
            data = file.read(MAX_RECORD_BYTES + 1)  # counted while reading: a size asked beforehand may be stale
    except OSError as error:
        raise BadRecord(str(path), f"cannot be read ({error.strerror})") from error
    return check_record_bytes(data, str(path))


def check_record_bytes(data: bytes, name: str) -> bytes:
    """`data` itself, if there is any and not too much.

    Raises:
        BadRecord: If it is empty or larger than `MAX_RECORD_BYTES`.
    """
    if not data:
        raise BadRecord(name, "empty file")
    if len(data) > MAX_RECORD_BYTES:
        raise BadRecord(name, f"larger than {MAX_RECORD_BYTES // 2**20} MiB")
    return data


def decode_image(data: bytes, name: str, *, max_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """Open one image, check its size, decode it, and turn it upright (cameras store portraits lying down).

    Args:
        data: An encoded file of one of `IMAGE_FORMATS`; what it is called does not matter.
        name: For the error message.
        max_pixels: Width times height that is still decoded.

    Raises:
        BadRecord: If it is empty, of another format, damaged, or too large.
    """
    check_record_bytes(data, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's (odd EXIF data, large image) name no file and stop nothing
            image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)  # reads the header only
            width, height = image.size
            if width * height > max_pixels:
                raise BadRecord(name, f"{width} x {height} pixels, above the limit of {max_pixels:,} (max_pixels)")
            image.load()
            image = ImageOps.exif_transpose(image)
    except BadRecord:
        raise
    except Image.UnidentifiedImageError as error:
        raise BadRecord(name, f"not an image ({', '.join(IMAGE_FORMATS)} are read)") from error
    except Image.DecompressionBombError as error:  # Pillow's own limit, about 179 megapixels, stands above ours
        raise BadRecord(name, f"above the limit of {max_pixels:,} pixels (max_pixels): {error}") from error
    except DECODER_ERRORS as error:
        raise BadRecord(name, f"damaged image ({error})") from error
    return image


def image_dimensions(data: bytes, name: str, *, max_pixels: int = MAX_IMAGE_PIXELS) -> tuple[int, int]:
    """Width and height of an encoded image, upright, from its header alone; errors as in `decode_image`."""
    check_record_bytes(data, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
            width, height = image.size
            lies = image.getexif().get(ExifTags.Base.Orientation, 1) >= _FIRST_LYING_ORIENTATION
    except Image.UnidentifiedImageError as error:
        raise BadRecord(name, f"not an image ({', '.join(IMAGE_FORMATS)} are read)") from error
    except (Image.DecompressionBombError, *DECODER_ERRORS) as error:
        raise BadRecord(name, f"damaged image ({error})") from error
    if width * height > max_pixels:
        raise BadRecord(name, f"{width} x {height} pixels, above the limit of {max_pixels:,} (max_pixels)")
    return (height, width) if lies else (width, height)


def read_npz_array(archive: zipfile.ZipFile, member: str, where: str) -> np.ndarray:
    """One array of a NPZ file, checked by its header before it is read. Pickled (object) arrays are refused.

    Raises:
        DataError: If the array is missing, damaged, pickled or too large.
    """
    try:
        if f"{member}.npy" not in archive.namelist():
            raise DataError(f"{where}: holds no array {member!r}")
        info = archive.getinfo(f"{member}.npy")
        _check_expansion(info.file_size, info.compress_size, f"{where}: array {member!r}")
        shape, dtype = _npy_header(archive, info)
        if dtype.hasobject:
            raise DataError(f"{where}: array {member!r} holds pickled Python objects, which are never loaded")
        if math.prod(shape) * dtype.itemsize > info.file_size:
            raise DataError(f"{where}: array {member!r} claims shape {shape}, more than the file holds")
        with archive.open(info) as stream:
            return npy_format.read_array(stream, allow_pickle=False)
    except DataError:
        raise
    except DECODER_ERRORS as error:
        raise DataError(f"{where}: array {member!r} is damaged ({error})") from error


def _npy_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[tuple[int, ...], np.dtype]:
    readers = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}
    with archive.open(member) as stream:
        version = npy_format.read_magic(stream)
        if version not in readers:
            raise ValueError(f"array format version {version}")
        shape, _, dtype = readers[version](stream)
    return shape, dtype


def _check_expansion(size: int, compressed_size: int, what: str) -> None:
    if size > MAX_ARRAY_BYTES:
        raise DataError(f"{what} takes {size:,} bytes, above the limit of {MAX_ARRAY_BYTES:,}")
    if size > max(_RATIO_MATTERS_ABOVE_BYTES, MAX_COMPRESSION_RATIO * compressed_size):
        raise DataError(f"{what} expands from {compressed_size:,} to {size:,} bytes: refused as a decompression bomb")


def read_idx(path: Path) -> np.ndarray:
    """A uint8 array in the IDX format of MNIST, plain or gzipped (by content, not by name).

    The format: two zero bytes, a type code (8 is uint8), the number of dimensions, each dimension as a big-endian
    32-bit integer, then the data (Y. LeCun's MNIST page).

    Raises:
        DataError: If it is not such a file, is damaged, or is too large.
    """
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            with gzip.open(raw) if zipped else raw as stream:
                zeros, type_code, num_dims = struct.unpack(">HBB", stream.read(4))
                if zeros != 0 or type_code != 8 or not 1 <= num_dims <= 4:
                    raise DataError(f"{path}: not an IDX file of unsigned bytes with 1 to 4 dimensions")
                shape = struct.unpack(f">{num_dims}I", stream.read(4 * num_dims))
                size = math.prod(shape)
                _check_expansion(size, path.stat().st_size, str(path))
                if not zipped and size > path.stat().st_size:
                    raise DataError(f"{path}: claims shape {shape}, more than the file holds")
                data = stream.read(size + 1)
    except DataError:
        raise
    except (OSError, EOFError, struct.error, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as IDX ({error})") from error
    if len(data) != size:
        raise DataError(
            f"{path}: claims shape {shape} = {size:,} bytes, holds {'more' if len(data) > size else 'less'}"
        )
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)
