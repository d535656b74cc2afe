"""Data sets that a process keeps for the children that it forks: jobs of a sweep read them once."""

from pathlib import Path

from runner.config.schema import Data
from runner.data.dataset import Dataset, load_dataset
from runner.data.store import Progress

_MOST = 8  # data sets, such as folds, that are kept at the same time
_kept = dict[tuple[Data, int, Path], Dataset]()


def keep_dataset(data: Data, size: int, cache: Path, progress: Progress) -> None:
    """Read a data set, unless it is kept already, and keep it for the children of this process.

    Only decoded images in one file are kept. Images that are decoded again each time are not,
    because processes would share the places in their files.

    Raises:
        DataError: see :func:`runner.data.dataset.load_dataset`, which takes the same arguments.
    """
    if kept_dataset(data, size, cache) is not None:
        return
    found = load_dataset(data, size, cache, progress)
    if found.is_streamed:
        return
    _ = found.manifest_csv  # computed once for all
    if len(_kept) >= _MOST:
        _kept.clear()
    _kept[data, size, cache.absolute()] = found


def kept_dataset(data: Data, size: int, cache: Path) -> Dataset | None:
    """Return the data set that :func:`keep_dataset` read here or in a parent; None without one."""
    return _kept.get((data, size, cache.absolute()))
