"""When to stop adding seeds: verdicts of a comparison that is judged after each round of seeds.

Testing again after every few seeds at the 5 % level calls a useless change helpful or harmful in up
to 15 % of the comparisons. Here the looks are planned: at n = 3, 4, 5, 6, 8, 10, … seeds, up to a
maximum. The maximum and the arms are fixed before the first look. The look at n seeds tests at the
level .05 w(n), w(n) = c (n - 1) / (max - 1), so that early looks, which have few degrees of freedom
and little power, spend little of the level. With c, one arm's t-test over normal seeds errs in at
most 5 % of the comparisons over all of its looks together.

At each look, for every arm that is still open:

1. p_own comes from the arm alone, p_mod has the spread that the arms share
   (:func:`runner.report.family.moderated`). Closed arms stay in the pool as they were when they
   closed.
2. The arm's p-value is the smallest over its looks so far of p_mod / w(n), where p_own < .05 w(n);
   a look without that counts as 1. Without this guard, a volatile arm among calm ones would err
   in 10 to 15 %.
3. Holm's correction is over all arms of the start. A closed arm keeps its p-value, so what was
   rejected at an earlier look stays rejected, and the error holds for all arms and looks together.
4. The reported p-value is never below p_own / w(n) of the look at hand. Below .05, an arm helps or
   hurts by the sign of its mean; otherwise the same with the p-values of the margin says "no
   difference".
5. An arm that will reach either by the last look with a probability below 10 % is futile: it is
   closed as "cannot tell". The level does not rely on this: an arm that goes on errs no more often.
6. The interval at the stop has the confidence 1 - .05 w(n), so that it leaves out zero where an arm
   helps or hurts. The ordinary interval knows nothing of the choice of the moment.

Seeds whose training failed: the weight is that of the look, not of the number of pairs. Pairs that
are missing only make the looks of an arm more alike, which is safe. An arm with fewer than three
pairs makes no test and keeps its place in Holm's family, because pairs may still come.

An arm whose predictions equal the reference's on every image has no spread of its own to compare
with a floor; like an arm without others, its p_mod is its p_own. It is "no difference" if there are
enough images for the margin, and futile at once if not: seeds do not help.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Literal

from scipy.special import ndtri, stdtrit

from runner.report.family import (
    FEWEST_SEEDS,
    POWER,
    PRIOR,
    Moderated,
    Verdict,
    holm,
    moderated,
    probability_below,
    verdict,
)
from runner.report.statistics import LEVEL, Difference

LOOKS = (3, 4, 5, 6, 8, 10, 12, 16, 20)
"""Numbers of seeds after which a comparison is judged."""

FUTILE = 0.1
"""Probability of a verdict below which an arm gets no more seeds."""

_MOST_DEGREES = 200  # beyond these a t is normal

# The largest c that keeps the error of one arm at 5 % is .994 .709 .589 .518 .475 .491 .457 .459
# .429 .433 .413 .417 .423 .431 .412 .412 .415 .421 for a maximum of 3 to 20 (400,000 walks). These
# stay 1 to 7 % below. One look is no sequence, and has the whole level.
_LAST_WEIGHT = {
    3: 1.0, 4: 0.66, 5: 0.55, 6: 0.50, 7: 0.45, 8: 0.47, 9: 0.43, 10: 0.45, 11: 0.41,
    12: 0.43, 13: 0.40, 14: 0.40, 15: 0.41, 16: 0.42, 17: 0.40, 18: 0.40, 19: 0.40, 20: 0.40,
}  # fmt: skip


def looks(max_seeds: int) -> tuple[int, ...]:
    """Return the numbers of seeds at which a comparison of at most ``max_seeds`` is judged.

    Raises:
        ValueError: ``max_seeds`` is not in 3..20.
    """
    if max_seeds not in _LAST_WEIGHT:
        raise ValueError(f"need 3 to 20 seeds at most, got {max_seeds}")
    return (*(n for n in LOOKS if n < max_seeds), max_seeds)


def weight(n: int, max_seeds: int) -> float:
    """Return the part of the level, in 0..1, that the look at ``n`` seeds tests at.

    Raises:
        ValueError: no look of ``looks(max_seeds)`` has ``n`` seeds.
    """
    if n not in looks(max_seeds):
        raise ValueError(f"no look at {n} seeds, only at {looks(max_seeds)}")
    return _LAST_WEIGHT[max_seeds] * (n - 1) / (max_seeds - 1)


@dataclass(frozen=True)
class State:
    """One arm after a look.

    Attributes:
        verdict: "cannot tell" as long as the arm is open.
        is_open: whether the arm needs the seeds of the next look.
        reason: why the arm is closed: a verdict was reached; a verdict by the last look is
            improbable; the last look is over. Empty if it is open.
        n: seeds at the look that closed the arm, or at the last look so far.
        p_zero: p-value of no difference, corrected for arms and looks; compared with .05.
        p_margin: p-value of a difference of at least the margin, corrected likewise.
        interval: of the difference, at the look that closed the arm or the last so far, with the
            confidence 1 - .05 w(n); None without three pairs.
        is_early: whether the arm helps or hurts before the last look, so that its mean overstates
            the size of the effect.
    """

    verdict: Verdict
    is_open: bool
    reason: Literal["", "decided", "futile", "all seeds"]
    n: int
    p_zero: float
    p_margin: float
    interval: tuple[float, float] | None
    is_early: bool


@dataclass
class _Arm:
    """What an arm takes from look to look."""

    less_is_better: bool
    latest: Difference | None = None  # the last with three pairs
    q_zero: float = 1.0  # smallest p-values over the looks, before Holm
    q_margin: float = 1.0
    p_zero: float = 1.0  # and after Holm
    p_margin: float = 1.0
    closed: State | None = None

    def state(
        self, reason: Literal["", "decided", "futile", "all seeds"], n: int, max_seeds: int
    ) -> State:
        mean = self.latest.mean if self.latest else 0.0
        said = verdict(mean, self.p_zero, self.p_margin, less_is_better=self.less_is_better)
        confidence = 1 - LEVEL * weight(n, max_seeds)
        return State(
            verdict=said,
            is_open=not reason,
            reason=reason,
            n=n,
            p_zero=self.p_zero,
            p_margin=self.p_margin,
            interval=self.latest.interval(confidence) if self.latest else None,
            is_early=said in ("helps", "hurts") and n < max_seeds,
        )


def walk(
    found: Sequence[Sequence[Difference | None]],
    max_seeds: int,
    margin: float,
    *,
    less_is_better: bool = False,
) -> list[State]:
    """Replay the looks of a comparison; return the state of each arm after the last of them.

    The states after a look depend on nothing that comes later.

    Args:
        found: a row for each look so far, in the order of ``looks(max_seeds)``, with the difference
            of every arm of the start at that look. An arm makes no test where it has None, or fewer
            than three pairs of seeds. What an arm has after the look that closed it is ignored.
        max_seeds: seeds at the last look, 3..20, fixed before the first look.
        margin: smallest difference that matters, > 0, as for the differences.
        less_is_better: whether a negative difference is an improvement.

    Returns:
        One state per arm; none if there was no look yet.

    Raises:
        ValueError: ``max_seeds`` is out of range or has fewer looks, rows differ in length, or a
            difference has more pairs than its look has seeds.
    """
    plan = looks(max_seeds)
    if len(found) > len(plan):
        raise ValueError(f"{len(found)} looks, but {max_seeds} seeds have only {len(plan)}")
    if len({len(row) for row in found}) > 1:
        raise ValueError("every look needs an entry for each arm of the start")
    for n, row in zip(plan, found, strict=False):
        if any(one is not None and one.n > n for one in row):
            raise ValueError(f"an arm has more than {n} pairs at the look at {n} seeds")
    if not found:
        return []
    arms = [_Arm(less_is_better) for _ in found[0]]
    for n, row in zip(plan, found, strict=False):
        _look(arms, row, n, max_seeds, margin)
    last = plan[len(found) - 1]
    return [arm.closed or arm.state("", last, max_seeds) for arm in arms]


def _look(
    arms: Sequence[_Arm], row: Sequence[Difference | None], n: int, max_seeds: int, margin: float
) -> None:
    """Update ``arms`` by their differences at ``n`` seeds, and close those that need no more."""
    share = weight(n, max_seeds)
    for arm, now in zip(arms, row, strict=True):
        if arm.closed is None and now is not None and now.n >= FEWEST_SEEDS:
            arm.latest = now
    pool = [arm.latest for arm in arms if arm.latest is not None]
    spreads = iter(moderated(pool, margin))
    shared = [None if arm.latest is None else next(spreads) for arm in arms]
    for arm, spread, given in zip(arms, shared, row, strict=True):
        if spread is None or arm.latest is not given or arm.closed is not None:
            continue  # no test at this look
        own_zero, own_margin = _own(arm.latest)
        if own_zero < LEVEL * share:
            arm.q_zero = min(arm.q_zero, spread.p_zero / share)
        if own_margin < LEVEL * share:
            arm.q_margin = min(arm.q_margin, spread.p_margin / share)
    zero, equal = holm([arm.q_zero for arm in arms]), holm([arm.q_margin for arm in arms])
    undecided = []
    for arm, spread, p_zero, p_margin in zip(arms, shared, zero, equal, strict=True):
        if arm.closed is not None:
            continue
        own_zero, own_margin = _own(arm.latest)
        arm.p_zero = max(p_zero, min(1.0, own_zero / share))
        arm.p_margin = max(p_margin, min(1.0, own_margin / share))
        if min(arm.p_zero, arm.p_margin) < LEVEL:
            arm.closed = arm.state("decided", n, max_seeds)
        elif n == max_seeds:
            arm.closed = arm.state("all seeds", n, max_seeds)
        else:
            undecided.append((arm, spread))
    for arm, spread in undecided:
        if spread is not None and _is_futile(arm, spread, n, max_seeds, len(undecided), margin):
            arm.closed = arm.state("futile", n, max_seeds)


def _own(found: Difference | None) -> tuple[float, float]:
    """Return an arm's own p-values: of no difference, and of one of at least the margin."""
    if found is None or found.p_zero is None or found.p_margin is None:
        return 1.0, 1.0
    return found.p_zero, found.p_margin


def _is_futile(
    arm: _Arm, spread: Moderated, n: int, max_seeds: int, num_open: int, margin: float
) -> bool:
    """Return whether a verdict is improbable even at the last look, given mean and spread so far.

    Pairs that failed so far stay missing; those of the remaining seeds are expected.
    """
    assert arm.latest is not None
    mean, pairs, rest = arm.latest.mean, arm.latest.n, max_seeds - n
    moves = spread.deviation * sqrt(1 / pairs - 1 / (pairs + rest))
    error = sqrt(spread.deviation**2 / (pairs + rest) + arm.latest.image_error**2)
    degrees = min(spread.degrees + rest, _MOST_DEGREES)
    level = LEVEL * weight(max_seeds, max_seeds) / num_open
    far = -float(stdtrit(degrees, level / 2)) * error
    chance = probability_below(-far - mean, moves) + probability_below(mean - far, moves)
    room = margin + float(stdtrit(degrees, level)) * error
    if room > 0:
        chance += probability_below(room - mean, moves) - probability_below(-room - mean, moves)
    return chance < FUTILE


@dataclass(frozen=True)
class Design:
    """What a comparison can show, if seeds differ as much as usual.

    Attributes:
        effect: smallest true difference that is found with a probability of 80 %, 0..1.
        provable_margin: smallest margin for which a change without effect is called "no difference"
            with a probability of 80 %, 0..1. It is larger than
            :func:`runner.report.family.smallest_margin`, below which there is almost no chance.
        deviation: the standard deviation of one seed's difference that both assume, 0..1.
    """

    effect: float
    provable_margin: float
    deviation: float


def design(num_arms: int, num_images: int, max_seeds: int, *, is_fixed: bool) -> Design:
    """Plan a comparison before there are any data.

    The assumption is that of a usual change on a set of ``num_images``: two trainings differ by
    √(.36 + 621/N) points from seed to seed, and by √(135/N) points from one set of images to
    another. Short trainings may vary far more. The arm in question is the only one with a verdict,
    so that Holm's correction is for all arms.

    Args:
        num_arms: arms of the comparison, ≥ 1.
        num_images: validation images, ≥ 1.
        max_seeds: seeds at the last look, 3..20; for a fixed design, its seeds, ≥ 3.
        is_fixed: whether there is a single look, with the whole level.
    """
    deviation = sqrt(0.36 + 621 / num_images) / 100
    image_error = sqrt(135 / num_images) / 100
    share = 1.0 if is_fixed else weight(max_seeds, max_seeds)
    own = max_seeds - 1
    degrees = min(own + PRIOR, num_arms * own)
    error = sqrt(deviation**2 / max_seeds + image_error**2)
    level = LEVEL * share / num_arms
    far = max(-float(stdtrit(degrees, level / 2)), -float(stdtrit(own, LEVEL * share / 2)))
    room = max(-float(stdtrit(degrees, level)), -float(stdtrit(own, LEVEL * share)))
    return Design(
        effect=(far + float(ndtri(POWER))) * error,
        provable_margin=(room + float(ndtri((1 + POWER) / 2))) * error,
        deviation=deviation,
    )
