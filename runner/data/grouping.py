"""Groups of images that are alike, as all images of one patient: they stay together in a split."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runner.errors import DataError
from runner.randomness import generator
from runner.terminal.console import distinguishable, legible

_ATTEMPTS = 100  # starts that are tried if some class lacks a side
_FEW = 200  # groups; with more of them, the first start gives each class both sides if any does
_SHOWN = 10
_PARTS = ("training", "validation", "test")


def groups_by_pattern(pattern: str, paths: Sequence[str]) -> list[str]:
    """Return the group of each path: what the first parenthesis of ``pattern`` finds, or all of it.

    Args:
        pattern: a regular expression, which is searched in the path.
        paths: paths of images below the root, with slashes.

    Raises:
        DataError: some paths have no match, or an empty one; the message names them.
    """
    expression = re.compile(pattern)
    names = []
    for path in paths:
        match = expression.search(path.replace(os.sep, "/"))
        names.append("" if match is None else match[1 if expression.groups else 0] or "")
    if missing := [path for path, name in zip(paths, names, strict=True) if not name]:
        shown = "".join(f"\n  {name}" for name in distinguishable(missing[:_SHOWN]))
        more = f"\n  and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise DataError(
            f"{len(missing)} of {len(paths)} images have no group, because nothing in their path "
            f"matches:\n{shown[1:]}{more}",
            where=f"data.group_pattern={pattern}",
            fix="a pattern that matches the path of every image, as "
            """'data.group_pattern="([^/_]+)[^/]*$"', the name of the file up to its first _""",
        )
    return names


def numbered(names: Sequence[str], is_test: NDArray[np.bool_] | None) -> NDArray[np.int64]:
    """Number the names: those outside the test part first, so that they do not depend on it.

    Returns:
        (n,) int64.
    """
    used = names if is_test is None else np.array(names, dtype=object)[~is_test].tolist()
    first = sorted(set(used))
    number_of = {name: number for number, name in enumerate(first)}
    for name in sorted({*names} - {*first}):
        number_of[name] = len(number_of)
    return np.array([number_of[name] for name in names], np.int64)


def check_apart(
    names: Sequence[str],
    groups: NDArray[np.int64],
    parts: NDArray[np.int64],
    images: Sequence[str],
    where: str,
) -> None:
    """Raise if images of one group are in more than one part of a split.

    Args:
        names: n names of groups.
        groups: (n,) int64, their numbers.
        parts: (n,) int64; 0, 1 and 2 are training, validation and test.
        images: n names of images.
        where: the key that names the groups, with its value.
    """
    order = np.lexsort((parts, groups))
    crossings = (np.diff(groups[order]) == 0) & (np.diff(parts[order]) != 0)
    if not (places := np.flatnonzero(crossings)).size:
        return
    lines = []
    for place in places[:_SHOWN].tolist():
        one, other = int(order[place]), int(order[place + 1])
        first, second = distinguishable([images[one], images[other]])
        lines.append(
            f"  {legible(names[one])}: {first} in {_PARTS[int(parts[one])]}, "
            f"{second} in {_PARTS[int(parts[other])]}"
        )
    num_groups = len({*groups[order[places]].tolist()})
    if len(places) > _SHOWN:
        lines.append(f"  and {len(places) - _SHOWN} more")
    raise DataError(
        f"{num_groups} group{'s have' if num_groups > 1 else ' has'} images in more than one part "
        "of the split of the data:\n" + "\n".join(lines),
        where=where,
        fix="move the images of a group to one part, or let the split be drawn, from one folder "
        "per class or with data.split_column=null; without groups, verdicts take images of one "
        "group for independent",
    )


def check_both_sides(
    classes: Sequence[str],
    labels: NDArray[np.int64],
    names: Sequence[str],
    is_val: NDArray[np.bool_],
    where: str,
) -> None:
    """Raise if whole groups leave a class of several images without training or validation images.

    Args:
        classes: names, in the order of the labels.
        labels: (n,) int64.
        names: n names of groups.
        is_val: (n,) bool, the split that was drawn.
        where: the key that names the groups, with its value.
    """
    lines = []
    for label, name in enumerate(classes):
        members = np.flatnonzero(labels == label)
        if len(members) > 1 and is_val[members].all() | ~is_val[members].any():
            found = sorted({names[index] for index in members.tolist()})
            what = (
                f"are in one group, {legible(found[0])}"
                if len(found) == 1
                else f"are in {len(found)} groups, which are needed whole for other classes"
            )
            lines.append(f"  all {len(members)} images of {legible(name)} {what}")
    if lines:
        more = [f"  and {len(lines) - _SHOWN} more classes"] if len(lines) > _SHOWN else []
        raise DataError(
            "no split with whole groups has images of each class on both sides:\n"
            + "\n".join([*lines[:_SHOWN], *more]),
            where=where,
            fix="images of these classes from more groups, or remove the classes; if images of a "
            "group need not stay together: data.group_column=null data.group_pattern=null",
        )


def split_groups(
    labels: NDArray[np.int64], fraction: float, seed: int, groups: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Return which images are held out: whole groups, about ``fraction`` of each class.

    The groups come in an order drawn by keyed randomness. A group is held out if that takes no
    class beyond its share. After that, the group that improves the shares most changes sides,
    until no group improves them. The cost of shares is the sum over the classes of the squared
    difference of the held-out part from its share; a class that lacks a side counts more than all
    differences together. If a class still lacks a side, and groups are few, random halves are
    tried as further starts.

    Args:
        labels: (n,) int64, the class of each image.
        fraction: part of each class to hold out, in 0..1.
        seed: of the draw.
        groups: (n,) int64, the group of each image.

    Returns:
        (n,) bool, True for validation. A class of one image stays in training; every other class is
        on both sides, unless no such split was found.
    """
    _, label_of, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    _, group_of = np.unique(groups, return_inverse=True)
    shares = np.clip(np.rint(sizes * fraction), np.minimum(1, sizes - 1), sizes - 1)
    counts = _Counts.of(label_of, group_of, sizes, shares.astype(np.int64))
    best, least = np.zeros(len(counts.starts), dtype=bool), np.inf
    for attempt in range(_ATTEMPTS if len(counts.starts) <= _FEW else 1):
        draws = generator(seed, "split of groups", attempt)
        if attempt == 0:
            start = counts.filled(draws.permutation(len(counts.starts)))
        else:
            start = draws.random(len(counts.starts)) < 0.5
        held, cost = counts.improved(start)
        if cost < least:
            best, least = held, cost
        if least < counts.one_sided:
            break
    return best[group_of]


@dataclass(frozen=True)
class _Counts:
    """The images of each group by class: m entries, sorted by group.

    Attributes:
        group, label, count: (m,) int64; ``count`` images of the group have the label.
        starts: (G,) int64, the first entry of each group.
        sizes: (K,) int64, images of each class.
        shares: (K,) int64, images of each class to hold out.
    """

    group: NDArray[np.int64]
    label: NDArray[np.int64]
    count: NDArray[np.int64]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    shares: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        label_of: NDArray[np.int64],
        group_of: NDArray[np.int64],
        sizes: NDArray[np.int64],
        shares: NDArray[np.int64],
    ) -> "_Counts":
        """Count the images of each group and class."""
        pairs, count = np.unique(group_of * len(sizes) + label_of, return_counts=True)
        group, label = np.divmod(pairs, len(sizes))
        starts = np.searchsorted(group, np.arange(group[-1] + 1))
        return cls(group, label, count, starts, sizes, shares)

    @property
    def one_sided(self) -> float:
        """What a class that lacks a side costs: more than all others together could."""
        return len(self.sizes) + 1.0

    def filled(self, order: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Hold out each group in turn, if that takes no class beyond its share."""
        held = np.zeros(len(order), dtype=bool)
        left = self.shares.tolist()
        labels, counts = self.label.tolist(), self.count.tolist()
        ends = [*self.starts[1:].tolist(), len(labels)]
        for group in order.tolist():
            entries = range(self.starts[group], ends[group])
            if all(counts[entry] <= left[labels[entry]] for entry in entries):
                held[group] = True
                for entry in entries:
                    left[labels[entry]] -= counts[entry]
        return held

    def improved(self, held: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], float]:
        """Move the group whose move helps most, until no move helps; and what remains as cost."""
        held = held.copy()
        while True:
            moved = np.where(held[self.group], -self.count, self.count)
            weights = (self.count * held[self.group]).astype(np.float64)
            taken = np.bincount(self.label, weights=weights, minlength=len(self.sizes))
            now = self._cost(taken, slice(None))
            change = self._cost(taken[self.label] + moved, self.label) - now[self.label]
            by_group = np.add.reduceat(change, self.starts)
            best = int(by_group.argmin())
            if by_group[best] > -1e-9:
                return held, float(now.sum())
            held[best] = not held[best]

    def _cost(
        self, taken: NDArray[np.number], label: NDArray[np.int64] | slice
    ) -> NDArray[np.float64]:
        """Return what it costs to hold out ``taken`` images of each class in ``label``."""
        sizes, shares = self.sizes[label], self.shares[label]
        lacks = (taken == sizes) | ((taken == 0) & (sizes > 1))
        cost: NDArray[np.float64] = ((taken - shares) / sizes) ** 2 + self.one_sided * lacks
        return cost
