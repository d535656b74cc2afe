"""Decode the bytes of one image file, whoever wrote them: pixels, or one error with its reason.

Pillow reads what it can; tifffile reads the TIFFs that Pillow does not know. Both, and whatever
they call, may raise anything on damaged or hostile files, so that here is the border: behind it
there are only pixels and :class:`BrokenImageError`.
"""

import importlib
import importlib.util
import io
import logging
import struct
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from runner.data.depth import Deep, header_range

Picture = Image.Image | Deep
"""A decoded image: of Pillow, with 8 bits per channel, or deeper."""

LARGEST_FILE = 1 << 30
"""Size in bytes above which no file is read: more than the most pixels take in common formats."""
_MAX_PIXELS = 89_478_485  # where Pillow starts to warn
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_LITTLE = sys.byteorder == "little"

# Once for the process, since images are decoded in threads, where warnings.catch_warnings is not
# safe. Pillow warns about damaged metadata of good pixels, and about sizes that we refuse anyway.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
for _name in ("PIL", "tifffile"):  # without a handler, their words would go to standard error
    logging.getLogger(_name).addHandler(logging.NullHandler())

T = TypeVar("T")


class BrokenImageError(Exception):
    """An image that cannot be read, with the reason."""


@contextmanager
def border(content: bytes = b"") -> Iterator[None]:
    """Turn whatever a decoder raises into a BrokenImageError with the reason."""
    try:
        yield
    except BrokenImageError:
        raise
    except UnidentifiedImageError as error:
        raise BrokenImageError(_unknown(content)) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BrokenImageError("is too large to decode safely (over 89 million pixels)") from error
    except MemoryError as error:
        raise BrokenImageError("takes more memory than there is") from error
    except (OSError, ValueError, SyntaxError, IndexError, EOFError) as error:
        # What Pillow's decoders raise on purpose; their words are reasons.
        raise BrokenImageError(_words(error) or type(error).__name__) from error
    except Exception as error:  # broad, because no decoder says what it raises on foreign bytes
        words = f": {found}" if (found := _words(error)) else ""
        raise BrokenImageError(f"cannot be decoded: {type(error).__name__}{words}") from error


def decode(content: bytes) -> Picture:
    """Decode a whole image file.

    Raises:
        BrokenImageError: the content is not an image, is of a kind that is not supported, is
            truncated, or is a decompression bomb.
    """
    with border(content):
        image = _identified(content)
        if image is None:
            return _of_tifffile(content)
        kind = _deep_kind(image)
        if kind is None:
            image.load()
            _check_size(image.size)
            return image
        return _deep(image, kind, content)


def is_deep(file: BinaryIO) -> bool:
    """Return whether an image file has more than 8 bits per channel, from its header.

    Raises:
        BrokenImageError: the header cannot be read, or is not that of an image.
    """
    return _from_header(file, lambda image: _deep_kind(image) is not None, lambda: True)


def header_size(file: BinaryIO) -> tuple[int, int]:
    """Shorter and longer side of an image file, px, from its header.

    Raises:
        BrokenImageError: the header cannot be read.
    """

    def of_tiff() -> tuple[int, int]:
        file.seek(0)
        height, width = _of_tifffile(file.read(LARGEST_FILE)).values.shape[:2]
        return min(height, width), max(height, width)

    return _from_header(file, lambda image: (min(image.size), max(image.size)), of_tiff)


def _from_header(
    file: BinaryIO, of_image: Callable[[Image.Image], T], of_tiff: Callable[[], T]
) -> T:
    """Call ``of_image`` on an image that is not decoded, or ``of_tiff`` if only tifffile reads it.

    Raises:
        BrokenImageError: the header cannot be read.
    """
    start = file.read(512)
    file.seek(0)
    with border(start):
        _register_plugins(start)
        try:
            with Image.open(file) as image:
                return of_image(image)
        except UnidentifiedImageError:
            if start[:4] not in _TIFF:
                raise
            return of_tiff()


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation; 1, as stored, if it cannot be read."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation)
    except (OSError, ValueError, SyntaxError, TypeError, struct.error):
        return 1  # damaged metadata of good pixels
    return found if isinstance(found, int) else 1


def _words(error: Exception) -> str:
    """Return the words of an error on one line."""
    return " ".join(str(error).split())[:200]


def _identified(content: bytes) -> Image.Image | None:
    """Return the image with its header read; None for a TIFF that Pillow does not know."""
    _register_plugins(content)
    try:
        image = Image.open(io.BytesIO(content))
    except UnidentifiedImageError:
        if content[:4] in _TIFF:
            return None
        raise
    if image.format == "EPS":  # loading it would run Ghostscript on it
        raise BrokenImageError("is a PostScript program, not an image")
    if image.format == "FITS":
        raise BrokenImageError(
            "is FITS, whose scale and zero point this program does not apply: convert it to TIFF"
        )
    _check_size(image.size)
    return image


def _check_size(size: tuple[int, int]) -> None:
    # Pillow itself refuses only images of more than 179 million pixels.
    if size[0] * size[1] > _MAX_PIXELS:
        raise Image.DecompressionBombError
    if min(size) < 1:
        raise BrokenImageError("has no pixels")


def _deep_kind(image: Image.Image) -> str | None:
    """Return the type of the values of an open image, such as ``uint16``; None up to 8 bits."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return _tiff_kind(image)
    if image.mode.startswith("I;16"):
        return "uint16"
    if image.mode == "I":
        return "uint16" if image.format in ("PPM", "PNG") else "int32"
    if image.mode == "F":
        return "float32"
    arguments = _raw_mode(image)
    if image.format == "PNG" and arguments.endswith(";16B"):
        return "uint16"
    if image.format == "PPM" and _ppm_maximum(image) > 255:
        return "uint16"
    return None


def _tiff_kind(image: TiffImagePlugin.TiffImageFile) -> str | None:
    bits = _tags(image, TiffImagePlugin.BITSPERSAMPLE, 1)
    formats = _tags(image, TiffImagePlugin.SAMPLEFORMAT, 1)
    photometric = _tags(image, TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 0)[0]
    samples = _tags(image, TiffImagePlugin.SAMPLESPERPIXEL, 1)[0]
    if samples > 4 + (photometric == 5):  # beyond, Pillow leaves out bands without a word
        raise BrokenImageError(f"is a TIFF of {samples} bands: at most three and alpha are read")
    if max(bits) <= 8 and set(formats) <= {1, 4}:
        return None
    if image.mode in ("RGB", "RGBA") and not _raw_mode(image).startswith("RGBa;"):
        return "uint16"
    if image.mode.startswith(("I", "F", "L")):
        return f"{ {2: 'int', 3: 'float'}.get(formats[0], 'uint') }{bits[0]}"
    return None  # CMYK and premultiplied colors of 16 bits: Pillow scales them by the header


def _tags(image: TiffImagePlugin.TiffImageFile, tag: int, default: int) -> tuple[int, ...]:
    found = image.tag_v2.get(tag, default)
    values = found if isinstance(found, tuple) else (found,)
    return tuple(value for value in values if isinstance(value, int)) or (default,)


def _raw_mode(image: Image.Image) -> str:
    """Return how the pixels lie in the file, in Pillow's words; "" if unknown."""
    tiles = getattr(image, "tile", [])
    arguments = tiles[0][3] if tiles else ""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _ppm_maximum(image: Image.Image) -> int:
    """Return the value of white in a PGM or PPM; 0 if unknown."""
    tiles = getattr(image, "tile", [])
    if not tiles or tiles[0][0] not in ("ppm", "raw"):
        return 0
    codec, _, _, arguments = tiles[0]
    if codec == "raw":
        return 65535 if _raw_mode(image).startswith("I;16") else 0
    last = arguments[-1] if isinstance(arguments, tuple) else arguments
    return last if isinstance(last, int) else 0


def _deep(image: Image.Image, kind: str, content: bytes) -> Deep:
    """Decode an opened image without loss of depth."""
    mode, full = image.mode, header_range(kind)
    if image.format == "PPM" and (found := _of_ppm(image, content)) is not None:
        return found
    is_planar = isinstance(image, TiffImagePlugin.TiffImageFile) and (
        _tags(image, TiffImagePlugin.PLANAR_CONFIGURATION, 1)[0] == 2
    )
    if mode in ("RGB", "RGBA") and is_planar:
        return _of_tifffile(content)
    if mode in ("RGB", "RGBA"):
        values = _wide_colors(image, content)
    else:
        image.load()
        values = np.asarray(image)
        if kind == "uint32":  # Pillow holds these bits as signed integers
            values = values.view(np.uint32)
        elif kind == "int8":
            values = values.view(np.int8)
    opacity = None
    if mode == "RGBA":
        opacity = (values[..., 3] // 257).astype(np.uint8)
        gray = image.format == "PNG" and _raw_mode_of(content) == "LA;16B"
        values = values[..., 0] if gray else values[..., :3]
    key = image.info.get("transparency")
    if isinstance(key, int | tuple):
        is_key = values == np.array(key) if np.ndim(key) in (0, values.ndim - 2) else False
        is_key = np.all(is_key, axis=-1) if np.ndim(is_key) == 3 else is_key
        opacity = np.where(is_key, np.uint8(0), np.uint8(255))
    is_inverted = isinstance(image, TiffImagePlugin.TiffImageFile) and (
        _tags(image, TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 1)[0] == 0
    )
    return Deep(values, kind, full, mode, opacity, is_inverted, orientation_of(image))


def _raw_mode_of(content: bytes) -> str:
    return _raw_mode(Image.open(io.BytesIO(content)))


def _wide_colors(image: Image.Image, content: bytes) -> NDArray[np.uint16]:
    """Read colors of 16 bits in two passes of Pillow's 8 bits: high bytes, then low bytes.

    ``image`` is loaded by it. The other order of bytes, which Pillow knows as well, shows the other
    byte of each value.
    """
    again = Image.open(io.BytesIO(content))
    assert isinstance(again, ImageFile.ImageFile)
    raw = _raw_mode(again)
    if raw == "LA;16B":  # no other order of it is known; four bytes per pixel are
        again.tile = [_with_raw_mode(tile, "RGBA") for tile in again.tile]
        again.load()
        bytes_of = np.asarray(again).astype(np.uint16)
        image.load()
        gray, alpha = (bytes_of[..., at] << 8 | bytes_of[..., at + 1] for at in (0, 2))
        return np.stack([gray, gray, gray, alpha], axis=-1)
    stem, _, order = raw.partition(";16")
    if order not in ("L", "B", "N"):
        raise BrokenImageError(f"has colors of 16 bits in an unknown order ({raw})")
    if order == "N":
        order = "L" if _LITTLE else "B"
    other = f"{stem};16{'B' if order == 'L' else 'L'}"
    again.tile = [_with_raw_mode(tile, other) for tile in again.tile]
    image.load()
    again.load()
    values: NDArray[np.uint16] = np.asarray(image).astype(np.uint16)
    values <<= 8
    values |= np.asarray(again)
    return values


def _with_raw_mode(tile: Any, raw: str) -> Any:
    codec, box, offset, arguments = tile
    return (codec, box, offset, (raw, *arguments[1:]) if isinstance(arguments, tuple) else raw)


def _of_ppm(image: Image.Image, content: bytes) -> Deep | None:
    """Read the values of a binary PGM or PPM, which Pillow would scale; None for plain ones."""
    tile = image.tile[0] if isinstance(image, ImageFile.ImageFile) and image.tile else None
    maximum = _ppm_maximum(image)
    if tile is None or maximum < 256:
        return None
    shape = (image.height, image.width, *((3,) if image.mode == "RGB" else ()))
    count = int(np.prod(shape))
    offset = tile[2]
    if len(content) - offset < 2 * count:
        raise BrokenImageError("image file is truncated")
    values = np.frombuffer(content, ">u2", count, offset).astype(np.uint16).reshape(shape)
    return Deep(values, "uint16", (0.0, float(maximum)), image.mode)


def _of_tifffile(content: bytes) -> Deep:
    """Decode a TIFF of a kind that Pillow does not know."""
    import tifffile  # only where it is needed

    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page = file.pages[0]
        assert isinstance(page, tifffile.TiffPage)
        kind, samples = _checked_page(page)
        _check_size((page.imagewidth, page.imagelength))
        if page.nbytes > LARGEST_FILE:
            raise BrokenImageError(f"takes {page.nbytes:,} bytes, more than {LARGEST_FILE:,}")
        ends = [at + size for at, size in zip(page.dataoffsets, page.databytecounts, strict=True)]
        if max(ends, default=0) > len(content) or 0 in page.databytecounts:
            raise BrokenImageError("image file is truncated")
        tag = page.tags.get(274)
        try:
            values = np.asarray(page.asarray(maxworkers=1))
        except (ValueError, ImportError) as error:
            if "imagecodecs" in str(error):
                how = getattr(page.compression, "name", page.compression)
                raise BrokenImageError(
                    f"is a TIFF of {kind} with {how} compression: pip install imagecodecs"
                ) from error
            raise
        values = np.moveaxis(values, 0, -1) if page.planarconfig == 2 and samples > 1 else values
        values = values.reshape(page.imagelength, page.imagewidth, samples)
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    opacity = None
    if samples in (2, 4):
        full = header_range(kind)
        scale = 255.0 if full is None else 255.0 / full[1]
        alpha = np.nan_to_num(values[..., -1].astype(np.float64)) * scale
        opacity = np.clip(np.rint(alpha), 0, 255).astype(np.uint8)
    values = values[..., :3] if samples >= 3 else values[..., 0]
    orientation = tag.value if tag is not None and isinstance(tag.value, int) else 1
    inverted = page.photometric == 0
    mode = "RGB" if samples >= 3 else "F"
    return Deep(values, kind, header_range(kind), mode, opacity, inverted, orientation)


def _checked_page(page: Any) -> tuple[str, int]:
    """Return the type of the values of a TIFF, and its bands. Refuse unsupported kinds by name."""
    samples = int(page.samplesperpixel)
    kind = f"{ {2: 'int', 3: 'float', 5: 'complex', 6: 'complex'}.get(page.sampleformat, 'uint') }"
    kind += str(page.bitspersample)
    if page.dtype is None or page.dtype.kind not in "iuf" or kind.startswith("complex"):
        raise BrokenImageError(f"is a TIFF of {kind}, which this program does not read")
    has_alpha = samples in (2, 4) and tuple(page.extrasamples) == (2,)
    if samples not in (1, 3) and not has_alpha:
        raise BrokenImageError(f"is a TIFF of {samples} bands: at most three and alpha are read")
    if int(page.photometric) not in (0, 1, 2):
        name = getattr(page.photometric, "name", page.photometric)
        raise BrokenImageError(f"is a TIFF of {name} colors of {kind}, which are not read")
    if int(page.imagedepth) != 1:
        raise BrokenImageError("is a TIFF volume, not an image")
    return kind, samples


# What starts a file that is not an image for us: the name of its kind, and what to do.
_KINDS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"version https://git-lfs", "is a Git LFS pointer instead of the image: git lfs pull"),
    (128, b"DICM", "is DICOM, which this program does not read: convert it to 16-bit PNG or TIFF"),
    (0, b"\x89HDF", "is HDF5, which this program does not read: write its images as PNG or TIFF"),
    (0, b"\x93NUMPY", "is an array of NumPy, not an image: write it as PNG or TIFF"),
    (0, b"%PDF", "is a PDF, not an image: convert its pages to PNG"),
    (0, b"\x1f\x8b", "is compressed with gzip: gunzip it first"),
    (0, b"PK\x03\x04", "is a zip archive, not an image"),
    (0, b"FUJIFILM", "is a raw photo, which this program does not read: develop it to JPEG"),
)
_HEIF = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_JXL = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")


def _unknown(content: bytes) -> str:
    """Return what a file is that no decoder knows."""
    if not content:
        return "is empty"
    for place, magic, what in _KINDS:
        if content[place : place + len(magic)] == magic:
            return what
    if content[4:8] == b"ftyp" and content[8:12] in _HEIF:
        return _without_package("HEIC", "pillow_heif", "or convert it to JPEG")
    if content[4:8] == b"ftyp" and content[8:12] in (b"avif", b"avis"):
        return "is AVIF, which the installed Pillow cannot read: pip install --upgrade pillow"
    if content.startswith(_JXL):
        return _without_package("JPEG XL", "pillow_jxl", "or convert it to PNG")
    start = content[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "is not an image but an HTML page, as a failed download leaves"
    if start.startswith(b"<svg") or (start.startswith(b"<?xml") and b"<svg" in start):
        return "is SVG, which this program does not read: convert it to PNG"
    return "is not an image"


def is_outdated(reason: str) -> bool:
    """Return whether an image was broken only for lack of a package that is installed now."""
    return any(
        f"pip install {name}" in reason and _is_installed(module) for module, name in _PACKAGES
    )


_PACKAGES = (
    ("pillow_heif", "pillow-heif"),
    ("pillow_jxl", "pillow-jxl-plugin"),
    ("imagecodecs", "imagecodecs"),
)


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _without_package(kind: str, module: str, otherwise: str) -> str:
    if _is_installed(module):
        return f"is {kind} that {module} cannot read"
    return f"is {kind}: pip install {dict(_PACKAGES)[module]}, {otherwise}"


def _register_plugins(content: bytes) -> None:
    """Let Pillow read HEIC and JPEG XL if their packages are installed."""
    try:
        if content[4:8] == b"ftyp" and content[8:12] in _HEIF:
            importlib.import_module("pillow_heif").register_heif_opener()
        elif content.startswith(_JXL):
            importlib.import_module("pillow_jxl")  # registers itself
    except ImportError:
        return
