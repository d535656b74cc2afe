"""Normalization: take the statistics of the data off the pixels, (x - mean) / std per channel.

A network knows only inputs with the statistics it was trained on, so mean and std belong to the
model and travel with it.
"""

from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """``(images - mean) / std`` per channel.

    Args:
        images: (N, C, H, W) float, pixels in 0..1.
        mean: C values, on pixels in 0..1.
        std: C values > 0, on pixels in 0..1.
    """
    if not any(mean) and all(value == 1 for value in std):
        return images
    shape = (1, -1, 1, 1)
    offset = _channel_values(mean, images).view(shape)
    scale = _channel_values(std, images).view(shape)
    return (images - offset).div_(scale)


def _channel_values(values: Sequence[float], images: Tensor) -> Tensor:
    # Making a tensor on a GPU waits for the GPU, so that happens once and not at every step. On a
    # CPU it costs nothing, and exporters must see the values themselves.
    if images.device.type == "cuda":
        return _on_gpu(tuple(values), images.dtype, images.device)
    return torch.tensor(values, dtype=images.dtype, device=images.device)


@cache
def _on_gpu(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(mode=False):  # evaluation may be the first to ask
        return torch.tensor(values, dtype=dtype, device=device)


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
        ValueError: no pixels.
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
