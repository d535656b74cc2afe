"""Copies the records of one run to a tool, in a process of its own.

A tool imports for seconds, starts threads and processes, installs hooks, and may wait for a
network. Here it can neither fail nor slow the training: this process has the lowest priority, is
ended when its time is up, and reads what the run has written to disk, so that the run hands it no
data. The training writes a line to the standard input whenever there is something new, and closes
it at the end; a line to the standard output says why the copy failed.

``logged/TOOL.json`` in the folder of the run keeps what the tool calls the run, and the last step
that was logged. A run that resumes makes the same rows again after its checkpoint, so that rows up
to that step are left out and no step is logged twice.
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from runner.config.schema import leaves
from runner.errors import first_line
from runner.loggers.tool import Ending, LoggedRun, Tool
from runner.machine import fields
from runner.machine.files import read_whole
from runner.records import evaluations
from runner.records.run_folder import LARGEST_JSON, RunFolder

END_SECONDS = 30
"""Time for the table, the figures and all that is not yet written, after the last step."""
_NAMES = {"train_loss": "train/loss", "clipped": "train/clipped"}
_PLAIN = ("epoch", "lr", "size", "images", "images_per_second", "total_seconds")
_METRICS = (
    "accuracy", "top5", "balanced_accuracy", "macro_f1", "auroc", "log_loss", "brier", "ece",
    "forward_passes",
)  # fmt: skip
_QUIET = {
    "DO_NOT_TRACK": "1",
    "GIT_PYTHON_REFRESH": "quiet",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
}
"""Environment of the tools: they send nothing that nobody asked for."""


class Copy:
    """The copy of a run.

    Args:
        folder: the folder of the run, which has begun.
        settings: ``name``, ``folder``, ``project`` and ``online`` of the logger.
    """

    def __init__(self, folder: RunFolder, settings: Mapping[str, Any]) -> None:
        self._folder, self._settings = folder, settings
        self._state_file = f"logged/{settings['name']}.json"
        state = self._state()
        self._step = int(state.get("step", 0))
        self._tool = open_tool(str(settings["name"]))(self._described(state.get("id")))
        self._write_state()

    def rows(self) -> None:
        """Log the rows that were written since the last call."""
        times = {row.get("epoch"): row for row in self._folder.rows("timings.jsonl")}
        for row in self._folder.rows():
            if row["step"] > self._step:
                self._tool.scalars(row["step"], scalars({**times.get(row["epoch"], {}), **row}))
                self._step = row["step"]
                self._write_state()

    def end(self) -> None:
        """Log the end of the run: of a finished one the table and figures too."""
        self.rows()
        result = self._folder.result()
        if result is None:
            self._tool.end(self._step, Ending(self._folder.status()["status"]))
        else:
            figures = drawn(self._folder, result)
            self._tool.end(self._step, Ending("finished", final(self._folder, result), figures))
        self._write_state()

    def _described(self, name: str | None) -> LoggedRun:
        run = fields.parsed(read_whole(self._folder.path / "run.json", at_most=LARGEST_JSON))
        text = read_whole(self._folder.path / "config.yaml", at_most=LARGEST_JSON)
        config = leaves(yaml.safe_load(text))
        return LoggedRun(
            name=self._folder.path.name,
            identity=fields.text(run, "identity"),
            tags=self._settings["tags"] or ["baseline"],
            config=config,
            id=name,
            folder=self._settings["folder"],
            project=self._settings["project"],
            online=self._settings["online"],
        )

    def _state(self) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            path = self._folder.path / self._state_file
            found = fields.parsed(read_whole(path, at_most=LARGEST_JSON))
            if found.get("folder") == self._settings["folder"]:
                return found
        return {}

    def _write_state(self) -> None:
        state = {"id": self._tool.id, "step": self._step, "folder": self._settings["folder"]}
        folder = self._folder
        folder.write_text(self._state_file, json.dumps(state) + "\n")


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """Return what is logged of a row: ``train/loss``, ``val/accuracy``, ``lr``, ``size`` and so on.

    Args:
        row: a row of ``metrics.jsonl``, perhaps with that of ``timings.jsonl``.
    """
    found = {}
    for key, value in row.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            if key in _PLAIN:
                found[key] = float(value)
            elif key in _NAMES or key.startswith("val_"):
                found[_NAMES.get(key, key.replace("_", "/", 1))] = float(value)
    return found


def final(folder: RunFolder, result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the final table: a row per view of the images, plain and of each TTA."""
    views = {"plain": result["metrics"]["plain"]}
    names = evaluations.names(folder)
    for name in names:
        found = evaluations.read(folder, name)
        if found is not None:
            views["tta" if len(names) == 1 else f"tta-{name[:8]}"] = found["metrics"]
    return [
        {
            "view": view,
            **{name: metrics[name] for name in _METRICS if metrics.get(name) is not None},
        }
        for view, metrics in views.items()
    ]


def drawn(folder: RunFolder, result: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the charts of a finished run as PNG files by name."""
    from runner.pictures import charts
    from runner.pictures.paper import picture_bytes

    rows, found = folder.rows(), folder.predictions()
    classes, seen = result["data"]["classes"], (found["plain"], found["labels"])
    matrix = charts.counts(*seen, len(classes))
    figures = {
        "curves": (charts.curves(rows), charts.curves_alt(rows)),
        "schedule": (charts.schedule(rows), charts.schedule_alt(rows)),
        "confusion": (charts.confusion(matrix, classes), charts.confusion_alt(matrix, classes)),
        "reliability": (charts.reliability(*seen), charts.reliability_alt(*seen)),
    }
    return {name: picture_bytes(figure, ".png", alt) for name, (figure, alt) in figures.items()}


def open_tool(name: str) -> Callable[[LoggedRun], Tool]:
    """Import a tool; return what opens a run in it."""
    if name == "tensorboard":
        from runner.loggers.tensorboard import TensorBoard

        return TensorBoard
    if name == "mlflow":
        from runner.loggers.mlflow import Mlflow

        return Mlflow
    if name == "wandb":
        from runner.loggers.wandb import Wandb

        return Wandb
    from runner.loggers.trackio import Trackio

    return Trackio


def copy(folder: RunFolder, settings: Mapping[str, Any], news: Iterator[object]) -> None:
    """Copy the records of a run, anew whenever there are ``news``, and its end after the last."""
    os.environ.update({**_QUIET, **os.environ})
    if settings["name"] == "trackio":
        os.environ["TRACKIO_DIR"] = settings["folder"]
    copied = Copy(folder, settings)
    copied.rows()
    for _ in news:
        copied.rows()
    copied.end()


def main() -> None:
    """Copy the run whose settings are the first argument, in JSON; see the module."""
    settings = json.loads(sys.argv[1])
    os.nice(19)
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)  # a scheduler sends them to all; the input ends soon
    said = os.dup(1)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)  # tools print
    os.dup2(nothing, 2)

    def news() -> Iterator[object]:
        yield from sys.stdin
        # The training may have been killed, and the network may hang: nobody else ends this.
        signal.alarm(2 * END_SECONDS)  # the training ends it earlier, and says so

    try:
        copy(RunFolder(Path(settings["run"])), settings, news())
        code = 0
    except Exception as error:  # of a tool, of any kind
        os.write(said, f"{type(error).__name__}: {first_line(error)}".encode(errors="replace"))
        code = 1
    os._exit(code)  # hooks of the tools at the end of a process could wait


if __name__ == "__main__":
    main()
