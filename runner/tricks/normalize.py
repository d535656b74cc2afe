"""Normalization: take the statistics of the data off the pixels, (x - mean) / std per channel.

A network knows only inputs with the statistics it was trained on, so mean and std belong to the
model and travel with it.
"""

from collections.abc import Sequence

import torch
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
    offset = torch.tensor(mean, dtype=images.dtype, device=images.device).view(shape)
    scale = torch.tensor(std, dtype=images.dtype, device=images.device).view(shape)
    return (images - offset).div_(scale)
