"""Where the data of ``data.root`` lies: as it is, unpacked, or downloaded and unpacked."""

from collections.abc import Callable
from pathlib import Path

from runner.config.schema import Data
from runner.data.download import fetch, unpack
from runner.data.store import Progress
from runner.errors import DataError

_ARCHIVES = (".tgz", ".tar", ".gz", ".tbz2", ".bz2", ".txz", ".xz", ".zip")


def existing_root(data: Data) -> Path:
    """``data.root`` as a path that exists."""
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
    """The folder of ``data.root``, unpacked if that is an archive, downloaded if it is null."""
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
    return unpack(archive, place_of(archive, cache))


def place_of(archive: Path, cache: Path) -> Path:
    """The folder into which an archive is unpacked; other content has another folder."""
    status = archive.stat()
    name = archive.name.partition(".")[0] or "archive"
    return cache / "unpacked" / f"{name}-{status.st_size:x}-{status.st_mtime_ns:x}"


def download_progress(name: str, progress: Progress) -> Callable[[int, int | None], None]:
    """``progress`` as :func:`runner.data.download.fetch` calls it."""
    return lambda done, total: progress(f"downloading {name}", done, total or 0)
