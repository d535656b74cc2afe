"""Normalization: subtract the mean of the data and divide by its standard deviation, per channel.

A network works only on inputs with the statistics of its training, so mean and std belong to
the model and are shipped with it.
"""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Compute ``(images - mean) / std`` per channel.

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
    # Making a tensor on a GPU synchronizes with the GPU, so the tensor is made only once.
    # On a CPU it costs nothing, and exporters must see the values themselves.
    if images.device.type != "cpu":
        return _on_gpu(tuple(values), images.dtype, images.device)
    return torch.tensor(values, dtype=images.dtype, device=images.device)


@cache
def _on_gpu(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(mode=False):  # the first call may come from an evaluation
        return torch.tensor(values, dtype=dtype, device=device)
