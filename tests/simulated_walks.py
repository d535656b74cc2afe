"""Comparisons that add seeds until decided: thousands at once, and the sequential rule for them.

The rule is written a second time here, for arrays of tables and independently of
``runner.report.sequential``. It takes tables at each look: of predictions, as
:func:`simulated.draw_tables` draws them, or of seeds, as :func:`draw_seeds` does a hundred times
faster. Of seeds means: nothing is drawn but the mean difference of each seed, normal as the luck of
images; the floor and the error of the images are what they are in the population.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.polynomial.hermite_e import hermegauss
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, stdtr, stdtrit
from simulated import LEVEL, NUM_IMAGES, SPREADS, FloatArray, Rule, Tables, holm

Flags = NDArray[np.bool_]
Walks = Mapping[int, Tables]
"""The tables at each look, by the number of seeds; the first ones are the same at later looks."""

LOOKS = (3, 4, 5, 6, 8, 10, 12, 16, 20)
LAST_WEIGHT = {
    3: 1.0, 4: 0.66, 5: 0.55, 6: 0.50, 7: 0.45, 8: 0.47, 10: 0.45, 12: 0.43, 16: 0.42, 20: 0.40,
}  # fmt: skip
HELPS, HURTS, NO_DIFFERENCE, CANNOT_TELL = 1, -1, 2, 0
BASELINE = 0.5  # correlation of two arms' differences, which the seed's baseline makes


@dataclass(frozen=True)
class Nodes:
    """Places and weights by which the luck of images is averaged."""

    places: FloatArray
    weights: FloatArray


def gauss(count: int) -> Nodes:
    places, weights = hermegauss(count)
    return Nodes(places, weights / weights.sum())


def even(count: int) -> Nodes:
    """Places of equal weight with a spread of 1, each with its mirror image."""
    places = ndtri((np.arange(count) + 0.5) / count)
    return Nodes(places / places.std(), np.full(count, 1 / count))


_GAUSS = gauss(12)


@dataclass(frozen=True)
class Arms:
    """(arms,) each: deviation of a seed's difference, floor of its square, error of the images."""

    deviations: FloatArray
    floors: FloatArray
    image_errors: FloatArray

    def volatile(self, factor: float) -> "Arms":
        """The same with more luck of seeds in the first arm, and nothing else that shows it."""
        deviations = self.deviations.copy()
        deviations[0] *= factor
        return Arms(deviations, self.floors, self.image_errors)


def arms(kinds: Sequence[str], num_images: int) -> Arms:
    """Arms as unequal as real ones, of ``SPREADS``."""
    place = NUM_IMAGES.index(num_images)
    rows = [(s.seeds[place], s.floor[place], s.images[place]) for s in map(SPREADS.get, kinds) if s]
    deviations, floors, image_errors = np.array(rows).T / 100
    return Arms(deviations, floors**2, image_errors)


def bare(deviations: Sequence[float]) -> Arms:
    """Arms without a floor and without luck of images, neither of which then saves a rule."""
    num_arms = len(deviations)
    return Arms(0.01 * np.array(deviations), np.full(num_arms, 1e-14), np.zeros(num_arms))


def draw_values(rng: np.random.Generator, num_tables: int, of: Arms, max_seeds: int) -> FloatArray:
    """Draw the mean differences of all seeds, (tables, arms, seeds), without effects."""
    shape = (num_tables, len(of.deviations))
    seeds = np.sqrt(1 - BASELINE) * rng.normal(size=(*shape, max_seeds))
    seeds += np.sqrt(BASELINE) * rng.normal(size=(num_tables, 1, max_seeds))
    luck = of.image_errors * rng.normal(size=shape)
    return np.asarray(luck[..., None] + of.deviations[:, None] * seeds)


def draw_seeds(
    rng: np.random.Generator, num_tables: int, of: Arms, max_seeds: int
) -> dict[int, Tables]:
    """Draw the tables at each look, without effects."""
    values = draw_values(rng, num_tables, of, max_seeds)
    floors, image_errors = (
        np.broadcast_to(part, values.shape[:2]) for part in (of.floors, of.image_errors)
    )
    return {
        n: Tables(
            n, values[..., :n].mean(-1), values[..., :n].var(-1, ddof=1), floors, image_errors
        )
        for n in looks(max_seeds)
    }


def shifted(walks: Walks, effects: FloatArray | float) -> dict[int, Tables]:
    """The same with true effects added."""
    return {n: tables.shifted(effects) for n, tables in walks.items()}


def with_effect(walks: Walks, effect: float) -> tuple[dict[int, Tables], Flags]:
    """Add the effect to half of the arms, in each table to others; return which have it."""
    num_tables, num_arms = next(iter(walks.values())).means.shape
    turn = np.arange(num_tables)[:, None] + np.arange(num_arms)
    has_effect = turn % num_arms < max(1, num_arms // 2)
    return shifted(walks, effect * has_effect), has_effect


def looks(max_seeds: int) -> tuple[int, ...]:
    return (*(n for n in LOOKS if n < max_seeds), max_seeds)


def linear(max_seeds: int) -> dict[int, float]:
    """The weights of the looks."""
    last = LAST_WEIGHT[max_seeds]
    return {n: last * (n - 1) / (max_seeds - 1) for n in looks(max_seeds)}


@dataclass(frozen=True)
class End:
    """How comparisons ended, (tables, arms) each: the verdict, and the look at which it was said.

    ``means`` and ``deviations``, of the arm's own, are those at the end.
    """

    said: NDArray[np.int64]
    seeds: NDArray[np.int64]
    means: FloatArray
    deviations: FloatArray

    @property
    def differs(self) -> Flags:
        """Whether the arm is said to help or hurt."""
        differs: Flags = (self.said == HELPS) | (self.said == HURTS)
        return differs

    @property
    def trainings(self) -> NDArray[np.int64]:
        """(tables,): each arm until it is closed, and the baseline as long as any is open."""
        total: NDArray[np.int64] = self.seeds.sum(-1) + self.seeds.max(-1)
        return total

    def covers(self, image_errors: FloatArray, truth: FloatArray, levels: FloatArray) -> Flags:
        """Whether the arm's interval at the end, of confidence 1 - level, holds the truth."""
        error = self.deviations / np.sqrt(self.seeds)
        away = -np.abs(self.means - truth)
        covers: Flags = 2 * _mass(away, error, self.seeds - 1, image_errors, _GAUSS) >= levels
        return covers


def fixed(walks: Walks, rule: Rule, n: int, margin: float) -> End:
    """The verdicts of a rule for a number of seeds that is fixed beforehand."""
    tables = walks[n]
    p = rule(tables, margin)
    said = np.where(
        p.zero < LEVEL,
        np.where(tables.means > 0, HELPS, HURTS),
        np.where(p.margin < LEVEL, NO_DIFFERENCE, CANNOT_TELL),
    )
    deviations = np.sqrt(np.maximum(tables.variances, tables.floors))
    return End(said, np.full(said.shape, n), tables.means, deviations)


def peeking(walks: Walks, rule: Rule, margin: float) -> End:
    """The verdicts of that rule if it is asked at each look, until it says something."""
    first, *later = (fixed(walks, rule, n, margin) for n in walks)
    for now in later:
        goes_on = first.said == CANNOT_TELL
        parts = ("said", "seeds", "means", "deviations")
        first = End(*(np.where(goes_on, getattr(now, p), getattr(first, p)) for p in parts))
    return first


def sequential(
    walks: Walks,
    margin: float,
    *,
    weights: Mapping[int, float] | None = None,
    futility: float = 0.1,
    is_guarded: bool = True,
    nodes: Nodes = _GAUSS,
) -> End:
    """The sequential rule, whose parts can be taken away."""
    max_seeds = max(walks)
    weights = weights or linear(max_seeds)
    shape = walks[max_seeds].means.shape
    is_open, said, seeds = np.ones(shape, bool), np.zeros(shape, int), np.zeros(shape, int)
    means, variances, floors, luck = (np.ones(shape) for _ in range(4))
    q_zero, q_equal = np.ones(shape), np.ones(shape)
    for n, tables in walks.items():
        means = np.where(is_open, tables.means, means)
        variances = np.where(is_open, tables.variances, variances)
        floors = np.where(is_open, tables.floors, floors)
        luck = np.where(is_open, tables.image_errors, luck)
        seeds = np.where(is_open, n, seeds)
        own, own_degrees = np.sqrt(np.maximum(variances, floors)), seeds - 1.0
        shared, degrees = _pooled(variances, floors, own_degrees)
        level = LEVEL * weights[n] if is_guarded else 2.0

        def p_values(
            which: Flags,
            spread: FloatArray,
            df: FloatArray,
            means: FloatArray = means,
            n: int = n,
            luck: FloatArray = luck,
        ) -> tuple[FloatArray, FloatArray]:
            """Of no difference and of the margin; 1 for all but ``which``."""
            zero, equal = np.ones(shape), np.ones(shape)
            size = np.abs(means[which])
            error, df = spread[which] / np.sqrt(n), df[which]
            zero[which] = np.minimum(1, 2 * _mass(-size, error, df, luck[which], nodes))
            equal[which] = _mass(size - margin, error, df, luck[which], nodes)
            return zero, equal

        own_zero, own_equal = p_values(is_open, own, own_degrees)
        passes_zero, passes_equal = is_open & (own_zero < level), is_open & (own_equal < level)
        zero, equal = p_values(passes_zero | passes_equal, shared, degrees)
        q_zero = np.where(passes_zero, np.minimum(q_zero, zero / weights[n]), q_zero)
        q_equal = np.where(passes_equal, np.minimum(q_equal, equal / weights[n]), q_equal)
        differs = passes_zero & (holm(q_zero) < LEVEL)
        equals = passes_equal & (holm(q_equal) < LEVEL) & ~differs
        said = np.where(differs, np.where(means > 0, HELPS, HURTS), said)
        said = np.where(equals, NO_DIFFERENCE, said)
        is_open = is_open & ~differs & ~equals
        if n < max_seeds:
            num_open = np.maximum(is_open.sum(-1, keepdims=True), 1)
            rest = np.minimum(degrees + max_seeds - n, 200)
            error = np.sqrt(shared**2 / max_seeds + luck**2)
            moves = shared * np.sqrt(1 / n - 1 / max_seeds)
            last = LEVEL * weights[max_seeds] / num_open
            far = -stdtrit(rest, last / 2) * error
            room = margin + stdtrit(rest, last) * error
            chance = ndtr((-far - means) / moves) + ndtr((means - far) / moves)
            none = ndtr((room - means) / moves) - ndtr((-room - means) / moves)
            is_open = is_open & (chance + np.where(room > 0, none, 0) >= futility)
    return End(said, seeds, means, np.sqrt(np.maximum(variances, floors)))


def _pooled(
    variances: FloatArray, floors: FloatArray, degrees: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Deviation and degrees of each arm, its variance drawn to those of its table."""
    if variances.shape[-1] == 1:
        return np.sqrt(np.maximum(variances, floors)), degrees
    total = degrees.sum(-1, keepdims=True)
    ratio = (degrees * variances / floors).sum(-1, keepdims=True) / total
    drawn = (4 * ratio + degrees * variances / floors) / (4 + degrees)
    return np.sqrt(floors * np.maximum(1, drawn)), np.minimum(4 + degrees, total)


def _mass(
    distances: FloatArray, errors: FloatArray, degrees: object, luck: FloatArray, nodes: Nodes
) -> FloatArray:
    """The probability of at most ``distances`` from the mean: t over seeds, normal over images."""
    inner = (distances[..., None] - luck[..., None] * nodes.places) / errors[..., None]
    mass: FloatArray = stdtr(np.asarray(degrees)[..., None], inner) @ nodes.weights
    return mass
