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
  seeds per fold make it smaller, but give no further degrees of freedom.

``tests/simulated_folds.py`` does real cross-validations of small learners, whose training sets
overlap as they do; ``python scripts/simulate_verdicts.py folds`` prints how often the intervals
hold the truth. The truth is that of training sets, seeds and images that were not drawn.
"""

from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from runner.report.statistics import LEVEL, Difference, FloatArray, Mixture

_PLACES = np.arange(1, 1000) / 1000  # an odd number, symmetric around one half
_FEW = 30  # differing images, whose number is known to 20 % at best


def overlap_factor(num_folds: int) -> float:
    """By how much the variance of the mean is larger than with separate training sets."""
    return 1 + num_folds / (num_folds - 1)


def fold_difference(
    scores: FloatArray,
    reference: FloatArray,
    folds: NDArray[np.int64],
    margin: float,
    groups: NDArray[np.int64] | None = None,
) -> Difference:
    """Compare paired scores of cross-validated arms.

    Args:
        scores: (n, N) scores with the trick, seeds by images.
        reference: (n, N) scores without the trick, for the same seeds, images and folds.
        folds: (N,) the fold of each image, in 0..K-1, K ≥ 2, none empty.
        margin: smallest difference that matters, > 0, in units of the scores.
        groups: (N,) the group of each image, none in two folds; None if each image is a group of
            its own.

    Returns:
        The difference. Its ``n`` is the number of folds, which decides what can be known: a verdict
        takes three. ``over_seeds`` is None, and ``floor`` is 0.

    Raises:
        ValueError: the shapes differ or are empty, there is one fold, or the margin is not
            positive.
    """
    if scores.ndim != 2 or scores.shape != reference.shape or 0 in scores.shape:
        raise ValueError(f"need equal shapes (n, N), got {scores.shape} and {reference.shape}")
    per_image = np.asarray(scores, np.float64) - np.asarray(reference, np.float64)
    of_image = per_image.mean(axis=0)
    sizes = np.bincount(folds, minlength=2)
    num_folds, num_images = len(sizes), len(of_image)
    if len(folds) != num_images or not sizes.all():
        raise ValueError(f"need a fold for each of {num_images} images, and no empty fold")
    of_fold = np.bincount(folds, weights=of_image) / sizes
    residuals = of_image - of_fold[folds]
    units = np.arange(num_images) if groups is None else np.unique(groups, return_inverse=True)[1]
    sums = np.bincount(units, weights=residuals)
    num_units = len(sums)
    freedom = num_units / max(num_units - num_folds, 1)
    luck = freedom * float(np.square(sums).sum()) / num_images**2
    differing = np.bincount(units, weights=of_image != 0) > 0
    if differing.sum() < _FEW:  # as where seeds are compared without folds
        largest = float(np.bincount(units).max()) / num_images
        luck += (float(ndtri(LEVEL / 2)) * largest) ** 2
    mean = float(of_image.mean())
    weights = sizes / num_images
    spread = float((weights * np.square(of_fold - mean)).sum()) * num_folds / (num_folds - 1)
    beyond = max(0.0, spread - num_folds * luck)
    image_error = sqrt(overlap_factor(num_folds) * luck)
    return _found(mean, beyond, image_error, num_folds, margin)


def difference_of_folds(values: FloatArray, margin: float) -> Difference:
    """Compare arms by one number per seed and fold, for metrics that are no mean over images.

    The variance of the folds has Nadeau & Bengio's factor as it is, and K-1 degrees of freedom.

    Args:
        values: (n, K) differences, seeds by folds, K ≥ 2.
        margin: smallest difference that matters, > 0, in units of the values.

    Raises:
        ValueError: the shape is another one, or the margin is not positive.
    """
    if values.ndim != 2 or values.shape[0] == 0 or values.shape[1] < 2:
        raise ValueError(f"need a shape (n, K) of two folds or more, got {values.shape}")
    of_fold = np.asarray(values, np.float64).mean(axis=0)
    num_folds = len(of_fold)
    variance = overlap_factor(num_folds) * float(of_fold.var(ddof=1))
    return _found(float(of_fold.mean()), variance, 0.0, num_folds, margin)


def _found(
    mean: float, variance: float, image_error: float, num_folds: int, margin: float
) -> Difference:
    if not margin > 0:
        raise ValueError(f"margin must be positive, got {margin}")
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
