import contextlib
import io
import os
import random
import resource
import struct
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import encoded, random_pixels
from PIL import Image

from runner.data.decoding import BrokenImageError, decode
from runner.data.images import (
    SUFFIXES,
    ArrayImages,
    FileImages,
    rectangle,
    to_rgb,
    typical_size,
)

WHITE, RED, GRAY = (255, 255, 255), (255, 0, 0), (90, 90, 90)
ORIENTATION = 0x0112
# Pillow's warnings ignored: pytest takes back the filters that runner.data.images sets.
AS_THE_PROGRAM_RUNS = pytest.mark.filterwarnings("ignore")


def image(mode, *values, palette=None):
    """An image one pixel high."""
    made = Image.new(mode, (len(values), 1))
    if palette:
        made.putpalette(palette)
    made.putdata(values)
    return made


def png(header, *chunks):
    """A PNG with the given header fields, its checksums right whatever it says."""
    content = b"\x89PNG\r\n\x1a\n"
    for kind, body in [(b"IHDR", struct.pack(">IIBBBBB", *header)), *chunks, (b"IEND", b"")]:
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        content += struct.pack(">I", len(body)) + kind + body + checksum
    return content


def bomb(width, height):
    return png((width, height, 8, 0, 0, 0, 0), (b"IDAT", zlib.compress(b"0" * 100)))


def exif(orientation):
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags


def upright_pixels(content):
    return np.asarray(to_rgb(decode(content))[0])


# Colour modes -----------------------------------------------------------------------------------

PALETTE = [*RED, 0, 0, 255, 0, 255, 0]
MODES = {
    "1": (encoded(image("1", 0, 255)), [(0, 0, 0), WHITE], "1"),
    "L": (encoded(image("L", 0, 90)), [(0, 0, 0), GRAY], "L"),
    # Half-transparent black over white is the gray between them.
    "LA": (encoded(image("LA", (90, 255), (0, 128), (7, 0))), [GRAY, (127,) * 3, WHITE], "LA"),
    "P": (encoded(image("P", 0, 1, palette=PALETTE)), [RED, (0, 0, 255)], "P"),
    "P transparent": (
        encoded(image("P", 0, 1, palette=PALETTE), transparency=1),
        [RED, WHITE],
        "P",
    ),
    "P half transparent": (
        encoded(image("P", 0, 1, palette=PALETTE), transparency=b"\xff\x80"),
        [RED, (127, 127, 255)],
        "P",
    ),
    "L transparent": (encoded(image("L", 7, 90), transparency=7), [WHITE, GRAY], "L"),
    "RGB": (encoded(image("RGB", RED, GRAY)), [RED, GRAY], None),
    "RGB, one color transparent": (
        encoded(image("RGB", RED, GRAY, (90, 90, 91)), transparency=GRAY),
        [RED, WHITE, (90, 90, 91)],
        "RGB",
    ),
    "RGBA": (
        encoded(image("RGBA", (*RED, 255), (*RED, 128), (*RED, 0))),
        [RED, (255, 127, 127), WHITE],
        "RGBA",
    ),
    "CMYK": (
        encoded(image("CMYK", (0, 255, 255, 0), (0, 0, 0, 255), (0, 0, 0, 0)), "TIFF"),
        [RED, (0, 0, 0), WHITE],
        "CMYK",
    ),
    # 16 bits to 8: 257 steps each, so that both ends are kept.
    "I;16": (
        encoded(Image.fromarray(np.array([[0, 257 * 200, 65535]], np.uint16))),
        [(0, 0, 0), (200,) * 3, WHITE],
        "I;16",
    ),
    "I;16 transparent": (
        png(
            (3, 1, 16, 0, 0, 0, 0),
            (b"tRNS", struct.pack(">H", 1000)),
            (b"IDAT", zlib.compress(b"\0" + struct.pack(">3H", 1000, 257 * 90, 257))),
        ),
        [WHITE, GRAY, (1, 1, 1)],
        "I;16",
    ),
}


@pytest.mark.parametrize(("content", "expected", "mode"), MODES.values(), ids=MODES)
def test_every_colour_mode_becomes_the_documented_rgb(content, expected, mode):
    converted, found = to_rgb(decode(content))

    assert converted.mode == "RGB"
    assert found == mode
    np.testing.assert_array_equal(np.asarray(converted)[0], expected)


def test_the_colour_hidden_under_full_transparency_would_show_without_a_background():
    hidden = decode(encoded(image("RGBA", (*RED, 0))))

    assert hidden.convert("RGB").getpixel((0, 0)) == RED  # what Pillow alone does
    assert to_rgb(hidden)[0].getpixel((0, 0)) == WHITE


# Orientation ------------------------------------------------------------------------------------

# From the stored pixels (first axis down, second right) to how a viewer shows them.
TURNED = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].transpose(1, 0, 2),
    8: lambda pixels: np.rot90(pixels),
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_orientation_gives_the_pixels_of_a_physically_turned_copy(kind, orientation):
    pixels = random_pixels(1, 5, 9)
    options = {"lossless": True} if kind == "WEBP" else {}
    stored = np.asarray(decode(encoded(pixels, kind, **options)))  # what JPEG made of it

    found = upright_pixels(encoded(pixels, kind, exif=exif(orientation), **options))

    np.testing.assert_array_equal(found, TURNED[orientation](stored))
    if orientation != 1:  # the comparison can fail: no two turns of these pixels are equal
        assert not np.array_equal(found, stored)


@pytest.mark.parametrize("orientation", [0, 9, 1000])
def test_an_orientation_that_does_not_exist_changes_nothing(orientation):
    pixels = random_pixels(1, 5, 9)

    np.testing.assert_array_equal(upright_pixels(encoded(pixels, exif=exif(orientation))), pixels)


@AS_THE_PROGRAM_RUNS
def test_damaged_metadata_do_not_cost_good_pixels():
    pixels = random_pixels(1)
    content = encoded(pixels, "WEBP", lossless=True, exif=exif(6))
    damaged = content.replace(b"MM\0*", b"MM\0?").replace(b"II*\0", b"II?\0")
    assert damaged != content

    np.testing.assert_array_equal(upright_pixels(damaged), pixels)


def test_the_first_frame_of_an_animation_counts():
    frames = [Image.new("P", (4, 3), number) for number in (0, 1)]
    for frame in frames:
        frame.putpalette(PALETTE)
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(content)).n_frames == 2

    assert set(map(tuple, upright_pixels(content).reshape(-1, 3))) == {RED}


# Broken files -----------------------------------------------------------------------------------

JPEG = encoded(random_pixels(2, 40, 40), "JPEG")
BROKEN = {
    "empty": (b"", "is empty"),
    "HTML": (b"<html><body>404 Not Found</body></html>", "is not an image but an HTML page"),
    "truncated JPEG": (JPEG[: len(JPEG) // 2], "truncated"),
    "only a JPEG header": (JPEG[:30], "(?i)truncated"),
    "truncated PNG": (encoded(random_pixels(2, 40, 40))[:500], "(?i)truncated"),
    "bomb, 400 million pixels": (bomb(20_000, 20_000), "too large"),
    "bomb, 100 million pixels": (bomb(10_000, 10_000), "too large"),
    "bomb, one row": (bomb(100_000_000, 1), "too large"),
    "PostScript": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n",
        "PostScript",
    ),
}


@AS_THE_PROGRAM_RUNS
@pytest.mark.parametrize(("content", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_refused_with_the_reason_quickly_and_in_little_memory(content, reason):
    limits = resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    started = time.perf_counter()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + 60_000_000, limits[1]))
    try:
        with pytest.raises(BrokenImageError, match=reason):
            decode(content)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)

    assert time.perf_counter() - started < 2


def test_just_below_the_limit_is_no_bomb():
    with pytest.raises(BrokenImageError) as caught:
        decode(bomb(1, 89_478_485))  # its pixels are missing, and that is what is said

    assert "too large" not in str(caught.value)


@AS_THE_PROGRAM_RUNS
def test_bombs_are_refused_in_every_thread():
    """And the filters of warnings stay: ``catch_warnings`` in several threads leaves its own."""
    good, bad = encoded(random_pixels(3, 300, 300), "JPEG"), bomb(10_000, 10_000)
    before = list(warnings.filters)

    def reason(content):
        try:
            decode(content)
        except BrokenImageError as error:
            return str(error)
        return "decoded"

    with ThreadPoolExecutor(4) as pool:
        reasons = list(pool.map(reason, [bad, good] * 50))

    assert set(reasons[1::2]) == {"decoded"}
    assert all("too large" in found for found in reasons[::2])
    assert warnings.filters == before


WHOLE = {
    kind: encoded(random_pixels(4, 9, 13), kind, **({"exif": exif(6)} if tagged else {}))
    for kind, tagged in [("JPEG", 1), ("PNG", 1), ("WEBP", 1), ("BMP", 0), ("GIF", 0), ("PPM", 0)]
}


@AS_THE_PROGRAM_RUNS
@pytest.mark.parametrize("kind", WHOLE)
def test_damage_gives_an_image_or_the_one_error(kind):
    rng = random.Random(kind)  # noqa: S311
    for _ in range(150):
        damaged = bytearray(WHOLE[kind])
        for _ in range(rng.randint(1, 6)):
            place = rng.randrange(len(damaged))
            if rng.random() < 0.8:
                damaged[place] = rng.randrange(256)
            else:
                del damaged[place : place + rng.randint(1, 9)]
        with contextlib.suppress(BrokenImageError):
            assert to_rgb(decode(bytes(damaged)))[0].mode == "RGB"


def test_a_missing_file_is_a_broken_image(tmp_path):
    images = FileImages(tmp_path, ("none.png",))

    with pytest.raises(BrokenImageError, match="No such file"):
        images.open(0)


@pytest.mark.parametrize("reading", ["open", "size", "values", "content"])
def test_what_is_no_regular_file_or_too_large_is_refused_before_it_is_read(tmp_path, reading):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(2**40)
    images = FileImages(tmp_path, ("pipe.png", "folder.png", "huge.png", "nul\0.png", "n" * 300))
    started = time.perf_counter()

    for index in range(len(images)):
        with pytest.raises(BrokenImageError, match=r"\w"):
            getattr(images, reading)(index)

    assert time.perf_counter() - started < 2


class OddError(Exception):
    """What no list of exceptions has."""


ERRORS = [
    NotImplementedError("a texture"), RecursionError(), MemoryError(), KeyError("x"), TypeError(),
    OddError("why"), struct.error("unpack"), zlib.error("-3"), AssertionError(), OverflowError(),
]  # fmt: skip


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("place", ["PIL.Image.open", "PIL.PngImagePlugin.PngImageFile.load"])
def test_whatever_a_decoder_raises_is_a_broken_image_with_a_reason(monkeypatch, error, place):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(place, fail)

    with pytest.raises(BrokenImageError, match=r"\w"):
        decode(encoded(random_pixels(1)))


def test_an_interrupt_is_no_broken_image(monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("PIL.Image.open", interrupt)

    with pytest.raises(KeyboardInterrupt):
        decode(encoded(random_pixels(1)))


NO_PICTURES = {
    ".cur", ".eps", ".ps", ".wmf", ".emf", ".mpg", ".mpeg", ".bufr", ".grib", ".h5", ".hdf",
    ".fit", ".fits", ".iim", ".pdf", ".palm",
}  # fmt: skip


def test_every_suffix_of_pillow_is_an_image_or_left_out_on_purpose():
    known = set(Image.registered_extensions())

    assert known - SUFFIXES == NO_PICTURES & known
    assert not NO_PICTURES & SUFFIXES


# Rectangles -------------------------------------------------------------------------------------


@given(
    width=st.integers(1, 120),
    height=st.integers(1, 120),
    presize=st.integers(1, 40),
    max_aspect=st.floats(1, 5),
)
@settings(max_examples=150, deadline=None)
def test_the_short_side_is_the_presize_and_the_long_one_in_proportion(
    width, height, presize, max_aspect
):
    found = rectangle(Image.new("RGB", (width, height), RED), presize, max_aspect)

    assert found.dtype == np.uint8
    assert min(found.shape[:2]) == presize
    aspect = min(max(width, height) / min(width, height), max_aspect)
    assert abs(max(found.shape[:2]) - presize * aspect) <= 0.5 + 1e-6
    assert (found.shape[1] - found.shape[0]) * (width - height) >= 0  # upright stays upright
    assert (found == RED).all()


@pytest.mark.parametrize("presize", [8, 20, 31])  # smaller, equal and larger than the image
def test_an_image_that_is_not_cut_is_what_pillow_makes_of_it(presize):
    source = Image.fromarray(random_pixels(5, 20, 30))
    size = (round(30 * presize / 20), presize)

    found = rectangle(source, presize, 2.0)

    expected = source.resize(size, Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(found, np.asarray(expected))
    nearest = source.resize(size, Image.Resampling.BOX)
    assert np.array_equal(found, np.asarray(nearest)) == (presize == 20)


@pytest.mark.parametrize("turn", [lambda pixels: pixels, lambda p: p.transpose(1, 0, 2)])
def test_beyond_the_largest_aspect_both_ends_are_cut_evenly(turn):
    pixels = random_pixels(6, 10, 50)

    found = rectangle(Image.fromarray(np.ascontiguousarray(turn(pixels))), 10, 2.0)

    np.testing.assert_array_equal(found, turn(pixels[:, 15:35]))
    assert not np.array_equal(found, turn(pixels[:, 14:34]))


@pytest.mark.parametrize(
    ("size", "shape"),
    [((1, 1), (28, 28)), ((1, 5000), (56, 28)), ((5000, 1), (28, 56)), ((2, 3), (42, 28))],
)
def test_extreme_shapes(size, shape):
    found = rectangle(Image.new("RGB", size, RED), 28, 2.0)

    assert found.shape == (*shape, 3)
    assert (found == RED).all()


# Collections ------------------------------------------------------------------------------------


def test_images_from_files_and_from_an_array(file_images):
    pixels = np.stack([random_pixels(number) for number in range(3)])
    files = file_images({f"{number}.png": encoded(item) for number, item in enumerate(pixels)})
    arrays = ArrayImages("noise", pixels)

    assert len(files) == len(arrays) == 3
    assert (files.name(1), arrays.name(1)) == ("1.png", "noise/00001")
    for number, item in enumerate(pixels):
        np.testing.assert_array_equal(np.asarray(files.open(number)), item)
        np.testing.assert_array_equal(np.asarray(arrays.open(number)), item)


def test_the_stamp_changes_with_the_content_and_not_otherwise(file_images, tmp_path):
    images = file_images({"a.png": b"1", "b.png": b"2"})
    stamp = images.stamp()
    assert images.stamp() == stamp

    (tmp_path / "images" / "b.png").write_bytes(b"33")

    assert images.stamp() != stamp
    (tmp_path / "images" / "b.png").unlink()
    assert images.stamp() not in (stamp, "")

    arrays = ArrayImages("noise", random_pixels(1)[None])
    changed = arrays.array.copy()
    changed[0, 0, 0, 0] ^= 1
    assert replace(arrays, array=changed).stamp() != arrays.stamp()


def test_a_file_name_that_is_not_unicode_is_a_name_like_any_other(tmp_path):
    name = b"caf\xe9.png"
    (tmp_path / os.fsdecode(name)).write_bytes(encoded(random_pixels(1)))
    images = FileImages(tmp_path, (os.fsdecode(name),))

    assert images.stamp()
    assert images.open(0).size == (16, 12)


def test_the_typical_short_side_is_the_median_of_the_readable(file_images):
    sizes = [(10, 10), (20, 30), (40, 90)]  # aspects 1, 1.5 and 2.25, of which 2 is kept
    pixels = {f"{side}.png": encoded(random_pixels(0, *side)) for side in sizes}
    images = file_images(pixels | {"x.png": b""})

    assert typical_size(images, 2.0) == (20, 1.5)
    assert typical_size(images, 1.0) == (20, 1.0)
    assert typical_size(file_images({"y.png": b"", "z.png": b"?"}), 2.0) == (0, 1.0)
    assert typical_size(file_images({}), 2.0) == (0, 1.0)
