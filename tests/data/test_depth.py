"""Images of more than 8 bits per channel: every format, one rule per data set, the same in use."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from pictures import encoded
from PIL import Image

from runner.config.schema import Data
from runner.data import preprocess
from runner.data.dataset import load_dataset
from runner.data.decoding import BrokenImageError, decode, header_size, is_deep
from runner.data.depth import (
    BITS,
    LEGACY_POLICY,
    Deep,
    Depth,
    UnknownDepthError,
    Values,
    choose,
    depth_of,
    header_range,
    measured,
)
from runner.data.images import FileImages, to_rgb
from runner.data.preprocess import Preprocess
from runner.data.store import StreamedStore
from runner.errors import DataError

HEIGHT, WIDTH = 5, 7


def tiff(pixels, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **({"photometric": "minisblack"} | options))
    return file.getvalue()


def png16(pixels, *, key=None):
    """A PNG of 16 bits per channel, of (height, width, channels) uint16."""
    height, width, channels = pixels.shape
    color = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0))]
    if key is not None:
        chunks.append((b"tRNS", np.array(key, ">u2").tobytes()))
    content = b"\x89PNG\r\n\x1a\n"
    for kind, body in [*chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]:
        content += struct.pack(">I", len(body)) + kind + body
        content += struct.pack(">I", zlib.crc32(kind + body))
    return content


def noise(dtype, *shape, seed=0):
    dtype = np.dtype(dtype)
    low = -90 if dtype.kind in "if" else 0
    return np.random.default_rng(seed).uniform(low, 120, shape).astype(dtype)


# Formats ----------------------------------------------------------------------------------------

TYPES = ["i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"]


def formats():
    """Every format by name: its bytes, the values in it, their kind, whether black is high."""
    for name in TYPES:
        gray, colors = noise(name, HEIGHT, WIDTH), noise(name, HEIGHT, WIDTH, 3)
        kind = np.dtype(name).name
        for order in "<>":
            yield f"{name}{order}", tiff(gray, byteorder=order), gray, kind, False
            white = tiff(gray, byteorder=order, photometric="miniswhite")
            yield f"{name}{order} white", white, gray, kind, True
            content = tiff(colors, byteorder=order, photometric="rgb")
            yield f"{name}{order} RGB", content, colors, kind, False
        yield f"{name} deflate", tiff(gray, compression="zlib"), gray, kind, False
        planes = tiff(colors.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
        yield f"{name} planes", planes, colors, kind, False
    wide = np.random.default_rng(1).integers(0, 65536, (HEIGHT, WIDTH, 4), dtype=np.uint16)
    gray, colors = wide[..., 0], wide[..., :3]
    for way in ("tiff_lzw", "tiff_deflate", "packbits"):
        yield f"TIFF {way}", encoded(gray, "TIFF", compression=way), gray, "uint16", False
    yield "TIFF RGBA", tiff(wide, photometric="rgb", extrasamples=[2]), colors, "uint16", False
    for channels, values in ((1, gray), (2, gray), (3, colors), (4, colors)):
        yield f"PNG {channels}", png16(wide[..., :channels]), values, "uint16", False
    yield "PGM", encoded(gray, "PPM"), gray, "uint16", False
    yield "PPM", b"P6 7 5 65535\n" + colors.astype(">u2").tobytes(), colors, "uint16", False
    low = gray % 4096
    yield "PGM to 4095", b"P5 7 5 4095\n" + low.astype(">u2").tobytes(), low, "uint16", False
    yield (
        "PFM",
        encoded(noise("f4", HEIGHT, WIDTH), "PPM"),
        noise("f4", HEIGHT, WIDTH),
        "float32",
        0,
    )
    yield "JPEG 2000", encoded(gray, "JPEG2000"), gray, "uint16", False


FORMATS = {name: rest for name, *rest in formats()}


@pytest.mark.parametrize("name", FORMATS)
def test_no_format_loses_depth(name):
    content, values, kind, is_inverted = FORMATS[name]

    found = decode(content)

    assert isinstance(found, Deep)
    assert (found.kind, found.is_inverted) == (kind, is_inverted)
    assert found.full == ((0, 4095) if "4095" in name else header_range(kind))
    np.testing.assert_array_equal(found.values, values)


def twelve_bits(values):
    """A TIFF of 12 bits per sample, two pixels in three bytes."""
    packed = bytearray()
    for first, second in values.reshape(-1, 2).tolist():
        packed += bytes([first >> 4, (first & 15) << 4 | second >> 8, second & 255])
    tags = [(256, values.shape[1]), (257, values.shape[0]), (258, 12), (259, 1), (262, 1)]
    tags += [(273, 8 + 2 + 12 * 9 + 4), (277, 1), (278, values.shape[0]), (279, len(packed))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4) + bytes(packed)


def test_twelve_bits_in_the_header_are_twelve_bits():
    values = np.array([[0, 1, 2048, 4095]], np.uint16)

    found = decode(twelve_bits(values))

    assert (found.kind, found.full) == ("uint12", (0, 4095))
    np.testing.assert_array_equal(found.values, values)
    assert np.asarray(to_rgb(found)[0])[0, :, 0].tolist() == [0, 0, 128, 255]


@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_of_16_bits_is_laid_over_white(channels):
    pixels = np.full((1, 3, channels), 257 * 10, np.uint16)
    pixels[0, :, -1] = [65535, 0, 257 * 51]

    found = np.asarray(to_rgb(decode(png16(pixels)))[0])[0]

    assert found.tolist() == [[10] * 3, [255] * 3, [206] * 3]  # 10 · 0.2 + 255 · 0.8


@pytest.mark.parametrize("channels", [1, 3])
def test_a_transparent_color_of_16_bits_counts_exactly(channels):
    pixels = np.full((1, 2, channels), 1000, np.uint16)
    pixels[0, 1, -1] = 1001  # the same 8 bits

    found = np.asarray(to_rgb(decode(png16(pixels, key=[1000] * channels)))[0])[0]

    assert found.tolist() == [[255] * 3, [4] * 3]


def test_a_deep_image_is_turned_as_its_orientation_says():
    values = noise("f8", HEIGHT, WIDTH)
    turned = tiff(values, extratags=[(274, "H", 1, 6, True)])
    depth = Depth("window", (-90, 120))

    found = np.asarray(to_rgb(decode(turned), depth)[0])

    upright = np.asarray(to_rgb(decode(tiff(values)), depth)[0])
    np.testing.assert_array_equal(found, np.rot90(upright, -1))


REFUSED = {
    "5 bands": (tiff(noise("u2", 5, 7, 5), planarconfig="contig"), "is a TIFF of 5 bands"),
    "5 bands of 8 bits": (
        tiff(noise("u1", 5, 7, 5), photometric="rgb", planarconfig="contig"),
        "is a TIFF of 5 bands",
    ),
    "4 bands": (tiff(noise("f4", 5, 7, 4), planarconfig="contig"), "is a TIFF of 4 bands"),
    "complex": (tiff(noise("f4", 5, 7).astype("c8")), "is a TIFF of complex64"),
    "LAB": (tiff(noise("u2", 5, 7, 3), photometric="cielab"), "CIELAB"),
    "cut": (tiff(noise("f8", 50, 70))[:-9000], "truncated"),
    "16-bit PNG, cut": (png16(np.zeros((50, 70, 3), np.uint16) + 7)[:70], "(?i)truncated"),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "is HEIC"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "DICOM": (bytes(128) + b"DICM" + bytes(90), "is DICOM"),
    "JPEG XL": (b"\xff\x0a" + bytes(30), "JPEG XL"),
    "NumPy": (b"\x93NUMPY\x01\0", "array of NumPy"),
    "SVG": (b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
    "gzip": (b"\x1f\x8b\x08\0\0\0\0", "gunzip"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("content", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_supported_is_refused_by_its_name(content, reason):
    with pytest.raises(BrokenImageError, match=reason):
        decode(content)


def test_a_package_that_is_missing_is_named_and_read_again_once_it_is_there(tmp_path, monkeypatch):
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    installed = set()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name in installed or None)
    monkeypatch.setattr("runner.data.decoding._register_plugins", lambda content: None)
    root = write_set(tmp_path / "set", lambda x: encoded((x * 255).astype(np.uint8)))
    (root / "dark" / "photo.heic").write_bytes(heic)

    def reasons():
        return [why for _, why in load(root, tmp_path, on_corrupt="skip").skipped]

    assert reasons() == ["is HEIC: pip install pillow-heif, or convert it to JPEG"]
    assert reasons() == ["is HEIC: pip install pillow-heif, or convert it to JPEG"]
    installed.add("pillow_heif")
    assert reasons() == ["is HEIC that pillow_heif cannot read"]
    for reader in (is_deep, header_size):
        with pytest.raises(BrokenImageError, match="HEIC"):
            reader(io.BytesIO(heic))


# The rule ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TYPES)
def test_levels_are_linear_in_the_window_rounded_and_clipped(name):
    values = noise(name, HEIGHT, WIDTH)
    deep = Deep(values, np.dtype(name).name, None, "I")

    found = Depth("window", (-7.5, 100)).levels(deep)

    expected = [
        min(max(round((float(value) + 7.5) / 107.5 * 255), 0), 255) for value in values.flat
    ]
    assert found.dtype == np.uint8
    assert found.ravel().tolist() == expected
    assert len(set(expected)) > 10, "the test cannot fail"
    inverted = Depth("window", (-7.5, 100)).levels(Deep(values, "", None, "I", is_inverted=True))
    assert (found + inverted == 255).all()


def test_not_a_number_is_black_and_infinities_are_the_ends():
    values = np.array([[np.nan, np.inf, -np.inf, 0.5]], np.float32)

    found = Depth("window", (0, 1)).levels(Deep(values, "float32", None, "F"))

    assert found.tolist() == [[0, 255, 0, 128]]
    assert measured(Deep(values, "float32", None, "F")).high == 0.5
    assert measured(Deep(values[:, :3], "float32", None, "F")) is None


def values_of(kind, low, high, full="header"):
    return Values(kind, header_range(kind) if full == "header" else full, low, high, low, high)


CHOICES = {
    # images of more than 8 bits, number of others, data.depth, the window or BITS
    "16 bits that are filled": ([("uint16", 0, 60_000)], 0, "auto", BITS),
    "and among 8 bits": ([("uint16", 0, 60_000)], 5, "auto", BITS),
    "12 bits in 16": ([("uint16", 0, 900), ("uint16", 3, 4095)], 0, "auto", (0, 4095)),
    "signed": ([("int16", -1024, 3071)], 0, "auto", (-1024, 3071)),
    "floats in 0..1": ([("float32", 0.25, 0.5), ("float32", 0, 1)], 0, "auto", (0, 1)),
    "extremes though filled": ([("uint16", 9, 60_000)], 0, "extremes", (9, 60_000)),
    "bits though not": ([("uint16", 0, 4095)], 0, "bits", BITS),
    "two types": ([("uint16", 0, 900), ("int16", -5, 5)], 1, "extremes", (-5, 900)),
    "two types of bits": ([("uint16", 0, 60_000), ("uint12", 0, 4000)], 1, "auto", BITS),
}


@pytest.mark.parametrize(("deep", "others", "asked", "expected"), CHOICES.values(), ids=CHOICES)
def test_one_rule_is_chosen_for_the_data_set(deep, others, asked, expected):
    found = choose(
        asked, None, {i: values_of(*each) for i, each in enumerate(deep)}, [0, 1], others
    )

    assert found.is_deep
    assert found.depth == expected or found.depth.window == expected
    if expected is not BITS:
        assert ("uint8" in found.depth.kinds) == bool(others)
    assert f"(data.depth={asked}" in found.notes[0]


def test_only_the_training_images_decide():
    deep = {0: values_of("uint16", 5, 100), 1: values_of("uint16", 0, 4095)}

    assert choose("auto", None, deep, [0], 0).depth.window == (5, 100)
    assert choose("auto", None, deep, [1], 0).depth.window == (0, 4095)


UNKNOWN = {
    "12 bits in 16 among 8 bits": ([("uint16", 0, 4095)], 3, "auto", "only use 0 to 4095"),
    "two types": ([("uint16", 0, 900), ("int16", -5, 5)], 0, "auto", "different types"),
    "floats among 8 bits": ([("float32", 0, 1)], 3, "auto", "different types"),
    "floats have no bits": ([("float32", 0, 1)], 0, "bits", "states no range"),
    "one value": ([("uint16", 7, 7)], 0, "auto", "no range"),
}


@pytest.mark.parametrize(("deep", "others", "asked", "reason"), UNKNOWN.values(), ids=UNKNOWN)
def test_what_cannot_be_known_is_refused_with_what_to_choose(deep, others, asked, reason):
    with pytest.raises(UnknownDepthError, match=reason) as caught:
        choose(asked, None, {i: values_of(*each) for i, each in enumerate(deep)}, [0, 1], others)

    assert "data.window=[LOW,HIGH]" in caught.value.fix


def test_a_hot_pixel_that_hides_everything_else_is_reported():
    values = np.full((300, 300), 100, np.uint16)
    values[:, ::2] = 900
    values[0, 0] = 65_535
    found = choose("auto", None, {0: measured(Deep(values, "uint16", (0, 65_535), "I"))}, [0], 0)

    assert found.depth == BITS
    assert "data.window=[100,900] would spread them" in found.notes[1]


# In bundles -------------------------------------------------------------------------------------

HOW = Preprocess(9, 2.0, 1.0, 9, "bilinear", (0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize(
    "depth",
    [
        BITS,
        Depth("legacy"),
        Depth("bits", None, ("int16",)),
        Depth("window", (-3.5, 8.0), ("int16", "uint8")),
    ],
)
def test_a_bundle_keeps_the_rule(depth):
    written = Preprocess(**{**vars(HOW), "depth": depth}).to_dict()

    assert preprocess.from_dict(written).depth == depth


def test_a_bundle_of_earlier_versions_keeps_what_was_done_then():
    """16 bits scaled to 8; other integers and floats as 8 bits, unless the image is beyond."""
    assert depth_of({"depth": LEGACY_POLICY}) == Depth("legacy")

    def levels(content):
        return np.asarray(to_rgb(decode(content), Depth("legacy"))[0])[0, :, 0].tolist()

    assert levels(encoded(np.array([[0, 257 * 90, 65535]], np.uint16))) == [0, 90, 255]
    assert levels(tiff(np.array([[0, 257 * 90, 65535]], np.int32))) == [0, 90, 255]
    assert levels(tiff(np.array([[-5, 90, 255]], np.int32))) == [0, 90, 255]
    assert levels(tiff(np.array([[-5, 89.6, 300, np.nan]], np.float32))) == [0, 90, 255, 0]
    assert levels(b"P5 3 1 4095\n" + np.array([0, 1000, 4095], ">u2").tobytes()) == [0, 62, 255]
    assert levels(png16(np.full((1, 1, 3), 0x12FF, np.uint16))) == [0x12]


@pytest.mark.parametrize(
    "written",
    [
        {"depth": "own maximum"},
        {"depth": "window"},
        {"depth": "window", "window": [1, 1], "depth_of": []},
        {"depth": "window", "window": [0, float("nan")], "depth_of": []},
        {"depth": "window", "window": [-1e308, 1e308], "depth_of": []},
        {"depth": "window", "window": [0, 1], "depth_of": "uint16"},
        {},
    ],
)
def test_a_rule_of_a_bundle_that_is_no_rule_is_refused(written):
    with pytest.raises(ValueError):  # noqa: PT011  several messages
        depth_of(written)


# Data sets --------------------------------------------------------------------------------------

SHADES = {"dark": 0.05, "light": 0.6}  # of the range that is used: neither fills it alone


def shade(name, number):
    """Values in 0..1, brighter in one class than in the other, and no two images equal."""
    values = np.random.default_rng(number).uniform(0, 0.3, (9, 12)) + SHADES[name]
    values[0, :2] = [0, 1 if name == "light" else 0.4]
    return values


SETS = {  # how values in 0..1 are written
    "uint16": lambda x: tiff((x * 65535).astype("u2")),
    "12 bits in 16": lambda x: tiff((x * 4095).astype("u2")),
    "12 bits in 16, PNG": lambda x: png16((x * 4095).astype("u2")[..., None]),
    "12 bits in 16, colors": lambda x: png16(np.stack([(x * 4095).astype("u2")] * 3, -1)),
    "int16": lambda x: tiff((x * 4095 - 1024).astype("i2")),
    "uint32": lambda x: tiff((x * 1e6).astype("u4"), photometric="minisblack"),
    "int32": lambda x: tiff((x * 1e6 - 5e5).astype("i4")),
    "float16": lambda x: tiff(x.astype("f2")),
    "float32": lambda x: tiff(x.astype("f4")),
    "float64": lambda x: tiff(x * 1e-6),
    "PGM": lambda x: b"P5 12 9 65535\n" + (x * 4095).astype(">u2").tobytes(),
    "white is low": lambda x: tiff(((1 - x) * 4095).astype("u2"), photometric="miniswhite"),
}


def write_set(root, write, kinds=("tif",)):
    for name in SHADES:
        (root / name).mkdir(parents=True)
        for number in range(10):
            (root / name / f"{number}.{kinds[0]}").write_bytes(write(shade(name, 10 * number)))
    return root


def load(root, tmp_path, **keys):
    data = Data(name="folder", root=str(root), **keys)
    return load_dataset(data, 9, tmp_path / "cache", lambda *_: None)


def as_predicted(dataset, paths):
    """What ``predict`` makes of files, with what the bundle of a training on ``dataset`` says."""
    how = Preprocess(**{**vars(HOW), "presize": dataset.presize, "depth": dataset.depth})
    how = preprocess.from_dict(how.to_dict())
    files = FileImages(paths[0].parent, tuple(path.name for path in paths))
    store = StreamedStore(files, how.presize, how.max_aspect, how.interpolation, depth=how.depth)
    return [store.decode(index)[0] for index in range(len(paths))]


@pytest.mark.parametrize("write", SETS.values(), ids=SETS)
def test_a_deep_set_looks_as_its_8_bit_copy_in_training_and_prediction(write, tmp_path):
    root = write_set(tmp_path / "deep", write)
    dataset = load(root, tmp_path)

    assert dataset.is_deep
    for split in (dataset.train, dataset.val):
        for index, label in zip(split.indices.tolist(), split.labels.tolist(), strict=True):
            name, number = ["dark", "light"][label], index % 10
            found = dataset.store.rectangle(index)[..., 0].astype(int)
            # Of a range that starts at the darkest and ends at the brightest training value.
            expected = np.rint(shade(name, 10 * number) * 255)
            assert np.abs(found - expected).max() <= 2, "scaled by more than rounding"
    means = [
        np.mean([dataset.store.rectangle(index).mean() for index in dataset.val.indices[rows]])
        for rows in (dataset.val.labels == 0, dataset.val.labels == 1)
    ]
    assert means[1] - means[0] > 100, "a dark image is scaled by its own maximum"
    (index, *_) = dataset.val.indices[dataset.val.labels == 1].tolist()
    (predicted,) = as_predicted(dataset, [root / "light" / f"{index % 10}.tif"])
    np.testing.assert_array_equal(predicted, dataset.store.rectangle(index))
    assert any("black to white" in note for note in dataset.notes)


def mixed(root, deep):
    """Two 8-bit images in each class next to the deep ones."""
    write_set(root, deep)
    for name in SHADES:
        for number in (90, 91):
            pixels = np.rint(shade(name, number) * 255).astype(np.uint8)
            (root / name / f"{number}.png").write_bytes(encoded(pixels))
    return root


def test_a_mixed_set_is_known_only_if_its_deep_images_fill_their_bits(tmp_path):
    filled = load(mixed(tmp_path / "filled", SETS["uint16"]), tmp_path)
    assert filled.depth == BITS

    root = mixed(tmp_path / "mixed", SETS["12 bits in 16"])
    with pytest.raises(DataError, match="different types") as caught:
        load(root, tmp_path)
    assert "data.depth=extremes" in caught.value.fix
    chosen = load(root, tmp_path, depth="extremes")
    assert chosen.depth.kinds == ("uint16", "uint8")
    given = load(root, tmp_path, window=(0, 4095))
    for dataset in (chosen, given):
        eight = dataset.store.rectangle(10)  # dark/90.png: as it is
        np.testing.assert_array_equal(eight[..., 0], np.rint(shade("dark", 90) * 255))


def test_a_network_refuses_what_its_window_was_not_measured_on(tmp_path):
    dataset = load(write_set(tmp_path / "deep", SETS["12 bits in 16"]), tmp_path)
    for name, content in {
        "8.png": encoded(np.zeros((9, 9), np.uint8)),
        "f.tif": tiff(np.zeros((9, 9), np.float32)),
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BrokenImageError, match="measured on uint16"):
            as_predicted(dataset, [tmp_path / name])
    (tmp_path / "f.tif").write_bytes(tiff(np.zeros((9, 9), np.float32)))
    plain = load(mixed(tmp_path / "8 bits", SETS["uint16"]), tmp_path)
    for kind in ("f4", "i2", "i4", "u4"):  # a single image does not say what its values mean
        (tmp_path / "f.tif").write_bytes(tiff(np.zeros((9, 9), kind)))
        with pytest.raises(BrokenImageError, match="hardly ever fill"):
            as_predicted(plain, [tmp_path / "f.tif"])
    signed = load(write_set(tmp_path / "signed", SETS["int16"]), tmp_path, depth="bits")
    assert signed.depth == Depth("bits", None, ("int16",))
    as_predicted(signed, [tmp_path / "signed" / "dark" / "1.tif"])


def test_8_bits_choose_nothing_and_keep_identity_and_pixels(tmp_path):
    def eight(values):
        return encoded(np.rint(values * 255).astype(np.uint8))

    root = write_set(tmp_path / "eight", eight, kinds=("png",))
    dataset = load(root, tmp_path)
    data = Data(name="folder", root=str(root))

    assert (dataset.depth, dataset.is_deep, dataset.notes) == (BITS, False, ())
    assert dataset.resolved(data) == data
    assert load(root, tmp_path, depth="bits").resolved(data) == data
    np.testing.assert_array_equal(
        dataset.store.rectangle(0)[..., 0], np.asarray(Image.open(root / "dark" / "0.png"))
    )


def test_the_rule_is_part_of_what_identifies_a_run_and_its_cache(tmp_path):
    root = write_set(tmp_path / "deep", SETS["12 bits in 16"])
    data = Data(name="folder", root=str(root))
    dataset = load(root, tmp_path)

    assert dataset.resolved(data).window == dataset.depth.window
    given = load(root, tmp_path, window=(0, 8190))
    assert given.resolved(data).window == (0, 8190)
    assert given.fingerprint == dataset.fingerprint
    assert given.store.rectangle(0).max() < dataset.store.rectangle(0).max() / 1.9
    bits = load(root, tmp_path, depth="bits")
    assert bits.resolved(data).depth == "bits"
    assert bits.store.rectangle(0).max() < 17
    streamed = load(root, tmp_path, cache_gb=0)
    np.testing.assert_array_equal(streamed.store.rectangle(0), dataset.store.rectangle(0))


def test_values_are_measured_once(tmp_path, monkeypatch):
    root = write_set(tmp_path / "deep", SETS["float32"])
    first = load(root, tmp_path)

    def must_not_run(self, index):
        raise AssertionError(index)

    monkeypatch.setattr(FileImages, "values", must_not_run)
    again = load(root, tmp_path)

    assert again.depth == first.depth
    (found,) = (tmp_path / "cache" / "values").iterdir()
    found.write_bytes(found.read_bytes()[:99])
    with pytest.raises(AssertionError):
        load(root, tmp_path)
