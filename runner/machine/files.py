"""Writing to disk so that a crash of the program or of the machine leaves nothing half-written."""

import errno
import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path

from runner.errors import StorageError

_FIX = "outputs=FOLDER that you may write to, on a disk with space"


def read_whole(path: Path) -> bytes:
    """Read a regular file. Refuses anything else: reading a pipe could wait without end.

    Raises:
        OSError: the file cannot be read, or is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def write_synced(path: Path, content: bytes, *, fix: str = _FIX) -> None:
    """Write a new file, and its folder if missing, and wait until the disk has the content.

    Args:
        path: the file to write.
        content: the bytes to write.
        fix: the advice of the error if the file cannot be written.

    Raises:
        StorageError: the file cannot be written; no part of it remains.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:  # an interrupt must not leave a part of the file, either
        with suppress(OSError):
            path.unlink()
        if isinstance(error, OSError):
            raise unwritable(path, error, len(content), fix=fix) from error
        raise


def replace_whole(path: Path, content: bytes, *, is_shared: bool = False, fix: str = _FIX) -> None:
    """Write a file whole or not at all; the old file stays until the new one is complete.

    Args:
        path: the file to write.
        content: the bytes to write.
        is_shared: whether several processes may write the file at the same time, without a lock;
            each of them then needs a temporary file of its own.
        fix: the advice of the error if the file cannot be written.

    Raises:
        StorageError: the file cannot be written.
    """
    own = f"-{os.getpid()}" if is_shared else ""
    temporary = path.with_name(f"{path.name}.tmp{own}")
    write_synced(temporary, content, fix=fix)
    try:
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise unwritable(path, error, fix=fix) from error
    sync_folder(path.parent)


def write_output(path: Path, content: bytes) -> None:
    """Write a file that the user named, whole or not at all; or write to a pipe or device.

    Raises:
        StorageError: the file cannot be written.
    """
    target = path.resolve()  # writes to the target of a link such as /dev/stdout, keeps the link
    try:
        if target.is_dir() or path.name == "":
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if target.exists() and not target.is_file():
            target.write_bytes(content)
        else:
            replace_whole(target, content, fix="another FILE")
    except OSError as error:
        raise unwritable(path, error, fix="another FILE") from error


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the names in a folder; return if the file system cannot do that."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def unwritable(path: Path, error: OSError, size: int = 0, *, fix: str = _FIX) -> StorageError:
    """Make the error for a file of ``size`` bytes that cannot be written."""
    space = ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        with suppress(OSError):
            free = shutil.disk_usage(path.parent).free
            space = f" (needs {size / 1e6:.1f} MB, free {free / 1e6:.1f} MB)"
    return StorageError(
        f"cannot write: {error.strerror or error}{space}",
        where=str(path.absolute()),
        fix=fix,
    )
