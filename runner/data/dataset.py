"""A data set ready to train on: checked images, a split with its manifest, a fingerprint."""

import csv
import gzip
import hashlib
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from runner.config.schema import Data
from runner.data.depth import BITS, Chosen, Depth, UnknownDepthError, choose
from runner.data.folds import Folds
from runner.data.images import Images, typical_size
from runner.data.listing import Listing
from runner.data.preprocess import Interpolation
from runner.data.sources import list_images
from runner.data.store import (
    Progress,
    Store,
    StreamedStore,
    Survey,
    content_digests,
    deep_values,
    open_store,
)
from runner.errors import DataError
from runner.machine.hardware import num_cores
from runner.terminal.console import distinguishable
from runner.terminal.tables import inert

_SPLIT_SEED = 0  # one split for all seeds of an experiment, so that their differences are paired
_SHOWN = 10


@dataclass(frozen=True)
class Split:
    """Part of a data set.

    Attributes:
        indices: (n,) int64 into the store.
        labels: (n,) int64 in 0..K-1.
        groups: (n,) int64, the group of each image: images of one group are alike, as frames of one
            film, and count as one draw when a difference is judged. None if every image is a group
            of its own.
    """

    indices: NDArray[np.int64]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True)
class Dataset:
    """Images, labels and split, and what was found while reading them.

    Attributes:
        name: the name of the data set.
        classes: K names in the order of the labels.
        store: the pixels.
        train: training split.
        val: validation split.
        presize: short side of the stored images, px.
        fingerprint: hash of every training and validation image's content, split and label, and of
            which of them are a group, if the data names groups.
        manifest: rows of (split, image, label, SHA-256 of the content).
        skipped: broken images that were left out, each with its reason.
        converted: number of images by the color mode they were converted from.
        leaked: for each validation image that is in training too, that image there and itself.
        num_ignored: files that are not images.
        notes: what the user should know, one sentence each.
        max_aspect: longest long side of the stored images, as a multiple of the short one.
        interpolation: how the stored images were resized.
        depth: the rule for images of more than 8 bits per channel.
        is_deep: whether the data set has such images.
        test: the test part of the data, if :func:`load_dataset` was called with ``with_test``; its
            indices are into ``test_store``. None otherwise, or if the data has none.
        test_store: the pixels of ``test``.
        test_fingerprint: hash of the content and label of every test image; ``fingerprint`` does
            not depend on test images.
        test_leaked: for each test image that is in training or validation too, that image there and
            itself.
        test_manifest: rows of ``manifest`` for the test images.
        folds: which fold the validation split is; None if the data is not divided into folds.
    """

    name: str
    classes: tuple[str, ...]
    store: Store
    train: Split
    val: Split
    presize: int
    fingerprint: str
    manifest: tuple[tuple[str, str, str, str], ...]
    skipped: tuple[tuple[str, str], ...]
    converted: dict[str, int]
    leaked: tuple[tuple[str, str], ...]
    num_ignored: int
    notes: tuple[str, ...]
    max_aspect: float = Data.max_aspect
    interpolation: Interpolation = "bilinear"
    depth: Depth = BITS
    is_deep: bool = False
    test: Split | None = None
    test_store: Store | None = None
    test_fingerprint: str | None = None
    test_leaked: tuple[tuple[str, str], ...] = ()
    test_manifest: tuple[tuple[str, str, str, str], ...] = ()
    folds: Folds | None = None

    def on_test(self) -> "Dataset":
        """Return the data set with its test part in place of the validation part, for evaluation.

        The fingerprint is still that of the training and validation images, which identifies the
        runs of the data.
        """
        assert self.test is not None
        assert self.test_store is not None
        return replace(
            self,
            val=self.test,
            store=self.test_store,
            leaked=self.test_leaked,
            manifest=self.test_manifest,
        )

    @property
    def pool_fingerprint(self) -> str | None:
        """Fingerprint of the data without its split, equal for all folds; None without folds."""
        return None if self.folds is None else self.folds.fingerprint

    @property
    def val_places(self) -> NDArray[np.int64]:
        """(n,) the place of each validation image among all images, in the order of the data."""
        return np.searchsorted(_in_order(self.train, self.val), self.val.indices)

    @property
    def is_streamed(self) -> bool:
        """Whether images are decoded each time they are needed."""
        return isinstance(self.store, StreamedStore)

    def num_workers(self, requested: int | None, cores_shared_by: int = 1) -> int:
        """Return the number of processes that read ahead: ``requested``, or one per core to decode.

        On macOS, none by default: its libraries may crash in a process that was forked.

        Args:
            requested: the number that the user has chosen, if any.
            cores_shared_by: how many processes of the run share the cores of this machine.
        """
        if requested is not None:
            return requested
        if sys.platform == "darwin" or not self.is_streamed:
            return 0
        return max(1, num_cores() // cores_shared_by)

    def resolved(self, data: Data) -> Data:
        """Return ``data`` with the rule chosen for deep images; the default rule if it has none."""
        if self.depth.window is not None:
            return replace(data, depth="auto", window=self.depth.window)
        rule = self.depth.rule if self.is_deep else "auto"
        return replace(data, depth=cast("Literal['auto', 'bits', 'legacy']", rule))

    @cached_property
    def manifest_csv(self) -> bytes:
        """The manifest as gzipped CSV, equal bytes for equal manifests.

        It has a column ``group`` if the data names groups.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        columns = ["split", "image", "label", "sha256"]
        rows: list[tuple[str, ...]] = [*self.manifest]
        if self.train.groups is not None and self.val.groups is not None:
            columns = [*columns, "group"]
            groups = [*self.train.groups.tolist(), *self.val.groups.tolist()]
            rows = [(*row, str(group)) for row, group in zip(rows, groups, strict=True)]
        writer.writerow(columns)
        writer.writerows([inert(cell) for cell in row] for row in rows)
        return gzip.compress(text.getvalue().encode(errors="backslashreplace"), mtime=0)


def load_dataset(
    data: Data, size: int, cache: Path, progress: Progress, *, with_test: bool = False
) -> Dataset:
    """List, check, decode and split the data set that ``data`` names.

    Args:
        data: the ``data`` group of the configuration.
        size: largest size in training and evaluation, px; images are stored at twice that size if
            they are that large.
        cache: folder of downloads and decoded images.
        progress: called with the progress of the work.
        with_test: whether to read the test part, too, if the data has one. All else is equal
            with and without the test part.

    Raises:
        DataError: images are broken, classes are missing, or images are in both splits; the
            message names them.
    """
    listing, test = list_images(data, cache, _SPLIT_SEED, progress).parts()
    short_side, aspect = typical_size(listing.images, data.max_aspect)
    presize = data.presize or min(2 * size, short_side or 2 * size)
    interpolation = data.interpolation or "bilinear"
    digests = content_digests(listing.images, cache, progress)
    chosen = _depth(listing, data, digests, cache, progress)
    space = 3 * len(digests) * aspect * presize**2

    def opened(images: Images, digests: list[str]) -> tuple[Store, Survey]:
        return open_store(
            images,
            digests,
            cache,
            presize=presize,
            max_aspect=data.max_aspect,
            interpolation=interpolation,
            depth=chosen.depth,
            cached=space <= data.cache_gb * 1e9,
            progress=progress,
        )

    store, survey = opened(listing.images, digests)
    skipped = _skipped(listing, survey, data)
    is_good = _readable(listing, survey)
    train, val = (_split(listing, side & is_good) for side in (~listing.is_val, listing.is_val))
    _check_not_empty(listing, train, val, data)
    leaked = _leaks((listing, digests, train), (listing, digests, val))
    if leaked and data.on_leak == "error":
        raise _leaked_images(
            leaked, f"{len(leaked)} of {len(val)} validation images are in training"
        )
    manifest = (
        *_manifest("train", listing, digests, train),
        *_manifest("val", listing, digests, val),
    )
    dataset = Dataset(
        name=listing.name,
        classes=listing.classes,
        store=store,
        train=train,
        val=val,
        presize=presize,
        fingerprint=_fingerprint(manifest, (train, val)),
        manifest=manifest,
        skipped=skipped,
        converted=survey.converted,
        leaked=leaked,
        num_ignored=listing.num_ignored,
        notes=(*listing.notes, *chosen.notes),
        max_aspect=data.max_aspect,
        interpolation=interpolation,
        depth=chosen.depth,
        is_deep=chosen.is_deep,
        folds=_folds(data, listing, digests, train, val),
    )
    if test is None or not with_test:
        return dataset
    test_digests = content_digests(test.images, cache, progress)
    test_store, survey = opened(test.images, test_digests)
    more_skipped = _skipped(test, survey, data)
    tested = _split(test, _readable(test, survey))
    if len(tested) == 0:
        raise DataError(
            "all test images are broken", where=f"data.root={data.root}", fix="repair them"
        )
    used = _split(listing, np.ones(len(listing.labels), dtype=bool))
    leaked = _leaks((listing, digests, used), (test, test_digests, tested))
    if leaked and data.on_leak == "error":
        what = f"{len(leaked)} of {len(tested)} test images are in training or validation"
        raise _leaked_images(leaked, what)
    manifest = _manifest("test", test, test_digests, tested)
    return replace(
        dataset,
        test=tested,
        test_store=test_store,
        test_fingerprint=_fingerprint(manifest, (tested,)),
        test_leaked=leaked,
        test_manifest=manifest,
        skipped=(*skipped, *more_skipped),
    )


def no_test_part(data: Data) -> DataError:
    """Return the error for data without a test part, which a command needs."""
    return DataError(
        "the data has no test part",
        where=f"data={data.name} data.root={data.root}",
        fix="a folder test next to train, or rows with test in data.split_column, of images that "
        "are in neither training nor validation",
    )


def _skipped(listing: Listing, survey: Survey, data: Data) -> tuple[tuple[str, str], ...]:
    """Return the broken images, each with its reason; an error if they are not to be left out."""
    skipped = tuple(
        (listing.images.name(index), reason) for index, reason in sorted(survey.broken.items())
    )
    if skipped and data.on_corrupt == "error":
        raise _broken_images(skipped, data)
    return skipped


def _readable(listing: Listing, survey: Survey) -> NDArray[np.bool_]:
    """Return which images of the listing are not broken, (n,)."""
    is_good = np.ones(len(listing.labels), dtype=bool)
    is_good[list(survey.broken)] = False
    return is_good


def _manifest(
    name: str, listing: Listing, digests: list[str], part: Split
) -> tuple[tuple[str, str, str, str], ...]:
    """Return rows of (``name``, image, label, SHA-256 of the content)."""
    return tuple(
        (name, listing.images.name(index), listing.classes[listing.labels[index]], digests[index])
        for index in part.indices.tolist()
    )


def _depth(
    listing: Listing, data: Data, digests: list[str], cache: Path, progress: Progress
) -> Chosen:
    """Choose the rule for images of more than 8 bits from the values of the training images."""
    deep, num_others = deep_values(listing.images, digests, cache, progress)
    window = None if data.window is None else (data.window[0], data.window[1])
    training = np.flatnonzero(~listing.is_val).tolist()
    try:
        return choose(data.depth, window, deep, training, num_others)
    except UnknownDepthError as error:
        raise DataError(
            error.what, where=f"data.root={data.root} data.depth={data.depth}", fix=error.fix
        ) from error


def _split(listing: Listing, members: NDArray[np.bool_]) -> Split:
    indices = np.flatnonzero(members)
    groups = None if listing.groups is None else listing.groups[indices]
    return Split(indices, listing.labels[indices], groups)


def _fingerprint(manifest: tuple[tuple[str, str, str, str], ...], parts: Sequence[Split]) -> str:
    """Hash contents, labels, split and groups, in order; not the paths, which may change.

    Groups are numbered by their first image, so their names do not matter.
    """
    digest = hashlib.sha256()
    for split, _, label, content in manifest:
        digest.update(f"{split}\0{label}\0{content}\n".encode(errors="surrogateescape"))
    numbers = [part.groups for part in parts if part.groups is not None]
    if numbers:
        number_of: dict[int, int] = {}
        for group in np.concatenate(numbers).tolist():
            digest.update(f"{number_of.setdefault(group, len(number_of))}\n".encode())
    return digest.hexdigest()


def _in_order(train: Split, val: Split) -> NDArray[np.int64]:
    """Return the indices of all images of both parts, in the order of the data."""
    return np.sort(np.concatenate([train.indices, val.indices]))


def _folds(
    data: Data, listing: Listing, digests: list[str], train: Split, val: Split
) -> Folds | None:
    """Return which fold the data is, with the hash that all folds share."""
    if data.num_folds is None:
        return None
    digest = hashlib.sha256(f"{data.num_folds}\n".encode())
    for index in _in_order(train, val).tolist():
        group = "" if listing.groups is None else listing.groups[index]
        line = f"{listing.classes[listing.labels[index]]}\0{digests[index]}\0{group}\n"
        digest.update(line.encode(errors="surrogateescape"))
    return Folds(data.num_folds, data.fold, digest.hexdigest())


def _broken_images(broken: tuple[tuple[str, str], ...], data: Data) -> DataError:
    names = distinguishable([name for name, _ in broken[:_SHOWN]])
    lines = [f"  {name}: {reason}" for name, (_, reason) in zip(names, broken, strict=False)]
    if len(broken) > _SHOWN:
        lines.append(f"  and {len(broken) - _SHOWN} more")
    return DataError(
        f"{len(broken)} broken image{'s' * (len(broken) > 1)}:\n" + "\n".join(lines),
        where=f"data.root={data.root}",
        fix="repair or remove them, or data.on_corrupt=skip to leave them out",
    )


def _check_not_empty(listing: Listing, train: Split, val: Split, data: Data) -> None:
    where = f"data={data.name} data.root={data.root}"
    for part, name in ((train, "training"), (val, "validation")):
        if len(part) == 0:
            raise DataError(f"no {name} images", where=where, fix="add images")
    if unlearnt := set(val.labels.tolist()) - set(train.labels.tolist()):
        names = ", ".join(listing.classes[label] for label in sorted(unlearnt)[:_SHOWN])
        raise DataError(
            f"all training images of {names} are broken",
            where=where,
            fix="repair them, or remove the class",
        )
    if len(listing.classes) < 2:
        raise DataError(
            f"only one class, {listing.classes[0]}: nothing to tell apart",
            where=where,
            fix="data.root=PATH of a folder with a folder per class",
        )


def _leaks(
    seen: tuple[Listing, list[str], Split], held: tuple[Listing, list[str], Split]
) -> tuple[tuple[str, str], ...]:
    """Return each image of ``held`` that is in ``seen`` too, after its first equal there.

    Each of the two is a listing, the digests of its images, and a split of it.
    """
    listing, digests, split = seen
    first: dict[str, int] = {}
    for index in split.indices.tolist():
        first.setdefault(digests[index], index)
    first.pop("", None)  # unreadable images
    others, their_digests, part = held
    return tuple(
        (listing.images.name(first[their_digests[index]]), others.images.name(index))
        for index in part.indices.tolist()
        if their_digests[index] in first
    )


def _leaked_images(leaked: tuple[tuple[str, str], ...], what: str) -> DataError:
    pairs = "\n".join("  " + " = ".join(distinguishable(pair)) for pair in leaked[:_SHOWN])
    return DataError(
        f"{what} too:\n{pairs}",
        where="data.on_leak=error",
        fix="remove one of each, or data.on_leak=warn",
    )
