"""A data set on a GPU: batches are cut there, and no pixel crosses the bus during training."""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runner.data.dataset import Dataset
from runner.data.store import CachedStore
from runner.data.views import View
from runner.machine.hardware import on_device

_LARGEST_PART = 0.5  # of the GPU's free memory; the rest is for the network


class ResidentStore:
    """The rectangles of a decoded file, with a copy of its pixels on a device."""

    def __init__(self, store: CachedStore, device: torch.device) -> None:
        self._store = store
        count = store.pixels.size
        self._pixels = torch.from_file(
            str(store.pixels_path), shared=False, size=count, dtype=torch.uint8
        ).to(device)

    def rectangle(self, index: int) -> NDArray[np.uint8]:
        """See :class:`runner.data.store.Store`."""
        return self._store.rectangle(index)

    def squares(self, indices: NDArray[np.int64], places: NDArray[np.float64]) -> Tensor:
        """Cut the largest square of each image, at its place along the long side.

        Args:
            indices: (N,) positions in the store, of images with equal short sides.
            places: (N, 2) in 0..1, x and y.

        Returns:
            (N, 3, side, side) uint8 on the device, in channels-last memory.
        """
        height, width = self._store.shapes[indices].astype(np.int64).T
        side = int(min(height.min(), width.min()))
        return self._cut(indices, places, side)

    def view_squares(self, indices: NDArray[np.int64], view: View) -> Tensor:
        """Cut the square of ``view`` from each image, as :func:`runner.data.views.cut` does.

        Returns:
            As :meth:`squares`.
        """
        side = max(1, round(int(self._store.shapes[indices].min()) * view.side))
        places = np.broadcast_to(np.array([view.x, view.y]), (len(indices), 2))
        return self._cut(indices, places, side)

    def _cut(self, indices: NDArray[np.int64], places: NDArray[np.float64], side: int) -> Tensor:
        height, width = self._store.shapes[indices].astype(np.int64).T
        left, top = (np.rint(places * (np.stack([width, height], 1) - side))).astype(np.int64).T
        first = self._store.offsets[indices] + 3 * (top * width + left)
        starts = on_device(torch.from_numpy(np.stack([first, 3 * width])), self._pixels.device)
        rows = starts[0].view(-1, 1) + starts[1].view(-1, 1) * torch.arange(
            side, device=self._pixels.device
        )
        # Every run of so many bytes, as a view: an index of rows copies whole rows of pixels.
        runs = self._pixels.unfold(0, 3 * side, 1)
        return runs[rows].view(len(indices), side, side, 3).permute(0, 3, 1, 2)


def resident(dataset: Dataset, device: torch.device) -> Dataset:
    """Copy the decoded pixels of ``dataset`` to ``device`` if that is a GPU with enough memory."""
    store = dataset.store
    if device.type != "cuda" or not isinstance(store, CachedStore):
        return dataset
    free, _ = torch.cuda.mem_get_info(device)
    if store.pixels.nbytes > _LARGEST_PART * free:
        return dataset
    return replace(dataset, store=ResidentStore(store, device))
