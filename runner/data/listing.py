"""A data set before its images are opened: which images, which labels, which split."""

import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from runner.data.grouping import split_groups
from runner.data.images import Images
from runner.errors import DataError
from runner.randomness import generator


@dataclass(frozen=True)
class Listing:
    """Images with their labels and split, in a fixed order.

    Attributes:
        name: the name of the data set.
        classes: names, in the order of the labels.
        images: the n images.
        labels: (n,) int64 in 0..len(classes)-1; in the training split possibly noisy on purpose.
        is_val: (n,) bool, True for validation.
        num_ignored: files that are not images, such as Thumbs.db.
        notes: what the user should know, one sentence each.
        groups: (n,) int64, the group of each image, such as the patient or the film that it is of;
            None if every image is a group of its own.
        is_test: (n,) bool, True for images of the data's test part, which are neither
            training nor validation; None if there is no test part.
    """

    name: str
    classes: tuple[str, ...]
    images: Images
    labels: NDArray[np.int64]
    is_val: NDArray[np.bool_]
    num_ignored: int = 0
    notes: tuple[str, ...] = ()
    groups: NDArray[np.int64] | None = None
    is_test: NDArray[np.bool_] | None = None

    def parts(self) -> tuple["Listing", "Listing | None"]:
        """Return the listing of the training and validation images, and that of the test images.

        The first listing is the one that the data would have without its test part.
        """
        if self.is_test is None:
            return self, None
        return self._only(~self.is_test), self._only(self.is_test)

    def _only(self, members: NDArray[np.bool_]) -> "Listing":
        return replace(
            self,
            images=self.images.subset(np.flatnonzero(members)),
            labels=self.labels[members],
            is_val=self.is_val[members],
            groups=None if self.groups is None else self.groups[members],
            is_test=None,
        )


def stratified_split(
    labels: NDArray[np.int64],
    fraction: float,
    seed: int,
    groups: NDArray[np.int64] | None = None,
) -> NDArray[np.bool_]:
    """Return which images are held out: ``fraction`` of each class, drawn by keyed randomness.

    A class of one image stays in training; every other class has images on both sides.

    Args:
        labels: (n,) int64, the class of each image.
        fraction: part of each class to hold out, in 0..1.
        seed: of the draw.
        groups: (n,) int64, the group of each image: a group is held out whole or not at all, and
            the fractions are as close as whole groups allow; see
            :func:`runner.data.grouping.split_groups`. None: each image is drawn for itself.

    Returns:
        (n,) bool, True for validation.
    """
    if groups is not None:
        return split_groups(labels, fraction, seed, groups)
    is_val = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        wanted = round(len(members) * fraction)
        count = min(max(wanted, 1), len(members) - 1)
        chosen = generator(seed, "split", int(label)).permutation(len(members))[:count]
        is_val[members[chosen]] = True
    return is_val


def note_single_images(classes: tuple[str, ...], labels: NDArray[np.int64]) -> tuple[str, ...]:
    """Return a note on the classes that have no image in the validation split that was drawn."""
    counts = np.bincount(labels, minlength=len(classes))
    single = [name for name, count in zip(classes, counts, strict=True) if count == 1]
    return (
        (f"{few_names(single)}: one image only, which stays in the training split",)
        if single
        else ()
    )


def note_similar_classes(classes: tuple[str, ...]) -> tuple[str, ...]:
    """Notes on classes that a person may take for one: other case, spaces, Unicode form, zeros."""
    alike: dict[str, list[str]] = {}
    for name in classes:
        plain = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
        with suppress(ValueError):
            plain = repr(float(plain))
        alike.setdefault(plain, []).append(name)
    groups = [" and ".join(map(spelled, same)) for same in alike.values() if len(same) > 1]
    return (
        (f"these are different classes, because their names differ: {few_names(groups)}",)
        if groups
        else ()
    )


def spelled(name: str) -> str:
    """Quote ``name``, so that spaces are visible; escape letters that look alike."""
    return repr(name) if name.isascii() else ascii(name)


def check_same_classes(
    classes: tuple[str, ...], labels: NDArray[np.int64], is_val: NDArray[np.bool_], where: str
) -> tuple[str, ...]:
    """Refuse classes without training images; return a note on those without validation images."""
    trained, validated = set(labels[~is_val].tolist()), set(labels[is_val].tolist())
    if unlearnt := [name for label, name in enumerate(classes) if label not in trained]:
        raise DataError(
            f"in validation but not in training: {few_names(unlearnt)}",
            where=where,
            fix="add training images of these classes or remove them from validation",
        )
    missing = [name for label, name in enumerate(classes) if label not in validated]
    return (f"no validation images of {few_names(missing)}",) if missing else ()


def few_names(names: list[str], limit: int = 10) -> str:
    """Return the first ``limit`` of ``names``, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def note_test_part(count: int, where: str) -> str:
    """Return a note on the images of a test part; ``where`` is their folder or rows."""
    return f"{count:,} test images ({where}) stay apart: no training and no verdict uses them"


def is_test_part(names: Sequence[str], classes: Sequence[str], where: str) -> bool:
    """Return whether test images have labels.

    Args:
        names: the class of each test image.
        classes: names of the classes of training and validation.
        where: the place of the data, for messages.

    Returns:
        False if there are none, or none is of a known class, as if their labels are withheld.

    Raises:
        DataError: some classes are known, and some are not.
    """
    unknown = sorted({*names} - {*classes})
    if unknown and {*names} & {*classes}:
        raise DataError(
            f"in test but not in training: {few_names(unknown)}",
            where=where,
            fix="add training images of these classes or remove them from the test part",
        )
    return bool(names) and not unknown
