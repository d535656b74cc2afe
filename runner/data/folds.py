"""Cross-validation folds: parts of a data set, each of which is the validation part of one run.

``data.num_folds=5 data.fold=0`` trains on four fifths of the images and validates on the first
fifth, so that the runs of ``data.fold=range(5)`` together predict every image once. Folds are drawn
by keyed randomness that does not depend on the seed of a run: runs of all seeds have the same.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runner.config.schema import Data
from runner.data.listing import few_names, note_single_images, stratified_split
from runner.errors import DataError
from runner.randomness import generator

_ROUNDING = 1e-12  # of a sum of products of parts of 1


@dataclass(frozen=True)
class Folds:
    """Which fold of a data set the validation split is.

    Attributes:
        num_folds: number of folds, ≥ 2.
        fold: the fold that is the validation split, in 0..num_folds-1.
        fingerprint: hash of the contents and labels of all images in order, and of the number of
            folds; equal for all folds of one data set.
    """

    num_folds: int
    fold: int
    fingerprint: str


def stratified_folds(
    labels: NDArray[np.int64],
    num_folds: int,
    seed: int,
    groups: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Assign each image to one fold, by keyed randomness.

    Without groups, the numbers of images of a class differ by at most one between folds, and so do
    the numbers of all images. Images of one group are in one fold: the groups, largest first, go
    one after the other to the fold that has the smallest part of their classes so far, and of
    several such folds to the one with the fewest images.

    Args:
        labels: (n,) label of each image, in 0..K-1.
        num_folds: number of folds, ≥ 2.
        seed: seed of the draw.
        groups: (n,) group of each image; None if every image is a group of its own.

    Returns:
        (n,) int64 in 0..num_folds-1.
    """
    if groups is not None:
        _, groups = np.unique(groups, return_inverse=True)
        if len(groups) > groups.max(initial=-1) + 1:
            return _folds_of_groups(labels, num_folds, seed, groups)
    folds = np.zeros(len(labels), np.int64)
    start = 0
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order = generator(seed, "folds", int(label)).permutation(len(members))
        folds[members[order]] = (start + np.arange(len(members))) % num_folds
        start += len(members)  # so that the remainders of all classes are spread over the folds
    return folds


def _folds_of_groups(
    labels: NDArray[np.int64], num_folds: int, seed: int, groups: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the folds of images in groups, which are numbered from 0."""
    num_groups, num_classes = int(groups.max()) + 1, int(labels.max()) + 1
    # Entries for the classes of each group alone: groups × classes would not fit into memory.
    pairs, counts = np.unique(groups * num_classes + labels, return_counts=True)
    group_of, label_of = np.divmod(pairs, num_classes)
    parts = counts / np.bincount(labels)[label_of]  # of each class
    starts = np.searchsorted(group_of, np.arange(num_groups + 1)).tolist()
    largest = np.maximum.reduceat(parts, starts[:-1])
    sizes = np.bincount(groups).tolist()
    drawn = generator(seed, "folds").permutation(num_groups)
    largest_first = drawn[np.argsort(-largest[drawn], kind="stable")]
    held = np.zeros((num_classes, num_folds))
    num_images = np.zeros(num_folds, np.int64)
    fold_of = np.zeros(num_groups, np.int64)
    for group in largest_first.tolist():
        entries = slice(starts[group], starts[group + 1])
        own, part = label_of[entries], parts[entries]
        # The growth of the sum of squares, which is smallest for equal parts.
        growth = part @ held[own]
        alike = np.flatnonzero(growth <= growth.min() + _ROUNDING)
        chosen = int(alike[np.argmin(num_images[alike])])
        fold_of[group] = chosen
        held[own, chosen] += part
        num_images[chosen] += sizes[group]
    return fold_of[groups]


def drawn_split(
    data: Data,
    classes: tuple[str, ...],
    labels: NDArray[np.int64],
    seed: int,
    groups: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    """Draw the validation part of data that has none: a fold, or a part of each class.

    Args:
        data: the ``data`` group of the configuration.
        classes: the names of the classes, in the order of the labels.
        labels: (n,) label of each image.
        seed: seed of the draw.
        groups: (n,) group of each image; None if every image is a group of its own.

    Returns:
        (n,) bool, True for validation; and what the user should know, a sentence each.

    Raises:
        DataError: a fold would have no images, or a class would have no training images.
    """
    if data.num_folds is not None:
        return _fold(data, data.num_folds, classes, labels, seed, groups)
    is_val = stratified_split(labels, data.val_fraction, seed, groups)
    return is_val, note_single_images(classes, labels)


def refuse_folds(data: Data, found: str) -> None:
    """Raise DataError if folds are requested of data that has a validation part of its own.

    Args:
        data: the ``data`` group of the configuration.
        found: what the validation part is, such as ``the folder val``.
    """
    if data.num_folds is not None:
        raise DataError(
            f"the data has a split of its own ({found}), so its images are not divided into folds",
            where=f"data.num_folds={data.num_folds} data.root={data.root}",
            fix="data.num_folds=null; or data without a validation part, all of which is divided",
        )


def _fold(
    data: Data,
    num_folds: int,
    classes: tuple[str, ...],
    labels: NDArray[np.int64],
    seed: int,
    groups: NDArray[np.int64] | None,
) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    """Return the fold that ``data`` names; check all folds, so that no later job fails."""
    folds = stratified_folds(labels, num_folds, seed, groups)
    where = f"data.num_folds={num_folds} data.root={data.root}"
    parts = np.zeros((num_folds, len(classes)), np.int64)
    np.add.at(parts, (folds, labels), 1)
    if num_empty := int((parts.sum(axis=1) == 0).sum()):
        what = f"{len(labels)} images" if groups is None else f"{len(np.unique(groups))} groups"
        more = "more images" if groups is None else "images of more groups"
        fewer = num_folds - num_empty
        raise DataError(
            f"{num_empty} of {num_folds} folds would have no images: there are {what}",
            where=where,
            fix=f"data.num_folds={fewer}, or {more}" if fewer >= 2 else f"{more}, or no folds",
        )
    alone = (parts == parts.sum(axis=0)).any(axis=0)  # all images of a class are in one fold
    if unlearnt := [name for name, is_alone in zip(classes, alone, strict=True) if is_alone]:
        reason = "one image" if groups is None else "images in one fold"
        raise DataError(
            f"{few_names(unlearnt)}: {reason} only, so there would be none to train on when that "
            "fold is the validation part",
            where=where,
            fix="more images of these classes"
            + ("" if groups is None else ", in more groups")
            + ", or remove the classes",
        )
    rare = [name for name, part in zip(classes, parts.T, strict=True) if (part == 0).any()]
    notes = (f"some folds have no validation images of {few_names(rare)}",) if rare else ()
    return folds == data.fold, notes
