"""Scores: which validation images each run has right, saved so that a second report is quick.

Unpacking a run's predictions takes a millisecond or more, which is too slow for a thousand runs. So
one file below ``cache`` holds one bit per image: whether the prediction is right. All runs on the
same data share the labels and the groups of images, so these are in the file once. For each other
metric that was asked for, the file has what :class:`~runner.report.measured.Measured` needs: a
float32 per image, or a float64 per resample.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runner.errors import ArtefactError, StorageError
from runner.machine import fields
from runner.machine.arrays import read_npz
from runner.machine.files import replace_whole
from runner.records import evaluations
from runner.records.run_folder import RunFolder
from runner.report.measured import NUM_RESAMPLES, Images, Measured, measured, of_scores
from runner.report.metric import Metric
from runner.report.runs import VIEWS, FinishedRun, StoredPredictions
from runner.training.metrics import (
    auroc,
    balanced_accuracy,
    expected_calibration_error,
    macro_f1,
)

# Of earlier runs, and the last of folds together, none of which follows from those of each fold.
_NEWER = {
    "balanced_accuracy": balanced_accuracy,
    "macro_f1": macro_f1,
    "auroc": auroc,
    "ece": expected_calibration_error,
}
_FORMAT = 5
_OF_BITS = ("accuracy", "balanced_accuracy")
"""Metrics that need nothing but which images are right."""


@dataclass(frozen=True)
class Scores:
    """Which predictions of one run are right.

    Attributes:
        labels: hash of the labels; equal for runs on the same images in the same order.
        correct: (N,) bool, whether each prediction is right, by view.
        images: the classes and groups of the images.
        grouping: hash of the groups; empty without groups.
    """

    labels: str
    correct: Mapping[str, NDArray[np.bool_]]
    images: Images
    grouping: str = ""

    @property
    def groups(self) -> NDArray[np.int64] | None:
        """(N,) the group of each image; None if every image is a group of its own."""
        return self.images.groups


class ScoreBook:
    """The scores of runs, saved in a file.

    Args:
        path: path of the file, which need not exist. If it cannot be written, nothing is lost.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamps: dict[str, list[Any]] = {}
        self._bits: dict[str, NDArray[np.uint8]] = {}
        self._names: dict[str, NDArray[np.int64]] = {}  # labels and groups by their hash
        self._parts: dict[_Key, NDArray[Any]] = {}
        self._metrics: dict[str, dict[str, dict[str, float | None]]] = {}  # by identity and view
        self._read: dict[tuple[Path, str], Scores] = {}
        self._measured: dict[tuple[Path, str, str, str], Measured] = {}
        self._last: tuple[FinishedRun, StoredPredictions] | None = None
        self._folds: dict[str, NDArray[np.int64] | None] = {}  # by the fingerprint of the data
        self._is_changed = False
        with suppress(Exception):  # a damaged cache is made again
            self._load()

    def scores(self, run: FinishedRun) -> Scores:
        """Return the scores of a run.

        Raises:
            ArtefactError: the predictions of the run cannot be read.
        """
        key = (run.path, run.identity)  # a copy of a run may have been changed
        if key not in self._read:
            self._read[key] = self._scores(run)
        return self._read[key]

    def completed(self, run: FinishedRun) -> FinishedRun:
        """Return the run with each of ``METRICS``; those that it did not record are computed once.

        Raises:
            ArtefactError: the predictions of the run cannot be read.
        """
        if run.has_all_metrics:
            return run
        self.scores(run)
        metrics = {
            view: {
                **{
                    name: float("nan") if value is None else value
                    for name, value in self._metrics[run.identity][view].items()
                },
                **recorded,
            }
            for view, recorded in run.metrics.items()
        }
        return replace(run, metrics=metrics)

    def measured(self, run: FinishedRun, view: str, metric: Metric) -> Measured:
        """Return a metric of one view of a run.

        Raises:
            ArtefactError: the predictions of the run cannot be read.
        """
        place = (run.path, run.identity, view, metric.name)
        if place not in self._measured:
            self._measured[place] = self._measure(run, view, metric)
        return self._measured[place]

    def _measure(self, run: FinishedRun, view: str, metric: Metric) -> Measured:
        if metric.name in _OF_BITS:
            scores = self.scores(run)
            correct = scores.correct[view]
            return of_scores(metric, correct, correct, scores.images.classes)
        scores = self._scores(run)  # whose parts are those of this very copy of the run
        correct, images = scores.correct[view], scores.images
        key = (run.identity, view, metric.name)
        if key not in self._parts:
            found = measured(metric, self._views(run)[view], images.classes, images.groups)
            is_mean = metric.kind == "images"
            self._parts[key] = found.parts if is_mean else np.append(found.parts, found.value)
            self._is_changed = True
        parts = self._parts[key]
        if metric.kind == "images":
            return of_scores(metric, correct, parts, None)
        of_folds = tuple(self.measured(part, view, metric).value for part in run.parts)
        return Measured(float(parts[-1]), correct, parts[:-1], of_folds)

    def _views(self, run: FinishedRun) -> Mapping[str, NDArray[np.float32]]:
        """Return the probabilities of a run; those of the last one are kept, for its other view."""
        if self._last is None or self._last[0] is not run:
            self._last = (run, run.predictions())
        return self._last[1].views

    def _scores(self, run: FinishedRun) -> Scores:
        stamp = self._stamp(run)
        remembered = self._stamps.get(run.identity)
        is_known = run.has_all_metrics or run.identity in self._metrics
        if remembered is None or remembered[:-2] != stamp or not is_known:
            predictions = run.predictions()
            self._last = (run, predictions)
            labels, grouping = self._named(predictions.labels), ""
            if not run.has_all_metrics:
                self._metrics[run.identity] = {
                    view: _newer_metrics(run, predictions, view) for view in VIEWS
                }
            if predictions.groups is not None:
                grouping = self._named(predictions.groups)
            rows = np.stack([predictions.correct(view) for view in VIEWS])
            remembered = [*stamp, labels, grouping]
            self._stamps[run.identity] = remembered
            self._bits[run.identity] = np.packbits(rows, axis=1)
            for key in [key for key in self._parts if key[0] == run.identity]:
                del self._parts[key]
            self._is_changed = True
        rows = np.unpackbits(self._bits[run.identity], axis=1, count=run.num_val).astype(bool)
        labels, grouping = remembered[-2:]
        correct = dict(zip(VIEWS, rows, strict=True))
        groups = self._names[grouping] if grouping else None
        images = Images(self._names[labels], groups, self._folds_of(run))
        return Scores(labels, correct, images, grouping)

    def _folds_of(self, run: FinishedRun) -> NDArray[np.int64] | None:
        """Return the fold of each image; equal for all runs of all folds of one data set."""
        if not run.parts:
            return None
        if run.fingerprint not in self._folds:
            self._folds[run.fingerprint] = run.predictions().folds
        return self._folds[run.fingerprint]

    def _named(self, numbers: NDArray[np.int64]) -> str:
        """Keep labels or groups; return their hash."""
        name = _digest(numbers)
        self._names[name] = numbers
        return name

    def save(self) -> None:
        """Write the file if there are new scores; do nothing if it cannot be written."""
        if not self._is_changed:
            return
        used = {name for stamp in self._stamps.values() for name in stamp[-2:]}
        names = {name: found for name, found in self._names.items() if name in used}
        parts = {kind: _of_kind(self._parts, kind) for kind in _KINDS}
        arrays: dict[str, Any] = {
            kind: np.concatenate([np.zeros(0, kind), *(found for _, found in parts[kind])])
            for kind in _KINDS
        }
        index = {
            "format": _FORMAT,
            "stamps": self._stamps,
            "metrics": self._metrics,
            "names": {name: len(found) for name, found in names.items()},
            **{kind: [[*key, len(found)] for key, found in parts[kind]] for kind in _KINDS},
        }
        content = io.BytesIO()
        np.savez(
            content,
            index=np.frombuffer(json.dumps(index).encode(), np.uint8),
            bits=np.concatenate([self._bits[identity].ravel() for identity in self._stamps]),
            names=np.concatenate([np.zeros(0, np.int64), *names.values()]),
            **arrays,
        )
        with suppress(StorageError):
            replace_whole(self._path, content.getvalue())

    def _load(self) -> None:
        file = read_npz(self._path, ("index", "bits", "names", *_KINDS))
        index, bits = fields.parsed(file["index"].tobytes()), file["bits"]
        if index["format"] != _FORMAT or bits.dtype != np.uint8:
            return
        names: dict[str, NDArray[np.int64]] = {}
        start = 0
        for name in index["names"]:
            end = start + fields.whole(index["names"], name)
            names[name] = file["names"][start:end]
            if _digest(names[name]) != name:
                return
            start = end
        found: dict[str, NDArray[np.uint8]] = {}
        start = 0
        for identity, stamp in index["stamps"].items():
            width = -(-fields.whole({"images": stamp[0]}, "images") // 8)
            end = start + len(VIEWS) * width
            found[identity] = bits[start:end].reshape(len(VIEWS), width)
            start = end
            if any(len(names[name]) != stamp[0] for name in stamp[-2:] if name):
                return
        metrics = {
            identity: {view: _newer_from(fields.section(views, view)) for view in VIEWS}
            for identity, views in fields.section(index, "metrics").items()
        }
        parts: dict[_Key, NDArray[Any]] = {}
        for kind in _KINDS:
            start = 0
            for identity, view, metric, length in index[kind]:
                end = start + fields.whole({"length": length}, "length")
                one = file[kind][start:end]
                start = end
                wanted = index["stamps"][identity][0] if kind == "f4" else NUM_RESAMPLES + 1
                if one.dtype != kind or len(one) != wanted or not np.isfinite(one).all():
                    return
                parts[identity, view, metric] = one
        # All or, after an error, none.
        self._stamps, self._bits, self._names = index["stamps"], found, names
        self._parts = parts
        self._metrics = metrics

    @staticmethod
    def _stamp(run: FinishedRun) -> list[Any]:
        stamp = [run.num_val]
        files = (
            path
            for one in run.parts or (run,)
            for path in evaluations.prediction_files(RunFolder(one.path), one.evaluation)
        )
        for path in files:
            try:
                status = path.stat()
            except OSError:
                stamp += [0, 0]
            else:
                stamp += [status.st_size, status.st_mtime_ns]
        return stamp


_Key = tuple[str, str, str]
"""Identity of a run, view and name of a metric."""
_KINDS = ("f4", "f8")
"""Types of what is saved for a metric: a score per image; its values on resampled images."""


def _of_kind(parts: Mapping[_Key, NDArray[Any]], kind: str) -> list[tuple[_Key, NDArray[Any]]]:
    """Return the parts of one type, without those that are undefined, which no cache may have."""
    return [
        (key, found)
        for key, found in parts.items()
        if found.dtype == kind and np.isfinite(found).all()
    ]


def _newer_metrics(
    run: FinishedRun, predictions: StoredPredictions, view: str
) -> dict[str, float | None]:
    """Return the metrics that runs of earlier versions did not record.

    Raises:
        ArtefactError: the predictions are not probabilities.
    """
    probabilities, labels = predictions.views[view], predictions.labels
    try:
        return {name: compute(probabilities, labels) for name, compute in _NEWER.items()}
    except ValueError as error:
        raise ArtefactError(f"cannot compute metrics: {error}", where=str(run.path)) from error


def _newer_from(found: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the same from a file.

    Raises:
        ValueError: a metric is missing or impossible.
    """
    return {
        name: None
        if fields.value(found, name) is None
        else float(fields.number(found, name, at_least=0, at_most=1))
        for name in _NEWER
    }


def _digest(numbers: NDArray[np.int64]) -> str:
    return hashlib.sha256(numbers.tobytes()).hexdigest()[:16]
