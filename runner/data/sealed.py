"""Files of the cache, which are used only after a check of their size and checksum.

A power cut, a full disk or a failing one leaves files that are empty, cut, or wrong in a few bits.
Each kind of file of the cache is written with a checksum and with a key that says what the file is
for, so that no other file is mistaken for it.

The checksum is CRC-32: it finds accidents, and the cache is not a border against attackers. It
runs at memory speed, 3.9 GB/s on a core where SHA-256 makes 1.4 and BLAKE2 0.6: a set of 1 GB
costs 0.3 seconds and one of 10 GB 3 seconds, once in each process, and reading a set also loads it
into memory for the first epoch.
"""

import json
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from runner.errors import BusyError
from runner.machine import fields, files
from runner.machine.files import (
    open_regular,
    read_whole,
    replace_whole,
    stamp_of,
    sync,
    sync_folder,
    unwritable,
    write_synced,
)
from runner.machine.locks import locked
from runner.terminal.console import note

CACHE_FIX = "free some space, or outputs=FOLDER on another disk, or data.cache_gb=0 to stream"
"""The advice of an error if the cache cannot be written."""
SEAL = "checksums.json"
"""The file of a sealed folder that holds the checksums of the others."""
_LARGEST_SEAL = 100_000  # bytes
_CHUNK = 2**20  # fits a core's cache

# Stamps of files that this process has checked. A change of a file changes its stamp.
_checked: set[tuple[tuple[int, ...], int]] = set()


class DamagedError(Exception):
    """A file of the cache that is not what was written, with the reason."""


def remember(path: Path, key: str, value: Any) -> None:
    """Write a value of JSON to a file of the cache, for :func:`recall`.

    Raises:
        StorageError: the file cannot be written.
    """
    if path.is_dir() and not path.is_symlink():
        discard(path)
    spelled = json.dumps(value)
    content = f"{_crc_of_text(key, spelled):08x} {key}\n{spelled}"
    replace_whole(path, content.encode(), fix=CACHE_FIX)


def recall(path: Path, key: str, *, at_most: int = 2**30) -> Any:
    """Return the value that :func:`remember` wrote for ``key``; None if there is no such file.

    Args:
        path: the file.
        key: what the value is for.
        at_most: largest size of the file, bytes.

    Raises:
        DamagedError: the file is not what was written for ``key``.
    """
    try:
        content = read_whole(path, at_most=at_most)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedError(error.strerror or str(error)) from error
    head, _, spelled = content.partition(b"\n")
    try:
        text = spelled.decode()
        if head.decode() != f"{_crc_of_text(key, text):08x} {key}":
            raise DamagedError("it has another checksum" if content else "it is empty")
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedError("it is not what was written") from error


def _crc_of_text(key: str, spelled: str) -> int:
    return zlib.crc32(f"{key}\n{spelled}".encode())


def seal(folder: Path, key: str) -> None:
    """Write the sizes and checksums of all files of ``folder``, and wait until the disk has all.

    Raises:
        OSError: a file cannot be read.
        StorageError: the disk cannot take the files.
    """
    sums = {}
    for path in sorted(folder.iterdir()):
        with open_regular(path) as file:
            sync(file.fileno())
            crc = _crc(file)
            status = os.fstat(file.fileno())
            sums[path.name] = {"size": status.st_size, "crc32": crc}
            _checked.add((stamp_of(status), crc))
    content = json.dumps({"key": key, "files": sums}, indent=1)
    write_synced(folder / SEAL, content.encode(), fix=CACHE_FIX)
    sync_folder(folder)


@contextmanager
def opened(folder: Path, key: str, names: Sequence[str]) -> Iterator[tuple[BufferedReader, ...]]:
    """Open files of a sealed folder, each at its start, after a check of their content.

    A large file is checked once in a process, unless it changes.

    Raises:
        FileNotFoundError: there is no such folder.
        DamagedError: the folder is not what was written for ``key``.
    """
    with ExitStack() as stack:
        yield tuple(_open_checked(folder, key, names, stack))


def _open_checked(
    folder: Path, key: str, names: Sequence[str], stack: ExitStack
) -> Iterator[BufferedReader]:
    folder.lstat()  # raises FileNotFoundError, for a folder only
    name = SEAL
    try:
        facts = fields.parsed(read_whole(folder / SEAL, at_most=_LARGEST_SEAL))
        if fields.text(facts, "key") != key:
            raise DamagedError("it is a cache of something else")
        sums = fields.section(facts, "files")
        for name in names:
            expected = fields.section(sums, name)
            size, crc = fields.whole(expected, "size"), fields.whole(expected, "crc32")
            file = stack.enter_context(open_regular(folder / name))
            status = os.fstat(file.fileno())
            if status.st_size != size:
                raise DamagedError(f"{name} has {status.st_size:,} bytes instead of {size:,}")
            if (stamp_of(status), crc) not in _checked:
                if _crc(file) != crc:
                    raise DamagedError(f"{name} has another checksum")
                _checked.add((stamp_of(status), crc))
            yield file
    except FileNotFoundError as error:
        raise DamagedError(f"{name} is missing") from error
    except OSError as error:
        raise DamagedError(f"{name}: {error.strerror or error}") from error
    except ValueError as error:
        raise DamagedError(f"{name} is not what was written") from error


def _crc(file: BufferedReader) -> int:
    """CRC-32 of a whole file, which is at its start again afterwards."""
    crc = 0
    chunk = memoryview(bytearray(_CHUNK))
    while size := file.readinto(chunk):
        crc = zlib.crc32(chunk[:size], crc)
    file.seek(0)
    return crc


def discard(path: Path) -> None:
    """Remove whatever is at ``path``: a file, a folder with its content, or a link alone.

    Raises:
        StorageError: it cannot be removed.
    """
    try:
        files.remove(path)
    except OSError as error:
        raise unwritable(path, error, fix=CACHE_FIX) from error


@contextmanager
def turn(path: Path, doing: str) -> Iterator[None]:
    """Hold the lock at ``path``. If another process has it, say so, and wait.

    Args:
        path: the lock file.
        doing: what a process does that holds the lock, as "decoding the images".

    Raises:
        StorageError: the file system cannot lock a file.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(path, wait=False))
        except BusyError as error:
            _, _, holder = error.what.partition(": ")
            note(f"waiting for another process{holder and f' ({holder})'}, which is {doing}")
            stack.enter_context(locked(path))
        yield
