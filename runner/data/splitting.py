"""The split of a listing: drawn, or that of the data; and groups, which a split keeps whole."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from runner.config.schema import Data
from runner.data.folds import drawn_split, refuse_folds
from runner.data.grouping import check_apart, check_both_sides, numbered
from runner.data.listing import Listing, check_same_classes


def with_split(
    listing: Listing,
    data: Data,
    split_seed: int,
    *,
    own: str | None,
    group_names: Sequence[str] | None,
    where: str,
) -> Listing:
    """Add a split, groups, and notes on both to ``listing``.

    Args:
        listing: images, labels and test part; ``is_val`` counts if the data has a split of its own.
        data: the ``data`` group of the configuration.
        split_seed: seed of a split that is drawn.
        own: what the validation part of the data is, such as ``the folder val``; None if validation
            images are drawn from all that are not test images.
        group_names: the group of each image; None if the data names none.
        where: the place of the data, for messages.

    Raises:
        DataError: classes are missing in training, folds are requested of data that has a split, or
            groups contradict the split.
    """
    pool = np.ones(len(listing.labels), bool) if listing.is_test is None else ~listing.is_test
    labels, is_val, notes = listing.labels[pool], listing.is_val.copy(), listing.notes
    groups = None if group_names is None else numbered(group_names, listing.is_test)
    pooled = None if groups is None else groups[pool]
    if own is None:
        if not pool.all():
            notes += ("there is no validation part, so it is drawn from the training part",)
        is_val[pool], more = drawn_split(data, listing.classes, labels, split_seed, pooled)
        notes += more
    else:
        refuse_folds(data, own)
        notes += check_same_classes(listing.classes, labels, is_val[pool], where)
    if group_names is not None and groups is not None:
        key = f"data.group_column={data.group_column}"
        if data.group_pattern is not None:
            key = f"data.group_pattern={data.group_pattern}"
        if own is None and data.num_folds is None:
            names = [name for name, used in zip(group_names, pool, strict=True) if used]
            check_both_sides(listing.classes, labels, names, is_val[pool], f"{key} ({where})")
        images = [listing.images.name(index) for index in range(len(groups))]
        check_apart(group_names, groups, np.where(pool, is_val, 2), images, f"{key} ({where})")
        notes += _note_groups(groups[pool])
    return replace(listing, is_val=is_val, groups=groups, notes=notes)


def _note_groups(groups: NDArray[np.int64]) -> tuple[str, ...]:
    count = len(np.unique(groups))
    if count == len(groups):
        return (
            f"each of the {count:,} images is a group of its own, so the groups change nothing",
        )
    return (
        f"the {len(groups):,} images are of {count:,} groups, which the split does not part; the "
        "interval of this run's accuracy takes images for independent, verdicts do not",
    )
