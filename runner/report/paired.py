"""Comparisons of two arms, paired by seed, and the verdicts on those of one group."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from runner.report.family import Judged, Outlook, Verdict, judged, smallest_margin
from runner.report.groups import Arm
from runner.report.measured import compared
from runner.report.measures import (
    Mean,
    Pair,
    is_timed,
    mean_of,
    pair_of,
    price_ratios,
    ratio,
)
from runner.report.metric import ACCURACY, Metric
from runner.report.more_runs import MoreRuns, more_runs
from runner.report.scores import ScoreBook
from runner.report.statistics import Difference
from runner.training.metrics import METRICS

FIRST_SEEDS = 5
"""Number of seeds to advise where there are too few to say how many are needed."""
_EQUAL_BUDGET = 0.005  # relative difference that rounding to whole steps may make

Asked = tuple[Arm, Arm, str]
"""An arm, what it is compared with, and what the comparison is called."""


@dataclass(frozen=True)
class Comparison:
    """A comparison of an arm with a reference, paired by seed.

    Attributes:
        label: label of the trick, or of the arm.
        arm: label of the arm.
        reference: label of the reference.
        seeds: seeds that both have.
        found: the difference in the metric that is compared.
        pairs: the difference of each seed.
        p_zero: p-value of no difference, corrected for the comparisons of all tables of the group;
            None for fewer than three seeds.
        p_margin: p-value of the equivalence test, corrected in the same way.
        verdict: the verdict on the metric.
        outlook: data that would settle the comparison, if the verdict is cannot tell.
        others: difference in each of ``METRICS`` but the one that is compared; NaN where it is
            undefined.
        price: images, pixels and seconds relative to the reference, median of the seeds, as
            machines are shared; and ``forward_passes``.
        is_equal_budget: whether both trained on equally many images and pixels.
        is_timed: whether the ratio of seconds is the price of the change, and not an effect of
            other work of the machine.
        more: runs that would settle the comparison.
    """

    label: str
    arm: str
    reference: str
    seeds: tuple[int, ...]
    found: Difference
    pairs: tuple[Pair, ...]
    p_zero: float | None
    p_margin: float | None
    verdict: Verdict
    outlook: Outlook | None
    others: Mapping[str, Mean]
    price: Mapping[str, float]
    is_equal_budget: bool
    is_timed: bool
    more: tuple[MoreRuns, ...]

    @property
    def num_folds(self) -> int:
        """Number of folds of each seed; 1 without cross-validation."""
        return self.found.n if self.found.is_of_folds else 1

    @property
    def num_units(self) -> int:
        """Number of seeds, or under cross-validation of folds: what a verdict takes three of."""
        return self.found.n if self.found.is_of_folds else len(self.seeds)

    @property
    def num_pairs(self) -> int:
        """Number of pairs of trainings: seeds, times folds."""
        return len(self.seeds) * self.num_folds


def _compare(
    arm: Arm, reference: Arm, label: str, book: ScoreBook, margin: float, metric: Metric
) -> Comparison | None:
    """Compare two arms, without a verdict yet; None if they have no common seed."""
    seeds = tuple(sorted(set(arm.runs) & set(reference.runs)))
    if not seeds:
        return None
    ours, theirs = (
        [book.measured(side.runs[seed], side.view, metric) for seed in seeds]
        for side in (arm, reference)
    )
    images = book.scores(arm.runs[seeds[0]]).images  # those of all runs: the others are left out
    pairs = [
        pair_of(seed, new, old, metric) for seed, new, old in zip(seeds, ours, theirs, strict=True)
    ]
    ratios = price_ratios(
        [arm.runs[seed] for seed in seeds], [reference.runs[seed] for seed in seeds]
    )
    price = {key: float(np.median(values)) for key, values in ratios.items()}
    is_equal = all(abs(price[key] - 1) <= _EQUAL_BUDGET for key in ("images", "pixels"))
    passes = [side.forward_passes for side in (arm, reference)]
    return Comparison(
        label=label,
        arm=arm.label,
        reference=reference.label,
        seeds=seeds,
        found=compared(metric, ours, theirs, images, margin),
        pairs=tuple(pairs),
        p_zero=None,
        p_margin=None,
        verdict="cannot tell",
        outlook=None,
        others={
            key: mean_of([new[seed] - old[seed] for seed in seeds])
            for key in METRICS
            if key != metric.name
            for new, old in [(arm.metric(key), reference.metric(key))]
        },
        price={**price, "forward_passes": ratio(*passes)},
        is_equal_budget=is_equal,
        is_timed=arm.training == reference.training
        or is_timed(
            [arm.runs[seed] for seed in seeds],
            [reference.runs[seed] for seed in seeds],
            ratios["seconds"],
        ),
        more=(),
    )


@dataclass(frozen=True)
class Family:
    """The comparisons of one group, judged together.

    Attributes:
        tables: the comparisons of each table.
        num_tested: number of different comparisons with a p-value, for which these are corrected.
        smallest_margin: smallest margin that these images can show no difference for, 0..1, and the
            number of seeds that it takes; see :func:`runner.report.family.smallest_margin`.
        image_groups: number of groups of images, which were resampled instead of images; None if
            each image is a group of its own.
    """

    tables: tuple[tuple[Comparison, ...], ...]
    num_tested: int
    smallest_margin: tuple[float, int] | None
    image_groups: int | None


def compare_tables(
    tables: Sequence[Sequence[Asked]],
    book: ScoreBook,
    margin: float,
    metric: Metric = ACCURACY,
) -> Family:
    """Compare the arms of all tables of one group, whose comparisons are one family.

    Args:
        tables: what each table compares. Pairs of arms without a common seed are left out. A
            comparison that is in several tables, or in one of them reversed, counts once.
        book: the scores of the runs.
        margin: smallest difference that matters, in units of the metric.
        metric: what is compared.
    """
    compared_tables = [
        [
            (one, arm, reference)
            for arm, reference, label in table
            if (one := _compare(arm, reference, label, book, margin, metric))
        ]
        for table in tables
    ]
    family: dict[frozenset[str], Difference] = {}
    for one, _, _ in (pair for table in compared_tables for pair in table):
        family.setdefault(_key(one), one.found)
    arms = [arm for table in compared_tables for _, arm, _ in table]
    num_images = arms[0].num_images if arms else 0
    results = judged(
        list(family.values()), margin, num_images, less_is_better=metric.less_is_better
    )
    answers = dict(zip(family, results, strict=True))
    groups = book.scores(next(iter(arms[0].runs.values()))).groups if arms else None
    return Family(
        tuple(
            tuple(
                _judged(one, answers[_key(one)], arm, reference, metric)
                for one, arm, reference in table
            )
            for table in compared_tables
        ),
        sum(said.p_zero is not None for said in answers.values()),
        smallest_margin(list(family.values())),
        None if groups is None else len(np.unique(groups)),
    )


def _key(one: Comparison) -> frozenset[str]:
    return frozenset({one.arm, one.reference})


def _judged(one: Comparison, said: Judged, arm: Arm, reference: Arm, metric: Metric) -> Comparison:
    """Add the verdict to a comparison, or if it is cannot tell, the runs that would settle it."""
    kind = said.verdict
    if kind in ("helps", "hurts"):  # it may have been found in the reverse direction
        kind = "helps" if metric.is_better(one.found.mean) else "hurts"
    wanted = FIRST_SEEDS if said.p_zero is None else said.outlook and said.outlook.seeds
    if one.found.is_of_folds:
        wanted = None
    return replace(
        one,
        p_zero=said.p_zero,
        p_margin=said.p_margin,
        verdict=kind,
        outlook=said.outlook,
        more=more_runs(arm, reference, wanted) if wanted else (),
    )
