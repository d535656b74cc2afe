"""Read numpy arrays from untrusted files, within the bounds of the file."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

import numpy as np
from numpy.typing import NDArray

from runner.machine.files import memory, read_whole

_LARGEST_RATIO = 1100  # deflate makes at most 1,032 bytes of one
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_npz(
    path: Path, names: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, NDArray[Any]]:
    """Read arrays of a ``.npz`` file, and refuse arrays of Python objects.

    The sizes that the file claims are compared with one another, with the size of the file and with
    the memory, before anything is allocated.

    Args:
        path: the file to read.
        names: names of the arrays.
        optional: names of arrays that are read if the file has them.

    Raises:
        OSError: the file cannot be read, or is not a regular file.
        ValueError: the file is not a ``.npz`` archive, or its sizes are not those that it claims.
    """
    content = read_whole(path)
    try:
        with ZipFile(io.BytesIO(content)) as archive:
            there = {*archive.namelist()}
            wanted = [*names, *(name for name in optional if f"{name}.npy" in there)]
            members = [archive.getinfo(f"{name}.npy") for name in wanted]
            if (size := sum(member.file_size for member in members)) > memory() // 2:
                raise ValueError(f"its arrays claim {size:,} bytes")
            found = [_read_member(archive, member) for member in members]
    except ValueError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise a dozen unrelated types
        reason = str(error) or type(error).__name__
        raise ValueError(f"not an archive of arrays: {reason}") from error
    return dict(zip(wanted, found, strict=True))


def _read_member(archive: ZipFile, member: ZipInfo) -> NDArray[Any]:
    if member.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        raise ValueError(f"{member.filename} is not stored or compressed with deflate")
    if member.file_size > _LARGEST_RATIO * member.compress_size:
        raise ValueError(
            f"{member.filename} claims {member.file_size:,} bytes in {member.compress_size:,}"
        )
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"{member.filename} has unknown version {version} of numpy's format")
        shape, _, dtype = _HEADERS[version](file)
        claimed = math.prod(shape) * dtype.itemsize
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded: reading them would run code")
    if claimed > member.file_size:
        raise ValueError(f"{member.filename} claims {claimed:,} bytes in {member.file_size:,}")
    with archive.open(member) as file:
        array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    return array
