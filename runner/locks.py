"""A lock between processes: who comes second waits."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runner.errors import BusyError, StorageError


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on a file, waiting for it as long as another process has it.

    The kernel frees the lock when its holder ends, however it ends. The file stays in place:
    if it were removed, one process could wait on the old file while another locks a new one.

    Args:
        path: the lock file; it and its folder are created when missing.
        wait: for the other process to finish; or raise at once.

    Raises:
        BusyError: another process holds the lock, and ``wait`` is off.
        StorageError: the lock file cannot be created, or its file system has no locks.
    """
    descriptor = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BaseException as error:
        if descriptor is not None:
            os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise BusyError(
                "another process is at this", where=str(path.absolute()), fix="wait for it to end"
            ) from error
        if not isinstance(error, OSError):
            raise
        raise StorageError(
            f"Cannot lock a file: {error.strerror}",
            where=str(path.absolute()),
            fix="choose a folder that you may write to, on a local file system",
        ) from error
    try:
        yield
    finally:
        os.close(descriptor)
