"""What the terminal shows: a live progress bar for people, plain lines for files and pipes."""

import time
from collections.abc import Mapping
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from runner.terminal.console import PipeConsole, printable
from runner.terminal.metric_tables import metric_label, metric_text
from runner.terminal.tables import Table

_FURTHER = ("top5", "balanced_accuracy", "log_loss", "brier", "macro_f1", "auroc", "ece")
_REFRESH_SECONDS = 0.5  # not at each step: reading the loss on a GPU waits for the step


def duration(seconds: float) -> str:
    """Return a time for people, such as ``45 s``, ``12 min``, ``1 h 35 min`` or ``2 d 3 h``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, days = minutes // 60, round(minutes / 60) // 24
    if days >= 2:
        return f"{days} d {round(minutes / 60) % 24} h"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"


class Display:
    """Shows the progress of one run; use it as a context manager.

    Args:
        quiet: show nothing, because another process of the same run shows it.
        stderr: write to standard error, so that standard output holds only the result.
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
        """Print one line of text without markup or wrapping."""
        self.console.print(printable(text), markup=False, soft_wrap=True)

    def work(self, what: str, done: int, total: int) -> None:
        """Show that a preparation such as decoding images has done ``done`` of ``total`` items."""
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total, note="")
            if not self.console.is_terminal:
                self.line(f"{what} …")
        self._progress.update(self._tasks[what], completed=done, total=total or None)
        if total and done >= total:
            self._progress.remove_task(self._tasks.pop(what))

    def is_due(self) -> bool:
        """Return whether the next step's loss should be read and shown."""
        return self.console.is_terminal and time.monotonic() - self._shown_at >= _REFRESH_SECONDS

    def step(self, stage: str, done: int, total: int, note: str) -> None:
        """Show that training has made ``done`` of ``total`` steps."""
        self._shown_at = time.monotonic()
        if "training" not in self._tasks:
            self._tasks["training"] = self._progress.add_task(stage, total=total, note="")
        self._progress.update(
            self._tasks["training"], description=stage, completed=done, total=total, note=note
        )

    def evaluation(self, done: int, total: int) -> None:
        """Show that an evaluation has finished ``done`` of ``total`` batches."""
        if "evaluation" not in self._tasks:
            self._tasks["evaluation"] = self._progress.add_task("evaluation", total=total, note="")
        self._progress.update(self._tasks["evaluation"], completed=done)
        if done == total:
            self._progress.remove_task(self._tasks.pop("evaluation"))

    def epoch(self, row: Mapping[str, Any], num_epochs: int) -> None:
        """Print one line about a finished epoch."""
        clipped = f"  clipped {row['clipped']:.0%}" if "clipped" in row else ""
        self.line(
            f"epoch {row['epoch']:>{len(str(num_epochs))}}/{num_epochs}"
            f"  size {row['size']:>3}"
            f"  train loss {row['train_loss']:.4f}"
            f"  val loss {row['val_loss']:.4f}"
            f"  accuracy {row['val_accuracy']:.2%}{clipped}"
            f"  {row['images_per_second']:,.0f} images/s"
            f"  {row['seconds']:.1f} s"
        )

    def result(self, result: Mapping[str, Any], folder: str) -> None:
        """Print the closing table: plain predictions and TTA side by side."""
        metrics, budget = result["metrics"], result["budget"]
        views = {"plain": metrics["plain"]}
        if "tta" in result["tricks"]:
            views["TTA"] = metrics["tta"]
        names = list(result["tricks"])
        if code := result.get("code"):
            names.append(f"code={code['file']}")
        heading = f"{result['data']['num_val']:,} validation images"
        low_high = [view["accuracy_ci"] for view in views.values()]
        rows = [
            ("accuracy", *(f"{view['accuracy']:.2%}" for view in views.values())),
            ("95% interval", *(f"{low:.2%} – {high:.2%}" for low, high in low_high)),
        ]
        for name in _FURTHER:
            if all(name in view for view in views.values()):  # earlier runs have fewer metrics
                cells = (metric_text(name, view[name]) for view in views.values())
                rows.append((metric_label(name), *cells))
        Table(
            title=f"tricks: {', '.join(names) or 'none (baseline)'}   seed: {result['seed']}",
            columns=(
                heading,
                *(f"{name} ({view['forward_passes']}×)" for name, view in views.items()),
            ),
            rows=tuple(rows),
            text_columns=(heading,),
        ).print(self.console)
        plural = "epoch" if budget["epochs"] == 1 else "epochs"
        self.line(
            f"{budget['epochs']:g} {plural}, {budget['images']:,} images in "
            f"{budget['seconds']:.1f} s"
            f" ({budget['images_per_second']:,.0f} images/s)"
        )
        self.line(f"results: {folder}")
