"""Progressive resizing: train on small images first and on full-size ones at the end.

The size is a pure function of training progress. Its default shape is Composer's: a constant
smaller size, a linear ramp, and the full size at the end.
"""

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from runner.config.schema import Resize
from runner.data.preprocess import Interpolation


def size_at(progress: float, size: int, resize: Resize) -> int:
    """Return the image size, px, at ``progress`` in 0..1 of a training with final size ``size``.

    It is ``resize.initial_scale`` · ``size`` until ``resize.delay``, then rises linearly, and is
    ``size`` in the last ``resize.finish``. A smaller size is a multiple of ``resize.multiple``.
    """
    if resize.schedule == "fixed" or progress >= 1 - resize.finish:
        return size
    ramp = (progress - resize.delay) / max(1 - resize.finish - resize.delay, 1e-12)
    scale = resize.initial_scale + (1 - resize.initial_scale) * min(max(ramp, 0.0), 1.0)
    steps = int(size * scale / resize.multiple + 0.5)
    return min(max(steps, 1) * resize.multiple, size)


def first_size(size: int, resize: Resize) -> int:
    """Size, px, of the first phase of ``resize=book``; for ``size`` 224, fastbook's 128."""
    return resize.first_size or max(8, round(size * 128 / 224))


def relative_pixels(num_steps: int, size: int, resize: Resize) -> float:
    """Pixels in ``num_steps`` steps of training, relative to as many steps at the full ``size``."""
    sizes = np.array([size_at(step / num_steps, size, resize) for step in range(num_steps)])
    return float(np.mean((sizes / size) ** 2))


def to_size(images: Tensor, size: int, interpolation: Interpolation = "bilinear") -> Tensor:
    """Resize images (N, C, H, W), float in 0..1, to (N, C, size, size), antialiased."""
    if images.shape[-2:] == (size, size):
        return images
    # Channels-last memory gives equal results but takes a third longer.
    plain = images.contiguous()
    resized = F.interpolate(plain, (size, size), mode=interpolation, antialias=True)
    # Some bicubic weights are negative, so the result overshoots at edges.
    return resized.clamp_(0, 1) if interpolation == "bicubic" else resized
