"""How an arm of a comparison stands, in one line."""

from collections import Counter

from runner.report.comparisons import Standing
from runner.report.family import FEWEST_SEEDS
from runner.report.measures import Interval
from runner.report.statistics import LEVEL

_MOST_DIGITS = 4


def verdict_line(one: Standing, margin: float) -> str:
    """Say in one line how an arm stands.

    Args:
        one: the arm.
        margin: smallest difference that matters, 0..1.
    """
    limit, n = f"{100 * margin:g} points", _seeds(len(one.seeds))
    if one.reason == "failed":
        return f"{one.label} failed: {_failures(one)}"
    if one.mean is None:
        return f"{one.label}: {_failures(one) if one.failed else 'no seed yet'}"
    if one.verdict in ("helps", "hurts"):
        size, interval = abs(one.mean), one.interval
        if one.mean < 0 and interval is not None:
            interval = (-interval[1], -interval[0])
        digits = _digits(size, *(interval or ()))
        line = (
            f"{one.label} {one.verdict} by about {100 * size:.{digits}f} points"
            f"{_bracketed(interval, digits)} after {n}"
        )
        if one.p_margin is not None and one.p_margin < LEVEL:
            line += f", by less than the margin of {limit}"
        if one.is_early:
            line += "; stopped early: the size is probably overstated"
    elif one.verdict == "no difference":
        within = _bracketed(one.interval, _digits(*(one.interval or ())))
        line = f"{one.label}: no difference larger than {limit}{within} after {n}"
    else:
        line = _undecided(one, n)
    return f"{line}; {_failures(one)}" if one.failed else line


def _undecided(one: Standing, n: str) -> str:
    assert one.mean is not None
    digits = _digits(one.mean, *(one.interval or ()))
    interval = _bracketed(one.interval, digits)
    if one.is_open:
        so_far = f"{one.label}: {100 * one.mean:+.{digits}f} points{interval} so far, after {n}"
        return f"{so_far}; the budget is used up" if one.reason == "budget" else so_far
    line = f"{one.label}: cannot tell after {n}{interval}"
    if one.reason == "futile":
        more = one.max_seeds - len(one.seeds) - len(one.failed)
        others = _seeds(more) if more > 1 else "seed"
        return f"{line}; stopped early, because another {others} would probably not decide it"
    if one.max_seeds < FEWEST_SEEDS:
        return f"{line}: a verdict takes at least {FEWEST_SEEDS} seeds"
    return f"{line}: {one.max_seeds} seeds do not decide it"


def _failures(one: Standing) -> str:
    """The failed seeds of an arm, with the reason, such as ``1 of 5 seeds failed: …``."""
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


def _digits(*values: float) -> int:
    """Decimals of percentage points with which no value that is not zero looks like zero."""
    for digits in range(1, _MOST_DIGITS):
        if all(value == 0 or abs(100 * value) >= 0.5 * 10**-digits for value in values):
            return digits
    return _MOST_DIGITS


def _bracketed(interval: Interval | None, digits: int) -> str:
    if interval is None:
        return ""
    low, high = (f"{100 * end + 0.0:.{digits}f}" for end in interval)
    return f" [{low}, {high}]"
