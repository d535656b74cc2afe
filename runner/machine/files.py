"""Writing to disk so that a crash of the program or of the machine leaves nothing half-written."""

import errno
import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path

from runner.errors import StorageError


def read_whole(path: Path) -> bytes:
    """The content of a regular file; a pipe in its place would be waited for without end.

    Raises:
        OSError: it cannot be read, or is none.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def write_synced(path: Path, content: bytes) -> None:
    """Write a new file and wait until the disk has it.

    Raises:
        StorageError: it cannot be written; nothing is left of it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:  # an interrupt leaves nothing, either
        with suppress(OSError):
            path.unlink()
        if isinstance(error, OSError):
            raise unwritable(path, error, len(content)) from error
        raise


def replace_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; what was there before stays until then.

    Raises:
        StorageError: it cannot be written.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    write_synced(temporary, content)
    try:
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise unwritable(path, error) from error
    sync_folder(path.parent)


def write_output(path: Path, content: bytes) -> None:
    """Write a file that the user named: whole or not at all; or into a pipe or device.

    Raises:
        StorageError: it cannot be written.
    """
    target = path.resolve()  # of a link such as /dev/stdout what it leads to, not the link
    try:
        if target.is_dir() or path.name == "":
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if target.exists() and not target.is_file():
            target.write_bytes(content)
        else:
            replace_whole(target, content)
    except StorageError as error:
        raise StorageError(error.what, where=error.where, fix="another FILE") from error
    except OSError as error:
        raise StorageError(
            f"cannot write: {error.strerror or error}",
            where=str(path.absolute()),
            fix="another FILE",
        ) from error


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the names in a folder; where the file system cannot, go on."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def unwritable(path: Path, error: OSError, size: int = 0) -> StorageError:
    """The error for a file of ``size`` bytes that cannot be written."""
    space = ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        with suppress(OSError):
            free = shutil.disk_usage(path.parent).free
            space = f" (needs {size / 1e6:.1f} MB, free {free / 1e6:.1f} MB)"
    return StorageError(
        f"cannot write: {error.strerror or error}{space}",
        where=str(path.absolute()),
        fix="outputs=FOLDER that you may write to, on a disk with space",
    )
