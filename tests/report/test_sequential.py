"""The sequential rule: against a second implementation, and in comparisons whose truth is known."""

from collections.abc import Sequence
from math import sqrt

import numpy as np
import pytest
import simulated_walks as sim
from scipy.special import stdtrit

from runner.report import sequential
from runner.report.sequential import looks, walk, weight
from runner.report.statistics import Difference, Mixture

MARGIN = 0.5  # points, as everything here
LUCK = sim.even_luck(31)
SAID = {"helps": 1, "hurts": -1, "no difference": 2, "cannot tell": 0}

Look = list[Difference | None]


def of_means(means: Sequence[float], floor: float, image_error: float) -> Difference:
    """The difference of seeds with these means."""
    n, mean = len(means), float(np.mean(means))
    variance = float(np.var(means, ddof=1))
    deviation = sqrt(max(variance, floor))
    drawn = mean + image_error * LUCK[0]
    mixture = Mixture(drawn, deviation / sqrt(n), n - 1)
    return Difference(
        n=n,
        mean=mean,
        over_seeds=None,
        over_both=(-1.0, 1.0),
        p_zero=mixture.p_zero(),
        p_margin=mixture.p_margin(MARGIN),
        seed_deviation=deviation,
        image_error=image_error,
        variance=variance,
        floor=floor,
        means=drawn,
    )


def history(x: np.ndarray, of: sim.Arms, max_seeds: int) -> list[Look]:
    """The differences at every look of one table; x is (k, seeds)."""
    floors, lucks = of.floor.tolist(), of.image_error.tolist()
    return [
        [of_means(row[:n], *arm) for row, *arm in zip(x, floors, lucks, strict=True)]
        for n in looks(max_seeds)
    ]


def table(seed: int, max_seeds: int = 10, k: int = 7) -> list[Look]:
    rng = np.random.default_rng(seed)
    of = sim.arms(sim.MIXED[:k], 3925)
    return history(sim.draw(rng, 1, of, rng.choice([0, 1, 3], k), max_seeds)[0], of, max_seeds)


# The plan of the looks


def test_the_looks_end_at_the_maximum() -> None:
    assert looks(3) == (3,)
    assert looks(7) == (3, 4, 5, 6, 7)
    assert looks(10) == (3, 4, 5, 6, 8, 10)
    assert looks(20) == sequential.LOOKS
    for max_seeds in (2, 21):
        with pytest.raises(ValueError, match="3 to 20"):
            looks(max_seeds)
    with pytest.raises(ValueError, match="no look at 7"):
        weight(7, 10)


def test_weights_grow_with_the_degrees_of_freedom() -> None:
    assert [weight(n, 10) for n in looks(10)] == pytest.approx([0.1, 0.15, 0.2, 0.25, 0.35, 0.45])
    assert weight(3, 3) == 1
    for max_seeds in sim.LAST:
        assert weight(max_seeds, max_seeds) == pytest.approx(sim.LAST[max_seeds])


@pytest.mark.parametrize("factor", [1.0, 1.3])
def test_one_arm_over_all_looks_errs_in_five_percent(factor: float) -> None:
    """Its own t, without a floor: nothing makes the test safer than its weights do."""
    walks = 40_000
    x = np.random.default_rng(0).normal(size=(walks, 20))
    sums, squares = x.cumsum(1), (x * x).cumsum(1)
    t = {}
    for n in range(3, 21):
        mean = sums[:, n - 1] / n
        t[n] = np.abs(mean) / np.sqrt((squares[:, n - 1] - n * mean**2) / (n - 1) / n)
    for max_seeds in range(3, 21):
        errs = np.zeros(walks, bool)
        for n in looks(max_seeds):
            errs |= t[n] > stdtrit(n - 1, 1 - 0.025 * min(1, factor * weight(n, max_seeds)))
        if factor == 1:
            assert 0.043 < errs.mean() < 0.0525, max_seeds
        elif max_seeds > 3:
            assert errs.mean() > 0.0525, "the test cannot fail"


# Against the second implementation


@pytest.mark.parametrize(
    ("k", "max_seeds", "num_images"),
    [
        (7, 10, 1500),
        (7, 10, 3925),
        (7, 16, 3925),
        (3, 5, 3925),
        (2, 4, 1500),
        (1, 10, 3925),
        (7, 3, 1500),
    ],
)
def test_verdicts_are_those_of_the_second_implementation(
    k: int, max_seeds: int, num_images: int
) -> None:
    rng = np.random.default_rng(k * max_seeds)
    of = sim.arms(sim.MIXED[-k:], num_images)
    for effect in (0.0, 1.0, 2.0):
        x = sim.draw(rng, 12, of, effect * rng.integers(0, 2, k), max_seeds)
        expected = sim.sequential(x, of, max_seeds, MARGIN, nodes=LUCK)
        for said, seeds, rows in zip(expected.said, expected.seeds, x, strict=True):
            states = walk(history(rows, of, max_seeds), max_seeds, MARGIN)
            assert [SAID[state.verdict] for state in states] == said.tolist()
            assert [state.n for state in states] == seeds.tolist()
            assert not any(state.is_open for state in states)
