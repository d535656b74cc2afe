"""The format of a run folder: written during the run, read by all other commands.

    run.json         the identity of the run and the values behind it; never changes
    config.yaml      the resolved configuration
    overrides.txt    the words of the command, one per line
    status.json      running, finished, failed or interrupted; the reason, the kind of the error,
                     process and machine
    metrics.jsonl    a row per evaluation (eval.every); equal for equal runs, even if interrupted
    timings.jsonl    a row per evaluation: values that depend on the machine and its load
    split.csv.gz     every image with its split, label and SHA-256
    code.py          a copy of the file of code=FILE, for reading; no command runs it
    checkpoints/     the state from which an unfinished run resumes (runner/records/checkpoint.py)
    predictions.npz  labels (n,), plain (n, K): probabilities per validation image; groups (n,) if
                     the data names groups of images; places (n,) if it is divided into folds: the
                     place of each image among those of all folds
    bundle/          the trained network with everything that is needed to use it
    result.json      written last: its presence is the only proof that the run finished
    evaluations/     evaluations of the finished run with TTA (runner/records/evaluations.py)
    figures/         pictures of the finished run, drawn on request (runner/look/finished.py)
    logged/          how far each logger has come (runner/loggers/copier.py)

This module does not import torch, so that reading is quick.
"""

import hashlib
import io
import json
import os
import socket
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from runner.config import schema
from runner.config.schema import leaves
from runner.errors import ArtefactError, ConfigError, StorageError
from runner.machine import fields
from runner.machine.arrays import read_npz
from runner.machine.files import (
    append_synced,
    is_leftover,
    own_folder,
    read_end,
    read_whole,
    remove,
    remove_leftovers,
    replace_whole,
    require_own,
    unwritable,
)
from runner.machine.locks import Lock, is_held, locked

VERSION = 5
"""Version of the format and of the meaning of its numbers; part of a run's identity."""

READABLE = (3, 4, VERSION)
"""Versions of results that can be read.

Finished runs of these versions are read like all others, but the same command trains again.
Version 4 drew the last layer of a network as its library does, and had TTA in a run's identity; the
report compares its runs only with one another. Version 3 also hashed neutral values.
"""

_ADVICE = (
    "finished runs of version {} can still be reported and evaluated, but not continued or "
    "repeated in place: leave run_dir out to train again in a new folder, or use trick-runner 0.1.0"
)

LOGS = ("metrics.jsonl", "timings.jsonl")
FIGURES = ("curves", "schedule", "confusion", "reliability", "mistakes", "gradcam")
"""Names of the pictures in ``figures/``, without ``.svg`` or ``.png``."""
_FILES = (
    "config.yaml", "overrides.txt", "status.json", *LOGS, "split.csv.gz", "code.py",
    "predictions.npz", "checkpoints", "bundle", "evaluations", "figures", "logged",
)  # fmt: skip
_FOLDERS = ("checkpoints", "bundle", "evaluations")
LARGEST_JSON = 2**26  # bytes; a result with ten thousand classes has two million
_LARGEST_LOG = 2**26  # bytes; a hundred thousand rows
_LARGEST_ROW = 2**16  # bytes at the end of a log that hold its last row
_SECRETS = ("token", "secret", "password", "passwd", "api_key", "apikey", "credential")


class RunFolder:
    """One run on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = path / "run.lock"
        self.checkpoints = path / "checkpoints"
        self._held: Lock | None = None

    @contextmanager
    def owned(self) -> Iterator[Lock]:
        """Hold the lock of the run; from now on, each write requires that the lock is in place.

        Raises:
            BusyError: another process holds the lock.
            StorageError: the lock cannot be taken.
        """
        with locked(self.lock, wait=False) as held:
            self._held = held
            try:
                remove_leftovers(self.path)
                for name in ("bundle", "evaluations"):
                    if not (self.path / name).is_symlink():
                        remove_leftovers(self.path / name)
                yield held
            finally:
                self._held = None

    def result(self) -> dict[str, Any] | None:
        """Read the result of a finished run; None if it is not finished.

        Raises:
            ArtefactError: the file exists but is not a result.
        """
        path = self.path / "result.json"
        try:
            found = fields.parsed(read_whole(path, at_most=LARGEST_JSON))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ArtefactError(
                f"cannot read the result: {error}", where=str(path), fix="force=true to run anew"
            ) from error
        version = found.get("record_version")
        if version not in READABLE:
            raise ArtefactError(
                f"the result has record version {version}; this program reads {VERSION}",
                where=str(path),
                fix="run_dir=ANOTHER_FOLDER, or force=true to run anew",
            )
        views = found.get("metrics")
        for metrics in views.values() if isinstance(views, dict) else ():
            rename_metrics(metrics)
        return found

    def whole_result(self) -> dict[str, Any] | None:
        """Read the result of a finished run with all that is shown of it; otherwise None.

        Raises:
            ArtefactError: the file exists but is not such a result.
        """
        found = self.result()
        if found is None:
            return None
        try:
            require_metrics(fields.section(fields.section(found, "metrics"), "plain"))
            budget = fields.section(found, "budget")
            for key in ("epochs", "images", "seconds", "images_per_second"):
                fields.number(budget, key, at_least=0)
            fields.whole(fields.section(found, "data"), "num_val", at_least=1)
            fields.texts(found, "tricks")
            fields.whole(found, "seed")
            fields.section(found, "bundle")
            fields.section(found, "environment")
            if found.get("code") is not None:
                fields.text(fields.section(found, "code"), "file")
        except ValueError as error:
            raise ArtefactError(
                f"not the result of a run: {error}",
                where=str((self.path / "result.json").absolute()),
                fix="force=true to run anew",
            ) from error
        return found

    def status(self) -> dict[str, Any]:
        """Read ``status.json``, and correct ``status`` by the evidence.

        ``finished`` requires a result, and ``running`` requires that a process holds the lock. The
        status is ``killed`` if the process ended without recording it, and ``new`` if no run has
        begun.
        """
        try:
            found = fields.parsed(read_whole(self.path / "status.json", at_most=LARGEST_JSON))
        except (OSError, ValueError):
            found = {}
        status = str(found.get("status", "new"))
        if (self.path / "result.json").is_file():
            status = "finished"
        elif is_held(self.lock):
            status = "running"
        elif status in ("running", "finished"):
            status = "killed"
        return {"reason": "", "error_kind": "", **found, "status": status}

    def check(self, what: Mapping[str, Any], is_auto: Collection[str] = ()) -> None:
        """Refuse a folder that belongs to another run, or is not a run folder.

        Args:
            what: the content of ``run.json``: ``identity``, ``fingerprint`` and ``values``.
            is_auto: the keys that are ``auto`` in the configuration, for the advice.

        Raises:
            ConfigError: the folder belongs to another run, whose differences are named; or it is
                not a run folder and not empty.
            ArtefactError: ``run.json`` has another record version, or cannot be read.
        """
        path = self.path / "run.json"
        try:
            found = fields.parsed(read_whole(path, at_most=LARGEST_JSON))
            identity = fields.text(found, "identity")
            fingerprint, values = fields.text(found, "fingerprint"), fields.section(found, "values")
            version = fields.value(found, "record_version")
        except FileNotFoundError:
            self._check_is_empty()
            return
        except (OSError, ValueError) as error:
            raise ArtefactError(
                f"cannot read which run this is: {error}",
                where=str(path.absolute()),
                fix="run_dir=ANOTHER_FOLDER",
            ) from error
        if version != VERSION:
            raise ArtefactError(
                f"the run has record version {version}; this program writes {VERSION}",
                where=str(self.path.absolute()),
                fix=_ADVICE.format(version)
                if version in READABLE
                else "run_dir=ANOTHER_FOLDER, or the version of trick-runner that began it",
            )
        if identity == what["identity"]:
            return
        old = {"data": fingerprint, **leaves(_of_training(values))}
        new = {"data": what["fingerprint"], **leaves(what["values"])}
        defaults = leaves(
            _of_training(schema.default_dict())
        )  # for keys that are newer than the folder
        keys = sorted({*old, *new})
        was = {key: old.get(key, defaults.get(key)) for key in keys}
        now = {key: new.get(key) for key in keys}
        changes = [
            f"  {key}: {_display_value(was[key])} → {_display_value(now[key])}"
            for key in keys
            if was[key] != now[key]
        ]
        words = _words_for_auto(was, now, is_auto)
        other = "run_dir=ANOTHER_FOLDER, or leave run_dir out: every run finds its own folder"
        raise ConfigError(
            "the folder belongs to another run, which differs in\n" + "\n".join(changes),
            where=f"run_dir={self.path}",
            fix=f"{words}, with which it was begun; or {other}" if words else other,
        )

    def _check_is_empty(self) -> None:
        foreign = [
            entry.name
            for entry in (self.path.iterdir() if self.path.is_dir() else ())
            if entry.name != "run.lock" and not is_leftover(entry.name)
        ]
        if foreign:
            raise ConfigError(
                f"not a run folder, and not empty: {', '.join(sorted(foreign)[:5])}",
                where=f"run_dir={self.path}",
                fix="run_dir=ANOTHER_FOLDER",
            )

    def begin(
        self, what: Mapping[str, Any], config: Mapping[str, Any], overrides: Sequence[str]
    ) -> None:
        """Record the identity of the run and that it is running; call :meth:`check` first.

        Raises:
            StorageError: the folder cannot be written.
        """
        for name in _FOLDERS:  # refused now rather than when they are needed
            require_own(self.path / name)
        if not self.is_begun:
            content = {"record_version": VERSION, **redacted(what)}
            self.write_text("run.json", json.dumps(content, indent=2) + "\n")
        self.write_text("config.yaml", yaml.safe_dump(redacted(config), sort_keys=False))
        self.write_text("overrides.txt", "".join(f"{word}\n" for word in redacted_words(overrides)))
        self.write_status("running")

    @property
    def is_begun(self) -> bool:
        """Whether the folder has ``run.json``; without it, no other file may be written."""
        return (self.path / "run.json").exists()

    @property
    def can_record(self) -> bool:
        """Whether a status may be written: the run is begun, and its lock is in place."""
        return self.is_begun and (self._held is None or self._held.is_in_place)

    def clear_rows(self) -> None:
        """Remove the logs, if there is no checkpoint to resume from."""
        for name in LOGS:
            try:
                remove(self.path / name)
            except OSError as error:
                raise unwritable(self.path / name, error) from error

    def clear(self) -> None:
        """Remove everything that an earlier attempt left, except ``run.json``."""
        try:
            # The proof of completion is removed first, so that it never lies next to new files.
            for name in ("result.json", *_FILES):
                remove(self.path / name)
        except OSError as error:
            raise unwritable(self.path, error) from error

    def drop_checkpoints(self) -> None:
        """Remove the checkpoints, which only an unfinished run needs."""
        with suppress(OSError):
            remove(self.checkpoints)

    def write_status(self, status: str, reason: str = "", error_kind: str = "") -> None:
        """Record the status: ``running``, ``finished``, ``failed`` or ``interrupted``.

        Args:
            status: one of these four words.
            reason: why the run failed, or where it was interrupted.
            error_kind: name of the class of the error with which the run failed.
        """
        content = {
            "status": status,
            "reason": reason,
            "error_kind": error_kind,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self.write_text("status.json", json.dumps(content, indent=2) + "\n")

    def append_row(self, row: Mapping[str, Any], log: str = "metrics.jsonl") -> None:
        """Append a row to a log, and wait until the disk has the row."""
        self.require_owned()
        append_synced(self.path / log, f"{json.dumps(row, allow_nan=False)}\n".encode())

    def rows(self, log: str = "metrics.jsonl") -> list[dict[str, Any]]:
        """Return the rows of a log, without damaged rows and a row that is being written."""
        rows = []
        with suppress(OSError):
            for line in read_end(self.path / log, _LARGEST_LOG).splitlines():
                with suppress(ValueError):
                    rows.append(fields.parsed(line))
        return rows

    def last_row(self) -> dict[str, Any]:
        """Return the newest row of the metrics; empty before the first evaluation."""
        with suppress(OSError):
            for line in reversed(read_end(self.path / LOGS[0], _LARGEST_ROW).splitlines()):
                with suppress(ValueError):
                    return fields.parsed(line)
        return {}

    def log_marks(self) -> dict[str, list[int | str]]:
        """Length in bytes and SHA-256 of each log, for :meth:`rewind`."""
        contents = {name: self._log(name) for name in LOGS}
        return {
            name: [len(content), hashlib.sha256(content).hexdigest()]
            for name, content in contents.items()
        }

    def rewind(self, marks: Mapping[str, Sequence[int | str]]) -> None:
        """Cut the logs back to ``marks``, which removes the rows of steps that were lost.

        Raises:
            ArtefactError: a log does not start with the marked content.
        """
        for name in LOGS:
            match marks.get(name):
                case [int(length), str(digest)]:
                    kept = self._log(name)[: max(0, length)]
                case _:
                    kept, length, digest = b"", -1, ""
            if len(kept) != length or hashlib.sha256(kept).hexdigest() != digest:
                raise ArtefactError(
                    "rows that were written before the checkpoint have been changed",
                    where=str((self.path / name).absolute()),
                    fix="force=true to run anew",
                )
            if kept or (self.path / name).exists():
                self.write_bytes(name, kept)

    def _log(self, name: str) -> bytes:
        try:
            return read_whole(self.path / name)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise ArtefactError(
                f"cannot read the rows: {error}",
                where=str((self.path / name).absolute()),
                fix="force=true to run anew",
            ) from error

    def write_predictions(
        self,
        labels: NDArray[np.int64],
        plain: NDArray[np.float32],
        groups: NDArray[np.int64] | None = None,
        places: NDArray[np.int64] | None = None,
    ) -> None:
        """Write ``predictions.npz``; its rows are the validation rows of ``split.csv.gz``.

        Args:
            labels: (n,) label of each image.
            plain: (n, K) probabilities.
            groups: (n,) group of each image; without groups, every image is its own.
            places: (n,) place of each image among those of all folds, for data in folds.
        """
        named = {
            name: found
            for name, found in (("groups", groups), ("places", places))
            if found is not None
        }
        self.write_bytes("predictions.npz", packed(labels=labels, plain=plain, **named))

    def predictions(self) -> dict[str, NDArray[Any]]:
        """Read the arrays of :meth:`write_predictions`; ``groups`` and ``places`` may be missing.

        Runs of earlier versions with TTA also have ``tta``, with the shape of ``plain``.

        Raises:
            ArtefactError: the file is missing or was changed.
        """
        path = self.path / "predictions.npz"
        return unpacked(path, ("labels", "plain"), optional=("groups", "places", "tta"))

    def finish(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Write ``result.json``, last and whole; return its content."""
        content = {"record_version": VERSION, "status": "finished", **result}
        content["config"] = redacted(content["config"])
        if "command" in content:
            content["command"] = redacted_words(content["command"])
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
        self.write_status("finished")
        self.write_text("result.json", text)
        self.drop_checkpoints()
        return content

    def write_text(self, name: str, text: str) -> None:
        """Write a file whole or not at all."""
        self.write_bytes(name, text.encode())

    def write_bytes(self, name: str, content: bytes | bytearray) -> None:
        """Write a file whole or not at all."""
        self.require_owned(is_beginning=name == "run.json")
        path = self.path / name
        if path.parent != self.path:
            own_folder(path.parent)
        replace_whole(path, content)

    def require_owned(self, *, is_beginning: bool = False) -> None:
        """Require that this process still owns the folder; call this before each commit.

        Args:
            is_beginning: whether ``run.json`` is about to be written.

        Raises:
            StorageError: the process is in :meth:`owned`, but ``run.lock``, ``run.json`` or
                the folder was removed since.
        """
        if self._held is None:
            return
        self._held.require()
        if not (is_beginning or self.is_begun):
            raise StorageError(
                "run.json was removed while the run was written",
                where=str(self.path.absolute()),
                fix="run the same command again, with force=true",
            )


def rename_metrics(metrics: Any) -> None:
    """Rename the metrics of one view, of any version, to their current names, in place."""
    if isinstance(metrics, dict) and "nll" in metrics:
        metrics.setdefault("log_loss", metrics.pop("nll"))


def require_metrics(metrics: Mapping[str, Any]) -> None:
    """Check the metrics of one view that are displayed.

    Raises:
        ValueError: a value is missing or impossible.
    """
    fields.number(metrics, "accuracy", at_least=0, at_most=1)
    fields.numbers(metrics, "accuracy_ci", count=2)
    for key in ("log_loss", "brier", "ece", "forward_passes"):
        fields.number(metrics, key, at_least=0)
    for key in ("top5", "balanced_accuracy", "macro_f1", "auroc"):
        if metrics.get(key) is not None:  # earlier versions have fewer metrics
            fields.number(metrics, key, at_least=0, at_most=1)


def packed(**arrays: Any) -> bytes:
    """Return the content of a compressed ``.npz`` file with ``arrays``."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


def unpacked(
    path: Path, names: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, NDArray[Any]]:
    """Read the arrays of a file that :func:`packed` made.

    Raises:
        ArtefactError: the file is missing or damaged, or lacks one of ``names``.
    """
    try:
        return read_npz(path, names, optional)
    except (OSError, ValueError) as error:
        raise ArtefactError(
            f"cannot read the predictions: {error}", where=str(path.absolute())
        ) from error


def run_folders(outputs: Path, prefix: str = "") -> Iterator[RunFolder]:
    """Yield the runs below ``outputs`` whose names begin with ``prefix``, sorted by name.

    Other folders are skipped.
    """
    paths: list[Path] = []
    with suppress(OSError):
        paths = sorted(path for path in outputs.iterdir() if path.name.startswith(prefix))
    for path in paths:
        with suppress(OSError):  # an unreadable folder must not hide the others
            if (path / "run.json").is_file():
                yield RunFolder(path)


_OF_THE_DATA = {  # their values if they are not set
    "data.presize", "data.depth", "data.window", "model.num_outputs",
}  # fmt: skip
_OF_THE_MACHINE = {"device": ("cpu", "cuda", "mps"), "precision": ("fp32", "bf16")}
_UNFINISHED = ("killed", "interrupted", "failed")


def unfinished_on_other_data(
    outputs: Path, name: str, what: Mapping[str, Any]
) -> "RunFolder | None":
    """Return an unfinished run with the values of ``what`` but another fingerprint of the data.

    Args:
        outputs: folder of the runs.
        name: the name of a run of ``what``, which ends with a hyphen and the start of its identity.
        what: the content of ``run.json``: ``identity``, ``fingerprint`` and ``values``.
    """
    values = leaves(what["values"])
    for folder, found, before in _begun_alike(outputs, name):
        differing = {key for key in {*before, *values} if before.get(key) != values.get(key)}
        if (
            differing <= _OF_THE_DATA
            and found["fingerprint"] != what["fingerprint"]
            and folder.status()["status"] in _UNFINISHED
        ):
            return folder
    return None


def begun_with_another_auto(
    outputs: Path, name: str, what: Mapping[str, Any], is_auto: Collection[str]
) -> "tuple[RunFolder, bool, str] | None":
    """Find a run that was begun where ``auto`` had another meaning; an unfinished one, if any.

    A run that is at work is not returned.

    Args:
        outputs: folder of the runs.
        name: see :func:`unfinished_on_other_data`.
        what: see :func:`unfinished_on_other_data`.
        is_auto: the keys that are ``auto`` in the configuration.

    Returns:
        The run, whether it is finished, and the words that request it, such as ``precision=bf16``.
    """
    matching = list[tuple[str, RunFolder, str]]()
    for folder, found, before in _begun_alike(outputs, name):
        words = _words_for_auto(before, leaves(what["values"]), is_auto)
        if words and (found["fingerprint"], found.get("record_version")) == (
            what["fingerprint"],
            VERSION,
        ):
            matching.append((folder.status()["status"], folder, words))
    for wanted in (_UNFINISHED, ("finished",)):
        for status, folder, words in matching:
            if status in wanted:
                return folder, status == "finished", words
    return None


def _words_for_auto(
    before: Mapping[str, Any], now: Mapping[str, Any], is_auto: Collection[str]
) -> str:
    """Return the words, such as ``precision=bf16``, that turn the values ``now`` into ``before``.

    Empty if the values are equal, or differ in more than the meaning of ``auto``.
    """
    differing = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
    is_meaning = (
        key in is_auto and before.get(key) in _OF_THE_MACHINE.get(key, ()) for key in differing
    )
    return " ".join(f"{key}={before[key]}" for key in differing) if all(is_meaning) else ""


def _begun_alike(
    outputs: Path, name: str
) -> Iterator[tuple["RunFolder", dict[str, Any], dict[str, Any]]]:
    """Yield the other runs whose names differ from ``name`` in their identity only.

    With the content of ``run.json`` and its values of the training by dotted key.
    """
    stem = name.rpartition("-")[0]
    for folder in run_folders(outputs, f"{stem}-"):  # a sweep may have left thousands of others
        if folder.path.name.rpartition("-")[0] != stem or folder.path.name == name:
            continue
        with suppress(OSError, ValueError, ArtefactError):
            found = fields.parsed(read_whole(folder.path / "run.json", at_most=LARGEST_JSON))
            before = leaves(_of_training(fields.section(found, "values")))
            fields.text(found, "fingerprint")
            yield folder, found, before


def redacted(values: Any) -> Any:
    """Replace every value in ``values`` whose key names a secret."""
    if isinstance(values, Mapping):
        return {
            key: "<redacted>" if _is_secret(str(key)) and value is not None else redacted(value)
            for key, value in values.items()
        }
    return [redacted(item) for item in values] if isinstance(values, list) else values


def redacted_words(overrides: Sequence[str]) -> list[str]:
    """Replace the values of secrets in the words of a command."""
    return [_redacted_word(word) for word in overrides]


def _redacted_word(override: str) -> str:
    key, separator, _ = override.partition("=")
    return f"{key}=<redacted>" if separator and _is_secret(key) else override


def _of_training(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``values`` without those of the evaluation, which earlier versions included."""
    return {key: value for key, value in values.items() if key not in schema.evaluation_groups()}


def _display_value(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:16]}…"


def _is_secret(key: str) -> bool:
    return any(word in key.lower() for word in _SECRETS)
