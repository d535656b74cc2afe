"""Fetch an archive and unpack it, so that what is in place is always whole and checked.

Both functions may be interrupted at any instant, run again, and run twice at the same time: their
result appears under its final name in one rename, after every check.
"""

import errno
import hashlib
import http.client
import os
import shutil
import stat
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Self
from urllib.parse import urlsplit

from runner.data.sealed import turn
from runner.errors import ArtefactError, ConfigError, RunnerError, StorageError
from runner.machine.files import open_append, open_regular, remove, sync, sync_folder

# Called with the number of bytes done and of all bytes (None if not known).
ByteProgress = Callable[[int, int | None], None]

_CHUNK = 64 * 1024
_TIMEOUT_SECONDS = 30.0
_NUM_RETRIES = 3  # in a row without a new byte
_PAUSE_SECONDS = 0.5  # before the first retry; doubles with each
_HEX_DIGITS = {"md5": 32, "sha256": 64}

_MAX_MEMBERS = 2_000_000
_MAX_BYTES = 500 * 2**30
# Deflate cannot shrink by more than a factor of 1032; real image archives stay near 1.
_MAX_RATIO = 1000
_RATIO_ALLOWANCE = 2**30
_MAX_EXTENDED_HEADER = 2**20  # long names and the like; tarfile reads them whole into memory
_KINDS: dict[bytes, Callable[..., tarfile.TarFile]] = {
    b"\x1f\x8b": tarfile.TarFile.gzopen,
    b"BZh": tarfile.TarFile.bz2open,
    b"\xfd7zXZ\0": tarfile.TarFile.xzopen,
}
_EXTENDED_HEADERS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
_MAX_PADDING = 16 * 2**20  # zeros after the end of a tar archive


class _DroppedError(Exception):
    """The connection or the server failed in a way that may pass."""


def fetch(
    url: str, destination: Path, *, checksum: str, progress: ByteProgress | None = None
) -> Path:
    """Download a file, unless it is there already.

    The bytes go to ``<destination>.part``. A part left by an interrupted download is continued
    where the server can do so; a dropped connection is tried again a few times. When two
    processes ask for one file, the second waits for the first and takes its result.

    Args:
        url: an http or https address, percent-encoded.
        destination: the file to write. If it exists, it is returned unchecked.
        checksum: ``md5:HEX`` or ``sha256:HEX`` of the whole file.
        progress: called with the bytes done and the bytes in all (None if not known).

    Returns:
        ``destination``.

    Raises:
        ConfigError: ``url`` or ``checksum`` is malformed.
        StorageError: no network, an HTTP error, a wrong checksum, a full disk, or no permission.
    """
    algorithm, expected = _parse_checksum(checksum)
    if urlsplit(url).scheme not in ("http", "https") or not url.isascii():
        raise ConfigError(
            f"not a web address: {url!r}", fix="give http://... or https://..., percent-encoded"
        )
    if destination.exists():
        return destination
    if progress is not None:
        progress(0, None)  # may refuse to begin, or to wait for another process
    part = _sibling(destination, ".part")
    with (
        turn(_sibling(destination, ".lock"), f"downloading {destination.name}"),
        _storage_errors(part),
    ):
        if destination.exists():  # another process fetched it while this one waited
            if progress is not None:
                progress(1, 1)
            return destination
        _receive_patiently(url, part, destination, progress)
        with open_regular(part) as file:
            # Against accidents, not attacks: some publishers state nothing better than MD5.
            found = hashlib.file_digest(
                file, lambda: hashlib.new(algorithm, usedforsecurity=False)
            ).hexdigest()
        if found != expected:
            part.unlink()
            raise StorageError(
                f"wrong checksum: expected {algorithm}:{expected}, found {algorithm}:{found}",
                where=_download(url, destination),
                fix="run it again; if that does not help, download the file yourself and pass "
                "data.root=PATH",
            )
        part.replace(destination)
        sync_folder(destination.parent)
    return destination


def _parse_checksum(checksum: str) -> tuple[str, str]:
    algorithm, _, digits = checksum.lower().partition(":")
    if len(digits) != _HEX_DIGITS.get(algorithm) or set(digits) - set("0123456789abcdef"):
        raise ConfigError(f"not a checksum: {checksum!r}", fix="write md5:HEX or sha256:HEX")
    return algorithm, digits


def _receive_patiently(
    url: str, part: Path, destination: Path, progress: ByteProgress | None
) -> None:
    """Complete the part, over as many connections as needed while new bytes arrive."""
    most = _size(part)
    failures = 0
    while True:
        try:
            _receive(url, part, destination, progress)
        except _DroppedError as error:
            if _size(part) > most:
                most = _size(part)
                failures = 0
            failures += 1
            if failures > _NUM_RETRIES:
                raise _download_error(f"cannot download: {error}", url, destination) from error
        else:
            return
        time.sleep(_PAUSE_SECONDS * 2 ** (failures - 1))


def _receive(url: str, part: Path, destination: Path, progress: ByteProgress | None) -> None:
    """Append the bytes of one connection to the part; return only if the file is complete."""
    have = _size(part)
    headers = {"User-Agent": "trick-runner"}
    if have:
        headers["Range"] = f"bytes={have}-"
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - fetch checks the scheme
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)  # noqa: S310
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:  # the server has no bytes beyond those of the part
            if error.headers.get("Content-Range") == f"bytes */{have}":
                return
            part.unlink()  # longer than the file, so not a part of it
        elif error.code != 429 and error.code < 500:
            raise _download_error(
                f"cannot download: HTTP {error.code} {error.reason}", url, destination
            ) from error
        raise _DroppedError(f"HTTP {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _DroppedError(getattr(error, "reason", None) or error) from error
    with response:
        resumed = response.status == 206
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            part.unlink(missing_ok=True)
            raise _DroppedError("the server sent another range than the requested one")
        done = have if resumed else 0  # a server that ignores Range sends it all again
        total = None if response.length is None else done + response.length
        if not resumed:
            remove(part)
        with open_append(part) as file:
            while chunk := _read_network(response):
                file.write(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(done, total)
            file.flush()
            sync(file.fileno())
    if total is not None and done < total:
        raise _DroppedError(f"connection closed after {done} of {total} bytes")


def _read_network(response: http.client.HTTPResponse) -> bytes:
    # Not together with writing: both fail with OSError, and only reading is worth a retry.
    try:
        return response.read(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _DroppedError(error) from error


def _download(url: str, destination: Path) -> str:
    return f"{url} -> {destination.absolute()}"


def _download_error(what: str, url: str, destination: Path) -> StorageError:
    return StorageError(
        what,
        where=_download(url, destination),
        fix="check the network and run it again, or download it yourself and pass data.root=PATH",
    )


def unpack(archive: Path, destination: Path, *, progress: ByteProgress | None = None) -> Path:
    """Unpack a tar (plain or compressed) or zip archive into a new folder, all or nothing.

    Every member is checked before the first byte is written. Only regular files and folders
    are accepted, under relative names without ``..``, each once; at most 2,000,000 of them,
    500 GiB in all, and 1,000 times the archive's own size plus 1 GiB. Modes, owners and times
    in the archive are ignored: files become 0644 less the umask. When two processes unpack to
    one folder, the second waits for the first and takes its result.

    Args:
        archive: the file; its content decides the format, not its name.
        destination: the folder to make. If it exists, it is returned unchecked.
        progress: called with the bytes unpacked and the bytes in all.

    Returns:
        ``destination``.

    Raises:
        ArtefactError: the file is no archive, corrupt, cut short, or has a member that is refused.
        StorageError: a full disk, no permission, or no such archive.
    """
    if destination.exists():
        return destination
    with (
        turn(_sibling(destination, ".lock"), f"unpacking {archive.name}"),
        _storage_errors(destination),
    ):
        if destination.exists():  # another process unpacked it while this one waited
            return destination
        # Folders left by killed processes; no process uses them while this one has the lock.
        for entry in destination.parent.iterdir():
            if entry.name.startswith(f"{destination.name}.tmp-"):
                remove(entry)
        temporary = _sibling(destination, f".tmp-{os.getpid()}")
        try:
            _unpack_checked(archive, temporary, progress)
            # One call for thousands of small files: after a power cut, a folder under its final
            # name must not hold empty ones.
            os.sync()
            temporary.rename(destination)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(destination.parent)
    return destination


@dataclass(frozen=True, slots=True)
class _Member:
    """What the checks need to know about one entry of an archive, tar or zip."""

    name: str
    size: int
    is_folder: bool
    objection: str  # why its kind is refused; empty if it is not
    open: Callable[[], IO[bytes] | None]


def _unpack_checked(archive: Path, root: Path, progress: ByteProgress | None) -> None:
    with _parse_errors(archive):
        opened = _open_archive(archive)
    with opened:
        with _parse_errors(archive):
            members = _accepted(archive, _members(opened))
        total = sum(member.size for _, member in members)
        free = shutil.disk_usage(root.parent).free
        if total > free:
            raise StorageError(
                f"not enough disk space: needs {total / 1e6:,.0f} MB, free {free / 1e6:,.0f} MB",
                where=str(root.parent.absolute()),
                fix="free some space, or choose a folder on another disk",
            )
        root.mkdir()
        done = 0
        for path, member in members:
            target = root / path
            if member.is_folder:
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with _parse_errors(archive, member.name):
                _copy(member, target)
            done += member.size
            if progress is not None:
                progress(done, total)


class _RefusedError(Exception):
    """Why an archive is refused, raised where its path is not known."""


class _BoundedTarInfo(tarfile.TarInfo):
    """Refuses the entries that make tarfile itself read without bound, before it does."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        info = super().frombuf(buf, encoding, errors)
        if info.size < 0:
            raise _RefusedError(f"negative size of {info.name!r}")
        if info.type == tarfile.GNUTYPE_SPARSE:
            raise _RefusedError(f"sparse file {info.name!r}")
        if info.type in _EXTENDED_HEADERS and info.size > _MAX_EXTENDED_HEADER:
            raise _RefusedError(f"extended header of {info.size} bytes")
        return info


def _open_archive(archive: Path) -> tarfile.TarFile | zipfile.ZipFile:
    # Tar first: a tar archive whose last member is a zip archive looks like zip as well.
    with open_regular(archive) as file:  # not a pipe, which could be waited for without end
        start = file.read(8)
    # tarfile's own search would read all of a huge file that is of none of the kinds.
    kinds = (kind for magic, kind in _KINDS.items() if start.startswith(magic))
    opener: Callable[..., tarfile.TarFile] = next(kinds, tarfile.TarFile.taropen)
    try:
        return opener(archive, tarinfo=_BoundedTarInfo)
    except tarfile.ReadError:
        pass
    if zipfile.is_zipfile(archive):
        return zipfile.ZipFile(archive)
    raise _refused(archive, "neither a tar nor a zip archive, or cut short")


def _members(opened: tarfile.TarFile | zipfile.ZipFile) -> Iterator[_Member]:
    if isinstance(opened, tarfile.TarFile):
        return _tar_members(opened)
    return _zip_members(opened)


def _tar_members(tar: tarfile.TarFile) -> Iterator[_Member]:
    for info in tar:
        objection = ""
        if not (info.isreg() or info.isdir()):
            objection = "a link" if info.issym() or info.islnk() else "a device or other special"
        elif info.issparse():
            objection = "a sparse file"
        size = info.size if info.isreg() else 0
        yield _Member(info.name, size, info.isdir(), objection, partial(tar.extractfile, info))
    # tarfile treats a broken header as the end; the true end is a block of zeros. Reading
    # to the end of the stream makes the decompressor compare its checksum.
    stream = tar.fileobj
    if stream is None:  # never, for an open archive
        raise ValueError("closed archive")
    stream.seek(tar.offset)
    if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise EOFError(f"no valid entry and no end mark at byte {tar.offset}")
    for _ in range(_MAX_PADDING // _CHUNK):
        if not stream.read(_CHUNK):
            return
    raise ValueError("much data after the end mark")


def _zip_members(archive: zipfile.ZipFile) -> Iterator[_Member]:
    for info in archive.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)  # 0 if the archive was not written on Unix
        objection = ""
        if kind not in (0, stat.S_IFDIR if info.is_dir() else stat.S_IFREG):
            objection = "a link" if kind == stat.S_IFLNK else "a device or other special"
        elif info.flag_bits & 1:
            objection = "encrypted"
        size = 0 if info.is_dir() else info.file_size
        yield _Member(info.filename, size, info.is_dir(), objection, partial(archive.open, info))


def _accepted(archive: Path, members: Iterator[_Member]) -> list[tuple[str, _Member]]:
    """Return every member with its clean relative path, or refuse the archive.

    A path of parts that are neither empty nor ``.`` nor ``..`` cannot leave the folder that it is
    joined to, and no link can redirect the path, because links are never made.
    """
    limit = min(_MAX_BYTES, _MAX_RATIO * archive.stat().st_size + _RATIO_ALLOWANCE)
    accepted: dict[str, _Member] = {}
    total = 0
    for member in members:
        objection = member.objection
        parts = [part for part in member.name.split("/") if part not in ("", ".")]
        if member.name.startswith("/"):
            objection = "an absolute path"
        elif ".." in parts:
            objection = "a path with `..`"
        elif "\\" in member.name or "\0" in member.name:
            objection = "a path with a backslash or a zero byte"
        elif not parts and not member.is_folder:
            objection = "a file without a name"
        path = "/".join(parts)
        if path in accepted:
            objection = "a name that occurs twice"
        total += member.size
        if total > limit:
            objection = f"more than {limit} bytes in all ({archive.stat().st_size} packed)"
        if len(accepted) >= _MAX_MEMBERS:
            objection = f"more than {_MAX_MEMBERS} members"
        if objection:
            raise _refused(archive, objection, member.name)
        accepted[path] = member
    for path, member in accepted.items():
        while "/" in path:
            path = path.rpartition("/")[0]
            above = accepted.get(path)
            if above is not None and not above.is_folder:
                raise _refused(archive, f"a path below the file {above.name!r}", member.name)
    accepted.pop("", None)  # the root itself, as `./`
    return list(accepted.items())


def _copy(member: _Member, target: Path) -> None:
    source = member.open()
    if source is None:  # never, for a regular file
        raise ValueError("no content")
    with source:
        # O_EXCL and O_NOFOLLOW are safe even if another program writes into the temporary folder.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with os.fdopen(os.open(target, flags, 0o644), "wb") as file:
            shutil.copyfileobj(source, file)
            if file.tell() != member.size:
                raise EOFError(f"{file.tell()} bytes of {member.size}")


def _refused(archive: Path, reason: str, member: str | None = None) -> ArtefactError:
    # repr, since a hostile name may hold control characters.
    what = "" if member is None else f" because of its member {member!r}"
    return ArtefactError(
        f"archive refused{what}: {reason}",
        where=str(archive.absolute()),
        fix="delete the file and get it again, from a source that you trust",
    )


@contextmanager
def _parse_errors(archive: Path, member: str | None = None) -> Iterator[None]:
    """Turn every error that the parsers raise on a broken archive into a refusal."""
    try:
        yield
    except RunnerError:
        raise
    except _RefusedError as error:
        raise _refused(archive, str(error), member) from error
    except OSError as error:
        if error.errno is not None:  # from the operating system; gzip and bz2 set no number
            raise
        raise _refused(archive, f"corrupt or cut short ({error})", member) from error
    except Exception as error:  # tarfile, zipfile and zlib raise a dozen unrelated types
        raise _refused(archive, f"corrupt or cut short ({error})", member) from error


@contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    """Turn an error of the file system into ours, with the path."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise StorageError(
            f"cannot write or read: {error.strerror or error}",
            where=str(Path(error.filename or path).absolute()),
            fix="free some space and run it again"
            if full
            else "choose a folder that you may write to",
        ) from error


def _sibling(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
