"""List the runs below a folder, or watch a sweep: ``python -m runner.show outputs``.

Comparisons, and sweeps whose jobs are at work, are named below the table of
runs. ``python -m runner.report`` has the verdicts.

``python -m runner.show outputs/sweeps/NAME``, or ``NAME`` alone, shows the jobs
of a sweep until they have ended: status, what Slurm says of them and why they
wait, machine, epoch. ``outputs/sweeps`` is the newest sweep. Ctrl-C ends the
watching alone. The exit code is 6 if all jobs have ended, and some without a
result.

``--watch`` shows a folder of runs in the same way until Ctrl-C: epoch, images
per second and the time that is left of each run at work. In a pipe it prints a
line per change.

Status of a job
  pending      it has not begun
  queued       it waits in Slurm
  waiting      it waits for a free core or card of its machine
  running      it is at work
  busy         another process is at its run
  finished, resumed, evaluated, skipped    it has a result
  failed, crashed, interrupted, cancelled  it has none; cancelled is Slurm's
                                           scancel

The command only reads files and asks Slurm, so it works during a run.
"""

import sys
import time
from argparse import RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.text import Text

from runner.errors import ArtefactError, DataError
from runner.jobs.following import show_sweep, under_way
from runner.jobs.overview import num_epochs
from runner.records.comparison_folder import ComparisonFolder
from runner.records.run_folder import RunFolder, run_folders
from runner.records.sweep_folder import SweepFolder
from runner.terminal.arguments import Parser
from runner.terminal.command import command, program
from runner.terminal.console import LiveConsole, legible, printable, table_console
from runner.terminal.display import duration
from runner.terminal.tables import Table

_ACCURACIES = ("accuracy", "balanced")
_SECONDS = 2.0  # between two looks
_LINES = 12  # of a terminal that the table of runs leaves free


def rows(outputs: Path) -> Iterator[dict[str, Any]]:
    """Yield a row per run: ``name``, ``status``, ``reason``, ``epoch``, ``accuracy``, ``balanced``.

    Of a run at work also ``epochs``, ``speed`` in images per second and ``left`` in seconds.
    ``accuracy`` and ``balanced`` are None before the first evaluation, and ``balanced``,
    the balanced accuracy, also for runs of earlier versions.

    Raises:
        DataError: there is no such folder.
    """
    if not outputs.is_dir():
        raise DataError(
            "no such folder", where=str(outputs.absolute()), fix="the value of outputs="
        )
    for folder in run_folders(outputs):
        status = folder.status()
        last = folder.last_row()
        is_running, epoch = status["status"] == "running", last.get("epoch", 0)
        epochs = num_epochs(folder) if is_running else None
        speed, left = _pace(folder, epoch, epochs) if is_running else (None, None)
        yield {
            "name": folder.path.name,
            "status": status["status"],
            "reason": str(status["reason"]).partition("\n")[0],
            "epoch": epoch,
            "epochs": epochs,
            "speed": speed,
            "left": left,
            "accuracy": last.get("val_accuracy"),
            "balanced": last.get("val_balanced_accuracy"),
        }


def comparisons(outputs: Path) -> Iterator[str]:
    """Yield a line per comparison below ``outputs``: running, ended, not ended or damaged."""
    for folder in ComparisonFolder.all_in(outputs):
        state = "running"
        if not folder.is_running:
            try:
                state = "not ended" if folder.answer() is None else "ended"
            except ArtefactError as error:
                state = f"damaged: {error.what}"
        yield f"comparison {legible(folder.name)}: {state}"


def sweep_at(place: Path) -> SweepFolder | None:
    """Return the sweep that a folder or a name means; in a folder of sweeps, the newest.

    Returns:
        The sweep; None if ``place`` is something else, such as a folder of runs.

    Raises:
        DataError: there is no such sweep.
    """
    for path in (place, Path("outputs") / "sweeps" / place):
        folder = SweepFolder(path.resolve())
        if folder.exists:
            return folder
    if SweepFolder.is_name(place.name):
        raise DataError(
            "no such sweep", where=str(place.absolute()), fix=f"{program('show')} outputs/sweeps"
        )
    if place.name == "sweeps" and place.is_dir():
        if found := SweepFolder.all_in(place.resolve().parent):
            return found[-1]
        raise DataError("no sweep here yet", where=str(place.absolute()), fix=program("show"))
    return None


def _table(found: list[dict[str, Any]], room: int | None = None) -> Table:
    """Return the table of the runs, with ``room`` rows at most."""
    counts = Counter(row["status"] for row in found)
    title = ", ".join(f"{count} {status}" for status, count in counts.items())
    cells = [
        (
            row["name"],
            row["status"],
            _epoch(row),
            "" if row["speed"] is None else f"{row['speed']:,.0f}",
            "" if row["left"] is None else duration(row["left"]),
            *("" if row[name] is None else f"{row[name]:.2%}" for name in _ACCURACIES),
            row["reason"],
        )
        for row in found[:room]
    ]
    table = Table(
        title=f"{len(found)} runs{': ' if title else ''}{title}",
        columns=("run", "status", "epoch", "images/s", "left", *_ACCURACIES, "reason"),
        rows=tuple(cells),
        text_columns=("run", "status", "reason"),
        name_columns=("run",),
        optional_columns=("balanced",),
    )
    left_out = [] if any(row["status"] == "running" for row in found) else ["images/s", "left"]
    if not any(row["reason"] for row in found):
        left_out.append("reason")
    accuracy, balanced = map(table.columns.index, _ACCURACIES)
    if all(row[balanced] in ("", row[accuracy]) for row in table.rows):  # classes of one size
        left_out.append("balanced")
    return table.without(*left_out)


def _watch(outputs: Path) -> None:
    """Show the runs until Ctrl-C, which ends the watching alone; a pipe gets a line per change."""
    console, before = LiveConsole(highlight=False), dict[str, tuple[Any, ...]]()
    try:
        if not console.is_terminal or console.is_dumb_terminal:
            while True:
                for row in rows(outputs):
                    now = (row["status"], row["epoch"])
                    if before.get(row["name"]) != now:
                        before[row["name"]] = now
                        print(printable(_change(row)), flush=True)
                time.sleep(_SECONDS)
        with Live(console=console, auto_refresh=False, transient=True) as live:
            while True:
                began = time.monotonic()
                found = sorted(rows(outputs), key=lambda row: row["status"] != "running")
                room = max(1, console.height - _LINES)
                below = [
                    printable(line) for line in chain(comparisons(outputs), under_way(outputs))
                ]
                room = max(1, room // _table(found, room).lines_per_row(console.width))
                drawn = _table(found, room).drawn(console.width)
                more = [f"and {len(found) - room} more runs"] if len(found) > room else []
                live.update(Group(drawn, *map(Text, [*more, *below])), refresh=True)
                # Many files on a slow file system are read more rarely.
                time.sleep(max(_SECONDS, 5 * (time.monotonic() - began)))
    except KeyboardInterrupt as interrupt:
        print("not watched any more; the runs go on", file=sys.stderr)
        sys.exit(getattr(interrupt, "exit_code", 130))


def _epoch(row: Mapping[str, Any]) -> str:
    return f"{row['epoch']}" if row["epochs"] is None else f"{row['epoch']}/{row['epochs']:g}"


def _change(row: Mapping[str, Any]) -> str:
    speed = "" if row["speed"] is None else f", {row['speed']:,.0f} images/s"
    left = "" if row["left"] is None else f", about {duration(row['left'])} left"
    return f"{row['name']}: {row['status']}, epoch {_epoch(row)}{speed}{left}"


def _pace(folder: RunFolder, epoch: int, epochs: float | None) -> tuple[float | None, float | None]:
    """Return images per second of the last epoch, and about how many seconds a run has left."""
    times = folder.rows("timings.jsonl")
    last = times[-1] if times else {}
    speed, total = last.get("images_per_second"), last.get("total_seconds")
    if not isinstance(total, int | float) or epochs is None or not 0 < epoch <= epochs:
        return speed, None
    with suppress(OSError):
        since = time.time() - (folder.path / "timings.jsonl").stat().st_mtime
        return speed, max(0.0, total / epoch * (epochs - epoch) - since)
    return speed, None


def _help() -> str:
    """The docstring of this module, within 80 columns and without its markup."""
    return (__doc__ or "").replace("``", "").replace(": python -m", ":\npython -m", 1)


def parser() -> Parser:
    """Make the parser of the command's words."""
    found = Parser(
        prog=program("show"), description=_help(), formatter_class=RawDescriptionHelpFormatter
    )
    found.add_argument(
        "outputs", nargs="?", default="outputs", type=Path, help="a folder of runs, or a sweep"
    )
    found.add_argument("--once", action="store_true", help="do not watch the jobs of a sweep")
    found.add_argument(
        "--watch", action="store_true", help="show a folder of runs again and again, until Ctrl-C"
    )
    return found


def main() -> None:
    """Run the command; see ``--help``."""
    arguments = parser().parse_args()
    outputs = arguments.outputs

    def body() -> None:
        if (sweep := sweep_at(outputs)) is not None:
            show_sweep(sweep, once=arguments.once and not arguments.watch)
            return
        if arguments.watch:
            _watch(outputs)
            return
        console = table_console()
        _table([*rows(outputs)]).print(console)
        for line in chain(comparisons(outputs), under_way(outputs)):
            console.print(printable(line), markup=False, emoji=False)

    command(body)


if __name__ == "__main__":
    main()
