"""Cutout (DeVries and Taylor 2017, arXiv:1708.04552): a gray square hides a part of each image.

Does it help? Train with and without it over a few seeds, and read the answer:

    python -m runner.train -m code=null,examples/augmentation.py seed=0,1,2,3,4
    python -m runner.report --by code
"""

import torch

SIDE = 0.4  # of the square, as a part of the image's side


def images(images, generator, progress):
    """Take images (M, 3, S, S) in 0..1, and return images of the same shape.

    All random numbers come from ``generator``. It depends on the seed and on the step and on
    nothing else, so a run can be repeated, and continued after it was killed, to the last digit.
    """
    count, _, size, _ = images.shape
    centers = size * torch.rand(count, 2, 1, generator=generator, device=images.device)
    distances = (torch.arange(size, device=images.device) + 0.5 - centers).abs()  # (M, 2, S)
    is_near = distances < SIDE * size / 2
    is_hidden = is_near[:, 0, :, None] & is_near[:, 1, None, :]  # (M, S, S), rows by columns
    return images.masked_fill(is_hidden[:, None], 0.5)
