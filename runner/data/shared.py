"""Data sets that a process keeps for the children that it forks: jobs of a sweep read them once."""

from pathlib import Path

from runner.config.schema import Data
from runner.data.dataset import Dataset, load_dataset
from runner.data.store import Progress

_MOST_IMAGES = 2**18  # of all data sets that are kept; about 1 KB of memory each
_Key = tuple[Data, int, Path]
_kept = dict[_Key, Dataset]()
_left = set[_Key]()  # to the children, each of which reads it


def keep_dataset(data: Data, size: int, cache: Path, progress: Progress) -> None:
    """Read a data set, unless it is kept already, and keep it for the children of this process.

    Only decoded images in one file are kept. Images that are decoded again each time are not,
    because processes would share the places in their files. Where not all data sets fit, such as
    the folds of a large one, the first ones stay: jobs take them in turns, and the last ones would
    each be replaced before they are needed again.

    Raises:
        DataError: see :func:`runner.data.dataset.load_dataset`, which takes the same arguments.
    """
    key = (data, size, cache.absolute())
    if key in _kept or key in _left:
        return
    found = load_dataset(data, size, cache, progress)
    num_images = sum(len(each.manifest) for each in (*_kept.values(), found))
    if found.is_streamed or (_kept and num_images > _MOST_IMAGES):
        _left.add(key)
        return
    _ = found.manifest_csv  # computed once for all
    _kept[key] = found


def kept_dataset(data: Data, size: int, cache: Path) -> Dataset | None:
    """Return the data set that :func:`keep_dataset` read here or in a parent; None without one."""
    return _kept.get((data, size, cache.absolute()))
