"""Groups of images that are alike, as all images of one patient: they stay together in a split."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runner.randomness import generator

_ATTEMPTS = 100  # orders of the groups that are tried if some class lacks a side


def split_groups(
    labels: NDArray[np.int64], fraction: float, seed: int, groups: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Which images are held out: whole groups, about ``fraction`` of each class.

    The groups come in an order drawn by keyed randomness. A group is held out if that takes no
    class beyond its share. After that, the one group that brings the shares closest changes sides,
    until no group brings them closer. Closeness is the sum over the classes of the squared
    difference of the held-out part from its share; a class that lacks a side counts more than all
    differences together. As long as some class lacks a side, other orders are tried.

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
    for attempt in range(_ATTEMPTS):
        order = generator(seed, "split of groups", attempt).permutation(len(counts.starts))
        held, cost = counts.improved(counts.filled(order))
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
        """What it costs to hold out ``taken`` images of each class in ``label``."""
        sizes, shares = self.sizes[label], self.shares[label]
        lacks = (taken == sizes) | ((taken == 0) & (sizes > 1))
        cost: NDArray[np.float64] = ((taken - shares) / sizes) ** 2 + self.one_sided * lacks
        return cost
