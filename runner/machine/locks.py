"""A lock between processes: the second process waits, or gets an error that names the first."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from runner.errors import BusyError, StorageError
from runner.machine import fields

_held: set[int] = set()


def _leave_to_parent() -> None:
    """Close the descriptors in a forked child, which would keep the locks of a killed parent."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_leave_to_parent)

_ATTEMPTS = 5  # is_held in another process also has the lock, for a moment


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on a file; wait for it while another process holds it.

    The kernel frees the lock when its holder ends, however it ends. The file stays in place:
    if it were removed, one process could wait on the old file while another locks a new one. The
    file names the process that holds the lock or held it last.

    Args:
        path: the lock file; it and its folder are created when missing.
        wait: wait until the other process releases the lock; if False, raise at once.

    Raises:
        BusyError: another process holds the lock, and ``wait`` is False.
        StorageError: the lock file cannot be created, or its file system has no locks.
    """
    descriptor = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        _acquire(descriptor, wait)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, _signature().encode())
    except BaseException as error:
        if descriptor is not None:
            os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise BusyError(
                f"another process is using this{_holder(path)}",
                where=str(path.absolute()),
                fix="wait for it to end",
            ) from error
        if not isinstance(error, OSError):
            raise
        raise StorageError(
            f"cannot lock a file: {error.strerror}",
            where=str(path.absolute()),
            fix="choose a folder that you may write to, on a local file system",
        ) from error
    _held.add(descriptor)
    try:
        yield
    finally:
        if descriptor in _held:
            _held.remove(descriptor)
            os.close(descriptor)


def _acquire(descriptor: int, wait: bool) -> None:
    if wait:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return
    for attempt in range(_ATTEMPTS):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if attempt == _ATTEMPTS - 1:
                raise
        time.sleep(0.02)


def is_held(path: Path) -> bool:
    """Whether any process, including this one, holds the lock at the moment."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def _signature() -> str:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}) + "\n"


def _holder(path: Path) -> str:
    try:
        who = fields.parsed(path.read_bytes())
        pid, host = fields.whole(who, "pid"), fields.text(who, "host")
        return f": process {pid} on {host}, since {fields.text(who, 'since')}"
    except (OSError, ValueError):
        return ""
