"""SAM: the gradient of a step is taken at the worst weights nearby.

Sharpness-aware minimization (Foret et al. 2021, arXiv:2010.01412) takes the gradient ``g`` at the
weights ``w``, then the gradient at ``w + rho · g / ‖g‖``, and updates ``w`` with the second one.
As in the code of the paper's authors, both passes see the same images and make the same draws in
their layers, and BatchNorms keep the statistics of the first pass; unlike there, all processes that
share a batch climb to the same weights, so their number has no effect. As in Composer, the
last step of each interval uses SAM, and the others are plain.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from runner.tricks.clip import finite_or_nan

_SMALLEST = 1e-12  # smallest norm to divide by; a gradient of zero moves nothing


@contextmanager
def climbed(model: nn.Module, parameters: Sequence[nn.Parameter], rho: float) -> Iterator[None]:
    """Move the weights by ``rho`` up along their gradient for the block. No GPU synchronization.

    After the block, also after an exception, the weights and the buffers of ``model`` are what they
    were before, to the bit.

    If the norm of the gradient is not finite, the weights in the block are not finite either.

    Args:
        model: the network.
        parameters: its parameters; those without a gradient stay.
        rho: Euclidean distance of the move, > 0.
    """
    moved = [parameter for parameter in parameters if parameter.grad is not None]
    weights = [parameter.detach().clone() for parameter in moved]
    buffers = [buffer.clone() for buffer in model.buffers()]
    try:
        _climb(moved, rho)
        yield
    finally:
        with torch.no_grad():
            for parameter, weight in zip(moved, weights, strict=True):
                parameter.copy_(weight)
            # Listed again: a layer may have replaced a buffer instead of changing it.
            for buffer, value in zip(model.buffers(), buffers, strict=True):
                buffer.copy_(value)


@torch.no_grad()
def _climb(parameters: Sequence[nn.Parameter], rho: float) -> None:
    """Climb. This is a separate function, so that its list of gradients is freed at its end."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = finite_or_nan(torch.nn.utils.get_total_norm(gradients))
    scale = rho / norm.clamp_min(_SMALLEST)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.addcmul_(gradient, scale)
