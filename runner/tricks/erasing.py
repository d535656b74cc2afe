"""Random erasing (Zhong et al. 2017, arXiv:1708.04896): a box of some training images is covered.

The box is drawn as in torchvision's ``RandomErasing``: an area and a ratio of its sides until the
box fits into the image, ten times at most. Only training images are changed: an evaluation, also
one with random views, does not use this module.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runner.config.schema import Erasing
from runner.machine.hardware import on_device
from runner.randomness import generator

_ATTEMPTS = 10  # as in torchvision and timm; if none fits, nothing is erased


def draw(
    erasing: Erasing, count: int, height: int, width: int, seed: int, *position: int
) -> NDArray[np.int64]:
    """Draw the boxes of ``count`` images at one position of training.

    Returns:
        (count, 4): top, bottom, left, right, px; 0 everywhere if an image stays whole. A box is
        smaller than its image in both directions, so that a part of the image stays visible.
    """
    if erasing.probability == 0:
        return np.zeros((count, 4), np.int64)
    rng = generator(seed, "erasing", *position)
    # Every draw is made with any settings, so that no setting shifts the draws of another.
    happens = rng.random(count) < erasing.probability
    chances = rng.random((count, _ATTEMPTS, 4))
    area = erasing.min_area + (erasing.max_area - erasing.min_area) * chances[..., 0]
    ratio = np.exp((2 * chances[..., 1] - 1) * np.log(erasing.max_ratio))
    pixels = area * height * width
    tall = np.round(np.sqrt(pixels * ratio)).astype(np.int64)
    wide = np.round(np.sqrt(pixels / ratio)).astype(np.int64)
    fits = (tall > 0) & (tall < height) & (wide > 0) & (wide < width)
    rows, first = np.arange(count), fits.argmax(1)
    tall, wide, place = tall[rows, first], wide[rows, first], chances[rows, first, 2:]
    top = (place[:, 0] * (height - tall + 1)).astype(np.int64)
    left = (place[:, 1] * (width - wide + 1)).astype(np.int64)
    boxes = np.stack([top, top + tall, left, left + wide], axis=1)
    return np.where((happens & fits.any(1))[:, None], boxes, 0)


def fill_of(
    erasing: Erasing, mean: Sequence[float], size: int, seed: int, device: torch.device
) -> Tensor:
    """Return the fill of the boxes of one step, for :func:`erase`.

    ``mean`` is the mean of the training images whatever the normalization is, so that normalization
    does not change the fill; a network that normalizes with the same mean sees zeros. Noise
    is uniform in 0..1 for each pixel and channel, as in the paper. It is one image of noise for a
    step, of which each box shows its part: so processes that share the step use the same noise.

    Args:
        erasing: the settings.
        mean: mean red, green and blue of the training images, in 0..1.
        size: side of the images, px.
        seed: seed of the noise of this step.
        device: the device of the images.

    Returns:
        (3, 1, 1) or, for noise, (3, size, size), in 0..1.
    """
    if erasing.fill == "noise":
        noise = torch.Generator(device).manual_seed(seed)
        return torch.rand(3, size, size, generator=noise, device=device)
    color = mean if erasing.fill == "mean" else (0.0, 0.0, 0.0)
    return on_device(torch.tensor(color), device).view(3, 1, 1)


def erase(images: Tensor, boxes: NDArray[np.int64], fill: Callable[[], Tensor]) -> Tensor:
    """Cover the box of each image. Does not synchronize with a GPU.

    Args:
        images: (N, 3, H, W) float in 0..1.
        boxes: (N, 4), top, bottom, left, right, px; a box may be empty.
        fill: makes the fill, (3, 1, 1) or (3, H, W), in 0..1; called if any box has an area.

    Returns:
        (N, 3, H, W); ``images`` itself if no box has an area.
    """
    if not boxes.any():
        return images
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device).view(1, -1, 1)
    columns = torch.arange(width, device=images.device).view(1, 1, -1)
    edges = on_device(torch.from_numpy(boxes), images.device)
    top, bottom, left, right = (edge.view(-1, 1, 1) for edge in edges.unbind(1))
    inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    return torch.where(inside.unsqueeze(1), fill().to(images.dtype), images)
