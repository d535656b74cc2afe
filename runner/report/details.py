"""Details of the page beyond the verdicts: calibration, confusion, images, values of a key."""

import base64
import io
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runner.records.validation_images import ValidationImages
from runner.report.factors import Factor, Factors, code_name
from runner.report.groups import Arm, RunGroup, group_runs
from runner.report.runs import FinishedRun, content_with_digest
from runner.report.statistics import t_interval

_LARGEST = 1e300  # a whole number in another's file may be larger than any float
_NUM_BINS = 10
_NUM_CONFUSED = 12  # images that most runs get wrong in the same way
_NUM_IMAGES = 36  # with others, so that every arm and the classes have some
_THUMBNAIL = 72  # px
_LONGEST_CODE = 20_000  # characters
_MOST_CLASSES = 20  # a larger confusion matrix is summarized by its largest entries

FloatArray = NDArray[np.floating[Any]]
SeriesPoint = tuple[float, float, float, float]
"""A value, with the mean accuracy and the two ends of its interval, 0..1."""


@dataclass(frozen=True)
class Confusion:
    """Predictions by class, over all seeds of an arm.

    Attributes:
        label: label of the arm.
        classes: names of the classes.
        shares: (K, K), for each true class (row) the part of its images that got each prediction
            (column); NaN in the row of a class without images. None for more than 20 classes.
        largest: the most frequent mistakes: true class, predicted class, share.
    """

    label: str
    classes: tuple[str, ...]
    shares: FloatArray | None
    largest: tuple[tuple[str, str, float], ...]


@dataclass(frozen=True)
class Confused:
    """A validation image that most runs get wrong in the same way.

    Attributes:
        name: name of the image.
        true: class of the image.
        predicted: the wrong class that is predicted most often.
        wrong: number of runs that predict it.
        total: number of runs.
        confidence: mean probability of ``predicted`` in these ``wrong`` runs.
        by_arm: for each arm, the number of its runs that do not predict ``true``, and of all.
        picture: ``data:`` address of a thumbnail; None if the image is not on this machine.
    """

    name: str
    true: str
    predicted: str
    wrong: int
    total: int
    confidence: float
    by_arm: tuple[tuple[int, int], ...]
    picture: str | None


@dataclass(frozen=True)
class Misclassified:
    """The misclassified images of a group.

    Attributes:
        total: number of images that at least one run gets wrong.
        arms: labels of the arms.
        images: those that are shown, the most confused first.
    """

    total: int
    arms: tuple[str, ...]
    images: tuple[Confused, ...]

    @property
    def classes(self) -> list[str]:
        """Classes of the images that are shown, in alphabetical order."""
        return sorted({image.true for image in self.images})


@dataclass(frozen=True)
class Series:
    """Accuracy against the values of one key, over groups that are equal in all other keys.

    Attributes:
        key: the dotted key.
        title: the values that the groups share, as text.
        lines: for each arm, values with mean accuracy and 95 % interval (the mean for one seed).
    """

    key: str
    title: str
    lines: Mapping[str, Sequence[SeriesPoint]]


@dataclass(frozen=True)
class _Seen:
    """The most probable output of every prediction of a run, which is all that figures need.

    Attributes:
        labels: (N,) int64.
        predicted: (N,) most probable output, by view.
        confidence: (N,) probability of that output, by view.
    """

    labels: NDArray[np.int64]
    predicted: Mapping[str, NDArray[np.int64]]
    confidence: Mapping[str, NDArray[np.float32]]


def _seen(run: FinishedRun) -> _Seen:
    found = run.predictions()
    return _Seen(
        found.labels,
        {view: probabilities.argmax(axis=1) for view, probabilities in found.views.items()},
        {view: probabilities.max(axis=1) for view, probabilities in found.views.items()},
    )


class GroupDetails:
    """Reads the predictions of a group's runs once, one after the other.

    Raises:
        ArtefactError: the predictions of a run can no longer be read.
    """

    def __init__(self, group: RunGroup) -> None:
        self._group = group
        self._classes = group.any_run.classes
        runs = {run.identity: run for arm in group.arms for run in arm.runs.values()}
        self._seen = {identity: _seen(run) for identity, run in runs.items()}

    def _pooled(self, arm: Arm) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """Labels, predictions and confidences of all seeds of an arm, one after the other."""
        seen, view = [self._seen[run.identity] for run in arm.runs.values()], arm.view
        return (
            np.concatenate([one.labels for one in seen]),
            np.concatenate([one.predicted[view] for one in seen]),
            np.concatenate([one.confidence[view] for one in seen]),
        )

    def reliability(self) -> dict[str, tuple[FloatArray, FloatArray]]:
        """For each arm, mean confidence and accuracy in ten bins of equally many predictions."""
        found = {}
        for arm in self._group.arms:
            labels, predicted, confidence = self._pooled(arm)
            order = np.argsort(confidence, kind="stable")
            bins = [part for part in np.array_split(order, _NUM_BINS) if len(part)]
            found[arm.label] = (
                np.array([confidence[part].mean() for part in bins]),
                np.array([(predicted[part] == labels[part]).mean() for part in bins]),
            )
        return found

    def confusions(self) -> list[Confusion]:
        """Return the confusion of each arm."""
        return [self._confusion(arm) for arm in self._group.arms]

    def _confusion(self, arm: Arm) -> Confusion:
        labels, predicted, _ = self._pooled(arm)
        num_classes = len(self._classes)
        is_named = predicted < num_classes  # a network may have more outputs than there are classes
        pairs = labels[is_named] * num_classes + predicted[is_named]
        counts = np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
        totals = np.bincount(labels, minlength=num_classes)[:, None]
        shares = np.divide(counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0)
        mistakes = np.where(np.eye(num_classes, dtype=bool) | np.isnan(shares), 0.0, shares)
        order = np.argsort(-mistakes, axis=None, kind="stable")[:10]
        largest = tuple(
            (self._classes[true], self._classes[taken], float(mistakes[true, taken]))
            for true, taken in zip(*np.unravel_index(order, mistakes.shape), strict=True)
            if mistakes[true, taken] > 0
        )
        is_small = num_classes <= _MOST_CLASSES
        return Confusion(arm.label, self._classes, shares if is_small else None, largest)

    def misclassified(self) -> Misclassified:
        """The images for which the most runs predict the same wrong class in the plain view.

        With them come images that an arm, or the runs on images of a class, get wrong most often.
        """
        num_classes = len(self._classes)
        runs = [
            self._seen[run.identity]
            for arm in self._group.arms
            if arm.view == "plain"
            for run in arm.runs.values()
        ]
        labels = runs[0].labels
        predicted = np.stack([run.predicted["plain"] for run in runs])
        confidence = np.stack([run.confidence["plain"] for run in runs])
        is_mistake = (predicted != labels) & (predicted < num_classes)
        # A mistake is an image with a wrong class. Count the runs that make each mistake, and
        # average their confidence.
        keys = (np.arange(len(labels)) * num_classes + predicted)[is_mistake]
        mistakes, members, wrong = np.unique(keys, return_inverse=True, return_counts=True)
        surely = np.bincount(members, weights=confidence[is_mistake]) / np.maximum(wrong, 1)
        images, taken = np.divmod(mistakes, num_classes)
        order = np.lexsort((images, -surely, -wrong))
        _, first = np.unique(images[order], return_index=True)  # the worst mistake of each image
        ranked = order[np.sort(first)]
        by_arm = np.stack([self._wrong(arm) for arm in self._group.arms])
        sizes = [len(arm.runs) for arm in self._group.arms]
        pictures = Pictures(self._group.any_run)
        return Misclassified(
            total=len(ranked),
            arms=tuple(arm.label for arm in self._group.arms),
            images=tuple(
                Confused(
                    name=pictures.name(int(images[place])),
                    true=self._classes[labels[images[place]]],
                    predicted=self._classes[taken[place]],
                    wrong=int(wrong[place]),
                    total=len(runs),
                    confidence=float(surely[place]),
                    by_arm=tuple(zip(map(int, by_arm[:, images[place]]), sizes, strict=True)),
                    picture=pictures.thumbnail(int(images[place])),
                )
                for place in ranked[
                    _chosen(by_arm[:, images[ranked]], sizes, labels[images[ranked]])
                ]
            ),
        )

    def _wrong(self, arm: Arm) -> NDArray[np.int64]:
        """For each image, the number of an arm's runs that do not predict its class, (N,)."""
        seen = [self._seen[run.identity] for run in arm.runs.values()]
        found: NDArray[np.int64] = np.sum(
            [one.predicted[arm.view] != one.labels for one in seen], axis=0
        )
        return found


def _chosen(
    by_arm: NDArray[np.int64], sizes: Sequence[int], labels: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Choose images to show: the first, then in turn the next one of each arm and class.

    Those of an arm come in the order of how much more often the arm gets them wrong than all arms.

    Args:
        by_arm: (A, M) number of runs of each arm that get each image wrong; the worst image first.
        sizes: number of runs of each arm.
        labels: (M,) class of each image.

    Returns:
        At most 36 places in 0..M-1, ascending.
    """
    chosen = dict.fromkeys(range(min(_NUM_CONFUSED, len(labels))))
    shares = by_arm / np.array(sizes)[:, None]
    excess = shares - shares.mean(axis=0)
    classes, first, counts = np.unique(labels, return_index=True, return_counts=True)
    queues = [np.argsort(-more, kind="stable")[: int((more > 0).sum())] for more in excess]
    queues += [np.flatnonzero(labels == classes[k]) for k in np.lexsort((first, -counts))]
    for turn in range(_NUM_IMAGES):
        for queue in queues:
            if turn < len(queue) and len(chosen) < _NUM_IMAGES:
                chosen[int(queue[turn])] = None
    return np.array(sorted(chosen), dtype=np.int64)


class Pictures:
    """The validation images of a run as thumbnails, if its data is still at hand and unchanged.

    Nothing is downloaded or unpacked for a report.
    """

    def __init__(self, run: FinishedRun) -> None:
        self._images = ValidationImages(run.path, run.config["data"], run.num_val)

    def name(self, row: int) -> str:
        """Return the name of a validation image."""
        return self._images.name(row)

    def thumbnail(self, row: int) -> str | None:
        """Return a small JPEG as a ``data:`` URL; None if the image is missing or was changed."""
        image = self._images.image(row)
        if image is None:
            return None
        image.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BILINEAR)
        content = io.BytesIO()
        image.save(content, "JPEG", quality=80)
        return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


@dataclass(frozen=True)
class CodeCopy:
    """The file of ``code=FILE`` that some of the compared runs were trained with.

    Attributes:
        name: name of the file in the report.
        sha256: SHA-256 of its content.
        text: content of the copy in a run's folder, to be read; None if no run has a copy with
            that hash.
    """

    name: str
    sha256: str
    text: str | None


def find_codes(groups: Sequence[RunGroup]) -> list[CodeCopy]:
    """Return the files of the user's own code among the compared runs, each once."""
    found: dict[str, CodeCopy] = {}
    for arm in (arm for group in groups for arm in group.arms):
        for run in arm.runs.values():
            digest = run.values.get("code")
            known = found.get(str(digest))
            if digest is not None and (known is None or known.text is None):
                text = _copied_code(run, str(digest))
                found[str(digest)] = CodeCopy(code_name(arm.look), str(digest), text)
    return sorted(found.values(), key=lambda code: (code.name, code.sha256))


def _copied_code(run: FinishedRun, digest: str) -> str | None:
    """Return the beginning of a run's copy of the code, if its SHA-256 is ``digest``."""
    content = content_with_digest(run.path / "code.py", digest)
    if content is None:
        return None
    text = content.decode(errors="replace")
    return text if len(text) <= _LONGEST_CODE else f"{text[:_LONGEST_CODE]}\n…"


def find_series(groups: Sequence[RunGroup], by: Sequence[str] = ()) -> list[Series]:
    """Find the keys whose number differs between groups that are otherwise equal.

    Args:
        groups: the groups of the report.
        by: keys by which runs are compared; groups that differ only in one of them count as well.
    """
    found = []
    for key in dict.fromkeys(key for group in groups for key in group.differs):
        found += _series_of(key, groups)
    runs = {run.path: run for group in groups for arm in group.arms for run in arm.runs.values()}
    for key in by if groups else ():
        others = tuple(factor for factor in groups[0].factors.all if factor.name != key)
        factors = Factors(others, apart=Factor(key))
        found += _series_of(key, group_runs(runs.values(), factors))
    return found


def _series_of(key: str, groups: Sequence[RunGroup]) -> list[Series]:
    if key == "fingerprint":
        return []
    clusters: dict[str, list[RunGroup]] = defaultdict(list)
    for group in groups:
        value = group.values.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and value < _LARGEST:
            ignored = {key, "fingerprint"} if key.startswith("data.") else {key}
            rest = {name: item for name, item in group.values.items() if name not in ignored}
            clusters[json.dumps(rest, sort_keys=True)].append(group)
    return [_series(key, members) for members in clusters.values() if len(members) > 1]


def _series(key: str, groups: Sequence[RunGroup]) -> Series:
    lines: dict[str, list[SeriesPoint]] = defaultdict(list)
    for group in sorted(groups, key=lambda group: float(group.values[key])):
        for arm in group.arms:
            accuracies = list(arm.metric("accuracy").values())
            mean = float(np.mean(accuracies))
            low, high = t_interval(accuracies) or (mean, mean)
            lines[arm.label].append((float(group.values[key]), mean, low, high))
    titled = {"fingerprint", "data.name", "model.name", key}
    others = [
        groups[0].code if name == "code" else f"{name}={value}"
        for name, value in groups[0].differs.items()
        if name not in titled
    ]
    names = [str(groups[0].values.get(name)) for name in ("data.name", "model.name")]
    return Series(key, " · ".join([*names, *others]), lines)
