"""Thousands of comparisons at once whose truth is known, and the rules of the verdict for them.

What is drawn is the mean difference of each seed, in points: arms share the baseline of a seed, and
images make a luck of their own that all seeds of an arm share. The rules are written a second time,
for arrays of tables, independently of ``runner.report``; the luck of images is a few points of a
normal distribution instead of resamples.

The kinds of arms are like real ones on Imagenette and Fashion-MNIST. Each has a part of its spread
that no number of images lowers, and parts that N images divide: that of the floor and that of the
luck of images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, stdtr, stdtrit

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

LOOKS = (3, 4, 5, 6, 8, 10, 12, 16, 20)
LAST = {
    5: 0.55, 6: 0.50, 8: 0.47, 10: 0.45, 12: 0.42, 16: 0.42, 20: 0.40,
    3: 1.0, 4: 0.66, 7: 0.45, 9: 0.43,
}  # fmt: skip
GAUSS = tuple(part / (1 if i == 0 else np.sqrt(2 * np.pi))
              for i, part in enumerate(np.polynomial.hermite_e.hermegauss(12)))  # fmt: skip
"""Places and weights that integrate over a normal distribution."""


@dataclass(frozen=True)
class Kind:
    """One kind of arm; squared points, the last two times the number of images."""

    seeds: float
    floor: float
    luck: float


TTA = Kind(0.034, 295, 22)
MILD = Kind(0.096, 489, 65)
MID = Kind(0.36, 621, 135)
BIG = Kind(0.99, 856, 250)
HUGE = Kind(1.93, 891, 360)
MIXED = (MILD, MILD, MID, MID, BIG, BIG, TTA)


@dataclass(frozen=True)
class Arms:
    """(k,) each: deviation of one seed's difference, floor of its square, error of the images."""

    deviation: Floats
    floor: Floats
    image_error: Floats

    def __len__(self) -> int:
        return len(self.deviation)


def arms(kinds: Sequence[Kind], num_images: int) -> Arms:
    floor = np.array([kind.floor for kind in kinds]) / num_images
    seeds = np.array([kind.seeds for kind in kinds])
    luck = np.array([kind.luck for kind in kinds]) / num_images
    return Arms(np.sqrt(seeds + floor), floor, np.sqrt(luck))


def bare(deviations: Sequence[float]) -> Arms:
    """Arms without floor and luck of images: no rule is saved by them."""
    k = len(deviations)
    return Arms(np.array(deviations, float), np.full(k, 1e-9), np.zeros(k))


def volatile(kinds: Sequence[Kind], num_images: int) -> Arms:
    """The last arm has three times the deviation of seeds, and neither its floor nor its luck."""
    usual = arms(kinds, num_images)
    deviation = usual.deviation.copy()
    deviation[-1] *= 3
    return replace(usual, deviation=deviation)


def draw(
    rng: np.random.Generator, tables: int, of: Arms, effects: Sequence[float], seeds: int
) -> Floats:
    """(tables, k, seeds) mean differences in points."""
    k = len(of)
    baseline = rng.normal(size=(tables, 1, seeds))
    tricks = rng.normal(size=(tables, k, seeds))
    luck = rng.normal(size=(tables, k, 1)) * of.image_error[:, None]
    seed = of.deviation[:, None] * np.sqrt(0.5) * (tricks - baseline)
    return np.asarray(effects, float)[:, None] + luck + seed


def mass(distance: Floats, error: Floats, degrees: Floats, luck: Floats, nodes: tuple) -> Floats:
    """The probability of at most ``distance`` from the mean: t over seeds, normal over images."""
    places, weights = nodes
    inner = (distance[..., None] - luck[..., None] * places) / error[..., None]
    return (stdtr(degrees[..., None], inner) * weights).sum(-1)


def holm(p: Floats) -> Floats:
    """Holm's correction along the last axis."""
    k = p.shape[-1]
    order = np.argsort(p, axis=-1)
    stepped = np.take_along_axis(p, order, -1) * (k - np.arange(k))
    corrected = np.minimum(1, np.maximum.accumulate(stepped, axis=-1))
    result = np.empty_like(p)
    np.put_along_axis(result, order, corrected, -1)
    return result


def pooled(s2: Floats, n: NDArray[np.int64], floor: Floats) -> tuple[Floats, Floats]:
    """Deviation and degrees of each arm, its spread drawn to that of the table."""
    d = n - 1.0
    if s2.shape[-1] == 1:
        return np.sqrt(np.maximum(s2, floor)), d
    r = s2 / floor
    rho = (d * r).sum(-1, keepdims=True) / d.sum(-1, keepdims=True)
    drawn = np.maximum(1, (4 * rho + d * r) / (4 + d))
    return np.sqrt(floor * drawn), np.minimum(4 + d, d.sum(-1, keepdims=True))


def p_values(
    mean: Floats, deviation: Floats, degrees: Floats, n: int, luck: Floats, margin: float,
    nodes: tuple,
) -> tuple[Floats, Floats]:  # fmt: skip
    """Of no difference, and of one of at least the margin; the luck of images is symmetric."""
    error = deviation / np.sqrt(n)
    zero = np.minimum(1, 2 * mass(-np.abs(mean), error, degrees, luck, nodes))
    return zero, mass(np.abs(mean) - margin, error, degrees, luck, nodes)


@dataclass(frozen=True)
class Verdicts:
    """(tables, k) each: 1 helps, -1 hurts, 2 no difference, 0 cannot tell; the seeds at the end.

    ``mean`` and ``deviation``, the arm's own, are those at the end.
    """

    said: NDArray[np.int64]
    seeds: NDArray[np.int64]
    mean: Floats
    deviation: Floats

    @property
    def differ(self) -> Bools:
        return np.abs(self.said) == 1

    @property
    def trainings(self) -> Floats:
        """(tables,): every arm until it is closed, the baseline as long as any is open."""
        return self.seeds.sum(-1) + self.seeds.max(-1)


def fixed(
    x: Floats, of: Arms, n: int, margin: float = 0.5, *, moderate: bool = True, nodes: tuple = GAUSS
) -> Verdicts:
    """The rule for a number of seeds that is fixed beforehand; without ``moderate`` the former."""
    mean, s2 = x[..., :n].mean(-1), x[..., :n].var(-1, ddof=1)
    floor, luck = (np.broadcast_to(value, mean.shape) for value in (of.floor, of.image_error))
    own = np.sqrt(np.maximum(s2, floor))
    seeds = np.full(mean.shape, n)
    own_p = p_values(mean, own, seeds - 1.0, n, luck, margin, nodes)
    shared = pooled(s2, seeds, floor) if moderate else (own, seeds - 1.0)
    corrected = [holm(p) for p in p_values(mean, *shared, n, luck, margin, nodes)]
    zero, equal = (np.maximum(p, q) for p, q in zip(own_p, corrected, strict=True))
    said = np.where(zero < 0.05, np.where(mean > 0, 1, -1), np.where(equal < 0.05, 2, 0))
    return Verdicts(said, seeds, mean, own)


def looks(max_seeds: int) -> tuple[int, ...]:
    return (*(n for n in LOOKS if n < max_seeds), max_seeds)


def peeking(x: Floats, of: Arms, max_seeds: int, **how: bool) -> Verdicts:
    """The rule for a fixed number, at each look again until it says something."""
    first, *later = looks(max_seeds)
    result = fixed(x, of, first, **how)
    for n in later:
        now = fixed(x, of, n, **how)
        goes_on = result.said == 0
        result = Verdicts(*(
            np.where(goes_on, getattr(now, key), getattr(result, key))
            for key in ("said", "seeds", "mean", "deviation")
        ))  # fmt: skip
    return result


def sequential(
    x: Floats,
    of: Arms,
    max_seeds: int,
    margin: float = 0.5,
    *,
    futility: float = 0.1,
    is_guarded: bool = True,
    weights: Callable[[int], float] | None = None,
    nodes: tuple = GAUSS,
) -> Verdicts:
    """The sequential rule; the parts of it can be taken away."""
    shape = x.shape[:2]
    floor, luck = (np.broadcast_to(value, shape) for value in (of.floor, of.image_error))
    is_open, said = np.ones(shape, bool), np.zeros(shape, int)
    mean, s2, seeds = np.zeros(shape), np.zeros(shape), np.zeros(shape, int)
    q_zero, q_equal = np.ones(shape), np.ones(shape)
    last = LAST[max_seeds]
    for n in looks(max_seeds):
        w = weights(n) if weights else last * (n - 1) / (max_seeds - 1)
        mean = np.where(is_open, x[..., :n].mean(-1), mean)
        s2 = np.where(is_open, x[..., :n].var(-1, ddof=1), s2)
        seeds = np.where(is_open, n, seeds)
        deviation, degrees = pooled(s2, seeds, floor)
        degrees = np.broadcast_to(degrees, shape)

        def at(
            where: Bools, spread: Floats, df: Floats, n: int = n, mean: Floats = mean
        ) -> tuple[Floats, Floats]:
            return p_values(mean[where], spread[where], df[where], n, luck[where], margin, nodes)

        zero, equal = np.ones(shape), np.ones(shape)
        own = np.sqrt(np.maximum(s2, floor))
        zero[is_open], equal[is_open] = at(is_open, own, seeds - 1.0)
        level = 0.05 * w if is_guarded else 2.0
        passes = is_open & ((zero < level) | (equal < level))
        p_zero, p_equal = np.ones(shape), np.ones(shape)
        p_zero[passes], p_equal[passes] = at(passes, deviation, degrees)
        q_zero = np.where(passes & (zero < level), np.minimum(q_zero, p_zero / w), q_zero)
        q_equal = np.where(passes & (equal < level), np.minimum(q_equal, p_equal / w), q_equal)
        differs = (holm(q_zero) < 0.05) & (zero < level)
        equals = (holm(q_equal) < 0.05) & (equal < level)
        now = np.where(differs, np.where(mean > 0, 1, -1), np.where(equals, 2, 0))
        said = np.where(is_open, now, said)
        is_open = is_open & (now == 0)
        if n == max_seeds:
            break
        num_open = np.maximum(is_open.sum(-1, keepdims=True), 1)
        df = np.minimum(degrees + max_seeds - n, 200)
        error = np.sqrt(deviation**2 / max_seeds + luck**2)
        moves = deviation * np.sqrt(1 / n - 1 / max_seeds)
        far = -stdtrit(df, 0.05 * last / (2 * num_open)) * error
        room = margin + stdtrit(df, 0.05 * last / num_open) * error
        chance = ndtr((-far - mean) / moves) + ndtr((mean - far) / moves)
        none = ndtr((room - mean) / moves) - ndtr((-room - mean) / moves)
        chance += np.where(room > 0, none, 0)
        is_open = is_open & (chance >= futility)
    return Verdicts(said, seeds, mean, np.sqrt(np.maximum(s2, floor)))


def interval_covers(of: Arms, end: Verdicts, truth: Floats, level: Floats) -> Bools:
    """Whether each arm's own interval at the end, of confidence 1 - level, covers the truth."""
    luck = np.broadcast_to(of.image_error, end.mean.shape)
    error = end.deviation / np.sqrt(end.seeds)
    away = -np.abs(end.mean - truth)
    return 2 * mass(away, error, end.seeds - 1.0, luck, GAUSS) >= level


def even_luck(count: int) -> tuple[Floats, Floats]:
    """Places of equal weight, with a spread of 1, each with its mirror image."""
    places = ndtri((np.arange(count) + 0.5) / count)
    return places / places.std(), np.full(count, 1 / count)
