"""Where the data of ``data.root`` lies: as it is, unpacked, or downloaded and unpacked."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from runner.config.schema import Data
from runner.data.download import fetch, unpack
from runner.data.sealed import DamagedError, discard, recall, remember, turn
from runner.data.store import Progress
from runner.errors import DataError
from runner.machine.files import open_regular, stamp_of
from runner.terminal.console import note

_ARCHIVES = (".tgz", ".tar", ".gz", ".tbz2", ".bz2", ".txz", ".xz", ".zip")
_CHUNK = 2**24


def existing_root(data: Data) -> Path:
    """Return ``data.root`` as a path that exists."""
    assert data.root is not None, "checked in schema"
    path = Path(data.root)
    reason = "no such file or folder"
    try:
        path = path.expanduser()
        if path.exists():
            return path
    except (OSError, RuntimeError) as error:  # no permission, name too long, no such user
        reason = f"cannot read it: {getattr(error, 'strerror', None) or error}"
    raise DataError(
        reason,
        where=f"data.root={data.root} ({path.absolute()})",
        fix="data.root=PATH, in quotes of its own if it has special characters",
    )


def unpacked(
    data: Data, cache: Path, download: tuple[str, str, str] | None, progress: Progress
) -> Path:
    """Return the folder of ``data.root``: an archive is unpacked, null is downloaded."""
    if data.root is None and download is not None:
        url, file_name, checksum = download
        archive = fetch(
            url,
            cache / "downloads" / file_name,
            checksum=checksum,
            progress=download_progress(file_name, progress),
        )
    else:
        archive = existing_root(data)
    if archive.is_dir():
        return archive
    if archive.suffix.lower() not in _ARCHIVES:  # `unpack` checks the content safely
        raise DataError(
            "neither a folder nor a .tgz, .tar or .zip archive",
            where=f"data.root={data.root}",
            fix="data.root=FOLDER_OR_ARCHIVE",
        )
    content = _content_of(archive, cache, progress)
    place = _place_of(archive, content, cache)
    if _damage(place) == "":
        return place
    what = f"unpacking {archive.name}"
    progress(what, 0, 0)  # may refuse to begin, or to wait for another process
    with turn(place.with_name(f"{place.name}.check.lock"), what):
        damage = _damage(place)
        if damage == "":
            progress(what, 1, 1)
            return place
        if damage is not None:
            note(f"{archive.name} is unpacked again ({damage}): {place}")
            discard(place)
        unpack(
            archive,
            place,
            progress=lambda done, total: progress(what, done, total or 0),
        )
        if _remembered_content(archive, cache) != content:
            discard(place)
            raise DataError(
                "the archive has changed while it was unpacked",
                where=str(archive.absolute()),
                fix="the same command again, when the archive is complete",
            )
        remember(*_record_of_files(place), _state_of(place))
    return place


def unpacked_place(archive: Path, cache: Path) -> Path | None:
    """Return the folder with the content of ``archive``; None if it must be hashed or unpacked."""
    content = _remembered_content(archive, cache)
    place = None if content is None else _place_of(archive, content, cache)
    return place if place is not None and place.is_dir() else None


def _place_of(archive: Path, content: str, cache: Path) -> Path:
    """Return the folder into which an archive is unpacked; other content has another folder."""
    name = archive.name.partition(".")[0] or "archive"
    return cache / "unpacked" / f"{name}-{content[:24]}"


def _content_of(archive: Path, cache: Path, progress: Progress) -> str:
    """SHA-256 of ``archive``, remembered until its stamp changes. A GB takes about a second."""
    if (remembered := _remembered_content(archive, cache)) is not None:
        return remembered
    with open_regular(archive) as file:
        stamp, total = stamp_of(os.fstat(file.fileno())), os.fstat(file.fileno()).st_size
        digest = hashlib.sha256()
        done = 0
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            if total > _CHUNK:
                progress(f"checking {archive.name}", min(done, total), total)
    remember(_record(stamp, cache), _key(stamp), digest.hexdigest())
    return digest.hexdigest()


def _remembered_content(archive: Path, cache: Path) -> str | None:
    stamp = stamp_of(archive.stat())
    try:
        found = recall(_record(stamp, cache), _key(stamp), at_most=1000)
    except DamagedError:
        return None  # costs a second
    return found if isinstance(found, str) else None


def _record(stamp: tuple[int, ...], cache: Path) -> Path:
    name = hashlib.sha256(_key(stamp).encode()).hexdigest()[:32]
    return cache / "archives" / f"{name}.json"


def _key(stamp: tuple[int, ...]) -> str:
    return f"SHA-256 of the archive {' '.join(map(str, stamp))}"


def _damage(place: Path) -> str | None:
    """Return what is wrong with unpacked files: "" if nothing, None if there are none."""
    if not place.exists() and not place.is_symlink():
        return None
    path, key = _record_of_files(place)
    try:
        is_whole = recall(path, key, at_most=1000) == _state_of(place)
    except (DamagedError, OSError) as error:
        return str(error)
    return "" if is_whole else "files there were changed or removed"


def _record_of_files(place: Path) -> tuple[Path, str]:
    return place.with_name(f"{place.name}.json"), f"files of {place.name}"


def _state_of(folder: Path) -> str:
    """Return a hash of the path, size and date of every file below ``folder``."""
    files = []
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            status = path.lstat()
            where = os.fsencode(path.relative_to(folder))
            files.append((where, status.st_size, status.st_mtime_ns))
    return hashlib.sha256(repr(sorted(files)).encode()).hexdigest()


def download_progress(name: str, progress: Progress) -> Callable[[int, int | None], None]:
    """Adapt ``progress`` to the calls of :func:`runner.data.download.fetch`."""
    return lambda done, total: progress(f"downloading {name}", done, total or 0)
