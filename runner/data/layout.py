"""What the names of folders say: which are splits, which are ours, and which are no data at all."""

import re
from contextlib import suppress
from pathlib import Path
from typing import Literal

from runner.errors import StorageError
from runner.machine.files import write_synced

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = ("train", "val", "test")

_PART_OF: dict[str, Part] = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "tst", "holdout"), "test"),
}
# Words that a name of a split may also have: training_set, test-images, data.val.
_FILLERS = frozenset(
    {"set", "data", "dataset", "image", "images", "img", "imgs", "split", "folder", "dir", "part"}
)
_JUNK = frozenset(
    {"__macosx", "@eadir", "#recycle", "@recycle", "lost+found", "$recycle.bin", "recycler",
     "system volume information", "thumbs.db", "desktop.ini"}
)  # fmt: skip
_TAG = "CACHEDIR.TAG"
# As https://bford.info/cachedir/ defines it. Programs for backups know it, too.
_TAGGED = "Signature: 8a477f597d28d172789f06886806bc55\n# A cache of trick-runner.\n"


def part_of(name: str) -> Part | None:
    """Return the split that a folder of this name holds; None if it is not a split's name."""
    words = [word for word in re.split(r"[\W_]+", name.casefold()) if word]
    joined = (re.sub("(set|data|images)$", "", word) or word for word in words)
    said = [word for word in joined if word not in _FILLERS]
    return _PART_OF.get(said[0]) if len(said) == 1 else None


def is_junk(name: str) -> bool:
    """Return whether a name is that of a program's leftovers rather than of data."""
    return name.startswith(".") or name.casefold() in _JUNK


def is_ours(folder: Path) -> bool:
    """Return whether this program wrote ``folder``: a run, a cache, or an ``outputs`` folder."""
    return any(
        (folder / name).exists() for name in ("run.json", _TAG, f"cache/{_TAG}", "cache/decoded")
    )


def tag_cache(cache: Path) -> None:
    """Mark the folder of the cache, so that :func:`is_ours` knows it wherever it is."""
    with suppress(StorageError, OSError):  # whoever writes to the cache reports that it cannot
        if not (cache / _TAG).exists():
            write_synced(cache / _TAG, _TAGGED.encode())
