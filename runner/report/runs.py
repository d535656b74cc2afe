"""Reading run folders for the report, also while runs are written and among other files."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from runner.errors import ArtefactError, DataError
from runner.machine import fields
from runner.machine.files import read_whole
from runner.records import evaluations
from runner.records.identity import NEUTRAL, with_defaults
from runner.records.run_folder import LARGEST_JSON, VERSION, RunFolder
from runner.training.metrics import METRICS

ALWAYS_THERE = ("accuracy", "log_loss", "brier", "ece", "forward_passes")
"""What runs of every version recorded of each view."""
_NEWER = ("balanced_accuracy", "macro_f1", "auroc")  # runs of earlier versions lack them
VIEWS = ("plain", "tta")
_REASONS = {"killed": "ended without a word; the same command goes on with it"}
_OLDER = "begun with record version {}: train again, or continue it with trick-runner 0.1.0"
_LARGEST_CONFIG = 2**16  # bytes of config.yaml; one has three thousand
_MOST_FOLDS = 100_000  # more than any data set is divided into; all are counted
_SMALL_HEADS = 5  # record version since which all heads are drawn alike
OURS = (
    "cache", "sweeps", "comparisons", "look", "lr_find",
    "tensorboard", "mlflow", "wandb", "trackio",
)  # fmt: skip
"""Folders of ours below ``outputs`` that are not runs."""


@dataclass(frozen=True)
class StoredPredictions:
    """The predictions of a run for the N validation images.

    Attributes:
        labels: (N,) int64.
        views: (N, K) float32 probabilities of ``plain`` and of ``tta``, by name.
        groups: (N,) int64, the group of each image; None if every image is a group of its own.
        places: of one fold, (N,) int64, the place of each image among those of all folds.
        folds: of all folds together, (N,) int64, the fold of each image.
    """

    labels: NDArray[np.int64]
    views: Mapping[str, NDArray[np.float32]]
    groups: NDArray[np.int64] | None = None
    places: NDArray[np.int64] | None = None
    folds: NDArray[np.int64] | None = None

    def correct(self, view: str) -> NDArray[np.bool_]:
        """Return whether the most probable class of each image is its label, (N,)."""
        right: NDArray[np.bool_] = self.views[view].argmax(axis=1) == self.labels
        return right


@dataclass(frozen=True)
class Fold:
    """The fold that a run is validated on.

    Attributes:
        num_folds: number of folds.
        fold: the fold, in 0..num_folds-1.
        fingerprint: fingerprint of the data, equal for all of its folds.
    """

    num_folds: int
    fold: int
    fingerprint: str


@dataclass(frozen=True)
class FinishedRun:
    """A finished run: a training with one of its evaluations, plain or with TTA.

    Attributes:
        path: path of the run's folder.
        identity: the hash that identifies the training, and after a hyphen that of the evaluation.
        seed: seed of the run's random draws.
        tricks: the tricks that were on.
        values: all values that decide the result, by group and key; keys that are newer than the
            run have their default.
        fingerprint: fingerprint of the run's data.
        classes: names of the classes in the order of the labels.
        num_val: number of validation images.
        num_train: number of training images.
        metrics: by view, each of ``METRICS`` (an undefined one is NaN), and ``forward_passes`` per
            image. Runs of earlier versions have fewer: see
            :meth:`runner.report.scores.ScoreBook.completed`.
        budget: ``epochs``, ``images``, ``pixels``, and ``seconds`` of training and evaluation.
        environment: versions and machine.
        command: the command that repeats the run.
        finished: when training ended, in UTC as ISO 8601; empty if that is unknown.
        config: the requested configuration, in which null is not replaced by its meaning.
        evaluation: name of the evaluation with TTA in the folder; None for the plain view alone.
        per_class: by view, what the run recorded about each class, unchecked; see
            :func:`runner.report.classes.class_means`.
        fold: the fold that the run is validated on; None for data that is not divided into folds.
        parts: the runs of all folds in order, if this is what they are together; see
            :mod:`runner.report.pooled`.
    """

    path: Path
    identity: str
    seed: int
    tricks: tuple[str, ...]
    values: Mapping[str, Any]
    fingerprint: str
    classes: tuple[str, ...]
    num_val: int
    num_train: int
    metrics: Mapping[str, Mapping[str, float]]
    budget: Mapping[str, float]
    environment: Mapping[str, Any]
    command: tuple[str, ...]
    finished: str
    config: Mapping[str, Any]
    evaluation: str | None = None
    per_class: Mapping[str, Any] = field(default_factory=dict)
    fold: Fold | None = None
    parts: tuple["FinishedRun", ...] = ()

    @property
    def has_all_metrics(self) -> bool:
        """Whether the run recorded each of ``METRICS``."""
        return all(name in found for found in self.metrics.values() for name in METRICS)

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return self.path.name

    def predictions(self) -> StoredPredictions:
        """Read every probability that the run predicted.

        Raises:
            ArtefactError: the file is missing, damaged or belongs to another run.
        """
        if self.parts:
            return self._of_all_folds([part.predictions() for part in self.parts])
        folder = RunFolder(self.path)
        found = folder.predictions()
        labels, plain = found["labels"], found["plain"]
        tta, groups, places = found.get("tta", plain), found.get("groups"), found.get("places")
        if self.evaluation is not None:
            tta = evaluations.probabilities(folder, self.evaluation)
        views = {"plain": plain, "tta": tta}
        shape = (self.num_val, *views["plain"].shape[-1:])
        is_sound = (
            len(shape) == 2
            and labels.shape == (self.num_val,)
            and labels.dtype.kind in "iu"
            and all(view.dtype.kind == "f" for view in views.values())
            and all(view.shape == shape and np.isfinite(view).all() for view in views.values())
            and len(self.classes) <= shape[1]
            and 0 <= labels.min() <= labels.max() < len(self.classes)
            and all(
                numbers is None or (numbers.shape == labels.shape and numbers.dtype.kind in "iu")
                for numbers in (groups, places)
            )
        )
        if not is_sound:
            raise ArtefactError("the predictions are not of this run", where=str(self.path))
        named, at = (
            None if numbers is None else numbers.astype(np.int64) for numbers in (groups, places)
        )
        return StoredPredictions(labels.astype(np.int64), views, named, at)

    def _of_all_folds(self, found: Sequence[StoredPredictions]) -> StoredPredictions:
        """Return the predictions for all images, in the order of the data."""
        places = [one.places for one in found if one.places is not None]
        order = np.concatenate(places) if len(places) == len(found) else np.zeros(0, np.int64)
        widths = {view.shape[1] for one in found for view in one.views.values()}
        if not np.array_equal(np.sort(order), np.arange(self.num_val)) or len(widths) > 1:
            raise ArtefactError(
                "the predictions of the folds are not for each image once", where=str(self.path)
            )
        back = np.argsort(order)
        groups = [one.groups for one in found if one.groups is not None]
        return StoredPredictions(
            np.concatenate([one.labels for one in found])[back],
            {
                view: np.concatenate([one.views[view] for one in found])[back]
                for view in found[0].views
            },
            np.concatenate(groups)[back] if len(groups) == len(found) else None,
            folds=np.repeat(np.arange(len(found)), [len(one.labels) for one in found])[back],
        )

    @cached_property
    def epochs(self) -> list[dict[str, float]]:
        """A row per epoch: ``epoch``, ``pixels``, ``seconds`` so far, and validation metrics.

        Rows that cannot be read are left out.
        """
        if self.parts:
            return _mean_rows([part.epochs for part in self.parts])
        folder = RunFolder(self.path)
        timings = _by_epoch(folder.rows("timings.jsonl"), ("epoch", "total_seconds"))
        metrics = _by_epoch(folder.rows(), ("epoch", "pixels", "val_accuracy", "val_loss"))
        return [
            {**row, "seconds": timings[epoch]["total_seconds"]}
            for epoch, row in metrics.items()
            if epoch in timings
        ]


@dataclass(frozen=True)
class FailedRun:
    """A training that failed, for instance because its loss was not finite.

    Attributes:
        path: path of the run's folder.
        seed: seed of the run's random draws.
        values: all values that decide the result, by group and key, as for :class:`FinishedRun`.
        fingerprint: fingerprint of the run's data.
        reason: the reason, without the epoch and the step in which it happened.
    """

    path: Path
    seed: int
    values: Mapping[str, Any]
    fingerprint: str
    reason: str

    @cached_property
    def config(self) -> dict[str, Any]:
        """The requested configuration; empty if it cannot be read."""
        with suppress(OSError, ValueError, RecursionError, yaml.YAMLError):
            found = yaml.safe_load(read_whole(self.path / "config.yaml", at_most=_LARGEST_CONFIG))
            return found if isinstance(found, dict) else {}
        return {}


@dataclass(frozen=True)
class Unranked:
    """A run that is not compared, or a folder that cannot be read, with the reason."""

    name: str
    status: str
    reason: str


@dataclass
class Found:
    """The content of the requested folders.

    Attributes:
        runs: finished runs, sorted by name.
        unranked: other runs.
        failed: those among the other runs whose training failed.
        foreign: names of entries that are not runs, without hidden ones and ours.
    """

    runs: list[FinishedRun] = field(default_factory=list)
    unranked: list[Unranked] = field(default_factory=list)
    failed: list[FailedRun] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)


def content_with_digest(path: Path, sha256: str) -> bytes | None:
    """Return the content of a regular file if its SHA-256 is ``sha256``; otherwise None."""
    try:
        content = read_whole(path)
    except (OSError, ValueError):  # ValueError: a null character in the path
        return None
    return content if hashlib.sha256(content).hexdigest() == sha256 else None


def find_runs(places: Iterable[Path]) -> Found:
    """Read every run in ``places``: folders of runs, or runs themselves.

    Raises:
        DataError: a place is not a folder, or cannot be listed.
    """
    found = Found()
    known: dict[Path, None] = {}
    for place in places:
        for path in [place.absolute()] if _is_run(place) else _entries(place.absolute()):
            known.setdefault(path)
    for path in known:
        _sort_in(path, found)
    _keep_one_of_each(found)
    return found


def read_run(path: Path, evaluation: str | None = None) -> FinishedRun:
    """Read one finished run.

    Args:
        path: path of the run's folder.
        evaluation: name of the evaluation with TTA to read with it; None for the plain view alone.

    Raises:
        ArtefactError: the folder has no finished run, or no such evaluation; or a file is damaged.
    """
    folder = RunFolder(path)
    result = folder.result()
    if result is None:
        raise ArtefactError(
            "no finished run", where=str(path), fix="the command that trained it, once more"
        )
    run = _run(path, result)
    if evaluation is None:
        return run
    content = evaluations.read(folder, evaluation)
    if content is None:
        raise ArtefactError(
            f"the run has no evaluation {evaluation}",
            where=str(path),
            fix="the command that evaluated it, once more",
        )
    return _evaluated(run, evaluation, content)


def _entries(place: Path) -> list[Path]:
    try:
        return sorted(place.iterdir())
    except OSError as error:
        raise DataError(
            f"cannot read the folder: {error.strerror}",
            where=str(place.absolute()),
            fix="a run folder, or the value of outputs=",
        ) from error


def _is_run(path: Path) -> bool:
    try:
        return (path / "run.json").is_file()
    except OSError:
        return False


def _sort_in(path: Path, found: Found) -> None:
    folder = RunFolder(path)
    try:
        if not (path / "run.json").is_file():
            if path.name not in OURS and not path.name.startswith("."):
                found.foreign.append(path.name)
            return
        result = folder.result()
        if result is None:
            status = folder.status()
            if status["status"] == "finished":  # it finished between the two reads
                result = folder.result()
        if result is None:
            name = str(status["status"])
            reason = str(status["reason"]).partition("\n")[0] or _REASONS.get(name, "")
            if name == "running":
                reason = f"{folder.last_row().get('epoch', 0)} epochs done"
            elif name == "failed" and status["error_kind"] == "DivergedError":
                name = "diverged"
            elif name in ("killed", "interrupted") and (version := _version(path)) < VERSION:
                reason = _OLDER.format(version)
            found.unranked.append(Unranked(path.name, name, reason))
            if name in ("failed", "diverged") and (failed := _failed(path, reason)):
                found.failed.append(failed)
        else:
            run = _run(path, result)
            found.runs.append(run)
            for name in evaluations.names(folder):
                _add_evaluation(folder, run, name, found)
    except ArtefactError as error:
        found.unranked.append(Unranked(path.name, "unreadable", error.what))
    except OSError as error:
        found.unranked.append(Unranked(path.name, "unreadable", error.strerror or str(error)))


def _add_evaluation(folder: RunFolder, run: FinishedRun, name: str, found: Found) -> None:
    """Add ``run`` with one of its evaluations, or the reason why it cannot be read."""
    try:
        content = evaluations.read(folder, name)
        if content is None:  # removed since it was listed
            return
        found.runs.append(_evaluated(run, name, content))
    except ArtefactError as error:
        found.unranked.append(
            Unranked(f"{folder.path.name}, evaluation {name}", "unreadable", error.what)
        )


def _evaluated(run: FinishedRun, name: str, content: Mapping[str, Any]) -> FinishedRun:
    """Return ``run`` with the evaluation in ``content``.

    Raises:
        ArtefactError: ``content`` does not hold the values of an evaluation of this run.
    """
    try:
        if fields.text(content, "identity") != run.identity:
            raise ValueError("it is an evaluation of another run")
        tta = {**NEUTRAL["tta"], **fields.section(content, "tta")}
        seconds = fields.number(content, "seconds", at_least=0)
        return replace(
            run,
            identity=f"{run.identity}-{name}",
            evaluation=name,
            tricks=fields.texts(content, "tricks"),
            values={**run.values, "tta": tta},
            metrics={**run.metrics, "tta": _measures(fields.section(content, "metrics"))},
            per_class={**run.per_class, "tta": content["metrics"].get("per_class")},
            budget={**run.budget, "seconds": run.budget["seconds"] + seconds},
            command=fields.texts(content, "command"),
            config={**run.config, "tta": tta},
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ArtefactError(f"not an evaluation of the run: {error}") from error


def _keep_one_of_each(found: Found) -> None:
    """If folders hold the same run, keep the first folder with readable predictions."""
    copies: dict[str, list[FinishedRun]] = {}
    for run in found.runs:
        copies.setdefault(run.identity, []).append(run)
    for alike in copies.values():
        kept = next((run for run in alike[:-1] if _has_predictions(run)), alike[-1])
        for run in alike:
            if run is not kept:
                found.runs.remove(run)
                reason = f"the same run as {kept.name}"
                found.unranked.append(Unranked(run.name, "duplicate", reason))


def _has_predictions(run: FinishedRun) -> bool:
    try:
        run.predictions()
    except ArtefactError:
        return False
    return True


def _run(path: Path, result: Mapping[str, Any]) -> FinishedRun:
    """Read the run of a folder whose ``result.json`` has been read.

    Raises:
        ArtefactError: a file does not hold the values of a finished run.
    """
    try:
        what = fields.parsed(read_whole(path / "run.json", at_most=LARGEST_JSON))
        values = _values(what)
        if what["identity"] != result["identity"]:
            raise ValueError("run.json and result.json are of different runs")
        data, metrics = fields.section(result, "data"), fields.section(result, "metrics")
        # Runs of earlier versions have the values of their TTA in run.json, and its metrics here.
        is_whole = "tta" in fields.section(what, "values")
        config = _config(result)
        return FinishedRun(
            path=path,
            identity=fields.text(what, "identity"),
            seed=fields.whole(result, "seed"),
            tricks=fields.texts(result, "tricks"),
            values=values,
            fingerprint=fields.text(what, "fingerprint"),
            classes=fields.texts(data, "classes"),
            num_val=fields.whole(data, "num_val", at_least=1),
            num_train=fields.whole(data, "num_train", at_least=1),
            metrics={
                view: _measures(fields.section(metrics, view if is_whole else "plain"))
                for view in VIEWS
            },
            budget=_numbers(
                fields.section(result, "budget"), ("epochs", "images", "pixels", "seconds")
            ),
            environment=fields.section(result, "environment"),
            command=fields.texts(result, "command"),
            finished=_finished(path),
            config=config if is_whole else {**config, "tta": NEUTRAL["tta"]},
            per_class={
                view: metrics[view if is_whole else "plain"].get("per_class") for view in VIEWS
            },
            fold=_fold(data),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ArtefactError(
            f"not the files of a finished run: {reason}", where=str(path)
        ) from error


def _fold(data: Mapping[str, Any]) -> Fold | None:
    """Return the fold in the ``data`` section of a result.

    Raises:
        ValueError: it cannot be one.
    """
    if data.get("folds") is None:
        return None
    found = fields.section(data, "folds")
    num_folds = fields.whole(found, "num_folds", at_least=2, at_most=_MOST_FOLDS)
    fold = fields.whole(found, "fold", at_most=num_folds - 1)
    return Fold(num_folds, fold, fields.text(found, "fingerprint"))


def _values(what: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of ``run.json`` with all defaults.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: they are not the values of a run.
    """
    values = with_defaults(fields.section(what, "values"))
    for group, neutral in NEUTRAL.items():
        if isinstance(values[group], dict) != isinstance(neutral, dict):
            raise TypeError(f"{group} is a group in one place, and a value in another")
    for group in ("data", "model"):
        fields.text(values[group], "name")
    if fields.value(what, "record_version") < _SMALL_HEADS:  # their numbers are of other heads
        values["model"] = {**values["model"], "head": "as its library draws it"}
    fields.whole(values["data"], "presize")
    for key in ("device", "precision"):
        fields.text(values, key)
    return values


def _failed(path: Path, reason: str) -> FailedRun | None:
    """Read a run that failed; None if its values cannot be read: then it has no arm."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        what = fields.parsed(read_whole(path / "run.json", at_most=LARGEST_JSON))
        values = _values(what)
        seed, fingerprint = fields.whole(values, "seed"), fields.text(what, "fingerprint")
        return FailedRun(path, seed, values, fingerprint, reason.partition("; ")[0])
    return None


def _version(path: Path) -> int:
    """Record version of a run; the version of this program if it cannot be read."""
    with suppress(OSError, ValueError):
        return fields.whole(
            fields.parsed(read_whole(path / "run.json", at_most=LARGEST_JSON)), "record_version"
        )
    return VERSION


def _finished(path: Path) -> str:
    """Return the time at which a run ended; empty if it cannot be read."""
    with suppress(OSError, ValueError):
        return fields.text(
            fields.parsed(read_whole(path / "status.json", at_most=LARGEST_JSON)), "time"
        )
    return ""


def _config(result: Mapping[str, Any]) -> dict[str, Any]:
    config = fields.section(result, "config")
    fields.section(config, "data")
    return config


def _numbers(mapping: Mapping[str, Any], keys: Iterable[str]) -> dict[str, float]:
    """Return the finite numbers at ``keys``, none below 0."""
    return {key: float(fields.number(mapping, key, at_least=0)) for key in keys}


def _measures(mapping: Mapping[str, Any]) -> dict[str, float]:
    found = _numbers(mapping, ALWAYS_THERE)
    if found["accuracy"] > 1:
        raise ValueError(f"not a possible accuracy: {found['accuracy']}")
    for name in _NEWER:
        if name in mapping:
            is_undefined = mapping[name] is None
            found[name] = (
                float("nan")
                if is_undefined
                else float(fields.number(mapping, name, at_least=0, at_most=1))
            )
    return found


def _by_epoch(
    rows: Iterable[Mapping[str, Any]], keys: tuple[str, ...]
) -> dict[float, dict[str, float]]:
    """Rows that have all ``keys``, by epoch; of several rows of an epoch, the last."""
    found = {}
    for row in rows:
        with suppress(ValueError, KeyError, TypeError):
            numbers = _numbers(row, keys)
            found[numbers["epoch"]] = numbers
    return found


def _mean_rows(parts: Sequence[Sequence[Mapping[str, float]]]) -> list[dict[str, float]]:
    """Return the means over folds of the rows of each epoch that all of them have."""
    by_epoch = [{row["epoch"]: row for row in rows} for rows in parts]
    return [
        {key: float(np.mean([rows[epoch][key] for rows in by_epoch])) for key in row}
        for epoch, row in by_epoch[0].items()
        if all(epoch in rows for rows in by_epoch)
    ]
