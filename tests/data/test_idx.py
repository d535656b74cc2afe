import gzip
import struct

import numpy as np
import pytest

from runner.data.idx import read_idx
from runner.errors import DataError


def idx_bytes(array, kind=0x08):
    header = bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


IMAGES = np.random.default_rng(0).integers(0, 256, size=(5, 4, 3), dtype=np.uint8)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("array", [IMAGES, IMAGES[:, 0, 0], IMAGES[:0]], ids=["3d", "1d", "empty"])
def test_reads_what_was_written(tmp_path, array, pack):
    path = tmp_path / "images.any"  # the name says nothing
    path.write_bytes(pack(idx_bytes(array)))

    result = read_idx(path)

    assert result.dtype == np.uint8
    assert result.flags.writeable
    np.testing.assert_array_equal(result, array)


GOOD = idx_bytes(IMAGES)
BROKEN = {
    "empty": (b"", "not an IDX file"),
    "not idx": (b"<html>nothing here</html>", "not an IDX file"),
    "no dimensions": (b"\0\0\x08\0", "not an IDX file"),
    "other type": (idx_bytes(IMAGES.astype(">f4"), kind=0x0D), "0x0d is not supported"),
    "cut in the header": (GOOD[:9], "inside its header"),
    "cut in the values": (GOOD[:-1], "truncated: 59 values of 60"),
    "too long": (GOOD + b"\0", "continues after"),
    "huge": (b"\0\0\x08\x03" + b"\xff" * 12, "declares"),
}


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize(("content", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_content_is_refused_with_the_file(tmp_path, content, message, pack):
    path = tmp_path / "labels"
    path.write_bytes(pack(content))

    with pytest.raises(DataError, match=message) as caught:
        read_idx(path)

    assert str(path) in caught.value.where


@pytest.mark.parametrize("keep", [3, 20, -1, -6])
def test_truncated_gzip_is_refused(tmp_path, keep):
    path = tmp_path / "labels.gz"
    path.write_bytes(gzip.compress(GOOD)[:keep])

    with pytest.raises(DataError) as caught:
        read_idx(path)

    assert str(path) in caught.value.where


def test_flipped_bit_in_gzip_is_refused(tmp_path):
    path = tmp_path / "labels.gz"
    content = bytearray(gzip.compress(GOOD))
    content[40] ^= 1
    path.write_bytes(content)

    with pytest.raises(DataError):
        read_idx(path)


def test_missing_file_and_folder_are_named(tmp_path):
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(DataError) as caught:
            read_idx(path)
        assert str(path) in caught.value.where
