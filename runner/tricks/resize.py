"""Progressive resizing: train on small images first and on full-size ones at the end.

The size is a pure function of training progress. The default shape follows Composer's: hold a
part of the size, ramp up, finish at full size.
"""

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from runner.config.schema import Resize
from runner.data.preprocess import Interpolation


def size_at(progress: float, size: int, resize: Resize) -> int:
    """The image size, px, at ``progress`` in 0..1 through training to final ``size``.

    ``resize.initial_scale`` of it until ``resize.delay``, a linear ramp, the full size in the last
    ``resize.finish``; always a multiple of ``resize.multiple`` and at least that.
    """
    if resize.schedule == "fixed" or progress >= 1 - resize.finish:
        return size
    ramp = (progress - resize.delay) / max(1 - resize.finish - resize.delay, 1e-12)
    scale = resize.initial_scale + (1 - resize.initial_scale) * min(max(ramp, 0.0), 1.0)
    steps = int(size * scale / resize.multiple + 0.5)
    return min(max(steps, 1) * resize.multiple, size)


def first_size(size: int, resize: Resize) -> int:
    """Size, px, of the first phase of ``resize=book``; the seed's 128 where ``size`` is its 224."""
    return resize.first_size or max(8, round(size * 128 / 224))


def relative_pixels(num_steps: int, size: int, resize: Resize) -> float:
    """Pixels trained on over ``num_steps``, relative to as many steps at the full ``size``."""
    sizes = np.array([size_at(step / num_steps, size, resize) for step in range(num_steps)])
    return float(np.mean((sizes / size) ** 2))


def to_size(images: Tensor, size: int, interpolation: Interpolation = "bilinear") -> Tensor:
    """Images (N, C, H, W) float in 0..1 as (N, C, size, size), antialiased."""
    if images.shape[-2:] == (size, size):
        return images
    # Equal results from channels-last memory take a third longer.
    plain = images.contiguous()
    resized = F.interpolate(plain, (size, size), mode=interpolation, antialias=True)
    # Bicubic weights are partly negative, and so overshoot at edges.
    return resized.clamp_(0, 1) if interpolation == "bicubic" else resized
