"""A lock between processes: the second process waits, or gets an error that names the first.

The locks are those of ``flock``. The library filelock takes the same locks, but does not say who
holds a lock, cannot test a lock without taking it, and does not notice that its file was removed.
"""

import errno
import fcntl
import json
import os
import shlex
import socket
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from runner.errors import BusyError, StorageError
from runner.machine import fields
from runner.machine.files import read_whole

_held: set[int] = set()


def _leave_to_parent() -> None:
    """Close the descriptors in a forked child, which would keep the locks of a killed parent."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_leave_to_parent)

_ATTEMPTS = 5  # is_held in another process also holds the lock for a moment
_POLL_SECONDS = 0.2
_LARGEST = 4096  # bytes of a lock file; a signature has about 100 bytes
_OPEN = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # no link, and no wait for a pipe


class Lock:
    """A lock that this process holds."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    @property
    def is_in_place(self) -> bool:
        """Whether the locked file is still the file at its path.

        After the file was removed, another process can lock a new file of the same name.
        """
        try:
            found = self._path.stat(follow_symlinks=False)
        except OSError:
            return False
        return os.path.samestat(found, os.fstat(self._descriptor))

    def require(self) -> None:
        """Raise StorageError if the lock is not in place; call this before each commit."""
        if not self.is_in_place:
            raise StorageError(
                "the lock file was removed or replaced while this process held the lock, so the "
                "process stops: another process may write here now",
                where=str(self._path.absolute()),
                fix="run the same command again, which resumes or trains anew",
            )


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[Lock]:
    """Hold an exclusive lock on a file; wait for it while another process holds it.

    The kernel frees the lock when its holder ends, however it ends. The file stays in place:
    if it were removed, one process could wait on the old file while another locks a new one. The
    file names the process that holds the lock or held it last.

    Args:
        path: the lock file; it and its folder are created when missing.
        wait: wait until the other process releases the lock; if False, raise at once.

    Raises:
        BusyError: another process holds the lock, and ``wait`` is False.
        StorageError: the lock file cannot be created, is a link or another program's file, or
            its file system has no locks.
    """
    descriptor = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _open(path, os.O_RDWR | os.O_CREAT)
        _acquire(descriptor, wait)
        while not Lock(path, descriptor).is_in_place:  # removed while this process waited
            os.close(descriptor)
            descriptor = None
            descriptor = _open(path, os.O_RDWR | os.O_CREAT)
            _acquire(descriptor, wait)
        _sign(descriptor)
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
        is_other = error.errno in (errno.ELOOP, errno.EEXIST, errno.EINVAL, errno.ENXIO)
        raise StorageError(
            f"cannot lock a file: {error.strerror}",
            where=str(path.absolute()),
            fix=f"mv {shlex.quote(str(path))} ELSEWHERE"
            if is_other
            else "choose a folder that you may write to, on a local file system",
        ) from error
    _held.add(descriptor)
    try:
        yield Lock(path, descriptor)
    finally:
        if descriptor in _held:
            _held.remove(descriptor)
            os.close(descriptor)


@contextmanager
def one_locked(paths: Sequence[Path]) -> Iterator[int]:
    """Hold the first free lock of ``paths``, waiting until one is free; yield its position.

    Args:
        paths: the lock files, at least one.

    Raises:
        StorageError: as :func:`locked`.
    """
    with ExitStack() as stack:
        yield _first_free(paths, stack)


def _first_free(paths: Sequence[Path], stack: ExitStack) -> int:
    while True:
        for position, path in enumerate(paths):
            with suppress(BusyError):
                stack.enter_context(locked(path, wait=False))
                return position
        time.sleep(_POLL_SECONDS)


def _open(path: Path, flags: int) -> int:
    """Open a lock file; raise OSError if it is not a regular file."""
    descriptor = os.open(path, flags | _OPEN, 0o644)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return descriptor


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


def _sign(descriptor: int) -> None:
    """Write who holds the lock, unless the file has other content, as a hard link may."""
    content = os.pread(descriptor, _LARGEST, 0)
    if content.strip(b"\0"):  # empty or of zeros: its writer or the machine died
        try:
            fields.whole(fields.parsed(content), "pid")
        except ValueError as error:
            raise OSError(errno.EEXIST, "it is not a lock file: it has other content") from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, _signature().encode(), 0)


def is_held(path: Path) -> bool:
    """Return whether any process, including this one, holds the lock now."""
    try:
        descriptor = _open(path, os.O_RDONLY)
    except (OSError, ValueError):  # ValueError: a null character in the path
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
        who = fields.parsed(read_whole(path, at_most=_LARGEST))
        pid, host = fields.whole(who, "pid"), fields.text(who, "host")
        return f": process {pid} on {host}, since {fields.text(who, 'since')}"
    except (OSError, ValueError):
        return ""
