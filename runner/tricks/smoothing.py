"""Label smoothing (Szegedy et al. 2015, arXiv:1512.00567).

Targets are 1-ε+ε/K for the true class and ε/K for the other classes, so that training does not
push the network to certainty. With K = 10 and ε = 0.1: 0.91 and 0.01.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Convert ``labels``, (N,) int64 in 0..K-1, to dense targets (N, K) float32."""
    return F.one_hot(labels, num_classes).to(torch.float32)


def smooth(targets: Tensor, epsilon: float) -> Tensor:
    """Spread ``epsilon`` of each row's mass evenly over all classes: (1-ε)·targets + ε/K.

    Args:
        targets: (N, K) float; each row sums to 1.
        epsilon: the smoothed part, in 0..1; 0 returns ``targets`` unchanged.
    """
    if epsilon == 0:
        return targets
    return targets * (1 - epsilon) + epsilon / targets.shape[1]
