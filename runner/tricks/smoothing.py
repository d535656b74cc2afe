"""Label smoothing (Szegedy et al. 2015, arXiv:1512.00567).

Targets say 1-ε+ε/K for the true class and ε/K for the others, so that the network is not driven to
be certain. With K = 10 and ε = 0.1: 0.91 and 0.01.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Dense targets of ``labels``: (N,) int64 in 0..K-1 → (N, K) float32."""
    return F.one_hot(labels, num_classes).to(torch.float32)


def smooth(targets: Tensor, epsilon: float) -> Tensor:
    """Spread ``epsilon`` of each row's mass evenly over all classes: (1-ε)·targets + ε/K.

    Args:
        targets: (N, K) float, rows summing to 1.
        epsilon: 0..1; 0 returns ``targets`` as they are.
    """
    if epsilon == 0:
        return targets
    return targets * (1 - epsilon) + epsilon / targets.shape[1]
