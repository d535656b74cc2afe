"""Stochastic depth (Huang et al. 2016, arXiv:1603.09382): residual branches are left out at random.

In a training step, each image loses each residual branch with a probability that grows linearly
with the depth of the branch; the block is then its identity path alone. The branches that
are kept are divided by their probability of being kept, so that the mean of a branch stays what it
is at evaluation, where nothing is dropped.
"""

import numpy as np
import torch
from torch import Tensor, nn


def rates(probability: float, count: int) -> list[float]:
    """Return the probabilities of dropping ``count`` branches, from input to output.

    They grow linearly from 0 to ``probability``, which is in [0, 1). A single branch has 0.
    """
    return [float(rate) for rate in np.linspace(0, probability, count)]


def drop(branches: Tensor, kept: Tensor, probability: float) -> Tensor:
    """Zero the branches of some images and divide the others by ``1 - probability``.

    Args:
        branches: (N, …), the output of one branch for N images.
        kept: (N,), 1 for each image that keeps the branch and 0 for the others.
        probability: probability of dropping, in [0, 1).
    """
    factors = kept.to(branches.dtype) / (1 - probability)
    return branches * factors.view(-1, *(1,) * (branches.ndim - 1))


class StochasticDepth(nn.Module):
    """Drops the branch that it ends in training; an exact identity at evaluation.

    The draws come from torch's global generator of the device, like those of dropout. The training
    seeds that generator in each step, differently for each process.

    Args:
        probability: probability of dropping the branch of an image, in [0, 1).
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, branches: Tensor) -> Tensor:
        """Map (N, …) to (N, …)."""
        if not self.training or self.probability == 0:
            return branches
        kept = torch.empty(len(branches), dtype=branches.dtype, device=branches.device)
        return drop(branches, kept.bernoulli_(1 - self.probability), self.probability)

    def extra_repr(self) -> str:
        """Return the arguments, for printing the network."""
        return f"probability={self.probability:g}"
