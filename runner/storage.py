"""Writing to disk so that a crash of the program or of the machine leaves nothing half-written."""

import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path

from runner.errors import StorageError


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
