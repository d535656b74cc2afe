"""Mean and standard deviation of a training split, measured once per data set."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runner.data.dataset import Dataset
from runner.data.depth import BITS
from runner.data.sealed import DamagedError, recall, remember
from runner.terminal.console import note


def training_statistics(
    dataset: Dataset, cache: Path
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std per channel over every stored pixel of the training split, and only that.

    The result is kept below ``cache``, by the fingerprint and the shape of the stored images.
    """
    stored = f"{dataset.presize}px-{dataset.max_aspect:g}-{dataset.interpolation}"
    if dataset.depth != BITS:
        stored += (
            f"-{hashlib.sha256(json.dumps(dataset.depth.to_dict()).encode()).hexdigest()[:16]}"
        )
    path = cache / "statistics" / f"{dataset.fingerprint[:32]}-{stored}.json"
    key = f"mean and standard deviation {dataset.fingerprint} {stored}"
    try:
        remembered = recall(path, key, at_most=10_000)
        if remembered is not None:
            return tuple(remembered["mean"]), tuple(remembered["std"])
    except DamagedError as error:
        note(f"the statistics in the cache are damaged ({error}) and measured again: {path}")
    mean, std = channel_statistics(
        dataset.store.rectangle(int(index)) for index in dataset.train.indices
    )
    remember(path, key, {"mean": mean, "std": std})
    return mean, std


def channel_statistics(
    images: Iterable[NDArray[np.uint8]],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel over every pixel of every image.

    Args:
        images: arrays (..., C) of uint8, of any shapes.

    Returns:
        mean and std, C values each, on pixels in 0..1. A channel that never varies gets std 1, so
        that dividing by it is harmless.

    Raises:
        ValueError: there are no pixels.
    """
    count, total, squares = 0, np.zeros(0), np.zeros(0)
    levels = np.arange(256)
    for image in images:
        pixels = image.reshape(-1, image.shape[-1])
        # Exact integer sums from a histogram of the 256 levels: no rounding, whatever the order.
        counts = np.stack([np.bincount(channel, minlength=256) for channel in pixels.T])
        if count == 0:
            total, squares = np.zeros(len(counts), np.int64), np.zeros(len(counts), np.int64)
        total += counts @ levels
        squares += counts @ levels**2
        count += len(pixels)
    if count == 0:
        raise ValueError("no pixels to take statistics of")
    mean = total / count
    variance = np.maximum(squares / count - mean**2, 0.0)
    std = np.where(variance > 0, np.sqrt(variance), 255.0)
    return tuple(float(value) / 255 for value in mean), tuple(float(value) / 255 for value in std)
