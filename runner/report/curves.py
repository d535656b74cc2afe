"""Validation accuracy against epochs, seconds and pixels, and which arm is ahead when."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from runner.report.groups import Arm

AXES = ("epoch", "seconds", "pixels")

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """The mean accuracy over the seeds, with the lowest and the highest seed.

    Attributes:
        x: (E,) position of each epoch's end on the axis; the median, because machines are shared.
        mean: (E,) mean accuracy, 0..1.
        low: (E,) accuracy of the worst seed.
        high: (E,) accuracy of the best seed.
    """

    x: FloatArray
    mean: FloatArray
    low: FloatArray
    high: FloatArray


@dataclass(frozen=True)
class Lead:
    """How an arm compares with its reference along an axis.

    Attributes:
        course: ``ahead`` or ``behind`` all the way, ``overtakes`` or ``falls behind`` if that is
            the last change, ``level`` without a difference.
        at: position of the last change; None without a change.
    """

    course: Literal["ahead", "behind", "overtakes", "falls behind", "level"]
    at: float | None


def curve(arm: Arm, axis: str, seeds: Sequence[int] | None = None) -> Curve | None:
    """Return the curve of an arm's training; None if the seeds have no epoch in common."""
    chosen = [arm.runs[seed] for seed in (arm.runs if seeds is None else seeds)]
    rows = [run.epochs for run in chosen if run.epochs]
    if not rows:
        return None
    common = set.intersection(*({epoch["epoch"] for epoch in row} for row in rows))
    if not common:
        return None
    rows = [[epoch for epoch in row if epoch["epoch"] in common] for row in rows]
    x = np.array([[epoch[axis] for epoch in row] for row in rows])
    y = np.array([[epoch["val_accuracy"] for epoch in row] for row in rows])
    return Curve(np.median(x, axis=0), y.mean(axis=0), y.min(axis=0), y.max(axis=0))


def leads(arm: Arm, reference: Arm) -> dict[str, Lead]:
    """Compare the mean of an arm with that of a reference, over common seeds, on each axis."""
    seeds = sorted(set(arm.runs) & set(reference.runs))
    found = {}
    for axis in AXES:
        ours, theirs = curve(arm, axis, seeds), curve(reference, axis, seeds)
        lead = _lead(ours, theirs) if ours and theirs else None
        if lead is not None:
            found[axis] = lead
    return found


def _lead(ours: Curve, theirs: Curve) -> Lead | None:
    """Compare by straight lines between epochs; None if the curves share no part of the axis."""
    first, last = max(ours.x[0], theirs.x[0]), min(ours.x[-1], theirs.x[-1])
    if first > last:
        return None
    grid = np.unique(np.concatenate([ours.x, theirs.x, [first, last]]))
    grid = grid[(grid >= first) & (grid <= last)]
    if len(grid) < 2:  # with rare evaluations, a single common point is not a course
        return None
    gap = np.interp(grid, ours.x, ours.mean) - np.interp(grid, theirs.x, theirs.mean)
    signs = np.sign(gap)
    ends = np.flatnonzero(signs)
    if len(ends) == 0:
        return Lead("level", None)
    changes = [(before, after) for before, after in pairwise(ends) if signs[before] != signs[after]]
    final = signs[ends[-1]] > 0
    if not changes:
        return Lead("ahead" if final else "behind", None)
    _, after = changes[-1]
    start = after - 1  # level since ``before``, unless that is the point right before
    part = gap[start] / (gap[start] - gap[after])
    at = float(grid[start] + part * (grid[after] - grid[start]))
    return Lead("overtakes" if final else "falls behind", at)
