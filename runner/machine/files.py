"""Read only regular files of bounded size; write files whole, and never through a link.

Other users may have placed anything where the program reads and writes: a pipe that never
ends, a link to a file of somebody else, a file that is larger than memory. So all foreign files are
read through :func:`open_regular` and :func:`read_whole`. All files are written through a temporary
file that this process alone creates, and that then takes the name. A crash of the program or of the
machine leaves nothing half-written.
"""

import errno
import fcntl
import itertools
import os
import secrets
import shlex
import shutil
import stat
from contextlib import suppress
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import TextIO

from runner.errors import StorageError
from runner.machine.control_groups import allowed_memory

_FIX = "outputs=FOLDER that you may write to, on a disk with space"
_TEMPORARY = ".tmp-"
_LONGEST_NAME = 40  # characters of a name kept in its temporary name; names have 255 bytes at most
# Without O_NONBLOCK, opening a pipe waits for its other end. Regular files ignore it.
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading, through links. Does not wait, whatever is at ``path``.

    Raises:
        OSError: the file cannot be opened, is not a regular file, or cannot have such a name.
    """
    return os.fdopen(_regular(path, _READ), "rb")


def read_whole(path: Path, *, at_most: int | None = None) -> bytes:
    """Read a regular file. Refuse anything else: reading a pipe could wait forever.

    Args:
        path: the file to read.
        at_most: largest size of the file in bytes; by default half of the memory of this machine.

    Raises:
        OSError: the file cannot be read, is not a regular file, or is too large.
    """
    limit = memory() // 2 if at_most is None else at_most
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            reason = f"larger than {limit:,} bytes: {size:,}"
            raise OSError(errno.EFBIG, reason, str(path))
        try:
            return file.read(size)
        except MemoryError as error:
            raise OSError(errno.ENOMEM, f"larger than the memory: {size:,}", str(path)) from error


def read_end(path: Path, at_most: int) -> bytes:
    """Read the last ``at_most`` bytes of a regular file, or all of a smaller one.

    Raises:
        OSError: the file cannot be read, or is not a regular file.
    """
    with open_regular(path) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - at_most))
        return file.read(at_most)


def stamp_of(status: os.stat_result) -> tuple[int, ...]:
    """Return device, inode, size, and times of the last change of content and of the inode, ns.

    No program can set the last of them, so a new file with an old date is still recognized.
    """
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def memory() -> int:
    """Return the bytes of memory that this process may use; 8 GiB if the system does not tell.

    That of the machine, or what its control groups allow, such as those of a container.
    """
    try:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):  # not every system has both names
        found = 2**33
    return min(found, allowed_memory() or found)


def _regular(path: Path, flags: int) -> int:
    """Open ``path`` and return its descriptor, if it is a regular file."""
    try:
        descriptor = os.open(path, flags, 0o666)
    except ValueError as error:  # a null character, or one that no file name can have
        raise OSError(errno.EINVAL, f"not a possible file name: {error}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return descriptor


def write_synced(path: Path, content: bytes | bytearray, *, fix: str = _FIX) -> None:
    """Create a file, and its folder if missing, and wait until the disk has the content.

    Args:
        path: the file to write; nothing may exist there, not even a link.
        content: the bytes to write.
        fix: how to fix it, for the error if the file cannot be written.

    Raises:
        StorageError: the file cannot be written; no part of it remains.
    """
    is_ours = False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, _CREATE, 0o666), "wb") as file:
            is_ours = True
            file.write(content)
            file.flush()
            sync(file.fileno())
    except BaseException as error:  # an interrupt must not leave a part of the file, either
        if is_ours:
            with suppress(OSError):
                path.unlink()
        if isinstance(error, OSError):
            raise unwritable(path, error, len(content), fix=fix) from error
        raise


def replace_whole(path: Path, content: bytes | bytearray, *, fix: str = _FIX) -> None:
    """Write a file whole or not at all; the old file stays until the new one is complete.

    A link at ``path`` is replaced, and its target stays as it is. Several processes may write the
    file at the same time: the last one wins.

    Args:
        path: the file to write.
        content: the bytes to write.
        fix: how to fix it, for the error if the file cannot be written.

    Raises:
        StorageError: the file cannot be written.
    """
    temporary = temporary_sibling(path)
    try:
        write_synced(temporary, content, fix=fix)
    except StorageError as error:
        error.where = str(path.absolute())
        raise
    try:
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise unwritable(path, error, fix=fix) from error
    sync_folder(path.parent)


def temporary_sibling(path: Path) -> Path:
    """Return an unused name in the folder of ``path``; :func:`remove_leftovers` knows it."""
    return path.with_name(f"{path.name[:_LONGEST_NAME]}{_TEMPORARY}{secrets.token_hex(8)}")


def is_leftover(name: str) -> bool:
    """Return whether this is the name of a temporary file of a process that was killed."""
    return _TEMPORARY in name


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders in ``folder`` of processes that were killed."""
    with suppress(OSError):
        for entry in folder.iterdir():
            if is_leftover(entry.name):
                remove(entry)


def append_synced(path: Path, content: bytes) -> None:
    """Append to a file, which may be missing, and wait until the disk has the content.

    Raises:
        StorageError: the file cannot be written, or is a link or not a regular file.
    """
    try:
        with open_append(path) as file:
            file.write(content)
            file.flush()
            sync(file.fileno())
    except OSError as error:
        raise unwritable(path, error, len(content)) from error


def open_append(path: Path) -> BufferedWriter:
    """Open a file, which may be missing, to append bytes.

    Raises:
        OSError: the file cannot be written, or is a link or not a regular file.
    """
    return os.fdopen(_regular(path, _APPEND), "ab")


def open_log(path: Path) -> TextIO:
    """Open a file to append lines, each of which is written immediately.

    Raises:
        OSError: the file cannot be written, or is a link or not a regular file.
    """
    return os.fdopen(_regular(path, _APPEND), "a", encoding="utf-8", buffering=1)


def own_folder(path: Path) -> Path:
    """Create a folder that belongs to the program, unless it exists; return ``path``.

    Raises:
        StorageError: the folder cannot be created, or something else is there, such as a link to
            another user's folder.
    """
    require_own(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error
    return path


def new_folder(path: Path) -> Path:
    """Create a new folder at ``path`` or, with a number appended, next to it; return its path.

    Raises:
        StorageError: the folder cannot be created.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            found = path if number == 1 else path.with_name(f"{path.name}-{number}")
            with suppress(FileExistsError):
                found.mkdir()
                return found
    except OSError as error:
        raise unwritable(path, error) from error
    raise AssertionError  # the loop has no end


def require_own(path: Path) -> None:
    """Raise StorageError if ``path`` is anything but a real folder, such as a link."""
    try:
        mode = path.stat(follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise unwritable(path, error) from error
    if not stat.S_ISDIR(mode):
        what = "a link" if stat.S_ISLNK(mode) else "no folder"
        raise StorageError(
            f"cannot write: this is {what}, and a run writes only into folders of its own",
            where=str(path.absolute()),
            fix=f"rm {shlex.quote(str(path))}",
        )


def require_writable(folder: Path) -> None:
    """Check that a folder may be written, or made if it does not exist. Creates nothing.

    Raises:
        StorageError: the folder may not be written, or a file is in its place.
    """
    path = folder.absolute()
    existing = next(each for each in (path, *path.parents) if os.path.lexists(each))
    if not existing.is_dir():
        number = errno.ENOTDIR
    elif os.access(existing, os.W_OK | os.X_OK):
        return
    else:
        is_read_only = os.statvfs(existing).f_flag & os.ST_RDONLY
        number = errno.EROFS if is_read_only else errno.EACCES
    raise unwritable(path, OSError(number, os.strerror(number)))


def remove(path: Path) -> None:
    """Remove what is at ``path``: a folder with its content, a link without its target, or nothing.

    Raises:
        OSError: ``path`` cannot be removed.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_output(path: Path, content: bytes | bytearray) -> None:
    """Write a file that the user named: whole or not at all, unless it is a pipe or a device.

    Raises:
        StorageError: the file cannot be written.
    """
    try:
        target = path.resolve()  # writes to the target of a link such as /dev/stdout, keeps it
        if target.is_dir() or path.name == "":
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if target.exists() and not target.is_file():
            target.write_bytes(content)
        else:
            replace_whole(target, content, fix="another FILE")
    except OSError as error:
        raise unwritable(path, error, fix="another FILE") from error
    except (RuntimeError, ValueError) as error:  # links in a circle; a null character
        raise StorageError(f"cannot write: {error}", where=str(path), fix="another FILE") from error


def sync(descriptor: int) -> None:
    """Wait until the disk has the content of an open file.

    On macOS, fsync leaves the content in the cache of the drive, which a power failure empties.

    Raises:
        OSError: the content cannot be written.
    """
    if (flush_drive := getattr(fcntl, "F_FULLFSYNC", None)) is not None:
        with suppress(OSError):  # not every file system can do that
            fcntl.fcntl(descriptor, flush_drive)
            return
    os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the names in a folder; return if the file system cannot do that."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            sync(descriptor)
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
