"""Paired differences with their uncertainty, and the verdict that they allow.

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
c/√N: three seeds often agree by luck, and t alone would then be overconfident.

If predictions differ on few images, the spread of the differences says little about the images that
were not drawn: none of 48 may differ although 2 % of all do. Then the error of the images counts z²
more differing images, as Agresti & Coull (1998) do for a proportion, and is normal. Without this,
"no difference" was wrong in up to 20 % of such cases; with it in 5 %
(``tests/report/test_statistics.py`` simulates both).

This module does not import scipy.stats, which takes too long; scipy.special has what is needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, sqrt
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, ndtr, ndtri, stdtr, stdtrit

FloatArray = NDArray[np.floating[Any]]
Verdict = Literal["helps", "hurts", "no difference", "cannot tell"]

LEVEL = 0.05
"""Level of every test; intervals have 95 %."""
POWER = 0.8
"""Probability of an answer that :func:`outlook` plans for."""
MOST_SEEDS = 100

_NUM_RESAMPLES = 1000
_FEW = 30  # differing images; their number is Poisson, so with fewer it is known to 20 % at best
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
    """

    n: int
    mean: float
    over_seeds: tuple[float, float] | None
    over_both: tuple[float, float]
    p_zero: float | None
    p_margin: float | None
    seed_deviation: float
    image_error: float


def t_interval(values: Sequence[float] | FloatArray) -> tuple[float, float] | None:
    """95 % interval of the mean of independent values; None for fewer than two."""
    n = len(values)
    if n < 2:
        return None
    half = float(stdtrit(n - 1, 1 - LEVEL / 2)) * float(np.std(values, ddof=1)) / sqrt(n)
    mean = float(np.mean(values))
    return mean - half, mean + half


def difference(scores: FloatArray, reference: FloatArray, margin: float) -> Difference:
    """Compare paired scores.

    Args:
        scores: (n, N) scores with the trick, seeds by images.
        reference: (n, N) scores without the trick, for the same seeds and images.
        margin: smallest difference that matters, > 0, in units of the scores.

    Raises:
        ValueError: the shapes differ or are empty, or the margin is not positive.
    """
    if scores.ndim != 2 or scores.shape != reference.shape or 0 in scores.shape:
        raise ValueError(f"need equal shapes (n, N), got {scores.shape} and {reference.shape}")
    if not margin > 0:
        raise ValueError(f"margin must be positive, got {margin}")
    per_image = np.asarray(scores, np.float32) - np.asarray(reference, np.float32)
    n, num_images = per_image.shape
    per_seed = per_image.mean(axis=1, dtype=np.float64)
    mean = float(per_seed.mean())
    of_images = per_image.mean(axis=0, dtype=np.float64)
    luck = _luck_of_images(of_images)
    if n == 1:
        image_error = _with_rare(sqrt(_variance(of_images) / num_images), of_images)
        low, high = np.quantile(mean + image_error * luck, (LEVEL / 2, 1 - LEVEL / 2))
        return Difference(
            n=1,
            mean=mean,
            over_seeds=None,
            over_both=(float(low), float(high)),
            p_zero=None,
            p_margin=None,
            seed_deviation=0.0,
            image_error=image_error,
        )
    seed_deviation, image_error = _components(per_image, per_seed, of_images)
    image_error = _with_rare(image_error, of_images)
    mixture = _Mixture(mean + image_error * luck, seed_deviation / sqrt(n), n - 1)
    return Difference(
        n=n,
        mean=mean,
        over_seeds=t_interval(per_seed),
        over_both=(mixture.quantile(LEVEL / 2), mixture.quantile(1 - LEVEL / 2)),
        p_zero=min(1.0, 2 * min(mixture.below(0.0), mixture.above(0.0))),
        p_margin=max(mixture.below(-margin), mixture.above(margin)),
        seed_deviation=seed_deviation,
        image_error=image_error,
    )


def _components(
    per_image: NDArray[np.float32], per_seed: FloatArray, of_images: FloatArray
) -> tuple[float, float]:
    """Deviation of one seed's mean on these images, and the error that b causes in the mean.

    Both are estimated by the mean squares of a two-way layout; a negative component of a or b is
    set to 0.
    """
    n, num_images = per_image.shape
    residuals = per_image - of_images - per_seed[:, None] + per_seed.mean()
    interaction = float((residuals**2).sum()) / ((n - 1) * max(num_images - 1, 1))
    variance_of_b = max(0.0, _variance(of_images) - interaction / n)
    variance_of_seeds = max(float(per_seed.var(ddof=1)), interaction / num_images)
    return sqrt(variance_of_seeds), sqrt(variance_of_b / num_images)


def _are_few(of_images: FloatArray) -> bool:
    """Whether so few images differ that their spread is a poor estimate."""
    return int((of_images != 0).sum()) < _FEW


def _with_rare(image_error: float, of_images: FloatArray) -> float:
    """The error of the images, with z² differing images more if few images differ."""
    z = -float(ndtri(LEVEL / 2))
    return sqrt(image_error**2 + (z / len(of_images)) ** 2) if _are_few(of_images) else image_error


def _variance(values: FloatArray) -> float:
    return float(values.var(ddof=1)) if len(values) > 1 else 0.0


class _Mixture:
    """Distribution of the true difference: a t over the seeds around the mean of each resample."""

    def __init__(self, means: FloatArray, error: float, degrees: int) -> None:
        self._means = means
        self._error = error
        self._degrees = degrees

    def below(self, x: float) -> float:
        """Probability of at most ``x``."""
        return self._mass(x - self._means)

    def above(self, x: float) -> float:
        """Probability of at least ``x``."""
        return self._mass(self._means - x)

    def _mass(self, distances: FloatArray) -> float:
        if self._error == 0:  # seeds that agree on every image
            return float((distances >= 0).mean())
        return float(stdtr(self._degrees, distances / self._error).mean())

    def quantile(self, q: float) -> float:
        """The value with probability ``q`` below it."""
        reach = -float(stdtrit(self._degrees, min(q, 1 - q) / 4)) * self._error
        low, high = self._means.min() - reach, self._means.max() + reach
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if self.below(middle) < q else (low, middle)
        return float((low + high) / 2)


def _luck_of_images(of_images: FloatArray) -> FloatArray:
    """(2 · resamples,): deviations of the mean over resampled images, in units of their spread.

    Each resample counts together with its mirror image, so that mean and spread are exact. If few
    images differ, the deviations are those of a normal distribution.
    """
    if _are_few(of_images):
        places = np.arange(1, _NUM_RESAMPLES) / _NUM_RESAMPLES  # an odd number, symmetric around 0
        return np.asarray(ndtri(places), np.float64)
    means = _resampled_counts(len(of_images)) @ of_images.astype(np.float32)
    deviations = means.astype(np.float64) - means.mean(dtype=np.float64)
    spread = float(deviations.std())
    unit = deviations / spread if spread > 0 else np.zeros_like(deviations)
    return np.concatenate([unit, -unit])


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


def holm_levels(p_values: Sequence[float]) -> list[float]:
    """The level that each p-value must fall below at its place in Holm's order."""
    levels = [0.0] * len(p_values)
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    for rank, index in enumerate(order):
        levels[index] = LEVEL / (len(p_values) - rank)
    return levels


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: the level holds for all tests together (Holm 1979)."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def verdict(mean: float, p_zero: float | None, p_margin: float | None) -> Verdict:
    """The verdict at the 5 % level; ``p_zero`` and ``p_margin`` are corrected by Holm.

    A significant difference that is smaller than the margin still helps or hurts.
    """
    if p_zero is not None and p_zero < LEVEL:
        return "helps" if mean > 0 else "hurts"
    if p_margin is not None and p_margin < LEVEL:
        return "no difference"
    return "cannot tell"


@dataclass(frozen=True)
class Outlook:
    """The data that would probably settle a comparison whose verdict is cannot tell.

    Attributes:
        would_show: the result that more data would probably show.
        seeds: total number of seeds that this takes; None if it takes more than ``MOST_SEEDS``.
        images: total number of validation images below which no number of seeds is enough; None if
            seeds can be enough.
    """

    would_show: Literal["a difference", "no difference"]
    seeds: int | None
    images: int | None


def outlook(
    found: Difference,
    margin: float,
    num_images: int,
    level_zero: float = LEVEL,
    level_margin: float = LEVEL,
) -> Outlook | None:
    """How many seeds would give an answer with a probability of 80 %, if the estimates are right.

    The planning takes the estimates of the mean, the deviation of seeds and the error of images for
    the truth, although few seeds give only rough estimates.

    Args:
        found: the difference so far.
        margin: smallest difference that matters, as for :func:`difference`.
        num_images: number of validation images.
        level_zero: level of the test of no difference, in 0..1; see :func:`holm_levels`.
        level_margin: level of the test of a difference of the margin.

    Returns:
        None for one seed, which shows nothing about the spread.
    """
    if found.n < 2:
        return None
    effect = abs(found.mean)
    for n in range(found.n + 1, MOST_SEEDS + 1):
        seeds_error = found.seed_deviation / sqrt(n)
        error = sqrt(seeds_error**2 + found.image_error**2)
        far = -float(stdtrit(n - 1, level_zero / 2)) * error
        if _probability_below(effect - far, seeds_error) >= POWER:
            return Outlook("a difference", n, None)
        room = margin + float(stdtrit(n - 1, level_margin)) * error
        below = _probability_below(room - effect, seeds_error)
        above = _probability_below(room + effect, seeds_error)
        if below + above - 1 >= POWER:
            return Outlook("no difference", n, None)
    # Without an error of seeds, the error of images must fall to one of these; it falls as 1/√N.
    for_difference = effect / -float(ndtri(level_zero / 2))
    for_none = (margin - effect) / -float(ndtri(level_margin))
    would_show: Literal["a difference", "no difference"] = (
        "a difference" if for_difference > for_none else "no difference"
    )
    enough = max(for_difference, for_none)
    if found.image_error < enough:
        return Outlook(would_show, None, None)
    return Outlook(would_show, None, ceil(num_images * (found.image_error / enough) ** 2))


def _probability_below(limit: float, deviation: float) -> float:
    """The probability that a normal variable around 0 falls below ``limit``."""
    if deviation == 0:
        return float(limit > 0)
    return float(ndtr(limit / deviation))
