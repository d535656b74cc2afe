"""Find the validation images of a finished run in its data.

Nothing is downloaded or unpacked. An image is found only with the content that the run evaluated:
``split.csv.gz`` of the run names each image with its SHA-256.
"""

import csv
import gzip
import hashlib
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runner.config import checks
from runner.config.schema import Data
from runner.data.decoding import BrokenImageError
from runner.data.depth import BITS, Depth
from runner.data.images import Images, to_rgb
from runner.data.preprocess import Preprocess
from runner.data.published import is_at_hand
from runner.data.sources import list_images
from runner.data.store import StreamedStore
from runner.data.views import cut, plain_view
from runner.errors import RunnerError
from runner.machine.files import open_regular
from runner.terminal.tables import inert

_LARGEST_TABLE = 2**29  # bytes of a table of images; the table of ImageNet has 2e8
_LONGEST_LINE = 2**17  # bytes


class ValidationImages:
    """The validation images of a run, if its data is on this machine and unchanged.

    Attributes:
        missing: why no image can be found; empty if the data is there. Single images may still
            have been removed or changed.
    """

    def __init__(
        self, run: Path, data: Mapping[str, Any], num_val: int, root: str | None = None
    ) -> None:
        """Find the data.

        Args:
            run: the folder of the run.
            data: the group ``data`` of the run's configuration, as recorded.
            num_val: number of the run's validation images.
            root: where the data is now; None: where it was during the run.
        """
        self._manifest = _manifest(run / "split.csv.gz", num_val)
        self._images: Images | None = None
        self._depth = BITS
        self._places: dict[str, int] = {}
        self.missing = ""
        if not self._manifest:
            self.missing = "split.csv.gz in the folder of the run is damaged"
            return
        cache = run.absolute().parent / "cache"
        try:
            group = checks.from_dict({"data": dict(data)}).data
            group = group if root is None else replace(group, root=root)
            if not is_at_hand(group, cache):
                self.missing = f"the data is not at data.root={group.root}"
                return
            listing = list_images(group, cache, 0, lambda what, done, total: None)
        except (RunnerError, OSError) as error:
            self.missing = error.what if isinstance(error, RunnerError) else str(error)
            return
        self._images = listing.images
        self._depth = _depth(group)
        names = map(listing.images.name, range(len(listing.labels)))
        self._places = {str(inert(name)): index for index, name in enumerate(names)}

    def name(self, row: int) -> str:
        """Return the name of a validation image in ``split.csv.gz``."""
        return self._manifest[row][0] if self._manifest else f"validation image {row}"

    def image(self, row: int) -> Image.Image | None:
        """Read the whole image in RGB; None if it is missing or was changed after the run."""
        index = self._place(row)
        if self._images is None or index is None:
            return None
        try:
            return to_rgb(self._images.open(index), self._depth)[0]
        except BrokenImageError:
            return None

    def square(self, row: int, preprocess: Preprocess) -> NDArray[np.uint8] | None:
        """Read the square (S, S, 3) that evaluation cuts out, before scaling; None as in `image`.

        Args:
            row: row of the image in the predictions of the run.
            preprocess: how the run turned a file into an input.
        """
        index = self._place(row)
        if self._images is None or index is None:
            return None
        store = StreamedStore(
            self._images,
            preprocess.presize,
            preprocess.max_aspect,
            preprocess.interpolation,
            depth=preprocess.depth,
        )
        try:
            return cut(store.decode(index)[0], plain_view(preprocess.crop))
        except BrokenImageError:
            return None

    def _place(self, row: int) -> int | None:
        """Return the place of a validation image in the data; None if its content is not equal."""
        if self._images is None:
            return None
        name, digest = self._manifest[row]
        index = self._places.get(name)  # as the manifest writes names
        if index is None:
            return None
        try:
            is_same = hashlib.sha256(self._images.content(index)).hexdigest() == digest
        except BrokenImageError:
            return None
        return index if is_same else None


def _depth(data: Data) -> Depth:
    """Return the rule for deep images in the recorded configuration of a run."""
    if data.window is not None:
        return Depth("window", (data.window[0], data.window[1]))
    # A run that records no rule has no deep images, or is older than the rules.
    return BITS if data.depth == "bits" else Depth("legacy")


def _manifest(path: Path, num_val: int) -> list[tuple[str, str]]:
    """Name and SHA-256 of each validation image, in the predictions' order; empty if unreadable."""
    found: list[tuple[str, str]] = []
    try:
        with open_regular(path) as file, gzip.open(file) as unpacked:
            for row in csv.DictReader(_lines(unpacked)):
                if row["split"] == "val":
                    found.append((row["image"], row["sha256"]))
                if len(found) > num_val:
                    return []
    except (OSError, EOFError, ValueError, KeyError, csv.Error, zlib.error):
        return []
    return found if len(found) == num_val else []


def _lines(unpacked: gzip.GzipFile) -> Iterator[str]:
    """Yield the lines of a table, if their lengths and number are plausible.

    A small file can be unpacked to any size; reading stops at ``_LARGEST_TABLE``.

    Raises:
        ValueError: a line or the table is too long, or is not text.
    """
    size = 0
    while line := unpacked.readline(_LONGEST_LINE):
        size += len(line)
        if len(line) == _LONGEST_LINE or size > _LARGEST_TABLE:
            raise ValueError("too large for a table of images")
        yield line.decode()
