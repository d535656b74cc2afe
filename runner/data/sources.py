"""Every data set by its name: its images, their labels, and its split.

A source only lists images; opening, checking and caching them is the same for all.
"""

from collections.abc import Callable
from pathlib import Path

from runner.config.schema import Data
from runner.data import published
from runner.data.folder import list_folder
from runner.data.layout import tag_cache
from runner.data.listing import Listing
from runner.data.store import Progress
from runner.data.table import list_table
from runner.errors import DataError

_SOURCES: dict[str, Callable[[Data, Path, int, Progress], Listing]] = {
    "fashion": published.list_fashion,
    "fashion_mnist": published.list_fashion_mnist,
    "cifar10": published.list_cifar10,
    "imagenette": published.list_imagenette,
    "folder": list_folder,
    "table": list_table,
}


def list_images(data: Data, cache: Path, split_seed: int, progress: Progress) -> Listing:
    """List the data set that ``data`` names, downloading or unpacking it first where needed.

    Args:
        data: the ``data`` group of the configuration.
        cache: folder for downloads and unpacked archives.
        split_seed: seed of the split, if the data has none of its own.
        progress: called with the progress of a download.

    Raises:
        DataError: the data at ``data.root`` is not what the data set needs.
        StorageError: the data cannot be downloaded or written.
        ArtefactError: an archive was refused.
    """
    source = _SOURCES[data.name]
    tag_cache(cache)
    try:
        return source(data, cache, split_seed, progress)
    except OSError as error:
        raise DataError(
            f"cannot read the data: {error.strerror or error}",
            where=str(error.filename or f"data.root={data.root}"),
            fix="make the files readable for yourself, as with chmod -R u+rX",
        ) from error
