"""Gradient clipping: a gradient that is too long is scaled down (Pascanu et al. 2013)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def clip_gradients(parameters: Sequence[nn.Parameter], norm: float) -> Tensor:
    """Scale the gradients in place so that their norm together is at most ``norm``.

    Does not synchronize with a GPU. If the norm is not finite, some gradients become not finite, so
    that the step is reported: finite gradients whose norm overflows would otherwise become zeros.

    Args:
        parameters: the parameters; those without a gradient are ignored.
        norm: the largest Euclidean norm, > 0.

    Returns:
        Whether the norm was larger, a bool scalar on the device.
    """
    gradients = [each.grad for each in parameters if each.grad is not None]
    found = finite_or_nan(torch.nn.utils.get_total_norm(gradients))
    torch.nn.utils.clip_grads_with_norm_(parameters, norm, found)
    return ~(found <= norm)


def finite_or_nan(norm: Tensor) -> Tensor:
    """Return ``norm``, or NaN if it is infinite, so that a division by it is not finite."""
    return norm.masked_fill(norm.isinf(), torch.nan)
