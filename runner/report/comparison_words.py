"""How an arm of a comparison stands, in one line."""

from collections import Counter

from runner.report.comparisons import Standing
from runner.report.family import FEWEST_SEEDS
from runner.report.measures import Interval
from runner.report.metric import ACCURACY, Metric
from runner.report.statistics import LEVEL

_MOST_MORE = 3  # decimals, for small values


def verdict_line(one: Standing, margin: float, metric: Metric = ACCURACY) -> str:
    """Say in one line how an arm stands.

    Args:
        one: the arm.
        margin: smallest difference that matters, in units of the metric.
        metric: what is compared.
    """
    limit, n = metric.size(margin), _seeds(len(one.seeds))
    if one.num_folds > 1:
        n = f"{one.num_folds} folds of {n}"
    unit, within = f" {metric.unit}" if metric.unit else "", metric.within
    if one.reason == "failed":
        return f"{one.label} failed: {_failures(one)}"
    if one.mean is None:
        return f"{one.label}: {_failures(one) if one.failed else 'no seed yet'}"
    if one.verdict in ("helps", "hurts"):
        size, interval = abs(one.mean), one.interval
        if one.mean < 0 and interval is not None:
            interval = (-interval[1], -interval[0])
        digits = _digits(metric, size, *(interval or ()))
        line = (
            f"{one.label} {one.verdict} by about {metric.scale * size:.{digits}f}{unit}"
            f"{_bracketed(interval, digits, metric)}{within} after {n}"
        )
        if one.p_margin is not None and one.p_margin < LEVEL:
            line += f", by less than the margin of {limit}"
        if one.is_early:
            line += "; stopped early: the size is probably overstated"
    elif one.verdict == "no difference":
        shown = _bracketed(one.interval, _digits(metric, *(one.interval or ())), metric)
        line = f"{one.label}: no difference larger than {limit}{shown}{within} after {n}"
    else:
        line = _undecided(one, n, metric)
    return f"{line}; {_failures(one)}" if one.failed else line


def _undecided(one: Standing, n: str, metric: Metric) -> str:
    assert one.mean is not None
    digits = _digits(metric, one.mean, *(one.interval or ()))
    interval = _bracketed(one.interval, digits, metric) + metric.within
    if one.is_open:
        unit = f" {metric.unit}" if metric.unit else ""
        mean = f"{metric.scale * one.mean:+.{digits}f}{unit}"
        so_far = f"{one.label}: {mean}{interval} so far, after {n}"
        return f"{so_far}; the budget is used up" if one.reason == "budget" else so_far
    line = f"{one.label}: cannot tell after {n}{interval}"
    if one.reason == "futile":
        more = one.max_seeds - len(one.seeds) - len(one.failed)
        others = _seeds(more) if more > 1 else "seed"
        return f"{line}; stopped early, because another {others} would probably not decide it"
    if one.num_folds > 1:
        return f"{line}: more images or more seeds may"
    if one.max_seeds < FEWEST_SEEDS:
        return f"{line}: a verdict takes at least {FEWEST_SEEDS} seeds"
    return f"{line}: {one.max_seeds} seeds do not decide it"


def _failures(one: Standing) -> str:
    """Return the failed seeds of an arm, with the reason, such as ``1 of 5 seeds failed: …``."""
    total = len(one.seeds) + len(one.failed)
    reasons = Counter(reason.partition("\n")[0] for reason in one.failed.values())
    reason, count = reasons.most_common(1)[0]
    if not one.seeds:
        if count == total:
            return f"{reason} in {count} of {_seeds(total)}"
        return f"in {len(one.failed)} of {_seeds(total)}, most often: {reason}"
    most = ", most often" if len(reasons) > 1 else ""
    return f"{len(one.failed)} of {_seeds(total)} failed{most}: {reason}"


def _seeds(count: int) -> str:
    return f"{count} seed{'s' * (count != 1)}"


def _digits(metric: Metric, *values: float) -> int:
    """Decimals with which no value that is not zero looks like zero: one or more of points."""
    first = 1 if metric.unit else 3
    for digits in range(first, first + _MOST_MORE):
        if all(value == 0 or abs(metric.scale * value) >= 0.5 * 10**-digits for value in values):
            return digits
    return first + _MOST_MORE


def _bracketed(interval: Interval | None, digits: int, metric: Metric) -> str:
    if interval is None:
        return ""
    low, high = (f"{metric.scale * end + 0.0:.{digits}f}" for end in interval)
    return f" [{low}, {high}]"
