"""Measures of paired runs: means over seeds, one pair of a seed, what a change costs; as text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from runner.report.measured import Measured
from runner.report.metric import ACCURACY, Metric
from runner.report.runs import FinishedRun
from runner.report.statistics import gained_and_lost, mcnemar, t_interval

Interval = tuple[float, float]
PRICES = ("images", "pixels", "seconds")
_FEWEST_TIMED = 3  # seeds from which a price in seconds is shown
PLUS_MINUS = "± is half of the 95 % t-interval of a mean over the seeds, not a standard deviation"
_LARGEST_SPREAD = 1.2  # largest ratio of seconds over the seeds / smallest, for the same


@dataclass(frozen=True)
class Mean:
    """A metric over the seeds: its mean and 95 % t-interval (None for one seed)."""

    mean: float
    interval: Interval | None


@dataclass(frozen=True)
class Pair:
    """One seed with and without: the difference in the metric that is compared.

    And in accuracy, the numbers of images that only one has right, with the exact McNemar p.
    """

    seed: int
    difference: float
    gained: int
    lost: int
    p: float


def mean_of(values: Sequence[float]) -> Mean:
    """Return the mean over seeds of one value per seed, at least one."""
    return Mean(float(np.mean(values)), t_interval(values))


def pair_of(seed: int, new: Measured, old: Measured, metric: Metric) -> Pair:
    """Compare two runs of one seed."""
    gained, lost = gained_and_lost(new.correct, old.correct)
    difference = new.value - old.value
    if metric.name == "accuracy":
        difference = (gained - lost) / len(new.correct)  # without rounding
    return Pair(seed, difference, gained, lost, mcnemar(gained, lost))


def ratio(ours: float, theirs: float) -> float:
    """Return a price relative to another; NaN for a ratio to nothing."""
    if not theirs:
        return float("nan") if ours else 1.0
    return ours / theirs


def price_ratios(
    ours: Sequence[FinishedRun], theirs: Sequence[FinishedRun]
) -> Mapping[str, list[float]]:
    """Images, pixels and seconds of paired runs relative to the reference, by seed."""
    return {
        key: [
            ratio(new.budget[key], old.budget[key]) for new, old in zip(ours, theirs, strict=True)
        ]
        for key in PRICES
    }


def is_timed(
    ours: Sequence[FinishedRun], theirs: Sequence[FinishedRun], ratios: Sequence[float]
) -> bool:
    """Return whether runs on equal hardware took turns, and the ratios of their seconds agree.

    A machine that does other work for an hour makes every run of that hour slow. Runs that took
    turns share it, and if they do not share it alike, the ratios of the seeds differ.
    """
    machines = {
        tuple(
            str(run.environment.get(key))  # anything in a file of others
            for key in ("device", "threads", "cores", "processes")
        )
        for run in (*ours, *theirs)
    }
    took_turns = max(run.finished for run in ours) >= min(run.finished for run in theirs) and max(
        run.finished for run in theirs
    ) >= min(run.finished for run in ours)
    return (
        len(ours) >= _FEWEST_TIMED
        and len(machines) == 1
        and took_turns
        and max(ratios) <= _LARGEST_SPREAD * min(ratios)
    )


def mean_text(mean: Mean, metric: Metric = ACCURACY) -> str:
    """Return a value of a metric, with half its interval, which :data:`PLUS_MINUS` explains."""
    value = metric.text(mean.mean, signed=False)
    if mean.interval is None:
        return value
    half = (mean.interval[1] - mean.interval[0]) / 2
    return f"{value} ± {metric.text(half, signed=False)}"


def p_text(p_value: float | None) -> str:
    """Return a p-value to three places."""
    if p_value is None:
        return ""
    return f"{p_value:.3f}" if p_value >= 0.001 else "<0.001"
