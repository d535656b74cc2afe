"""What the terminal shows: a live progress bar for people, plain lines for files and pipes."""

import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from runner.config.words import own_words

TABLE_WIDTH = 120
"""Columns of characters that the widest table needs."""
_REFRESH_SECONDS = 0.5  # how often the loss is read: on a GPU that waits for the step


def printable(text: str) -> str:
    """``text`` with control characters spelled out: a file's name must not steer the terminal."""
    return "".join(
        character if character.isprintable() or character == "\n" else repr(character)[1:-1]
        for character in text
    )


class PipeConsole(Console):
    """A console whose closed pipe, as after ``| head``, does not end the training behind it."""

    def on_broken_pipe(self) -> None:
        """Write no more."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def table_console() -> PipeConsole:
    """A console for tables; in a pipe, which has no width of its own, as wide as they need."""
    console = PipeConsole(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = TABLE_WIDTH
    return console


class Display:
    """Progress of one run; use as a context manager.

    Args:
        quiet: show nothing, as another process speaks for this one.
        stderr: leave standard output to the result.
    """

    def __init__(self, *, quiet: bool = False, stderr: bool = False) -> None:
        self.console = PipeConsole(highlight=False, quiet=quiet, stderr=stderr)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._tasks: dict[str, Any] = {}
        self._shown_at = 0.0

    def __enter__(self) -> "Display":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def line(self, text: str) -> None:
        """One line, printed as it is."""
        self.console.print(printable(text), markup=False, soft_wrap=True)

    def work(self, what: str, done: int, total: int) -> None:
        """Progress of a long preparation, such as decoding images."""
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total, note="")
            if not self.console.is_terminal:
                self.line(f"{what} …")
        self._progress.update(self._tasks[what], completed=done, total=total or None)
        if total and done >= total:
            self._progress.remove_task(self._tasks.pop(what))

    def is_due(self) -> bool:
        """Whether the next step's loss should be read and shown."""
        return self.console.is_terminal and time.monotonic() - self._shown_at >= _REFRESH_SECONDS

    def step(self, stage: str, done: int, total: int, note: str) -> None:
        """Training is ``done`` of ``total`` steps along."""
        self._shown_at = time.monotonic()
        if "training" not in self._tasks:
            self._tasks["training"] = self._progress.add_task(stage, total=total, note="")
        self._progress.update(
            self._tasks["training"], description=stage, completed=done, total=total, note=note
        )

    def evaluation(self, done: int, total: int) -> None:
        """An evaluation is ``done`` of ``total`` batches along."""
        if "evaluation" not in self._tasks:
            self._tasks["evaluation"] = self._progress.add_task("evaluation", total=total, note="")
        self._progress.update(self._tasks["evaluation"], completed=done)
        if done == total:
            self._progress.remove_task(self._tasks.pop("evaluation"))

    def epoch(self, row: Mapping[str, Any], num_epochs: int) -> None:
        """One finished epoch."""
        self.line(
            f"epoch {row['epoch']:>{len(str(num_epochs))}}/{num_epochs}"
            f"  size {row['size']:>3}"
            f"  train loss {row['train_loss']:.4f}"
            f"  val loss {row['val_loss']:.4f}"
            f"  accuracy {row['val_accuracy']:.2%}"
            f"  {row['images_per_second']:,.0f} images/s"
            f"  {row['seconds']:.1f} s"
        )

    def result(self, result: Mapping[str, Any], folder: str) -> None:
        """The closing table: plain and TTA side by side."""
        metrics, budget = result["metrics"], result["budget"]
        tricks = ", ".join(result["tricks"]) or "none (baseline)"
        table = Table(title=f"tricks: {escape(tricks)}   seed: {result['seed']}")
        table.add_column(f"{result['data']['num_val']:,} validation images")
        views = {"plain": metrics["plain"]}
        if "tta" in result["tricks"]:
            views["TTA"] = metrics["tta"]
        for name, view in views.items():
            table.add_column(f"{name} ({view['forward_passes']}×)", justify="right")
        low_high = [view["accuracy_ci"] for view in views.values()]
        table.add_row("accuracy", *(f"{view['accuracy']:.2%}" for view in views.values()))
        table.add_row("95% interval", *(f"{low:.2%} – {high:.2%}" for low, high in low_high))
        if "top5" in metrics["plain"]:
            table.add_row("top-5", *(f"{view['top5']:.2%}" for view in views.values()))
        for label, key in (("log loss", "nll"), ("Brier score", "brier"), ("ECE", "ece")):
            table.add_row(label, *(f"{view[key]:.4f}" for view in views.values()))
        self.console.print(table)
        self.line(
            f"{budget['epochs']:g} epochs, {budget['images']:,} images in {budget['seconds']:.1f} s"
            f" ({budget['images_per_second']:,.0f} images/s)"
        )
        self.line(f"results: {folder}")


def print_job(
    job: Sequence[str], outcome: Mapping[str, Any], jobs: Sequence[Sequence[str]]
) -> None:
    """One line: how a job of a sweep of ``jobs`` ended."""
    accuracy = outcome.get("accuracy")
    shown = outcome.get("error", "") if accuracy is None else f"accuracy {accuracy:.2%}"
    console = PipeConsole(highlight=False)
    line = printable(f"{outcome['status']}: {own_words(job, jobs)}  {shown}")
    console.print(line, markup=False, soft_wrap=True)


def print_sweep(
    outcomes: Sequence[Mapping[str, Any]], log: Callable[[int], Path], outputs: Path
) -> None:
    """The table of a sweep, a row per job, and the reasons of those that failed.

    Args:
        outcomes: of the jobs by number: ``job``, its words; ``status``; what it came to.
        log: the file in which a job says more.
        outputs: folder of the runs.
    """
    console = PipeConsole(highlight=False)
    jobs = [outcome["job"] for outcome in outcomes]
    counts = Counter(outcome["status"] for outcome in outcomes)
    title = ", ".join(f"{count} {status}" for status, count in counts.items())
    table = Table(title=f"{len(outcomes)} jobs: {title}")
    table.add_column("job", overflow="fold")
    for column in ("status", "accuracy", "TTA"):
        table.add_column(column, justify="right")
    for outcome in outcomes:
        numbers = (outcome.get(key) for key in ("accuracy", "tta"))
        cells = ["" if number is None else f"{number:.2%}" for number in numbers]
        table.add_row(escape(own_words(outcome["job"], jobs)), outcome["status"], *cells)
    console.print(table)
    if len(outcomes) > 1:
        place = "" if outputs == Path("outputs") else f" {shlex.quote(str(outputs))}"
        console.print(f"does it help? python -m runner.report{place}", markup=False, soft_wrap=True)
    for number, outcome in enumerate(outcomes):
        if "error" in outcome:
            text = f"{outcome['status']}: {own_words(outcome['job'], jobs)}\n  {outcome['error']}"
            text += f"\n  log: {log(number)}" if log(number).exists() else ""
            console.print(printable(text), markup=False, soft_wrap=True)
