"""The difference of two arms under cross-validation, and its interval.

K networks per seed and arm, each trained without one fold, predict every image once. The training
sets of two folds share (K-2)/(K-1) of their images, so the folds' differences are not independent,
and a t-test of them, or of the pairs of seed and fold, finds effects that are not there. No
unbiased estimate of the variance exists (Bengio & Grandvalet 2004). Nadeau & Bengio (2003) set the
correlation to the part of the images that is tested, 1/K, so that the variance of the mean is that
of a fold times 1/K + 1/(K-1), and not times 1/K: 1 + K/(K-1) times as large, 2.25 for five folds.

Their estimate of the variance of a fold has K-1 degrees of freedom. Most of it is the luck of the
tested images, which all N images together show much better. So here the two are taken apart. With m
the mean difference over the seeds of an image:

- the luck of images is the variance of m within the folds, divided by N, and times 1 + K/(K-1),
  which allows for the training sets. It is known well, and normal;
- what the means of the folds vary beyond it, by seeds and by training sets, counts as it is, and
  has Student's t-distribution with K-1 degrees of freedom. Seeds are averaged before that, so more
  seeds per fold make it smaller, but give no further degrees of freedom. What a seed does to all of
  its folds alike is added. One seed does not show it: networks that are trained from the same
  initial weights on other folds had differences whose correlation was .05 to .09, which is little.

Metrics that are no mean over images, such as AUROC, have the luck of images from resampling, and
the spread of the folds from their values on each fold.

``tests/simulated_folds.py`` does real cross-validations of small learners, whose training sets
overlap as they do; ``python scripts/simulate_verdicts.py folds`` prints how often the intervals
hold the truth. The truth is that of training sets, seeds and images that were not drawn.
"""

from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from runner.report.statistics import (
    LEVEL,
    Difference,
    FloatArray,
    Mixture,
    few_error,
    rare_error,
)

_PLACES = np.arange(1, 1000) / 1000  # an odd number, symmetric around one half


def overlap_factor(num_folds: int) -> float:
    """By how much the variance of the mean is larger than with separate training sets."""
    return 1 + num_folds / (num_folds - 1)


def fold_difference(
    scores: FloatArray,
    reference: FloatArray,
    folds: NDArray[np.int64],
    margin: float,
    groups: NDArray[np.int64] | None = None,
    classes: NDArray[np.int64] | None = None,
) -> Difference:
    """Compare paired scores of cross-validated arms.

    Args:
        scores: (n, N) scores with the trick, seeds by images.
        reference: (n, N) scores without the trick, for the same seeds, images and folds.
        folds: (N,) the fold of each image, in 0..K-1, K ≥ 2, none empty.
        margin: smallest difference that matters, > 0, in units of the scores.
        groups: (N,) the group of each image, none in two folds; None if each image is a group of
            its own.
        classes: (N,) the class of each image, if each class counts alike; None if each image does.

    Returns:
        The difference. Its ``n`` is the number of folds, which decides what can be known: a verdict
        takes three. ``over_seeds`` is None, and ``floor`` is 0.

    Raises:
        ValueError: the shapes differ or are empty, there is one fold, or the margin is not
            positive.
    """
    if scores.ndim != 2 or scores.shape != reference.shape or 0 in scores.shape:
        raise ValueError(f"need equal shapes (n, N), got {scores.shape} and {reference.shape}")
    values = np.asarray(scores, np.float64) - np.asarray(reference, np.float64)
    num_images, sizes = values.shape[1], np.bincount(folds, minlength=2)
    if len(folds) != num_images or not sizes.all():
        raise ValueError(f"need a fold for each of {num_images} images, and no empty fold")
    if classes is None:
        rare = few_error(scores, reference, groups)
    else:
        is_different = (values.mean(axis=0) != 0).astype(np.float64)
        rare = rare_error(is_different, classes, groups)
        values = _of_classes(values, classes)
    num_folds = len(sizes)
    table = np.stack([np.bincount(folds, weights=row) / sizes for row in values])
    residuals = values.mean(axis=0) - table.mean(axis=0)[folds]
    units = np.arange(num_images) if groups is None else np.unique(groups, return_inverse=True)[1]
    sums = np.bincount(units, weights=residuals)
    freedom = len(sums) / max(len(sums) - num_folds, 1)
    luck = freedom * float(np.square(sums).sum()) / num_images**2 + rare**2
    return _combined(float(values.mean()), table, sizes / num_images, luck, margin)


def resampled_fold_difference(
    values: FloatArray,
    reference: FloatArray,
    moved: FloatArray,
    table: FloatArray,
    margin: float,
    rare: float = 0.0,
) -> Difference:
    """Compare paired values of a metric that is no mean over images.

    Args:
        values: (n,) the metric with the trick on the images of all folds, by seed.
        reference: (n,) the metric without the trick.
        moved: (n, R) the differences on resampled images, the same for all seeds.
        table: (n, K) the differences on the images of each fold.
        margin: smallest difference that matters, > 0, in units of the metric.
        rare: a further standard error of the images.

    Raises:
        ValueError: the shapes differ, there is one fold, the metric is undefined on a fold, or the
            margin is not positive.
    """
    n = len(values)
    if reference.shape != (n,) or len(moved) != n or len(table) != n or table.shape[1] < 2:
        raise ValueError(f"need shapes (n,), (n, R) and (n, K), got {values.shape}, {table.shape}")
    shared = np.asarray(moved, np.float64).mean(axis=0)
    luck = float(shared.var(ddof=1)) + rare**2
    mean = float(np.mean(np.asarray(values, np.float64) - np.asarray(reference, np.float64)))
    weights = np.full(table.shape[1], 1 / table.shape[1])
    return _combined(mean, np.asarray(table, np.float64), weights, luck, margin)


def _of_classes(values: NDArray[np.float64], classes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Differences whose mean over images is the mean over classes.

    Each image counts as its distance from the mean of its class.
    """
    _, place, sizes = np.unique(classes, return_inverse=True, return_counts=True)
    of_class = np.stack([np.bincount(place, weights=row) for row in values]) / sizes
    shares = len(place) / (len(sizes) * sizes)
    factors = (shares * np.sqrt(sizes / np.maximum(sizes - 1, 1)))[place]
    centered = factors * (values - of_class[:, place])
    moved: NDArray[np.float64] = centered + of_class.mean(axis=1)[:, None]
    return moved


def _combined(
    mean: float,
    table: NDArray[np.float64],
    weights: NDArray[np.float64],
    luck: float,
    margin: float,
) -> Difference:
    """Return the difference from its parts.

    Args:
        mean: the difference over all seeds and images.
        table: (n, K) the difference of each seed and fold.
        weights: (K,) the part of the images that is in each fold.
        luck: variance of the mean by the choice of images.
        margin: smallest difference that matters.

    Raises:
        ValueError: the margin is not positive, or a difference is undefined.
    """
    if not np.isfinite(table).all():  # max(0, NaN) below would say that the folds agree
        raise ValueError("need the difference of each seed and fold, and not all are defined")
    if not margin > 0:
        raise ValueError(f"margin must be positive, got {margin}")
    n, num_folds = table.shape
    of_fold, of_seed = table.mean(axis=0), table @ weights
    centered = of_fold - weights @ of_fold
    spread = float(weights @ np.square(centered)) * num_folds / (num_folds - 1)
    variance = max(0.0, spread - num_folds * luck)
    if n > 1:
        residuals = table - of_fold - of_seed[:, None] + weights @ of_fold
        noise = float(np.square(residuals).sum()) / ((n - 1) * (num_folds - 1))
        variance += num_folds / n * max(0.0, float(of_seed.var(ddof=1)) - noise / num_folds)
    image_error = sqrt(overlap_factor(num_folds) * luck)
    means = mean + image_error * np.asarray(ndtri(_PLACES), np.float64)
    mixture = Mixture(means, sqrt(variance / num_folds), num_folds - 1)
    return Difference(
        n=num_folds,
        mean=mean,
        over_seeds=None,
        over_both=(mixture.quantile(LEVEL / 2), mixture.quantile(1 - LEVEL / 2)),
        p_zero=mixture.p_zero(),
        p_margin=mixture.p_margin(margin),
        seed_deviation=sqrt(variance),
        image_error=image_error,
        variance=variance,
        floor=0.0,
        means=means,
        is_of_folds=True,
    )
