"""The pixels of a training: decoded once into a file, or decoded each time they are needed.

Both ways give the same rectangles and therefore the same results. The name of the decoded file
depends on content and presize. All runs below one ``outputs`` folder share the file, and map it
into memory, so that the operating system keeps one copy for all processes.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from runner.data.decoding import BrokenImageError, is_outdated
from runner.data.depth import BITS, Depth, Values
from runner.data.images import ArrayImages, ChangedImageError, Images, rectangle, to_rgb
from runner.data.preprocess import Interpolation
from runner.data.sealed import (
    CACHE_FIX,
    DamagedError,
    discard,
    opened,
    recall,
    remember,
    seal,
    turn,
)
from runner.errors import DataError
from runner.machine.files import sync_folder, unwritable
from runner.machine.hardware import num_cores
from runner.terminal.console import note

_FORMAT = 2  # raise when stored pixels would differ
_BYTES_PER_PIXEL = 3
_FILES = ("pixels.u8", "offsets.npy", "shapes.npy", "survey.json")

T = TypeVar("T")
Progress = Callable[[str, int, int], None]
"""A function called with the name of the work, the number of images done, and their total.

It is called before the work begins, or the wait for a process that does it, and may raise then.
"""


class Store(Protocol):
    """Decoded images by index."""

    def rectangle(self, index: int) -> NDArray[np.uint8]:
        """Image ``index`` as (height, width, 3) uint8, short side ``presize``."""
        ...


@dataclass(frozen=True)
class Survey:
    """The unreadable and the converted images, found by opening every image.

    Attributes:
        broken: for each image that cannot be read, the reason by its index.
        converted: number of images by the color mode that they were converted from.
    """

    broken: dict[int, str]
    converted: dict[str, int]


@dataclass(frozen=True)
class CachedStore:
    """Rectangles in one memory-mapped file.

    Attributes:
        offsets: (n,) int64, position in ``pixels`` of the first byte of each image.
        shapes: (n, 2) int32, height and width of each image, px.
        pixels: (bytes,) uint8, the pixels of all images, row by row; red, green and blue of each.
        pixels_path: the file that holds ``pixels``.
    """

    offsets: NDArray[np.int64]
    shapes: NDArray[np.int32]
    pixels: NDArray[np.uint8]
    pixels_path: Path

    def rectangle(self, index: int) -> NDArray[np.uint8]:
        """See :class:`Store`."""
        height, width = self.shapes[index]
        start = self.offsets[index]
        flat = self.pixels[start : start + int(height) * int(width) * _BYTES_PER_PIXEL]
        return flat.reshape(height, width, _BYTES_PER_PIXEL)


@dataclass(frozen=True)
class StreamedStore:
    """Rectangles decoded from their files each time.

    Attributes:
        images: the images.
        presize: short side of the rectangles, px.
        max_aspect: longest long side, as a multiple of the short side.
        interpolation: method of resizing to ``presize``.
        digests: what :func:`content_digests` returned: an image with other content is refused. None
            if the images may change.
        depth: rule for images of more than 8 bits per channel.
    """

    images: Images
    presize: int
    max_aspect: float
    interpolation: Interpolation = "bilinear"
    digests: Sequence[str] | None = None
    depth: Depth = BITS

    def rectangle(self, index: int) -> NDArray[np.uint8]:
        """See :class:`Store`."""
        try:
            return self.decode(index)[0]
        except BrokenImageError as error:
            raise DataError(
                f"an image has become unreadable: {error}", where=self.images.name(index)
            ) from error

    def decode(self, index: int) -> tuple[NDArray[np.uint8], str | None]:
        """Decode image ``index`` to its rectangle, and name the color mode it was converted from.

        The mode is None if the image was RGB already.

        Raises:
            BrokenImageError: the image cannot be read.
            DataError: the image is no longer the one that ``digests`` were made of.
        """
        expected = None if self.digests is None else self.digests[index]
        try:
            image, mode = to_rgb(self.images.open(index, expected), self.depth)
        except ChangedImageError as error:
            raise DataError(
                "an image has changed since this command read it first",
                where=self.images.name(index),
                fix="put the old image back, or the same command again: changed data is a new run",
            ) from error
        return rectangle(image, self.presize, self.max_aspect, self.interpolation), mode


def content_digests(images: Images, folder: Path, progress: Progress) -> list[str]:
    """SHA-256 of every image's content; "" for an unreadable image. Saved below ``folder``."""
    stamp = images.stamp()
    path = folder / "digests" / f"{stamp[:32]}.json"
    key = f"digests of {len(images)} images {stamp}"
    try:
        remembered = recall(path, key, at_most=len(key) + 100 + 70 * len(images))
        if remembered is not None:
            return list(remembered)
    except DamagedError as error:
        progress("reading images", 0, len(images))  # may refuse to begin
        note(f"the digests of the images in the cache are damaged ({error}) and made again: {path}")

    def digest(index: int) -> str:
        try:
            return hashlib.sha256(images.content(index)).hexdigest()
        except BrokenImageError:
            return ""

    digests = list(_in_threads(digest, len(images), "reading images", progress))
    if "" not in digests:  # a file may become readable without any change of its stamp
        remember(path, key, digests)
    return digests


def deep_values(
    images: Images, digests: Sequence[str], folder: Path, progress: Progress
) -> tuple[dict[int, Values], int]:
    """Return the extremes of each image of more than 8 bits per channel, by index.

    Of the other images, only headers are read. Saved below ``folder``.

    Returns:
        The extremes, and the number of other images; neither has those with an unreadable header.
    """
    if isinstance(images, ArrayImages):
        return {}, len(images)
    stamp = images.stamp()
    path = folder / "values" / f"{stamp[:32]}.json"
    key = f"values of {len(images)} images {stamp}"
    try:
        known = recall(path, key, at_most=len(key) + 1000 + 300 * len(images))
        if known is not None:
            return _values_by_index(known["deep"]), int(known["others"])
    except DamagedError as error:
        progress("reading headers", 0, len(images))  # may refuse to begin
        note(f"the values of deep images in the cache are damaged ({error}) and read again: {path}")

    def values(index: int) -> Values | bool:
        try:
            return images.values(index) or True
        except BrokenImageError:
            return False

    measured = list(_in_threads(values, len(images), "reading headers", progress))
    found = {
        str(index): asdict(each) for index, each in enumerate(measured) if isinstance(each, Values)
    }
    others = sum(1 for each in measured if each is True)
    if "" not in digests:  # a file may become readable without any change of its stamp
        remember(path, key, {"deep": found, "others": others})
    return _values_by_index(found), others


def _values_by_index(known: dict[str, dict[str, Any]]) -> dict[int, Values]:
    return {
        int(index): Values(**{**each, "full": each["full"] and tuple(each["full"])})
        for index, each in known.items()
    }


def open_store(
    images: Images,
    digests: list[str],
    folder: Path,
    *,
    presize: int,
    max_aspect: float,
    interpolation: Interpolation = "bilinear",
    depth: Depth = BITS,
    cached: bool,
    progress: Progress,
) -> tuple[Store, Survey]:
    """Open the decoded images; build their file first if it is missing.

    Args:
        images: the images, in the order that indices refer to.
        digests: the digests that :func:`content_digests` returns.
        folder: root of the cache.
        presize: short side of the rectangles, px.
        max_aspect: longest long side, as a multiple of the short side.
        interpolation: method of resizing to ``presize``.
        depth: rule for images of more than 8 bits per channel.
        cached: whether to store the decoded pixels; if false, the images are only checked now, and
            decoded whenever they are needed.
        progress: called as the building advances.

    Raises:
        StorageError: the cache cannot be written.
    """
    rule = [] if depth == BITS else [depth.rule, depth.window]
    spelled = json.dumps([_FORMAT, presize, max_aspect, interpolation, digests, *rule])
    key = hashlib.sha256(spelled.encode()).hexdigest()
    target = folder / ("decoded" if cached else "surveyed") / f"{presize}px-{key[:32]}"
    streamed = StreamedStore(images, presize, max_aspect, interpolation, digests, depth)
    try:  # needs no lock: a folder appears whole
        store, survey = _read(target, key)
    except (FileNotFoundError, DamagedError):
        progress("decoding images", 0, len(images))  # may refuse to wait for another process
        with turn(target.with_name(target.name + ".lock"), "decoding the images"):
            store, survey = _read_or_build(streamed, target, key, cached, progress)
    return (store if cached else streamed), survey


def _read_or_build(
    streamed: StreamedStore, target: Path, key: str, keep_pixels: bool, progress: Progress
) -> tuple[CachedStore, Survey]:
    """For the process that holds the lock; another one may have built the folder before."""
    try:
        found = _read(target, key)
        progress("decoding images", len(streamed.images), len(streamed.images))
        return found
    except FileNotFoundError:
        pass
    except DamagedError as error:
        note(f"the decoded images in the cache are damaged ({error}) and are built again: {target}")
    _build(streamed, target, key, keep_pixels=keep_pixels, progress=progress)
    return _read(target, key)


def _read(target: Path, key: str) -> tuple[CachedStore, Survey]:
    """Return the decoded images in ``target``, after a check of every byte.

    Raises:
        FileNotFoundError: there is no such folder.
        DamagedError: the folder is not what was written for ``key``.
    """
    with opened(target, key, _FILES) as (pixel_file, offset_file, shape_file, survey_file):
        found = json.loads(survey_file.read())
        # A plain array, because each slice of a memmap object takes microseconds.
        pixels = np.memmap(pixel_file, dtype=np.uint8, mode="r").view(np.ndarray)
        store = CachedStore(
            np.load(offset_file, allow_pickle=False),
            np.load(shape_file, allow_pickle=False),
            pixels,
            target / "pixels.u8",
        )
    broken = {int(index): reason for index, reason in found["broken"].items()}
    if any(is_outdated(reason) for reason in broken.values()):
        raise DamagedError("a package that was missing is installed now")
    return store, Survey(broken, found["converted"])


def _build(
    source: StreamedStore, target: Path, key: str, *, keep_pixels: bool, progress: Progress
) -> None:
    """Decode every image into the folder ``target``, which appears whole or not at all."""
    images = source.images

    def convert(index: int) -> tuple[NDArray[np.uint8], str | None] | str:
        try:
            return source.decode(index)
        except BrokenImageError as error:
            return str(error)

    # Only the process that holds the lock gets here, so leftovers are from killed processes.
    for leftover in target.parent.glob(f"{target.name}.tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    building = target.with_name(f"{target.name}.tmp-{os.getpid()}")
    shapes = np.zeros((len(images), 2), np.int32)
    offsets = np.zeros(len(images), np.int64)
    broken: dict[int, str] = {}
    converted: Counter[str] = Counter()
    position = 0
    try:
        building.mkdir(parents=True)
        results = _in_threads(convert, len(images), "decoding images", progress)
        # Closed here if writing fails, not by the garbage collector: it may run in a thread that
        # begins or ends, and to wait for another thread there is a deadlock.
        with closing(results), (building / "pixels.u8").open("wb") as file:
            for index, result in enumerate(results):
                offsets[index] = position
                if isinstance(result, str):
                    broken[index] = result
                    continue
                pixels, mode = result
                shapes[index] = pixels.shape[:2]
                converted.update([mode] if mode else [])
                if keep_pixels:
                    position += file.write(pixels.tobytes())
            if position == 0:
                file.write(b"\0")  # an empty file cannot be mapped
        np.save(building / "offsets.npy", offsets)
        np.save(building / "shapes.npy", shapes)
        survey = {"broken": broken, "converted": dict(sorted(converted.items()))}
        (building / "survey.json").write_text(json.dumps(survey))
        seal(building, key)
        discard(target)
        building.rename(target)
        sync_folder(target.parent)
    except OSError as error:
        raise unwritable(building, error, fix=CACHE_FIX) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _in_threads(
    work: Callable[[int], T], count: int, what: str, progress: Progress
) -> Generator[T, None, None]:
    """Yield ``work(0)`` to ``work(count - 1)`` in order, computed a bounded number ahead.

    ``progress`` is called before the first one, too, so that it can refuse the work by raising.
    """
    if count:
        progress(what, 0, count)
    workers = num_cores()
    pending = iter(range(count))
    with ThreadPoolExecutor(workers) as pool:
        queue = [pool.submit(work, index) for index in islice(pending, 8 * workers)]
        for done in range(count):
            result = queue.pop(0).result()
            for index in islice(pending, 1):
                queue.append(pool.submit(work, index))
            if done % 64 == 63 or done == count - 1:
                progress(what, done + 1, count)
            yield result
