"""Metrics of predicted probabilities: accuracy, ranking, likelihood, calibration; numpy only.

This module does not import torch, so that commands that only read results start quickly.

Shapes: N images, K model outputs (K may exceed the number of classes of the data). Everywhere
`probabilities` is (N, K), finite, not negative, each row summing to 1 within 1e-3, and `labels`
is (N,) of integers in 0..K-1, with N and K at least 1; anything else raises ValueError. Values are
computed in float64 and returned as plain Python numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]
IntArray = NDArray[np.integer[Any]]

METRICS = ("accuracy", "balanced_accuracy", "log_loss", "brier", "macro_f1", "auroc", "ece")
"""The names of the metrics that are one number, as users type them and as files spell them."""

ROW_SUM_TOLERANCE = 1e-3
# The smallest normal float32: one confident miss costs at most 87.3 nats, not infinity, in any
# precision that the probabilities were computed in.
SMALLEST_PROBABILITY = float(np.finfo(np.float32).tiny)
NUM_BINS = 15
"""Bins of the calibration error, as in Guo et al. (2017)."""


def classification_metrics(
    probabilities: FloatArray, labels: IntArray, classes: Sequence[str]
) -> dict[str, Any]:
    """Return every metric of one evaluation, ready for JSON.

    `accuracy`, `accuracy_ci` ([low, high], 95% Wilson), `top5` (only if K > 5),
    `balanced_accuracy`, `log_loss`, `brier`, `macro_f1`, `auroc` (None if no class has images on
    both sides), `ece`, and `per_class`: {name: {"precision", "recall", "f1", "support"}} of
    :func:`class_scores`. Raises ValueError as described above, and for a label without a
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
    num_outputs = probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)
    scores = class_scores(predicted, labels, num_outputs)
    top5 = {"top5": top_k_accuracy(probabilities, labels, 5)} if num_outputs > 5 else {}
    return {
        "accuracy": accuracy(probabilities, labels),
        "accuracy_ci": list(wilson_interval(int((predicted == labels).sum()), len(labels))),
        **top5,
        "balanced_accuracy": float(np.nanmean(scores.recall)),
        "log_loss": log_loss(probabilities, labels),
        "brier": brier_score(probabilities, labels),
        "macro_f1": float(np.nanmean(scores.f1)),
        "auroc": auroc(probabilities, labels),
        "ece": expected_calibration_error(probabilities, labels),
        "per_class": {name: scores.of(place) for place, name in enumerate(classes)},
    }


@dataclass(frozen=True, eq=False)
class ClassScores:
    """Scores of each class from the most probable outputs of N images; NaN where undefined.

    An undefined score is what scikit-learn calls a zero division, with its
    ``zero_division=numpy.nan``.

    Attributes:
        precision: (K,) part of the predictions of a class that are right, 0..1; NaN for a class
            that is never predicted.
        recall: (K,) part of the images of a class that are right, 0..1; NaN for a class without
            images.
        f1: (K,) harmonic mean of the two, 0..1: 0 for a class that has images or predictions and
            none right; NaN for a class that has neither.
        support: (K,) int64, number of images of each class.
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]
    support: NDArray[np.int64]

    def of(self, place: int) -> dict[str, float | int | None]:
        """Return the scores of one class for JSON: an undefined score is None."""
        ratios = {"precision": self.precision, "recall": self.recall, "f1": self.f1}
        return {
            **{
                name: None if np.isnan(found[place]) else float(found[place])
                for name, found in ratios.items()
            },
            "support": int(self.support[place]),
        }


def class_scores(predicted: IntArray, labels: IntArray, num_outputs: int) -> ClassScores:
    """Return the scores of each class.

    Args:
        predicted: (N,) most probable output of each image, 0..num_outputs-1.
        labels: (N,) label of each image, 0..num_outputs-1.
        num_outputs: the number K of model outputs.
    """
    support = np.bincount(labels, minlength=num_outputs)
    chosen = np.bincount(predicted, minlength=num_outputs)
    right = np.bincount(labels[predicted == labels], minlength=num_outputs)
    return ClassScores(
        precision=_ratio(right, chosen),
        recall=_ratio(right, support),
        f1=_ratio(2 * right, chosen + support),
        support=support.astype(np.int64),
    )


def mean_class_scores(
    runs: Sequence[Mapping[str, Mapping[str, Any]]],
) -> dict[str, dict[str, float | int | None]]:
    """Return the means of the ``per_class`` of several runs on the same images.

    A score that is undefined in some runs is the mean of the others; the support is that of all.
    """
    means: dict[str, dict[str, float | int | None]] = {}
    for name, first in runs[0].items():
        means[name] = {}
        for score in ("precision", "recall", "f1"):
            defined = [run[name][score] for run in runs if run[name][score] is not None]
            means[name][score] = float(np.mean(defined)) if defined else None
        means[name]["support"] = first["support"]
    return means


def _ratio(numerator: NDArray[Any], denominator: NDArray[Any]) -> NDArray[np.float64]:
    """Return the quotient, (K,); NaN where the denominator is 0."""
    found = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=found, where=denominator > 0)
    return found


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


def balanced_accuracy(probabilities: FloatArray, labels: IntArray) -> float:
    """Return the mean recall, 0..1, of the classes that have images; each class counts alike.

    This is scikit-learn's `balanced_accuracy_score`, which also leaves out classes without images.
    """
    probabilities, labels = _checked(probabilities, labels)
    scores = class_scores(probabilities.argmax(axis=1), labels, probabilities.shape[1])
    return float(np.nanmean(scores.recall))


def macro_f1(probabilities: FloatArray, labels: IntArray) -> float:
    """Return the mean F1, 0..1, of the classes that have images or predictions.

    This is scikit-learn's `f1_score(average="macro", zero_division=0)`: a class that has images
    and is never predicted counts as 0, and so does a class that is predicted and has no images,
    even an output without a class in the data.
    """
    probabilities, labels = _checked(probabilities, labels)
    scores = class_scores(probabilities.argmax(axis=1), labels, probabilities.shape[1])
    return float(np.nanmean(scores.f1))


def auroc(probabilities: FloatArray, labels: IntArray) -> float | None:
    """Return the mean over classes of the area under the curve of one class against the rest.

    The area is the probability, 0..1, that an image of the class gets a higher probability for
    this class than an image of another class; equal probabilities count half. This is
    scikit-learn's `roc_auc_score(multi_class="ovr", average="macro")`, which needs images of every
    class. Here, classes without images are left out, and the value is None if only one class has
    images.
    """
    probabilities, labels = _checked(probabilities, labels)
    support = np.bincount(labels, minlength=probabilities.shape[1])
    columns = np.ascontiguousarray(probabilities.T)
    areas = []
    for place in np.flatnonzero((support > 0) & (support < len(labels))):
        everyone = np.sort(columns[place])
        own = np.sort(columns[place][labels == place])
        pairs = len(own) * (len(labels) - len(own))
        areas.append((_lower(everyone, own) - _lower(own, own)) / (2 * pairs))
    return float(np.mean(areas)) if areas else None


def _lower(values: NDArray[Any], own: NDArray[Any]) -> int:
    """Return twice the number of pairs (value, own) with value < own; equal pairs count once.

    Both arrays are sorted.
    """
    sides: tuple[Literal["left", "right"], ...] = ("left", "right")
    return sum(int(np.searchsorted(values, own, side).sum()) for side in sides)


def log_loss(probabilities: FloatArray, labels: IntArray) -> float:
    """Return the mean of -ln p(label) over images, in nats: plain cross entropy, 0..87.3.

    p is clipped at `SMALLEST_PROBABILITY` from below, so the mean is finite, and at 1 from above.
    """
    return float(log_losses(*_checked(probabilities, labels)).mean())


def log_losses(probabilities: FloatArray, labels: IntArray) -> NDArray[np.float64]:
    """Return -ln p(label) of each image, (N,); the arrays are not checked. See :func:`log_loss`."""
    true = np.take_along_axis(probabilities, labels[:, None], axis=1)[:, 0].astype(np.float64)
    # ln p <= 0, and abs turns -0.0 into 0.0.
    return np.asarray(np.abs(np.log(np.clip(true, SMALLEST_PROBABILITY, 1.0))))


def brier_score(probabilities: FloatArray, labels: IntArray) -> float:
    """Return the mean over images of the squared error summed over outputs: 0 (best) to 2.

    This is the multi-class form of Brier (1950), "Verification of forecasts expressed in terms
    of probability"; the two-class form common elsewhere is half of it.
    """
    return float(brier_scores(*_checked(probabilities, labels)).mean())


def brier_scores(probabilities: FloatArray, labels: IntArray) -> NDArray[np.float64]:
    """Return the Brier score of each image, (N,); the arrays are not checked."""
    targets = np.arange(probabilities.shape[1]) == labels[:, None]
    return np.asarray(np.square(probabilities.astype(np.float64) - targets).sum(axis=1))


def expected_calibration_error(
    probabilities: FloatArray, labels: IntArray, num_bins: int = NUM_BINS
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
    bins = np.array_split(np.repeat(gap, images), num_bins)  # empty bins add 0
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
    """Return both arrays (probabilities as float64) if they are as the module requires."""
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
