"""Paired differences with their uncertainty, one pair of arms at a time.

The data are scores, say 1 for a right and 0 for a wrong prediction, of n seeds on N validation
images, with a trick and without it. The same seed means the same initial weights, data order and
crops, so seeds are pairs; all runs see the same images. Two things vary by chance: the seed, and
which images happen to be in the validation split. With d(s, i) the difference for seed s on image
i, d̄(s) its mean over images and d̄ the mean of all:

- *over seeds*: Student's t-interval of the n values d̄(s). It holds only for these images.
- *over seeds and images*: the images are resampled with replacement, for all seeds together because
  all seeds predict the same images; for each resample, the seeds have their t-distribution. This
  interval decides. The usual hierarchical bootstrap would resample the seeds as well, but for three
  to ten seeds its interval is too short if seeds differ much: it takes √((n-1)/n) of their spread
  and has no heavy tails.

The second interval rests on a model with two random effects, d(s, i) = θ + a(s) + b(i) + c(s, i).
The spread of the d̄(s) contains a and c, the spread of the image means contains b and c. To count c
only once, the result of resampling is scaled to the part of b, as in Davison & Hinkley (1997, 3.8).
Many images give a good estimate of c, so the spread of the d̄(s) is never taken to be less than
c/√N, the *floor*: three seeds often agree by luck, and t alone would then be overconfident.

If predictions differ on few images, the spread of the differences says little about the images that
were not drawn: none of 48 may differ although 2 % of all do. Then the error of the images counts z²
more differing images, as Agresti & Coull (1998) do for a proportion, and is normal. Without this,
"no difference" was wrong in up to 20 % of such cases; with it in 5 %
(``tests/report/test_statistics.py`` simulates both).

Images of one group (frames of one video, photographs of one patient) are alike in how hard they are
and in what suits them. Where the images have groups, groups take the place of images: they are
resampled, and all variances come from their sums. Resampling single images would make the interval
the more too short the larger the groups are.

Scores need not be 0 and 1. Log losses and Brier scores are means over images too, and a few images
with a large loss can decide a mean as a few differing images can. The number of images that decide
is then (Σm²)²/Σm⁴ of the image means m, which is the number of differing images where all differ
alike. Balanced accuracy is the mean over classes of the mean over their images, so an image counts
1/(K n_c), and only the spread within the classes is an error: validation splits are stratified, and
otherwise the number of images of each class divides out. A class with few differing images has too
small a spread for what it weighs: each class gets z²/K more differing images.

Macro F1, AUROC and calibration error are no means over images. :func:`resampled_difference` takes
their values on the same resampled images for all seeds and both arms. What all seeds share of the
resampled differences is b, what remains is c, as in the two-way layout; both agree to first order.

:mod:`runner.report.family` decides about several arms together. This module does not import
scipy.stats, which takes too long; scipy.special has what is needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import pi, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, ndtri, stdtr, stdtrit

FloatArray = NDArray[np.floating[Any]]

LEVEL = 0.05
"""Level of every test; intervals have 95 %."""

_NUM_RESAMPLES = 1000
_MOST_TERMS = 60  # degrees of freedom up to which a finite sum is faster
_Z = -float(ndtri(LEVEL / 2))
_FEW = 30  # differing images; their number is Poisson, so with fewer it is known to 20 % at best
_ROUNDING = 1e-12  # part of the mean square below which a variance is one of rounding
_BLOCK = 4_000_000  # images drawn at a time, to bound the memory


@dataclass(frozen=True)
class Difference:
    """A paired difference of mean scores, trick minus reference.

    Attributes:
        n: number of seeds.
        mean: mean over seeds and images.
        over_seeds: 95 % t-interval for these images; None for one seed.
        over_both: 95 % interval over seeds and images; for one seed, over images alone.
        p_zero: two-sided p-value of no difference, over both; None for one seed, which cannot
            separate a trick from luck.
        p_margin: p-value of a difference of at least the margin in either direction, by two
            one-sided tests (Schuirmann 1987); None for one seed.
        seed_deviation: standard deviation of one seed's difference on these images; 0 for one seed.
        image_error: standard error of the mean that comes from the choice of images.
        variance: variance of the seeds' mean differences, with n - 1; 0 for one seed.
        floor: the part of ``variance`` that is known from the images alone, so that the true
            variance is at least this; 0 for one seed, and if all seeds differ on equal images.
        means: (resamples,) means over the resampled images.
        is_of_folds: whether ``n`` is a number of folds; see :mod:`runner.report.folds`.
    """

    n: int
    mean: float
    over_seeds: tuple[float, float] | None
    over_both: tuple[float, float]
    p_zero: float | None
    p_margin: float | None
    seed_deviation: float
    image_error: float
    variance: float
    floor: float
    means: FloatArray = field(repr=False, compare=False)
    is_of_folds: bool = False

    def interval(self, confidence: float) -> tuple[float, float] | None:
        """Return the interval over seeds and images with another confidence, in 0..1, than 95 %.

        None for one seed.
        """
        if self.n < 2:
            return None
        error = self.seed_deviation / sqrt(self.n)
        around_zero = Mixture(self.means - self.mean, error, self.n - 1)
        half = around_zero.quantile((1 + confidence) / 2)  # each resample has its mirror image
        return self.mean - half, self.mean + half


def t_interval(values: Sequence[float] | FloatArray) -> tuple[float, float] | None:
    """95 % interval of the mean of independent values; None for fewer than two."""
    n = len(values)
    if n < 2:
        return None
    half = float(stdtrit(n - 1, 1 - LEVEL / 2)) * float(np.std(values, ddof=1)) / sqrt(n)
    mean = float(np.mean(values))
    return mean - half, mean + half


def difference(
    scores: FloatArray,
    reference: FloatArray,
    margin: float,
    groups: NDArray[np.int64] | None = None,
    classes: NDArray[np.int64] | None = None,
) -> Difference:
    """Compare paired scores, whose mean over the images is compared.

    Args:
        scores: (n, N) scores with the trick, seeds by images.
        reference: (n, N) scores without the trick, for the same seeds and images.
        margin: smallest difference that matters, > 0, in units of the scores.
        groups: (N,) the group of each image; None if each image is a group of its own.
        classes: (N,) the class of each image, if each class counts alike; None if each image does.

    Raises:
        ValueError: the shapes differ or are empty, or the margin is not positive.
    """
    if scores.ndim != 2 or scores.shape != reference.shape or 0 in scores.shape:
        raise ValueError(f"need equal shapes (n, N), got {scores.shape} and {reference.shape}")
    if not margin > 0:
        raise ValueError(f"margin must be positive, got {margin}")
    per_image = np.asarray(scores, np.float32) - np.asarray(reference, np.float32)
    if classes is not None:
        per_seed, units = _of_classes(per_image, classes, groups)
    else:
        per_seed = per_image.mean(axis=1, dtype=np.float64)
        largest, are_counts = _largest_of(per_image, scores, reference)
        units = (
            _images(per_image, largest, are_counts=are_counts)
            if groups is None
            else _grouped(per_image, per_seed, groups, largest, are_counts=are_counts)
        )
    if len(per_seed) == 1:
        floor, image_error = 0.0, sqrt(_variance(units.mean) / units.count)
    else:
        floor, image_error = _components(units, per_seed)
    return _difference(
        per_seed,
        floor=floor,
        is_rounding=not floor > _ROUNDING * float(np.square(units.values).mean()),
        image_error=_with_rare(image_error, units.rare),
        luck=_normal_luck() if units.are_few else _luck(units),
        margin=margin,
    )


def resampled_difference(
    values: FloatArray,
    reference: FloatArray,
    resampled: FloatArray,
    resampled_reference: FloatArray,
    margin: float,
    rare: float = 0.0,
) -> Difference:
    """Compare paired values of a metric that is no mean over images.

    Args:
        values: (n,) the metric with the trick, by seed.
        reference: (n,) the metric without the trick, for the same seeds and images.
        resampled: (n, R) the metric with the trick on resampled images, the same for all seeds.
        resampled_reference: (n, R) the metric without the trick on the same resampled images.
        margin: smallest difference that matters, > 0, in units of the metric.
        rare: a further standard error of the images; see :func:`rare_error`.

    Raises:
        ValueError: the shapes differ or are empty, or the margin is not positive.
    """
    n = len(values)
    if (
        values.shape != reference.shape
        or resampled.shape != resampled_reference.shape
        or resampled.shape[:1] != (n,)
        or 0 in resampled.shape
    ):
        raise ValueError(f"need shapes (n,) and (n, R), got {values.shape} and {resampled.shape}")
    if not margin > 0:
        raise ValueError(f"margin must be positive, got {margin}")
    per_seed = np.asarray(values, np.float64) - np.asarray(reference, np.float64)
    moved = np.asarray(resampled, np.float64) - np.asarray(resampled_reference, np.float64)
    moved = moved - moved.mean(axis=1, keepdims=True)
    shared = moved.mean(axis=0)
    square, floor = _variance(shared), 0.0
    if n > 1:
        floor = float(np.square(moved - shared).sum()) / ((n - 1) * max(len(shared) - 1, 1))
        square = max(0.0, square - floor / n)
    return _difference(
        per_seed,
        floor=floor,
        is_rounding=not floor > _ROUNDING * max(float(np.square(values).mean()), _ROUNDING),
        image_error=_with_rare(sqrt(square), rare),
        luck=_normal_luck() if rare else _mirrored(shared),
        margin=margin,
    )


def _difference(
    per_seed: FloatArray,
    *,
    floor: float,
    is_rounding: bool,
    image_error: float,
    luck: FloatArray,
    margin: float,
) -> Difference:
    """Return the difference of n seeds, from its parts.

    Args:
        per_seed: (n,) the difference of each seed.
        floor: the part of the variance of one seed's difference that the images imply.
        is_rounding: whether ``floor`` is nothing but rounding.
        image_error: standard error of the mean that comes from the choice of images.
        luck: deviations of the mean over resampled images, in units of their spread.
        margin: smallest difference that matters.
    """
    n, mean = len(per_seed), float(per_seed.mean())
    means = mean + image_error * luck
    if n == 1:
        low, high = np.quantile(means, (LEVEL / 2, 1 - LEVEL / 2))
        return Difference(
            n=1,
            mean=mean,
            over_seeds=None,
            over_both=(float(low), float(high)),
            p_zero=None,
            p_margin=None,
            seed_deviation=0.0,
            image_error=image_error,
            variance=0.0,
            floor=0.0,
            means=means,
        )
    variance = float(per_seed.var(ddof=1))
    seed_deviation = sqrt(max(variance, floor))
    mixture = Mixture(means, seed_deviation / sqrt(n), n - 1)
    return Difference(
        n=n,
        mean=mean,
        over_seeds=t_interval(per_seed),
        over_both=(mixture.quantile(LEVEL / 2), mixture.quantile(1 - LEVEL / 2)),
        p_zero=mixture.p_zero(),
        p_margin=mixture.p_margin(margin),
        seed_deviation=seed_deviation,
        image_error=image_error,
        variance=variance,
        floor=0.0 if is_rounding else floor,
        means=means,
    )


@dataclass(frozen=True)
class _Units:
    """What is resampled: images, or groups of images.

    Attributes:
        values: (n, units) difference of each seed, whose mean over the units is that over images.
        mean: (units,) mean of ``values`` over the seeds.
        are_few: whether so few units differ that their spread is a poor estimate.
        rare: standard error of the mean from units that differ and were not drawn, 0 if none.
    """

    values: FloatArray
    mean: FloatArray
    are_few: bool
    rare: float

    @property
    def count(self) -> int:
        return len(self.mean)


def _images(per_image: NDArray[np.float32], largest: float, *, are_counts: bool) -> _Units:
    """Images as units; ``largest`` is the largest difference of one."""
    mean = per_image.mean(axis=0, dtype=np.float64)
    rare = _rare(per_image, mean, np.ones(len(mean)), largest, are_counts=are_counts)
    return _Units(per_image, mean, rare is not None, rare or 0.0)


def _grouped(
    per_image: NDArray[np.float32],
    per_seed: FloatArray,
    groups: NDArray[np.int64],
    largest: float,
    *,
    are_counts: bool,
) -> _Units:
    """Groups as units. Larger groups count more: the mean is a ratio of sums, made linear."""
    place, sizes = _places(groups)
    count, num_images = len(sizes), len(place)
    if count == num_images:
        return _images(per_image, largest, are_counts=are_counts)
    sums = _sums(per_image, place, count)
    scale = count / num_images
    values = scale * (sums - per_seed[:, None] * sizes) + per_seed[:, None]
    rare = _rare(sums, sums.mean(axis=0), sizes, largest, are_counts=are_counts)
    return _Units(values, values.mean(axis=0), rare is not None, rare or 0.0)


def _rare(
    sums: FloatArray,
    mean: FloatArray,
    sizes: NDArray[np.integer[Any]] | FloatArray,
    largest: float,
    *,
    are_counts: bool,
) -> float | None:
    """Return the standard error from the few units that differ; None if many units differ.

    The largest difference is that of any unit in any seed, or of a whole group if none differs: an
    image that differs has a difference of ``largest``, whereas few images of a group may differ.

    Args:
        sums: (n, units) the difference of each seed, summed over the images of a unit.
        mean: (units,) the mean of ``sums`` over the seeds.
        sizes: (units,) number of images.
        largest: largest difference of an image.
        are_counts: whether differences are those of zeros and ones.
    """
    differing = _differing(mean, are_counts=are_counts)
    if differing >= _FEW:
        return None
    most = float(np.abs(sums).max()) if differing else largest * float(sizes.max())
    return _Z * most / float(sizes.sum())


def few_error(
    scores: FloatArray, reference: FloatArray, groups: NDArray[np.int64] | None = None
) -> float:
    """Standard error of a mean over images from images that differ and were not drawn.

    Args:
        scores: (n, N) scores with the trick, seeds by images.
        reference: (n, N) scores without the trick.
        groups: (N,) the group of each image; None if every image is a group of its own.

    Returns:
        The error; 0 if so many images, or groups, differ that their spread is known.
    """
    per_image = np.asarray(scores, np.float32) - np.asarray(reference, np.float32)
    largest, are_counts = _largest_of(per_image, scores, reference)
    sizes = np.ones(per_image.shape[1], np.int64)
    sums: FloatArray = per_image
    if groups is not None:
        place, sizes = _places(groups)
        sums = _sums(per_image, place, len(sizes))
    mean = sums.mean(axis=0, dtype=np.float64)
    return _rare(sums, mean, sizes, largest, are_counts=are_counts) or 0.0


def _of_classes(
    per_image: NDArray[np.float32], classes: NDArray[np.int64], groups: NDArray[np.int64] | None
) -> tuple[FloatArray, _Units]:
    """Return the difference of each seed, (n,), with equal class weights; and images or groups.

    Each image counts as its distance from the mean of its class, so that the spread between classes
    is no error. The factor √(n/(n-1)) makes up for what the mean of a small class has fitted.
    """
    place, sizes = _places(classes)
    num_classes, num_images = len(sizes), len(place)
    of_class = _sums(per_image, place, num_classes) / sizes
    per_seed: FloatArray = of_class.mean(axis=1)
    shares = num_images / (num_classes * sizes) * np.sqrt(sizes / np.maximum(sizes - 1, 1))
    values = shares[place] * (per_image - of_class[:, place]) + per_seed[:, None]
    is_different = (per_image.mean(axis=0, dtype=np.float64) != 0).astype(np.float64)
    rare = rare_error(is_different, classes, groups)
    if groups is not None:
        group, counts = _places(groups)
        scale = len(counts) / num_images
        values = scale * _sums(values - per_seed[:, None], group, len(counts)) + per_seed[:, None]
    mean = values.mean(axis=0)
    are_few = _differing(mean - mean.mean(), are_counts=False) < _FEW
    return per_seed, _Units(values, mean, are_few, rare)


def rare_error(
    is_different: FloatArray,
    classes: NDArray[np.int64],
    groups: NDArray[np.int64] | None = None,
) -> float:
    """Standard error of a mean over classes from images that differ and were not drawn.

    The spread of a class with few differing images is a poor estimate. Each such class counts z²/K
    more differing images; for K equal classes this is z² more in all, as for accuracy. With groups
    it is groups that are counted, each as that group of the class which moves the mean most.

    Args:
        is_different: (N,) 1 where the predictions of an image differ, else 0.
        classes: (N,) the class of each image.
        groups: (N,) the group of each image; None if every image is a group of its own.
    """
    if groups is not None:
        return _rare_groups_error(is_different, classes, groups)
    place, sizes = _places(classes)
    differing = np.bincount(place, weights=is_different, minlength=len(sizes))
    few = sizes[differing < _FEW]
    return _Z * sqrt(float((1 / np.square(few)).sum()) / len(sizes)) / len(sizes)


def _rare_groups_error(
    is_different: FloatArray, classes: NDArray[np.int64], groups: NDArray[np.int64]
) -> float:
    place, sizes = _places(classes)
    group, counts = _places(groups)
    num_groups = len(counts)
    pairs, pair, images = np.unique(
        place * num_groups + group, return_inverse=True, return_counts=True
    )
    of_class, of_group = np.divmod(pairs, num_groups)
    moved = np.bincount(pair, weights=is_different)
    differing = np.bincount(of_class, weights=moved > 0)
    # Of a class of which no image differs, a whole group may.
    most = np.where(differing[of_class] > 0, moved, images) / sizes[of_class]
    is_few = differing[of_class] < _FEW
    shift = np.bincount(of_group, weights=most * is_few, minlength=num_groups)
    largest = np.zeros(len(sizes))
    np.maximum.at(largest, of_class, np.where(is_few, shift[of_group], 0.0))
    return _Z * sqrt(float(np.square(largest).sum()) / len(sizes)) / len(sizes)


def _places(names: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the index of each image's name among all names, (N,), and the images per name."""
    _, place, sizes = np.unique(names, return_inverse=True, return_counts=True)
    return place, sizes


def _sums(values: FloatArray, place: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """(n, count): the sums of ``values`` (n, N) over the images of each place."""
    return np.stack([np.bincount(place, weights=row, minlength=count) for row in values])


def _largest_of(
    per_image: FloatArray, scores: FloatArray, reference: FloatArray
) -> tuple[float, bool]:
    """Return the largest difference of an image, and whether all scores are 0 or 1.

    If no image differs, the largest difference is what the scores allow.
    """
    both = (scores, reference)
    if all(bool(((one == 0) | (one == 1)).all()) for one in both):
        return 1.0, True
    found = float(np.abs(per_image).max())
    if found > 0:
        return found, False
    return float(max(one.max() for one in both) - min(one.min() for one in both)), False


def _differing(mean: FloatArray, *, are_counts: bool) -> float:
    """Return the effective number of units that differ; large differences dominate."""
    if are_counts:
        return int((mean != 0).sum())
    squares = np.square(mean)
    fourth = float(np.square(squares).sum())
    return float(squares.sum()) ** 2 / fourth if fourth > 0 else 0.0


def _components(units: _Units, per_seed: FloatArray) -> tuple[float, float]:
    """Return the floor of the variance of one seed's mean, and the error that b causes in the mean.

    Both are estimated by the mean squares of a two-way layout; a negative component of b is set to
    0.
    """
    n = len(per_seed)
    residuals = units.values - units.mean - per_seed[:, None] + per_seed.mean()
    interaction = float((residuals**2).sum()) / ((n - 1) * max(units.count - 1, 1))
    variance_of_b = max(0.0, _variance(units.mean) - interaction / n)
    return interaction / units.count, sqrt(variance_of_b / units.count)


def _with_rare(image_error: float, rare: float) -> float:
    """Return the error of the images, with that of images that differ and were not drawn."""
    return sqrt(image_error**2 + rare**2) if rare else image_error


def _variance(values: FloatArray) -> float:
    return float(values.var(ddof=1)) if len(values) > 1 else 0.0


class Mixture:
    """Distribution of the true difference: a t over the seeds around the mean of each resample.

    Args:
        means: (resamples,) means over the resampled images.
        error: standard error of the mean over the seeds.
        degrees: degrees of freedom of ``error``, > 0.
    """

    def __init__(self, means: FloatArray, error: float, degrees: float) -> None:
        self._means = means
        self._error = error
        self._degrees = degrees

    def p_zero(self) -> float:
        """Two-sided p-value of no difference."""
        return min(1.0, 2 * min(self.below(0.0), self.above(0.0)))

    def p_margin(self, margin: float) -> float:
        """P-value of a difference of at least ``margin`` in either direction (Schuirmann 1987)."""
        return max(self.below(-margin), self.above(margin))

    def below(self, x: float) -> float:
        """Probability of at most ``x``."""
        return self._mass(x - self._means)

    def above(self, x: float) -> float:
        """Probability of at least ``x``."""
        return self._mass(self._means - x)

    def _mass(self, distances: FloatArray) -> float:
        if self._error == 0:  # seeds that agree on every image
            return float((distances >= 0).mean())
        return float(_student(self._degrees, distances / self._error).mean())

    def quantile(self, q: float) -> float:
        """Return the value with probability ``q`` below it."""
        reach = -float(stdtrit(self._degrees, min(q, 1 - q) / 4)) * self._error
        low, high = self._means.min() - reach, self._means.max() + reach
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if self.below(middle) < q else (low, middle)
        return float((low + high) / 2)


def _student(degrees: float, t: FloatArray) -> FloatArray:
    """Student's distribution function, ten times faster than scipy's for whole degrees.

    Then it is a finite sum (Abramowitz & Stegun 1964, 26.7.3 and 26.7.4).
    """
    if degrees != int(degrees) or degrees > _MOST_TERMS:
        return np.asarray(stdtr(degrees, t), np.float64)
    sine, square_of_cosine = t / np.sqrt(degrees + t * t), degrees / (degrees + t * t)
    terms = np.ones_like(t)
    for i in range(int(degrees) - 2, 1, -2):
        terms = 1 + terms * square_of_cosine * ((i - 1) / i)
    if degrees % 2 == 0:
        within = sine * terms
    else:
        rest = sine * np.sqrt(square_of_cosine) * terms if degrees > 1 else 0.0
        within = (np.arctan2(t, sqrt(degrees)) + rest) * 2 / pi
    return np.maximum(0.0, (1 + within) / 2)  # rounding can make it negative far below


def _luck(units: _Units) -> FloatArray:
    """(2 · resamples,): deviations of the mean over resampled units, in units of their spread."""
    means = _resampled_counts(units.count) @ units.mean.astype(np.float32)
    return _mirrored(means.astype(np.float64) - means.mean(dtype=np.float64))


def _mirrored(deviations: FloatArray) -> FloatArray:
    """Deviations in units of their spread, each together with its mirror image.

    So mean and spread are exact.
    """
    spread = float(deviations.std())
    unit = deviations / spread if spread > 0 else np.zeros_like(deviations)
    return np.concatenate([unit, -unit])


def _normal_luck() -> FloatArray:
    """Return the same of a normal distribution, for where few images differ."""
    places = np.arange(1, _NUM_RESAMPLES) / _NUM_RESAMPLES  # an odd number, symmetric around 0
    return np.asarray(ndtri(places), np.float64)


@lru_cache(maxsize=2)
def _resampled_counts(num_images: int) -> NDArray[np.float32]:
    """(resamples, N): how often each image is drawn; always the same, so that reports repeat."""
    rng = np.random.default_rng(0)
    counts = np.empty((_NUM_RESAMPLES, num_images), np.float32)
    rows = max(1, _BLOCK // num_images)
    for start in range(0, _NUM_RESAMPLES, rows):
        block = counts[start : start + rows]
        drawn = rng.integers(num_images, size=block.shape, dtype=np.int32)
        drawn += num_images * np.arange(len(block), dtype=np.int32)[:, None]
        block[:] = np.bincount(drawn.ravel(), minlength=block.size).reshape(block.shape)
    return counts


def gained_and_lost(after: NDArray[np.bool_], before: NDArray[np.bool_]) -> tuple[int, int]:
    """Count the images, (N,) each, that are right only after, and only before."""
    return int((after & ~before).sum()), int((before & ~after).sum())


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p-value that two predictors are right equally often (McNemar 1947).

    Args:
        gained: images that only the first has right, ≥ 0.
        lost: images that only the second has right, ≥ 0.
    """
    if gained < 0 or lost < 0:
        raise ValueError(f"counts must not be negative, got {gained} and {lost}")
    return min(1.0, 2 * float(bdtr(min(gained, lost), gained + lost, 0.5)))
