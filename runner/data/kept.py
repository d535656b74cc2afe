"""The resized validation squares, kept in memory: they are the same in every epoch and every run.

A process keeps the squares of one key at a time, as float32, because the pixels of a resized image
are no whole numbers. Nothing is on disk: a file would save a tenth of the first evaluation at best,
and must be written, checked and read. The squares of a later evaluation are the very numbers of the
first one, so its predictions are equal to the bit.
"""

import hashlib
from dataclasses import dataclass, field, replace

from torch import Tensor

from runner.data.batches import Indices
from runner.data.preprocess import Interpolation
from runner.data.store import CachedStore, Store
from runner.data.views import View

MOST_BYTES = 2**28
"""Memory that kept squares take at most in each process: those of 5,400 images at 64 px."""


@dataclass(frozen=True)
class SquaresKey:
    """Everything that decides the values of kept squares, and how they are divided into batches.

    Attributes:
        pixels: the file of the decoded images; its name is a hash of their content, of the size
            and the interpolation that they are stored with, and of the rule for their depth.
        indices: SHA-256 of the indices of the images in that file, in order.
        batch_size: images per batch.
        view: the view, without mirroring.
        size: size of the squares, px.
        interpolation: method of resizing.
    """

    pixels: str
    indices: str
    batch_size: int
    view: View
    size: int
    interpolation: Interpolation


def squares_key(
    store: Store,
    indices: Indices,
    batch_size: int,
    view: View,
    size: int,
    interpolation: Interpolation,
) -> SquaresKey | None:
    """Return the key of the squares of ``view``; None if the images are not a decoded file.

    Streamed images may be any number, and images on a GPU are resized there in no time.
    """
    if not isinstance(store, CachedStore):
        return None
    digest = hashlib.sha256(indices.tobytes()).hexdigest()
    pixels = str(store.pixels_path.absolute())
    return SquaresKey(pixels, digest, batch_size, replace(view, flip=False), size, interpolation)


@dataclass
class KeptSquares:
    """The kept squares of one key, a tensor per batch.

    Attributes:
        key: the key; None to keep nothing.
        most_bytes: largest number of bytes; the batches that do not fit are not kept.
        num_bytes: bytes of the kept squares.
    """

    key: SquaresKey | None
    most_bytes: int
    num_bytes: int = 0
    _batches: dict[int, Tensor] = field(default_factory=dict)

    def has(self, view: View, first_row: int) -> bool:
        """Return whether the squares of ``view`` of the batch from row ``first_row`` on are kept.

        A mirrored view has the squares of the view that is not mirrored.
        """
        return (
            self.key is not None
            and self.key.view == replace(view, flip=False)
            and first_row in self._batches
        )

    def images(self, view: View, first_row: int) -> Tensor:
        """Return a copy of the squares that :meth:`has` confirms, (N, 3, S, S) float32 in 0..1."""
        kept = self._batches[first_row]
        return kept.flip(-1) if view.flip else kept.clone()

    def keep(self, view: View, first_row: int, images: Tensor) -> None:
        """Keep a copy of the squares of a batch, if they are of the key and fit.

        A copy, because a network may change its input in place.
        """
        if self.key is None or view != self.key.view or first_row in self._batches:
            return
        if self.num_bytes + images.nbytes <= self.most_bytes:
            self._batches[first_row] = images.clone()
            self.num_bytes += images.nbytes


_latest = KeptSquares(None, 0)


def kept_squares(key: SquaresKey | None, most_bytes: int = MOST_BYTES) -> KeptSquares:
    """Return the squares that this process keeps for ``key``; those of another key are dropped.

    Args:
        key: the key; None for squares that are not kept, which drops nothing.
        most_bytes: largest number of bytes.
    """
    global _latest
    if key is None:
        return KeptSquares(None, 0)
    found = _latest  # read once: another thread may replace it meanwhile
    if found.key != key or found.most_bytes != most_bytes:
        _latest = found = KeptSquares(key, most_bytes)
    return found
