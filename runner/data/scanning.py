"""Which files below a folder are images, and what is left out."""

import glob
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runner.data.images import SUFFIXES
from runner.data.layout import is_junk, is_ours
from runner.terminal.console import legible

_LISTED = 5  # kinds of ignored files in a note


@dataclass(frozen=True)
class Found:
    """What lies below a folder.

    Attributes:
        images: paths of image files.
        ignored: paths of all else: other files, and with a slash at the end, folders left out.
    """

    images: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


def stop(error: OSError) -> None:
    """Raise the error: the default for a folder that cannot be read."""
    raise error  # os.walk would leave it out


def scan_files(folder: Path | str, unreadable: Callable[[OSError], None] = stop) -> Found:
    """Find the images below ``folder``, sorted; those behind links to folders come last.

    Links are followed, but no folder is read twice, and none that ``folder`` itself lies in: a link
    back would end in a loop, or take the images of other classes for this one's.

    Args:
        folder: the folder.
        unreadable: called with the error of a folder that cannot be read.
    """
    found = Found()
    for parent, files, left_out in _folders(folder, unreadable):
        found.ignored.extend(os.path.join(parent, name, "") for name in left_out)  # noqa: PTH118
        for name in files:
            path = os.path.join(parent, name)  # noqa: PTH118  a string for millions
            is_image = _suffix(name) in SUFFIXES and not is_junk(name)
            (found.images if is_image else found.ignored).append(path)
    return found


def paths_matching(pattern: str) -> list[str]:
    """Return the paths that match a shell pattern, sorted; ``**`` matches any folders.

    As :func:`glob.glob`, but ``**`` visits each folder once, whatever links lead back to it.

    Raises:
        OSError, ValueError: no path can have such a name.
    """
    head, stars, tail = f"/{pattern}".partition("/**/")
    if not stars:
        if pattern == "**" or pattern.endswith("/**"):  # all that lies below
            return paths_matching(pattern[:-2].rstrip("/") or ("/" if pattern[0] == "/" else "."))
        return sorted(glob.glob(pattern))  # noqa: PTH207  any pattern
    bases = glob.glob(head[1:]) if head[1:] else ["/" if pattern[0] == "/" else ""]  # noqa: PTH207
    found: dict[str, None] = {}
    for base in sorted(bases):
        for parent, _, _ in _folders(base or ".", lambda error: None):
            inside = parent if base else os.path.relpath(parent)
            inside = "" if inside == "." else glob.escape(os.path.join(inside, ""))  # noqa: PTH118
            found.update(dict.fromkeys(paths_matching(inside + tail)))
    return sorted(found)


def leads_back(path: Path) -> bool:
    """Return whether ``path`` is a link to a folder that contains it."""
    return path.is_symlink() and _identity(path) in _above(path)


def ignored_note(ignored: Sequence[str], root: Path) -> tuple[str, ...]:
    """Describe the ignored files below ``root``: how many, of which kinds, and an example."""
    if not ignored:
        return ()
    counts = Counter(
        "folders" if path.endswith(os.sep) else _suffix(path) or "without suffix"
        for path in ignored
    )
    kinds = [f"{count:,} {kind}" for kind, count in counts.most_common(_LISTED)]
    if len(counts) > _LISTED:
        kinds.append("others")
    example = os.path.relpath(ignored[0], root) + ("/" if ignored[0].endswith(os.sep) else "")
    what = "file" + "s" * (len(ignored) > 1) + (" and folders" if counts["folders"] else "")
    return (
        f"{len(ignored):,} {what} left out, which are no images: {', '.join(kinds)}, such as "
        f"{legible(example)}",
    )


def _folders(
    top: Path | str, unreadable: Callable[[OSError], None]
) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield each folder below ``top`` once: its path, its files, and the folders left out."""
    seen = _above(Path(top))
    waiting = [str(top)]
    while waiting:
        for parent, folders, files in os.walk(waiting.pop(0), onerror=unreadable):
            if (identity := _identity(parent)) in seen:
                folders.clear()
                continue
            seen.add(identity)
            left_out = sorted(
                name for name in folders if is_junk(name) or is_ours(Path(parent, name))
            )
            folders[:] = sorted({*folders} - {*left_out})
            links = [name for name in folders if os.path.islink(os.path.join(parent, name))]  # noqa: PTH114, PTH118
            for name in links:
                path = os.path.join(parent, name)  # noqa: PTH118
                if _identity(path) in seen:
                    left_out.append(name)
                else:
                    waiting.append(path)
            yield parent, sorted(files), left_out


def _above(path: Path) -> set[tuple[int, int]]:
    """Return the folders that ``path`` lies in, by its name and where links really lead."""
    places = {*path.absolute().parents, *Path(os.path.realpath(path)).parents}
    return {_identity(place) for place in places}


def _identity(path: Path | str) -> tuple[int, int]:
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return -1, hash(os.fspath(path))
    return status.st_dev, status.st_ino


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()  # noqa: PTH122
