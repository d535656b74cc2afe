"""Several comparisons at once: their p-values, corrected for their number, and the verdicts.

With three seeds an arm's own spread has two degrees of freedom, and among seven arms Holm asks for
p < .007: then |t| must pass 11.8, and nothing is ever found. Arms of one table are alike, so their
spreads say something about each other. A *moderated* variance (Smyth 2004) draws an arm's variance
to the mean of all. Here it draws the ratio of the variance to the floor (a field of
:class:`~runner.report.statistics.Difference`), because the floor is known almost exactly and
differs between arms. The prior has four degrees of freedom. Seven variances cannot tell how many it
should have: an estimate, as limma makes one, is often infinite, and then a volatile arm is believed
too soon.

The moderated p-value serves the correction alone. The interval stays the arm's own, and so does its
own p-value: the reported one is never below it. So an arm with a spread unlike the others is wrong
in 5 % at most, by its own t, and a change that helps or hurts always has an interval without zero.

A verdict is for a number of seeds that was chosen beforehand. To add seeds until the verdict
changes is another test; ``python -m runner.compare`` makes that one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from statistics import median
from typing import Literal

from scipy.special import ndtr, ndtri, stdtrit

from runner.report.statistics import LEVEL, Difference, Mixture

Verdict = Literal["helps", "hurts", "no difference", "cannot tell"]

FEWEST_SEEDS = 3
"""Number of seeds from which there is a verdict."""
POWER = 0.8
"""Probability of an answer that :func:`outlook` plans for."""
MOST_SEEDS = 100
"""Largest number of seeds that :func:`outlook` plans."""

PRIOR = 4
"""Degrees of freedom of the prior; with the own p-value alongside, more gain nothing."""
PLANNED_SEEDS = 10
"""Number of seeds that is usually affordable."""


@dataclass(frozen=True)
class Moderated:
    """A comparison whose variance is drawn to those of the other comparisons of its family.

    Attributes:
        p_zero: two-sided p-value of no difference.
        p_margin: p-value of a difference of at least the margin.
        deviation: the standard deviation of one seed's difference behind both.
        degrees: its degrees of freedom.
    """

    p_zero: float
    p_margin: float
    deviation: float
    degrees: float


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


@dataclass(frozen=True)
class Judged:
    """The verdict on one comparison of a family.

    Attributes:
        p_zero: p-value of no difference, corrected for the family; None below ``FEWEST_SEEDS``.
        p_margin: p-value of a difference of at least the margin, corrected in the same way.
        verdict: the verdict at the 5 % level.
        outlook: what would settle it, if the verdict is cannot tell and there are enough seeds to
            say so; None under cross-validation, where more seeds may or may not.
    """

    p_zero: float | None
    p_margin: float | None
    verdict: Verdict
    outlook: Outlook | None


def moderated(found: Sequence[Difference], margin: float) -> list[Moderated]:
    """Share the spread over the comparisons of one family.

    A comparison keeps its own variance if its seeds differ on equal images, or if no other
    comparison has a spread to share.

    Args:
        found: the differences, each of three seeds or more.
        margin: smallest difference that matters, > 0, in units of the scores.

    Raises:
        ValueError: a difference has fewer than three seeds.
    """
    if any(one.n < FEWEST_SEEDS for one in found):
        raise ValueError(f"need {FEWEST_SEEDS} seeds, got {min(one.n for one in found)}")
    pool = _pooled(found)
    degrees = sum(one.n - 1 for one in pool)
    ratio = sum((one.n - 1) * one.variance / one.floor for one in pool) / max(degrees, 1)
    return [
        _moderated(one, margin, ratio, degrees) if pool and one.floor > 0 else _own(one, margin)
        for one in found
    ]


def _pooled(found: Sequence[Difference]) -> list[Difference]:
    """Return the differences that share their spread; none if there are fewer than two."""
    pool = [one for one in found if one.floor > 0]
    return pool if len(pool) > 1 else []


def _moderated(one: Difference, margin: float, ratio: float, degrees: int) -> Moderated:
    own = one.n - 1
    drawn = (PRIOR * ratio + own * one.variance / one.floor) / (PRIOR + own)
    deviation = sqrt(one.floor * max(1.0, drawn))
    return _tested(one, margin, deviation, min(PRIOR + own, degrees))


def _own(one: Difference, margin: float) -> Moderated:
    return _tested(one, margin, one.seed_deviation, one.n - 1)


def _tested(one: Difference, margin: float, deviation: float, degrees: int) -> Moderated:
    mixture = Mixture(one.means, deviation / sqrt(one.n), degrees)
    return Moderated(mixture.p_zero(), mixture.p_margin(margin), deviation, degrees)


def judged(
    found: Sequence[Difference], margin: float, num_images: int, *, less_is_better: bool = False
) -> list[Judged]:
    """Return the verdicts of one family of comparisons, whose seeds were chosen beforehand.

    The 5 % hold for all of them together, for the tests of no difference and for those of the
    margin. Comparisons with fewer than ``FEWEST_SEEDS`` seeds belong to no family: they could not
    be decided, and would make it harder to decide the others.

    Args:
        found: the differences; each comparison once.
        margin: smallest difference that matters, as for each of ``found``.
        num_images: number of validation images.
        less_is_better: whether a negative difference is an improvement.
    """
    tested = [one for one in found if one.n >= FEWEST_SEEDS]
    moderate = moderated(tested, margin)
    zero, equal = ([getattr(one, key) for one in moderate] for key in ("p_zero", "p_margin"))
    num_pooled = len(_pooled(tested))
    results = []
    for own, one, p_zero, p_margin, *levels in zip(
        tested,
        moderate,
        holm(zero),
        holm(equal),
        holm_levels(zero),
        holm_levels(equal),
        strict=True,
    ):
        p_zero, p_margin = max(p_zero, own.p_zero or 0.0), max(p_margin, own.p_margin or 0.0)
        said = verdict(own.mean, p_zero, p_margin, less_is_better=less_is_better)
        sharing = num_pooled if own.floor > 0 and num_pooled else 1
        expected = (
            outlook(own, one, sharing, margin, num_images, *levels)
            if said == "cannot tell" and not own.is_of_folds
            else None
        )
        results.append(Judged(p_zero, p_margin, said, expected))
    answers = iter(results)
    return [
        next(answers) if one.n >= FEWEST_SEEDS else Judged(None, None, "cannot tell", None)
        for one in found
    ]


def smallest_margin(found: Sequence[Difference]) -> tuple[float, int] | None:
    """Return the smallest margin for which these images can show no difference, about.

    It is the reach of the one-sided 5 % test, the median over the comparisons with enough seeds: so
    far from a measured difference of exactly zero the test excludes. With a smaller margin these
    images show no difference almost never, with a larger one sometimes. What a plan promises with a
    probability of 80 % is larger: :attr:`runner.report.sequential.Design.provable_margin`.

    Returns:
        The margin in units of the scores, and the number of seeds that it takes: ``PLANNED_SEEDS``,
        or more if there are more. None if no comparison has enough seeds, and under
        cross-validation.
    """
    tested = [one for one in found if one.n >= FEWEST_SEEDS]
    if not tested or any(one.is_of_folds for one in tested):
        return None
    n = max(PLANNED_SEEDS, *(one.n for one in tested))
    errors = [sqrt(one.seed_deviation**2 / n + one.image_error**2) for one in tested]
    return -float(ndtri(LEVEL)) * median(errors), n


def holm_levels(p_values: Sequence[float]) -> list[float]:
    """Return the level that each p-value must fall below at its place in Holm's order."""
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


def verdict(
    mean: float, p_zero: float | None, p_margin: float | None, *, less_is_better: bool = False
) -> Verdict:
    """Return the verdict at the 5 % level, from p-values that are corrected for the family.

    A significant difference that is smaller than the margin still helps or hurts.
    """
    if p_zero is not None and p_zero < LEVEL:
        return "helps" if (mean < 0 if less_is_better else mean > 0) else "hurts"
    if p_margin is not None and p_margin < LEVEL:
        return "no difference"
    return "cannot tell"


def outlook(
    found: Difference,
    shared: Moderated,
    num_sharing: int,
    margin: float,
    num_images: int,
    level_zero: float = LEVEL,
    level_margin: float = LEVEL,
) -> Outlook:
    """Estimate how many seeds give an answer with a probability of 80 %.

    The planning takes the estimates of the mean, the deviation of seeds and the error of images for
    the truth, although few seeds give only rough estimates. Both tests must pass: the moderated one
    at its place in Holm's order, and the comparison's own at 5 %.

    Args:
        found: the difference so far.
        shared: the same with its moderated deviation.
        num_sharing: number of comparisons that share their spread, with this one; 1 if it has only
            its own.
        margin: smallest difference that matters, as for ``found``.
        num_images: number of validation images.
        level_zero: level of the test of no difference, in 0..1; see :func:`holm_levels`.
        level_margin: level of the test of a difference of the margin.
    """
    effect = abs(found.mean)

    def reach(n: int, tail: float, own_tail: float) -> float:
        """Return the distance from the mean that both tests exclude."""
        degrees = min(PRIOR + n - 1, num_sharing * (n - 1))
        return max(
            -float(stdtrit(degrees, tail)) * sqrt(shared.deviation**2 / n + found.image_error**2),
            -float(stdtrit(n - 1, own_tail))
            * sqrt(found.seed_deviation**2 / n + found.image_error**2),
        )

    for n in range(found.n + 1, MOST_SEEDS + 1):
        seeds_error = shared.deviation / sqrt(n)
        far = reach(n, level_zero / 2, LEVEL / 2)
        if probability_below(effect - far, seeds_error) >= POWER:
            return Outlook("a difference", n, None)
        room = margin - reach(n, level_margin, LEVEL)
        below = probability_below(room - effect, seeds_error)
        above = probability_below(room + effect, seeds_error)
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


def probability_below(limit: float, deviation: float) -> float:
    """Return the probability that a normal variable around 0 falls below ``limit``."""
    if deviation == 0:
        return float(limit > 0)
    return float(ndtr(limit / deviation))
