"""Scores: which validation images each run has right, saved so that a second report is quick.

Unpacking a run's predictions takes a millisecond or more, which is too slow for a thousand runs. So
one file below ``cache`` holds one bit per image: whether the prediction is right. All runs on the
same data share the groups of images, so these are in the file once.
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
from runner.report.runs import VIEWS, FinishedRun, StoredPredictions
from runner.training.metrics import auroc, balanced_accuracy, macro_f1

_NEWER = {"balanced_accuracy": balanced_accuracy, "macro_f1": macro_f1, "auroc": auroc}
_FORMAT = 3


@dataclass(frozen=True)
class Scores:
    """Which predictions of one run are right.

    Attributes:
        labels: hash of the labels; equal for runs on the same images in the same order.
        correct: (N,) bool, whether each prediction is right, by view.
        groups: (N,) int64, the group of each image; None if every image is a group of its own.
        grouping: hash of ``groups``; empty without groups.
    """

    labels: str
    correct: Mapping[str, NDArray[np.bool_]]
    groups: NDArray[np.int64] | None = None
    grouping: str = ""


class ScoreBook:
    """The scores of runs, saved in a file.

    Args:
        path: path of the file, which need not exist. If it cannot be written, nothing is lost.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamps: dict[str, list[Any]] = {}
        self._bits: dict[str, NDArray[np.uint8]] = {}
        self._groups: dict[str, NDArray[np.int64]] = {}  # by their hash
        self._metrics: dict[str, dict[str, dict[str, float | None]]] = {}  # by identity and view
        self._read: dict[tuple[Path, str], Scores] = {}
        self._is_changed = False
        with suppress(Exception):  # a damaged cache is made again
            self._load()

    def scores(self, run: FinishedRun) -> Scores:
        """The scores of a run.

        Raises:
            ArtefactError: the predictions of the run cannot be read.
        """
        key = (run.path, run.identity)  # a copy of a run may have been changed
        if key not in self._read:
            self._read[key] = self._scores(run)
        return self._read[key]

    def completed(self, run: FinishedRun) -> FinishedRun:
        """The run with each of ``METRICS``; those that it did not record are computed once.

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

    def _scores(self, run: FinishedRun) -> Scores:
        stamp = self._stamp(run)
        remembered = self._stamps.get(run.identity)
        is_known = run.has_all_metrics or run.identity in self._metrics
        if remembered is None or remembered[:-2] != stamp or not is_known:
            predictions = run.predictions()
            if not run.has_all_metrics:
                self._metrics[run.identity] = {
                    view: _newer_metrics(run, predictions, view) for view in VIEWS
                }
            grouping = ""
            if predictions.groups is not None:
                grouping = _digest(predictions.groups)
                self._groups[grouping] = predictions.groups
            rows = np.stack([predictions.correct(view) for view in VIEWS])
            remembered = [*stamp, _digest(predictions.labels), grouping]
            self._stamps[run.identity] = remembered
            self._bits[run.identity] = np.packbits(rows, axis=1)
            self._is_changed = True
        rows = np.unpackbits(self._bits[run.identity], axis=1, count=run.num_val).astype(bool)
        labels, grouping = remembered[-2:]
        correct = dict(zip(VIEWS, rows, strict=True))
        return Scores(labels, correct, self._groups[grouping] if grouping else None, grouping)

    def save(self) -> None:
        """Write the file if there are new scores; do nothing if it cannot be written."""
        if not self._is_changed:
            return
        used = {stamp[-1] for stamp in self._stamps.values()}
        groups = {name: found for name, found in self._groups.items() if name in used}
        index = {
            "format": _FORMAT,
            "stamps": self._stamps,
            "groups": {name: len(found) for name, found in groups.items()},
            "metrics": self._metrics,
        }
        content = io.BytesIO()
        np.savez(
            content,
            index=np.frombuffer(json.dumps(index).encode(), np.uint8),
            bits=np.concatenate([self._bits[identity].ravel() for identity in self._stamps]),
            groups=np.concatenate([np.zeros(0, np.int64), *groups.values()]),
        )
        with suppress(StorageError):
            replace_whole(self._path, content.getvalue())

    def _load(self) -> None:
        file = read_npz(self._path, ("index", "bits", "groups"))
        index, bits = fields.parsed(file["index"].tobytes()), file["bits"]
        if index["format"] != _FORMAT or bits.dtype != np.uint8:
            return
        groups: dict[str, NDArray[np.int64]] = {}
        start = 0
        for name in index["groups"]:
            end = start + fields.whole(index["groups"], name)
            groups[name] = file["groups"][start:end]
            if _digest(groups[name]) != name:
                return
            start = end
        found: dict[str, NDArray[np.uint8]] = {}
        start = 0
        for identity, stamp in index["stamps"].items():
            width = -(-fields.whole({"images": stamp[0]}, "images") // 8)
            end = start + len(VIEWS) * width
            found[identity] = bits[start:end].reshape(len(VIEWS), width)
            start = end
            if stamp[-1] and len(groups[stamp[-1]]) != stamp[0]:
                return
        metrics = {
            identity: {view: _newer_from(fields.section(views, view)) for view in VIEWS}
            for identity, views in fields.section(index, "metrics").items()
        }
        # All or, after an error, none.
        self._stamps, self._bits, self._groups = index["stamps"], found, groups
        self._metrics = metrics

    @staticmethod
    def _stamp(run: FinishedRun) -> list[Any]:
        stamp = [run.num_val]
        for path in evaluations.prediction_files(RunFolder(run.path), run.evaluation):
            try:
                status = path.stat()
            except OSError:
                stamp += [0, 0]
            else:
                stamp += [status.st_size, status.st_mtime_ns]
        return stamp


def _newer_metrics(
    run: FinishedRun, predictions: StoredPredictions, view: str
) -> dict[str, float | None]:
    """The metrics that runs of earlier versions did not record.

    Raises:
        ArtefactError: the predictions are not probabilities.
    """
    probabilities, labels = predictions.views[view], predictions.labels
    try:
        return {name: compute(probabilities, labels) for name, compute in _NEWER.items()}
    except ValueError as error:
        raise ArtefactError(f"cannot compute metrics: {error}", where=str(run.path)) from error


def _newer_from(found: Mapping[str, Any]) -> dict[str, float | None]:
    """The same from a file.

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
