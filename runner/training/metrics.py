"""How good are predicted probabilities? Accuracy, likelihood and calibration, in numpy alone.

This module does not import torch, so that commands that only read results start quickly.

Shapes: N images, K model outputs (K may exceed the number of classes of the data). Everywhere
`probabilities` is (N, K), finite, not negative, each row summing to 1 within 1e-3, and `labels`
is (N,) of integers in 0..K-1, with N and K at least 1; anything else raises ValueError. Values are
computed in float64 and returned as plain Python numbers.
"""

from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.integer[Any]]

ROW_SUM_TOLERANCE = 1e-3
# The smallest normal float32: one confident miss costs at most 87.3 nats, not infinity, in any
# precision that the probabilities were computed in.
SMALLEST_PROBABILITY = float(np.finfo(np.float32).tiny)


def classification_metrics(
    probabilities: FloatArray, labels: IntArray, classes: Sequence[str]
) -> dict[str, Any]:
    """Return every metric of one evaluation, ready for JSON.

    `accuracy`, `accuracy_ci` ([low, high], 95% Wilson), `top5` (only if K > 5), `nll`, `brier`,
    `ece`, and `per_class`: {name: {"accuracy": recall or None, "n": images}}, where None means
    that the class has no images. Raises ValueError as described above, and for a label without a
    name, more names than outputs, or a name given twice.
    """
    probabilities, labels = _checked(probabilities, labels)
    if len(set(classes)) != len(classes):
        raise ValueError(f"class names must be unique, got {list(classes)}")
    if not labels.max() < len(classes) <= probabilities.shape[1]:
        raise ValueError(
            f"{len(classes)} class names do not fit labels up to {labels.max()} "
            f"and {probabilities.shape[1]} model outputs"
        )
    correct = probabilities.argmax(axis=1) == labels
    images = np.bincount(labels, minlength=len(classes)).tolist()
    hits = np.bincount(labels[correct], minlength=len(classes)).tolist()
    top5 = {"top5": top_k_accuracy(probabilities, labels, 5)} if probabilities.shape[1] > 5 else {}
    return {
        "accuracy": accuracy(probabilities, labels),
        "accuracy_ci": list(wilson_interval(int(correct.sum()), len(labels))),
        **top5,
        "nll": negative_log_likelihood(probabilities, labels),
        "brier": brier_score(probabilities, labels),
        "ece": expected_calibration_error(probabilities, labels),
        "per_class": {
            name: {"accuracy": hit / n if n else None, "n": n}
            for name, hit, n in zip(classes, hits, images, strict=True)
        },
    }


def accuracy(probabilities: FloatArray, labels: IntArray) -> float:
    """Return the share of images, 0..1, whose most probable output (first of equals) is right."""
    probabilities, labels = _checked(probabilities, labels)
    return float((probabilities.argmax(axis=1) == labels).mean())


def top_k_accuracy(probabilities: FloatArray, labels: IntArray, k: int) -> float:
    """Return the share of images, 0..1, whose label is among the k most probable outputs.

    Of equal probabilities the lower index ranks first, so k=1 is exactly `accuracy`.
    Raises ValueError unless 1 <= k <= K.
    """
    probabilities, labels = _checked(probabilities, labels)
    if not 1 <= k <= probabilities.shape[1]:
        raise ValueError(f"k must be in 1..{probabilities.shape[1]}, got {k}")
    true = np.take_along_axis(probabilities, labels[:, None], axis=1)
    earlier = np.arange(probabilities.shape[1]) < labels[:, None]
    rank = ((probabilities > true) | ((probabilities == true) & earlier)).sum(axis=1)
    return float((rank < k).mean())


def negative_log_likelihood(probabilities: FloatArray, labels: IntArray) -> float:
    """Return the mean of -ln p(label) over images, in nats: plain cross entropy, 0..87.3.

    p is clipped at `SMALLEST_PROBABILITY` from below, so the mean is finite, and at 1 from above.
    """
    probabilities, labels = _checked(probabilities, labels)
    true = np.take_along_axis(probabilities, labels[:, None], axis=1)
    # ln p <= 0, and abs leaves no -0.0 behind.
    return float(np.abs(np.log(np.clip(true, SMALLEST_PROBABILITY, 1.0))).mean())


def brier_score(probabilities: FloatArray, labels: IntArray) -> float:
    """Return the mean over images of the squared error summed over outputs: 0 (best) to 2.

    This is the multi-class form of Brier (1950), "Verification of forecasts expressed in terms
    of probability"; the two-class form common elsewhere is half of it.
    """
    probabilities, labels = _checked(probabilities, labels)
    targets = np.arange(probabilities.shape[1]) == labels[:, None]
    return float(np.square(probabilities - targets).sum(axis=1).mean())


def expected_calibration_error(
    probabilities: FloatArray, labels: IntArray, num_bins: int = 15
) -> float:
    """Return the top-1 calibration error, 0..1: sum over bins of n_b/N |accuracy_b - confidence_b|.

    The measure is that of Guo et al. (2017), "On calibration of modern neural networks", but with
    the equal-mass ("adaptive") bins of Nguyen & O'Connor (2015), "Posterior calibration and
    exploratory analysis for NLP models": images are sorted by confidence and cut into `num_bins`
    runs whose lengths differ by at most one. Do not compare it with equal-width values.

    Images of equal confidence share their mean correctness before the cut, so a cut through them
    does not depend on the order of images. With N <= num_bins every image is a bin of its own
    and the value is near the mean of |correct - confidence|: too high, as for any small N.
    Raises ValueError for num_bins < 1.
    """
    probabilities, labels = _checked(probabilities, labels)
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, got {num_bins}")
    correct = probabilities.argmax(axis=1) == labels
    levels, level_of_image = np.unique(probabilities.max(axis=1), return_inverse=True)
    images = np.bincount(level_of_image)
    gap = np.bincount(level_of_image, weights=correct) / images - levels
    bins = np.array_split(np.repeat(gap, images), num_bins)  # too few: some are empty, add 0
    return float(sum(abs(members.sum()) for members in bins) / len(labels))


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the score interval (low, high) of a proportion: within 0..1, around the estimate.

    Wilson (1927), "Probable inference, the law of succession, and statistical inference".
    Raises ValueError unless 0 <= successes <= n, n >= 1 and 0 < confidence < 1.
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"need 0 <= successes <= n and n >= 1, got {successes} of {n}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    estimate = successes / n
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    center = (estimate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * sqrt(estimate * (1 - estimate) / n + z**2 / (4 * n**2))
    # Exact arithmetic needs no min and max; rounding at the ends 0 and 1 does.
    return max(0.0, min(center - half, estimate)), min(1.0, max(center + half, estimate))


def _checked(probabilities: FloatArray, labels: IntArray) -> tuple[FloatArray, IntArray]:
    """Return both arrays (probabilities as float64) if they are what the module says."""
    probabilities, labels = np.asarray(probabilities, np.float64), np.asarray(labels)
    if probabilities.ndim != 2 or 0 in probabilities.shape:
        raise ValueError(f"probabilities must be (N, K), not empty, got {probabilities.shape}")
    if labels.shape != probabilities.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels must be {len(probabilities)} integers, got {labels.shape} {labels.dtype}"
        )
    if labels.min() < 0 or labels.max() >= probabilities.shape[1]:
        raise ValueError(
            f"labels must be in 0..{probabilities.shape[1] - 1}, got {labels.min()}..{labels.max()}"
        )
    if not np.isfinite(probabilities).all() or probabilities.min() < 0:
        raise ValueError("probabilities must be finite and not negative")
    row_sums = probabilities.sum(axis=1)
    worst = int(np.abs(row_sums - 1).argmax())
    if abs(row_sums[worst] - 1) > ROW_SUM_TOLERANCE:
        raise ValueError(f"probabilities of row {worst} sum to {row_sums[worst]:.6g}, not 1")
    return probabilities, labels.astype(np.int64)
