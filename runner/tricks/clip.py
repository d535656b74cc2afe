"""Gradient clipping: a gradient that is too long is scaled down (Pascanu et al. 2013)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def clip_gradients(parameters: Sequence[nn.Parameter], norm: float) -> Tensor:
    """Scale the gradients in place so that all of them together are no longer than ``norm``.

    Nothing waits for a GPU. Of gradients that are not finite, some stay so.

    Args:
        parameters: the parameters; those without a gradient do not count.
        norm: the largest Euclidean norm, > 0.

    Returns:
        Whether the gradients were longer, a bool scalar on the device.
    """
    return torch.nn.utils.clip_grad_norm_(parameters, norm) > norm
