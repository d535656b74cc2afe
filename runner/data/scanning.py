"""Which files below a folder are images, and which names are never classes."""

import os
from pathlib import Path

from runner.data.images import SUFFIXES

_NOT_CLASSES = ("__MACOSX",)


def scan_files(folder: Path) -> tuple[list[str], int]:
    """Image paths below ``folder``, sorted, and the number of other files.

    Links to folders are not followed, so that a loop cannot trap the walk; each counts as a file.
    """

    def stop(error: OSError) -> None:
        raise error  # os.walk would leave out a folder that it cannot read

    found, ignored = [], 0
    for parent, folders, files in os.walk(folder, onerror=stop, followlinks=False):
        folders[:] = sorted(name for name in folders if not is_junk(name))
        ignored += sum(1 for name in folders if Path(parent, name).is_symlink())
        for name in sorted(files):
            if Path(name).suffix.lower() in SUFFIXES and not is_junk(name):
                found.append(os.path.join(parent, name))  # noqa: PTH118  a string for millions
            else:
                ignored += 1
    return found, ignored


def is_junk(name: str) -> bool:
    """Whether a file or folder of this name is left by a program rather than part of the data."""
    return name.startswith(".") or name in _NOT_CLASSES
