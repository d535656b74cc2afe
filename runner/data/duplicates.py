"""Near-duplicates: pairs of images that look alike, by perceptual hashes that differ in few bits.

An image that was resized, recompressed or slightly edited has other bytes, but nearly the same
hash, so a check for identical files does not find it. The hash is :func:`imagehash.phash`: 64 bits
that say which of the coarsest frequencies of the gray image are above their median. It knows
nothing of objects: images of one kind in front of one background may be a pair, too.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runner.data.dataset import Dataset, Split
from runner.data.store import Progress, Store
from runner.errors import ConfigError

NUM_BITS = 64
_ROWS = 256  # compared at once with all later images: 20 MB for 10,000 of them
_ONES = np.array([number.bit_count() for number in range(2**16)], np.uint8)
_FLATTEST = 2.0  # standard deviation of the gray levels, of 255; below it a hash is of noise


@dataclass(frozen=True)
class Member:
    """An image of a data set: its part, name, class, and the SHA-256 of its content."""

    part: str
    name: str
    label: str
    content: str


@dataclass(frozen=True)
class Pair:
    """Two images whose hashes differ in ``distance`` of 64 bits."""

    first: Member
    second: Member
    distance: int

    @property
    def parts(self) -> tuple[str, str]:
        """The parts of the two images, in the order train, val, test."""
        return self.first.part, self.second.part

    @property
    def is_identical(self) -> bool:
        """Whether the two have equal content, and not only equal hashes."""
        return self.first.content == self.second.content


@dataclass(frozen=True)
class NearDuplicates:
    """What was found in a data set.

    Attributes:
        pairs: those of different parts first, and the nearest first.
        num_images: images that were compared.
        num_flat: images of nearly one color, which were not: their hashes are of noise.
    """

    pairs: tuple[Pair, ...]
    num_images: int
    num_flat: int


def near_duplicates(dataset: Dataset, distance: int, progress: Progress) -> NearDuplicates:
    """Find the pairs of images whose hashes differ in at most ``distance`` bits.

    Args:
        dataset: the data; its test part is compared, too, if it was loaded.
        distance: number of bits, in 0..64.
        progress: called with the progress of the work.

    Raises:
        ConfigError: the package imagehash is missing.
    """
    sources: list[tuple[Store, Split]] = [
        (dataset.store, dataset.train),
        (dataset.store, dataset.val),
    ]
    if dataset.test is not None and dataset.test_store is not None:
        sources.append((dataset.test_store, dataset.test))
    rows = (*dataset.manifest, *dataset.test_manifest)
    members: list[Member] = []
    hashes: list[int] = []
    num_flat = 0
    phash = hash_function()
    every = ((store, index) for store, split in sources for index in split.indices.tolist())
    for done, ((store, index), row) in enumerate(zip(every, rows, strict=True), 1):
        gray = Image.fromarray(store.rectangle(index)).convert("L")
        if float(np.asarray(gray).std()) < _FLATTEST:
            num_flat += 1
        else:
            members.append(Member(*row))
            hashes.append(phash(gray))
        if done % 64 == 0 or done == len(rows):
            progress("hashing images", done, len(rows))
    found = [
        Pair(members[first], members[second], bits)
        for first, second, bits in close_pairs(np.array(hashes, np.uint64), distance)
    ]
    found.sort(key=lambda pair: (pair.first.part == pair.second.part, pair.distance))
    return NearDuplicates(tuple(found), len(members), num_flat)


def close_pairs(hashes: NDArray[np.uint64], distance: int) -> Iterator[tuple[int, int, int]]:
    """Yield each pair of places whose hashes differ in at most ``distance`` bits, and their number.

    Args:
        hashes: (n,) uint64.
        distance: number of bits, in 0..64.
    """
    for start in range(0, len(hashes), _ROWS):
        rows = hashes[start : start + _ROWS]
        bits = _num_ones(rows[:, None] ^ hashes[None, start:])
        for row, column in zip(*np.nonzero(bits <= distance), strict=True):
            if row < column:
                yield start + int(row), start + int(column), int(bits[row, column])


def _num_ones(values: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Return the number of ones of each value."""
    if hasattr(np, "bitwise_count"):  # since numpy 2; ten times as fast
        return np.bitwise_count(values)
    parts = np.ascontiguousarray(values).view(np.uint16).reshape(*values.shape, 4)
    counts: NDArray[np.uint8] = _ONES[parts].sum(axis=-1, dtype=np.uint8)
    return counts


def summary(found: NearDuplicates) -> list[tuple[str, int, int, int]]:
    """For each two parts that have pairs: their names, pairs, identical ones, of two classes."""
    groups: dict[tuple[str, str], list[Pair]] = {}
    for pair in found.pairs:
        groups.setdefault(pair.parts, []).append(pair)
    return [
        (
            f"within {first}" if first == second else f"{first} and {second}",
            len(pairs),
            sum(pair.is_identical for pair in pairs),
            sum(pair.first.label != pair.second.label for pair in pairs),
        )
        for (first, second), pairs in groups.items()
    ]


def hash_function() -> Callable[[Image.Image], int]:
    """Return a function that returns the 64 bits of an image as a number.

    Raises:
        ConfigError: the package imagehash is missing.
    """
    try:
        import imagehash
    except ModuleNotFoundError as error:
        raise ConfigError(
            "near-duplicates need the package imagehash",
            where="python -m runner.data duplicates",
            fix="pip install 'trick-runner[duplicates]'",
        ) from error
    return lambda image: int(str(imagehash.phash(image)), 16)
