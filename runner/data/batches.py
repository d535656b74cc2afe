"""Batches of pixels: which images in which order, and the squares or rectangles cut out of them.

All random numbers are drawn before, so batches are the same from this process and from any number
of workers.
"""

import multiprocessing
import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from runner.data.decoding import BrokenImageError
from runner.data.resident import ResidentStore
from runner.data.store import Store
from runner.data.views import View, cut
from runner.errors import ProcessError, RunnerError, first_line
from runner.machine.hardware import give_back_freed_memory
from runner.machine.signals import end_with_parent, held_back, ignore_signals
from runner.randomness import generator

Indices = NDArray[np.int64]
T = TypeVar("T")

# Stored pixels are read-only, which torch warns about once in a process; no code writes to them.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.from_numpy(np.broadcast_to(np.uint8(0), 1))


@dataclass(frozen=True)
class Pixels:
    """Raw pixels of N images.

    Attributes:
        canvas: (N, 3, H, W) uint8, in channels-last memory; image n fills the top left of it. On
            the CPU, or on a GPU that holds the whole data set.
        extents: (N, 2) int64, height and width of each image on its canvas, px.
    """

    canvas: Tensor
    extents: Indices


class LoadedImages:
    """The images of a batch, each read once although several views are cut from it.

    Attributes:
        broken: the reason by index, for images that cannot be read; each is one black pixel.
    """

    def __init__(self, store: Store, indices: Indices) -> None:
        self.broken: dict[int, str] = {}
        self._images = {int(index): self._read(store, int(index)) for index in indices}

    def _read(self, store: Store, index: int) -> NDArray[np.uint8]:
        try:
            return store.rectangle(index)
        except BrokenImageError as error:
            self.broken[index] = str(error)
            return np.zeros((1, 1, 3), np.uint8)

    def rectangle(self, index: int) -> NDArray[np.uint8]:
        """See :class:`runner.data.store.Store`."""
        return self._images[index]


def training_order(count: int, batch_size: int, seed: int, epoch: int) -> list[Indices]:
    """Return batches of positions in 0..count-1, each at most once; incomplete ones are left out.

    Each epoch has another permutation, and so leaves out other images.
    """
    order = generator(seed, "order", epoch).permutation(count)
    num_batches = count // batch_size
    return list(order[: num_batches * batch_size].reshape(num_batches, batch_size))


def evaluation_order(count: int, batch_size: int) -> list[Indices]:
    """Return batches of all positions in 0..count-1, in order."""
    return np.split(np.arange(count), range(batch_size, count, batch_size))


def squares(store: Store, indices: Indices, places: NDArray[np.float64]) -> Pixels:
    """Cut the largest square of each image, at its place along the long side.

    Args:
        store: images with equal short sides.
        indices: (N,) positions in the store.
        places: (N, 2) in 0..1, x and y.
    """
    if isinstance(store, ResidentStore):
        canvas = store.squares(indices, places)
        return Pixels(canvas, np.full((len(indices), 2), canvas.shape[-1]))
    cuts = [
        cut(store.rectangle(int(index)), View(x, y))
        for index, (x, y) in zip(indices, places, strict=True)
    ]
    return _on_one_canvas(cuts)


def rectangles(store: Store, indices: Indices) -> Pixels:
    """Read each image whole, on a canvas of the largest height and the largest width."""
    return _on_one_canvas([store.rectangle(int(index)) for index in indices])


def view_squares(store: Store, indices: Indices, views: Sequence[View]) -> list[Pixels]:
    """Cut, for each view, its square from every image, without scaling or mirroring."""
    if isinstance(store, ResidentStore):
        canvases = [store.view_squares(indices, view) for view in views]
        return [Pixels(each, np.full((len(indices), 2), each.shape[-1])) for each in canvases]
    images = [store.rectangle(int(index)) for index in indices]
    return [_on_one_canvas([cut(image, view) for image in images]) for view in views]


def read_ahead(read: Callable[[int], T], count: int, num_workers: int) -> Generator[T, None, None]:
    """Yield ``read(0)`` … ``read(count - 1)`` in order, read ahead by ``num_workers`` processes.

    With ``num_workers`` 0, this process reads when the next item is needed.

    Raises:
        ProcessError: a reader died, or the system has no room for so many.
        RunnerError: an item cannot be read.
    """
    if num_workers == 0:
        yield from map(read, range(count))
        return
    context = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    loader = DataLoader(
        _Reads(read, count),
        batch_size=None,
        num_workers=num_workers,
        multiprocessing_context=context,  # so that workers share what this process has read
        collate_fn=_as_read,
        worker_init_fn=_begin_worker,
        # The loader draws a seed for its workers; not from the generator that dropout draws from.
        generator=torch.Generator(),
    )
    workers = _started(loader)
    try:
        for item in _read_by(workers, num_workers):
            if isinstance(item, RunnerError):
                raise item
            try:
                found: T = ForkingPickler.loads(item)
            except (OSError, RuntimeError, EOFError) as error:  # of descriptors and shared memory
                died = worker_died(error, num_workers)  # reported here, as anywhere else
                raise died or _failed("a batch cannot be taken over", num_workers, error) from error
            yield found
    finally:
        # Now, not when the last reference is gone: an error that is being raised may hold one.
        workers._shutdown_workers()


def _started(loader: "DataLoader[bytes | RunnerError]") -> Any:
    """Return the iterator of ``loader``, which has started its workers; without some, it has none.

    Raises:
        ProcessError: the system has no room for so many processes, pipes or semaphores.
    """
    before = set(multiprocessing.active_children())
    workers = object.__new__(_MultiProcessingDataLoaderIter)
    try:
        with held_back():  # a signal would kill a worker that was just forked
            workers.__init__(loader)  # type: ignore[misc]
    except OSError as error:
        workers._shutdown = True  # it is not complete enough to be shut down
        # They ignore SIGTERM, with which multiprocessing would end them when this process exits.
        for worker in set(multiprocessing.active_children()) - before:
            worker.kill()
            worker.join()
        raise _failed("cannot be started", loader.num_workers, error) from error
    return workers


def _read_by(workers: Any, num_workers: int) -> Generator[bytes | RunnerError, None, None]:
    """Yield the items of ``workers``.

    Raises:
        ProcessError: a worker died.
    """
    try:
        yield from workers
    except RuntimeError as error:
        if (died := worker_died(error, num_workers)) is None:
            raise
        raise died from error


def worker_died(error: Exception, num_workers: int | None = None) -> ProcessError | None:
    """Return the error for the user if ``error`` says that a worker died; None if it does not.

    Torch raises it wherever the main thread is when the system reports the death, also while the
    workers are not waited for.
    """
    if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):  # it has no own type
        return _failed("one died; most likely memory or /dev/shm ran out", num_workers)
    return None


def _failed(what: str, num_workers: int | None, error: Exception | None = None) -> ProcessError:
    reason = f": {first_line(error)}" if error is not None else ""
    if reason.endswith("ancdata"):  # so Python says that a descriptor did not arrive
        reason = ": too many open files"
    return ProcessError(
        f"the processes that read images: {what}{reason}",
        where="data.num_workers" if num_workers is None else f"data.num_workers={num_workers}",
        fix="data.num_workers=0 (of predict: --num-workers 0); a training goes on from its last "
        "checkpoint",
    )


class _ByValue(ForkingPickler):
    """Puts the pixels into the pipe between the processes, which is slower than shared memory."""

    _extra_reducers: ClassVar[dict[type, Callable[..., Any]]] = {}  # without torch's


class _Reads(Dataset[bytes | RunnerError]):
    """Items as a worker hands them over: pickled, because the loader's own pickling fails unseen.

    The loader pickles in a thread. If that finds no room in ``/dev/shm``, it prints a traceback and
    drops the item, for which the parent then waits forever.
    """

    def __init__(self, read: Callable[[int], Any], count: int) -> None:
        self._read = read
        self._count = count
        self._has_shared_memory = True

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> bytes | RunnerError:
        try:
            item = self._read(index)
        except (
            RunnerError
        ) as error:  # returned: the loader would wrap a raised error in its own message
            return error
        if self._has_shared_memory:
            try:
                return bytes(ForkingPickler.dumps(item))
            except (OSError, RuntimeError):  # no room in /dev/shm, or no descriptor left
                self._has_shared_memory = False
        return bytes(_ByValue.dumps(item))


def _begin_worker(number: int) -> None:
    ignore_signals()
    end_with_parent()
    give_back_freed_memory()


def _as_read(item: T) -> T:
    """Replaces the loader's own conversion of arrays to tensors."""
    return item


def _on_one_canvas(images: Sequence[NDArray[np.uint8]]) -> Pixels:
    extents = np.array([image.shape[:2] for image in images], np.int64)
    pixels = [torch.from_numpy(image) for image in images]  # torch copies large ones in threads
    if (extents == extents[0]).all():
        canvas = torch.stack(pixels)
    else:
        height, width = extents.max(axis=0).tolist()
        canvas = torch.zeros(len(images), height, width, 3, dtype=torch.uint8)
        for row, image in zip(canvas, pixels, strict=True):
            row[: len(image), : image.shape[1]] = image
    return Pixels(canvas.permute(0, 3, 1, 2), extents)
