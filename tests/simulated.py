"""Tables of comparisons whose truth is known: predictions drawn from a population.

A network has image i right when z(i) + a(seed) + e(seed, i) > 0: images differ in how hard they
are, seeds in how well they do, and two networks disagree on images for no reason. Most images are
easy, the others are of all kinds. A trick changes all three: its networks have other seeds' luck
and other noise, both partly those of the baseline's network of the same seed, and it suits some
images more than others. The share of right predictions in the population, over all images and
seeds, has a closed form, so that the true effect is known.

:data:`ARMS` are arms as in real trainings of five epochs (Imagenette, Fashion-MNIST). They are as
unequal as real ones: test time augmentation changes few predictions, the same for all seeds;
progressive resizing changes many, and each seed otherwise.

:func:`draw` gives predictions. To know rates of errors to a tenth of a percent takes thousands of
tables, so :func:`draw_tables` reduces each to what p-values depend on, and :class:`Tables` computes
those of all tables at once. There the luck of images is normal, where ``difference`` resamples the
images; ``tests/report/test_simulations.py`` shows that both agree, and with ``family.judged``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.polynomial.hermite_e import hermegauss
from numpy.typing import NDArray
from scipy.special import ndtr, stdtr

HARDNESS = ((0.65, 2.2, 0.8), (0.35, 0.0, 0.9))  # easy and other images: share, mean, deviation
SEED, NOISE = 0.05, 0.6  # deviations of a and e
LEVEL = 0.05

FloatArray = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Arm:
    """How a trick's networks differ from the baseline's, apart from the effect.

    Attributes:
        noise: part of a network's noise that is not that of the baseline's network of the same
            seed: 0 for the same network, 1 for another one.
        seeds: deviation of the trick's own luck of seeds.
        suits: deviation of how much the trick suits an image.
    """

    noise: float
    seeds: float
    suits: float


@dataclass(frozen=True)
class Spread:
    """What a kind of arm has in a table, in points, for 1,500 and for 3,925 images.

    Attributes:
        seeds: deviation of one seed's difference.
        floor: the part of it that single images alone imply.
        images: standard error that comes from the choice of images.
    """

    seeds: tuple[float, float]
    floor: tuple[float, float]
    images: tuple[float, float]


NUM_IMAGES = (1500, 3925)
ARMS = {
    "tta": Arm(0.287, 0.0072, 0.130),
    "mild": Arm(0.457, 0.0142, 0.223),
    "mid": Arm(0.560, 0.0279, 0.394),
    "big": Arm(0.817, 0.0476, 0.591),
    "huge": Arm(0.901, 0.0665, 0.767),
}
SPREADS = {
    "tta": Spread((0.48, 0.33), (0.46, 0.28), (0.12, 0.07)),
    "mild": Spread((0.65, 0.47), (0.57, 0.36), (0.19, 0.12)),
    "mid": Spread((0.88, 0.72), (0.64, 0.40), (0.30, 0.19)),
    "big": Spread((1.25, 1.10), (0.76, 0.47), (0.40, 0.25)),
    "huge": Spread((1.59, 1.47), (0.79, 0.49), (0.49, 0.30)),
}
_MIXED = ("mid", "big", "mild", "mid", "big", "mild", "tta")
PROFILES = {
    "mixed": _MIXED,
    "extreme": ("huge", *6 * ("mild",)),
    "homog": 7 * ("mid",),
    "one": _MIXED[:1],
    "three": _MIXED[:3],
    "fifteen": (*_MIXED, *_MIXED, "mid"),
}


@dataclass(frozen=True)
class Experiment:
    """Right (1) or wrong (0): baseline (n, N) and one array (n, N) per trick."""

    baseline: NDArray[np.float32]
    tricks: list[NDArray[np.float32]]


def draw(
    rng: np.random.Generator,
    n: int,
    num_images: int,
    arms: Sequence[Arm],
    effects: Sequence[float] | None = None,
    group_size: int = 1,
) -> Experiment:
    """Draw the predictions of one table.

    Args:
        rng: the source of all draws.
        n: number of seeds.
        num_images: number of validation images.
        arms: the tricks.
        effects: their true differences in accuracy, 0..1; none by default.
        group_size: number of images in a row that are equally hard and that a trick suits equally.
    """
    num_groups = -(-num_images // group_size)

    def of_images(values: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.repeat(values, group_size)[:num_images] if group_size > 1 else values

    def normal(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal(shape, np.float32)

    (share, *easy), (_, *others) = HARDNESS
    mean, deviation = np.where(rng.random((num_groups, 1)) < share, easy, others).T
    hardness = of_images((mean + deviation * normal(num_groups)).astype(np.float32))
    luck, noise = normal(n, 1), NOISE * normal(n, num_images)
    baseline = hardness + noise > -SEED * luck
    tricks = []
    for arm, effect in zip(arms, effects or [0.0] * len(arms), strict=True):
        latent = normal(n, num_images)
        latent *= arm.noise * NOISE
        latent += (1 - arm.noise) * noise
        latent += hardness + of_images(arm.suits * normal(num_groups))
        seeds = (SEED - arm.seeds) * luck + arm.seeds * normal(n, 1)
        tricks.append((latent > -(seeds + _shift(arm, effect))).astype(np.float32))
    return Experiment(baseline.astype(np.float32), tricks)


def accuracy(shift: float = 0.0, variance: float = SEED**2 + NOISE**2) -> float:
    """Share of right predictions in the population; that of the baseline by default."""
    parts = (
        share * float(ndtr((mean + shift) / np.sqrt(deviation**2 + variance)))
        for share, mean, deviation in HARDNESS
    )
    return sum(parts)


@lru_cache
def _shift(arm: Arm, effect: float) -> float:
    """What all images get so that the arm's true difference in accuracy is ``effect``."""
    noise = (arm.noise**2 + (1 - arm.noise) ** 2) * NOISE**2
    variance = noise + arm.suits**2 + arm.seeds**2 + (SEED - arm.seeds) ** 2
    low, high = -10.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        is_low = accuracy(middle, variance) < accuracy() + effect
        low, high = (middle, high) if is_low else (low, middle)
    return low


# ── Many tables at once ────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class PValues:
    """p-values (tables, arms) of one kind: of no difference, and of one of the margin or more."""

    zero: FloatArray
    margin: FloatArray


@dataclass(frozen=True)
class Tables:
    """What the p-values of many tables depend on, in units of accuracy.

    Attributes:
        n: number of seeds.
        means: (tables, arms) differences over seeds and images.
        variances: (tables, arms) variances of the seeds' differences, with n - 1.
        floors: (tables, arms) what the images imply for ``variances``.
        image_errors: (tables, arms) standard errors that come from the choice of images.
    """

    n: int
    means: FloatArray
    variances: FloatArray
    floors: FloatArray
    image_errors: FloatArray

    def of(self, arms: slice) -> "Tables":
        """The tables with some of their arms alone."""
        parts = (self.means, self.variances, self.floors, self.image_errors)
        return Tables(self.n, *(part[:, arms] for part in parts))

    def shifted(self, effects: FloatArray | float) -> "Tables":
        """The tables with true effects, (tables, arms) or alike, added to the drawn differences."""
        return replace(self, means=self.means + effects)

    def own(self, margin: float) -> PValues:
        """The p-values of each arm by its own spread."""
        deviations = np.sqrt(np.maximum(self.variances, self.floors))
        return self._tested(deviations, self.n - 1, margin)

    def moderated(self, margin: float, prior: float = 4.0) -> PValues:
        """The p-values with the ratio of variance and floor drawn to the mean of the table."""
        num_arms, own = self.means.shape[1], self.n - 1
        if num_arms == 1:
            return self.own(margin)
        ratios = self.variances / self.floors
        pooled = ratios.mean(axis=1, keepdims=True)
        drawn = (prior * pooled + own * ratios) / (prior + own)
        deviations = np.sqrt(self.floors * np.maximum(1.0, drawn))
        return self._tested(deviations, min(prior + own, num_arms * own), margin)

    def _tested(self, deviations: FloatArray, degrees: float, margin: float) -> PValues:
        nodes, weights = hermegauss(12)
        weights = weights / weights.sum()
        distances = np.abs(self.means)[..., None] + self.image_errors[..., None] * nodes
        errors = deviations[..., None] / np.sqrt(self.n)
        return PValues(
            np.minimum(1.0, 2 * stdtr(degrees, -distances / errors) @ weights),
            stdtr(degrees, (distances - margin) / errors) @ weights,
        )


Rule = Callable[[Tables, float], PValues]
"""Corrected p-values of tables for a margin."""


def judged(tables: Tables, margin: float) -> PValues:
    """The rule in use."""
    return corrected(tables.own(margin), tables.moderated(margin))


def judged_unguarded(tables: Tables, margin: float) -> PValues:
    """Without the p-value of the arm's own spread: a control, too often wrong."""
    shared = tables.moderated(margin)
    return PValues(holm(shared.zero), holm(shared.margin))


def judged_alone(tables: Tables, margin: float) -> PValues:
    """Each arm by its own spread, corrected for the number of arms: the rule before."""
    own = tables.own(margin)
    return PValues(holm(own.zero), holm(own.margin))


def corrected(own: PValues, moderated: PValues) -> PValues:
    """Moderated p-values corrected for the number of arms, and not below the own ones."""
    return PValues(
        np.maximum(holm(moderated.zero), own.zero), np.maximum(holm(moderated.margin), own.margin)
    )


def holm(p_values: FloatArray) -> FloatArray:
    """p-values corrected by Holm (1979), each row for itself."""
    order = np.argsort(p_values, axis=1)
    steps = np.arange(p_values.shape[1], 0, -1)
    sorted_ones = np.take_along_axis(p_values, order, axis=1) * steps
    adjusted = np.empty_like(p_values)
    np.put_along_axis(
        adjusted, order, np.minimum(1.0, np.maximum.accumulate(sorted_ones, axis=1)), axis=1
    )
    return adjusted


def draw_tables(
    seed: int, num_tables: int, num_images: int, arms: Sequence[Arm], seeds: Sequence[int]
) -> dict[int, Tables]:
    """Draw tables of tricks without effect; each with the first of its seeds, by their number."""
    rng = np.random.Generator(np.random.SFC64(seed))
    rows: dict[int, list[FloatArray]] = {n: [] for n in seeds}
    for _ in range(num_tables):
        drawn = draw(rng, max(seeds), num_images, arms)
        per_image = np.stack(drawn.tricks).astype(np.int8) - drawn.baseline.astype(np.int8)
        for n in seeds:
            rows[n].append(components(per_image[:, :n]))
    return {n: Tables(n, *np.stack(found, axis=1)) for n, found in rows.items()}


def components(per_image: NDArray[np.int8]) -> FloatArray:
    """(4, arms): means, variances, floors and image errors of differences (arms, n, N)."""
    _, n, num_images = per_image.shape
    per_seed = per_image.sum(axis=2, dtype=np.int32) / num_images
    means = per_seed.mean(axis=1)
    of_images = per_image.sum(axis=1, dtype=np.int16).astype(np.float32)
    squares = np.einsum("ki,ki->k", of_images, of_images) / n**2  # of the images' means
    differing = np.count_nonzero(per_image, axis=(1, 2))
    variances = per_seed.var(axis=1, ddof=1)
    of_seeds = (n - 1) * variances + n * means**2
    residuals = differing - n * squares - num_images * of_seeds + n * num_images * means**2
    interactions = residuals / ((n - 1) * (num_images - 1))
    spread = (squares - num_images * means**2) / (num_images - 1)
    image_errors = np.sqrt(np.maximum(0.0, spread - interactions / n) / num_images)
    return np.stack([means, variances, interactions / num_images, image_errors])


# ── Rates ──────────────────────────────────────────────────────────────────────────────────────


def covered(tables: Tables) -> FloatArray:
    """(arms,): how often the interval over seeds and images holds the truth, which is zero."""
    share: FloatArray = (tables.own(1.0).zero >= LEVEL).mean(axis=0)
    return share


def any_false(tables: Tables, rule: Rule) -> float:
    """How often any arm of a table without effects is said to help or hurt."""
    return float((rule(tables, 1.0).zero < LEVEL).any(axis=1).mean())


def last_false(tables: Tables, rule: Rule) -> float:
    """How often the first arm is said to help or hurt, if all others are seen to."""
    others = np.arange(tables.means.shape[1]) > 0
    return float((rule(tables.shifted(100.0 * others), 1.0).zero[:, 0] < LEVEL).mean())


def found(tables: Tables, rule: Rule, effect: float) -> FloatArray:
    """(arms,): how often an arm with an effect is said to help, if half of the arms have it.

    In each table other arms have it, so that every arm has it in half of them.
    """
    num_tables, num_arms = tables.means.shape
    turn = np.arange(num_tables)[:, None] + np.arange(num_arms)
    has_effect = turn % num_arms < max(1, num_arms // 2)
    shifted = tables.shifted(effect * has_effect)
    helps = (rule(shifted, 1.0).zero < LEVEL) & (shifted.means > 0) & has_effect
    share: FloatArray = helps.sum(axis=0) / np.maximum(has_effect.sum(axis=0), 1)
    return share


def any_false_equal(tables: Tables, rule: Rule, margin: float) -> float:
    """How often any arm is said to make no difference, if the effect of all is the margin."""
    p = rule(tables.shifted(margin), margin)
    return float(((p.zero >= LEVEL) & (p.margin < LEVEL)).any(axis=1).mean())


def found_equal(tables: Tables, rule: Rule, margin: float) -> float:
    """How often an arm without effect is said to make no difference of the margin or more."""
    p = rule(tables, margin)
    return float(((p.zero >= LEVEL) & (p.margin < LEVEL)).mean())
