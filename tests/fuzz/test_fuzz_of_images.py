"""Image files, damaged by chance and in their headers: pixels, or one error with its reason.

Whatever bytes come, decoding raises nothing else, ends, stays within a bound of memory and does not
crash the process. A file that was cut gives the pixels of the whole one or an error: no image is
filled up with gray in silence. ``-s`` prints the counts.
"""

import io
import multiprocessing
import os
import random
import resource
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection

import numpy as np
import pytest
import tifffile
from PIL import Image

from runner.data.decoding import BrokenImageError, decode, header_size, is_deep
from runner.data.depth import BITS, Deep, Depth, measured
from runner.data.images import rectangle, to_rgb

MEMORY = 3 * 2**29  # bytes beyond what the process has
SECONDS = 20  # for one image, on a busy machine
RULES = (BITS, Depth("window", (-5.0, 300.0)), Depth("legacy"))
NUMBERS = (0, 1, 2, 3, 5, 8, 12, 16, 32, 64, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1)
# Its palette lies at the end, and without one the pixels are gray: both are whole files.
NO_ENDS = {"PCX"}


def seeds() -> Iterator[tuple[str, bytes]]:
    """Whole files of every format that Pillow writes, in its modes, and of deep TIFFs."""
    rng = np.random.default_rng(0)
    colors = Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
    deep = Image.fromarray(rng.integers(0, 65536, (20, 30), dtype=np.uint16))
    floats = Image.fromarray(rng.normal(0, 1, (20, 30)).astype(np.float32))
    modes = [colors.convert(mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")]
    Image.init()
    left_out = {"PDF", "EPS", "PALM"}  # what is no image, or is not read
    for kind in sorted(set(Image.SAVE) - left_out):
        for image in [*modes, deep, deep.convert("I"), floats]:
            file = io.BytesIO()
            try:
                image.save(file, kind)
            except Exception:  # noqa: S112  the format has no such mode
                continue
            yield f"{kind} {image.mode}", file.getvalue()
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        file = io.BytesIO()
        colors.save(file, kind, exif=exif)
        yield f"{kind} turned", file.getvalue()
    for name in ("i1", "u2", "i2", "u4", "i4", "u8", "f2", "f4", "f8"):
        gray = rng.normal(0, 100, (20, 30)).astype(name)
        wide = rng.normal(0, 100, (20, 30, 3)).astype(name)
        for order in "<>":
            yield f"TIFF {name}{order}", tiff(gray, byteorder=order, photometric="minisblack")
        yield f"TIFF {name} RGB", tiff(wide, photometric="rgb")
        yield f"TIFF {name} big", tiff(gray, bigtiff=True, photometric="miniswhite")
        yield f"TIFF {name} tiles", tiff(gray, tile=(16, 16), photometric="minisblack")
        yield f"TIFF {name} zlib", tiff(gray, compression="zlib", photometric="minisblack")
    for way in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg", "group4"):
        file = io.BytesIO()
        (colors.convert("1") if way == "group4" else colors).save(file, "TIFF", compression=way)
        yield f"TIFF {way}", file.getvalue()


def tiff(pixels: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)  # type: ignore[arg-type]
    return file.getvalue()


# ── Damage ─────────────────────────────────────────────────────────────────────────────────────


def flip(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice((1, 3, 30))):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def header(content: bytes, draw: random.Random) -> bytes:
    """Numbers in the first bytes, where sizes, depths, offsets and counts are."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 4))):
        way = draw.choice(("<H", ">H", "<I", ">I", "B"))
        place = draw.randrange(min(200, max(1, len(changed) - struct.calcsize(way))))
        bits = 8 * struct.calcsize(way)
        if len(changed) >= place + bits // 8:
            struct.pack_into(way, changed, place, draw.choice(NUMBERS) % 2**bits)
    return bytes(changed)


def fields(content: bytes, draw: random.Random) -> bytes:
    """Values of a TIFF's tags, wherever its directory lies; other files as in ``header``."""
    if content[:4] not in (b"II*\0", b"MM\0*"):
        return header(content, draw)
    order = "<" if content[:2] == b"II" else ">"
    (start,) = struct.unpack_from(f"{order}I", content, 4)
    (count,) = struct.unpack_from(f"{order}H", content, start)
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 3))):
        place = start + 2 + 12 * draw.randrange(count) + draw.choice((0, 2, 4, 8))
        way, bits = (f"{order}H", 16) if draw.random() < 0.5 else (f"{order}I", 32)
        struct.pack_into(way, changed, place, draw.choice(NUMBERS) % 2**bits)
    return bytes(changed)


def delete(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content))
    return content[:place] + content[place + draw.choice((1, 4, 40)) :]


def insert(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content) + 1)
    return content[:place] + draw.randbytes(draw.choice((1, 4, 40))) + content[place:]


def cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def other_head(content: bytes, draw: random.Random) -> bytes:
    """The first bytes of one format and the rest of another."""
    place = draw.choice((4, 12, 40))
    return draw.choice(list(SEEDS.values()))[:place] + content[place:]


DAMAGES = (flip, header, header, fields, fields, delete, insert, cut, other_head)
SEEDS = dict(seeds())


# ── What must hold ─────────────────────────────────────────────────────────────────────────────


def outcome(content: bytes, rule: Depth) -> tuple[str, np.ndarray | None]:
    """What becomes of a file: a word for the count, and its pixels. Anything else is raised."""
    sizes, reason = None, None
    with suppress(BrokenImageError):
        if not is_deep(io.BytesIO(content)):
            sizes = header_size(io.BytesIO(content))
    try:
        picture = decode(content)
        if isinstance(picture, Deep):
            measured(picture)
        image, _ = to_rgb(picture, rule)
    except BrokenImageError as error:
        reason = str(error)
    if reason is not None:
        assert 0 < len(reason) < 400, "an error without a reason"
        assert "\n" not in reason
        return "refused", None
    if sizes and isinstance(picture, Image.Image) and picture.format not in ("ICO", "ICNS"):
        assert sizes == (min(picture.size), max(picture.size))  # those two hold several images
    found = rectangle(image, 16, 2.0)
    assert found.dtype == np.uint8
    assert min(found.shape[:2]) == 16
    return ("deep" if isinstance(picture, Deep) else "8 bits"), np.asarray(image)


def work(seconds: float, seed: int, ends: Connection) -> None:
    """Damage files until the time is over; send what is tried before, and the counts at the end."""
    in_use = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()  # noqa: PTH123, SIM115
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY, resource.RLIM_INFINITY))
    draw = random.Random(seed)  # noqa: S311
    counts: Counter[str] = Counter()
    names = sorted(SEEDS)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        name, damage, rule = draw.choice(names), draw.choice(DAMAGES), draw.choice(RULES)
        content = damage(SEEDS[name], draw)
        if draw.random() < 0.2:
            content = flip(content, draw) if content else content
            damage = flip
        ends.send((name, damage.__name__, content))
        started = time.monotonic()
        word, pixels = outcome(content, rule)
        assert time.monotonic() - started < SECONDS, "takes too long"
        if damage is cut and pixels is not None and name.split()[0] not in NO_ENDS:
            whole = outcome(SEEDS[name], rule)[1]
            np.testing.assert_array_equal(pixels, whole, "a cut file is filled up")
        counts[word] += 1
        counts[damage.__name__] += 1
    ends.send(counts)


def fuzzed(seconds: float, seed: int) -> Counter[str]:
    """Run :func:`work` in a process of its own, which a crash of a decoder would end."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    worker = multiprocessing.get_context("fork").Process(
        target=work, args=(seconds, seed, theirs), daemon=True
    )
    worker.start()
    theirs.close()
    last = None
    try:
        while ours.poll(seconds + 60):
            last = ours.recv()
            if isinstance(last, Counter):
                worker.join()
                return last
        reason = "it hangs"
    except EOFError:
        worker.join()
        reason = f"it ended with {worker.exitcode}"
    finally:
        worker.kill()
    assert isinstance(last, tuple), reason
    place = os.environ.get("FUZZ_KEEP")
    if place:
        with open(place, "wb") as file:  # noqa: PTH123
            file.write(last[2])
    pytest.fail(f"{reason} on {last[0]}, {last[1]}: {last[2][:300].hex()} ({len(last[2])} bytes)")


def check(seconds: float, seed: int) -> None:
    counts = fuzzed(seconds, seed)
    total = sum(counts[word] for word in ("refused", "deep", "8 bits"))
    print(
        f"\n{total:,} damaged files of {len(SEEDS)} kinds: {dict(counts.most_common())}",
        file=sys.stderr,
    )
    assert min(counts[word] for word in ("refused", "deep", "8 bits")) > 0.02 * total
    assert total > 20 * seconds


@pytest.mark.whole
def test_damaged_images_for_a_while() -> None:
    check(8, 1)


@pytest.mark.slow
def test_damaged_images_for_ten_minutes() -> None:
    check(600, random.randrange(2**32))  # noqa: S311


def test_the_fuzz_sees_what_it_looks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that raises, one that crashes, and one that fills up are found."""
    for name in SEEDS:  # and whole files are read
        word, pixels = outcome(SEEDS[name], RULES[1])
        assert word != "refused", name
        assert pixels is not None
    monkeypatch.setitem(outcome.__globals__, "to_rgb", lambda picture, rule: 1 / 0)
    with pytest.raises(pytest.fail.Exception, match="it ended with 1"):
        fuzzed(1, 0)
    monkeypatch.setitem(outcome.__globals__, "to_rgb", lambda picture, rule: os._exit(66))
    with pytest.raises(pytest.fail.Exception, match="it ended with 66"):
        fuzzed(1, 0)
    monkeypatch.undo()
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(pytest.fail.Exception, match="it ended with 1"):
        fuzzed(10, 0)
