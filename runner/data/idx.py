"""Read IDX, the file format of MNIST and its relatives (http://yann.lecun.com/exdb/mnist/).

A file is a magic number (two zero bytes, a type code, the number of dimensions), then each
dimension as a big-endian 32-bit integer, then the values.
"""

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from runner.errors import DataError
from runner.machine.files import open_regular

_UNSIGNED_BYTE = 0x08
_GZIP_MAGIC = b"\x1f\x8b"
# A header of a few bytes can declare 2^32 values per dimension; asking for those would exhaust
# memory before the file turned out to be short. Full Fashion-MNIST has 47 million.
_MAX_VALUES = 2**31


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Return the unsigned bytes of an IDX file in the shape that its header declares.

    Args:
        path: the file, plain or gzipped; the first bytes decide, not the name.

    Returns:
        An array of uint8, for images ``[count, height, width]``, for labels ``[count]``.

    Raises:
        DataError: the file is missing, unreadable, not IDX, not of unsigned bytes, or shorter
            or longer than its header says.
    """
    try:
        with open_regular(path) as raw:
            gzipped = raw.read(2) == _GZIP_MAGIC
            raw.seek(0)
            if not gzipped:
                return _parse(raw, path)
            with gzip.GzipFile(fileobj=raw) as stream:
                return _parse(stream, path)
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise _refused(path, f"cannot read the IDX file: {reason or error}") from error


def _parse(stream: BinaryIO | gzip.GzipFile, path: Path) -> NDArray[np.uint8]:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[3] == 0:
        raise _refused(path, f"not an IDX file: it starts with {magic.hex(' ') or 'nothing'}")
    if magic[2] != _UNSIGNED_BYTE:
        raise _refused(path, f"IDX type 0x{magic[2]:02x} is not supported, only unsigned bytes")
    header = stream.read(4 * magic[3])
    if len(header) < 4 * magic[3]:
        raise _refused(path, "the IDX file is truncated: it ends inside its header")
    shape = tuple(int(size) for size in np.frombuffer(header, dtype=">u4"))
    declared = math.prod(shape)
    if declared > _MAX_VALUES:
        raise _refused(path, f"the IDX header declares {declared} values, over {_MAX_VALUES}")
    # One byte more than declared shows trailing data, and makes gzip check its checksum.
    content = stream.read(declared + 1)
    if len(content) < declared:
        raise _refused(
            path, f"the IDX file is truncated: {len(content)} values of {declared} for {shape}"
        )
    if len(content) > declared:
        raise _refused(path, f"the IDX file continues after its {declared} values for {shape}")
    # A copy, since an array over bytes is read-only and torch warns about those.
    return np.frombuffer(content, dtype=np.uint8).reshape(shape).copy()


def _refused(path: Path, what: str) -> DataError:
    return DataError(what, where=str(path.absolute()), fix="get a fresh copy of the file")
