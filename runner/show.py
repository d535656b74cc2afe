"""List the runs below a folder, or watch a sweep: ``python -m runner.show outputs``.

Comparisons, and sweeps whose jobs are at work, are named below the table of runs.
``python -m runner.report`` has the verdicts.

``python -m runner.show outputs/sweeps/NAME``, or ``NAME`` alone, shows the jobs of
a sweep until they have ended: status, what Slurm says of them and why they wait,
machine, epoch. ``outputs/sweeps`` is the newest sweep. Ctrl-C ends the watching
alone. The exit code is 6 if all jobs have ended, and some without a result.

Status of a job
  pending      it has not begun
  queued       it waits in Slurm
  waiting      it waits for a free core or card of its machine
  running      it is at work
  busy         another process is at its run
  finished, resumed, evaluated, skipped    it has a result
  failed, crashed, interrupted, cancelled  it has none; cancelled is Slurm's scancel

The command only reads files and asks Slurm, so it works during a run.
"""

from argparse import RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from runner.errors import ArtefactError, DataError
from runner.jobs.following import show_sweep, under_way
from runner.records.comparison_folder import ComparisonFolder
from runner.records.run_folder import run_folders
from runner.records.sweep_folder import SweepFolder
from runner.terminal.arguments import Parser
from runner.terminal.command import command, program
from runner.terminal.console import PipeConsole, legible, printable
from runner.terminal.tables import Table

_ACCURACIES = ("accuracy", "balanced")


def rows(outputs: Path) -> Iterator[dict[str, Any]]:
    """Yield a row per run: ``name``, ``status``, ``reason``, ``epoch``, ``accuracy``, ``balanced``.

    The last two are None before the first evaluation, and ``balanced``, the balanced accuracy,
    also for runs of earlier versions.

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
        yield {
            "name": folder.path.name,
            "status": status["status"],
            "reason": str(status["reason"]).partition("\n")[0],
            "epoch": last.get("epoch", 0),
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


def main() -> None:
    """Run the command; see ``--help``."""
    parser = Parser(
        prog=program("show"), description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "outputs", nargs="?", default="outputs", type=Path, help="a folder of runs, or a sweep"
    )
    parser.add_argument("--once", action="store_true", help="do not watch the jobs of a sweep")
    arguments = parser.parse_args()
    outputs = arguments.outputs

    def body() -> None:
        if (sweep := sweep_at(outputs)) is not None:
            show_sweep(sweep, once=arguments.once)
            return
        found = list(rows(outputs))
        counts = Counter(row["status"] for row in found)
        title = ", ".join(f"{count} {status}" for status, count in counts.items())
        cells = [
            (
                row["name"],
                row["status"],
                str(row["epoch"]),
                *("" if row[name] is None else f"{row[name]:.2%}" for name in _ACCURACIES),
                row["reason"],
            )
            for row in found
        ]
        console = PipeConsole(highlight=False)
        Table(
            title=f"{len(found)} runs{': ' if title else ''}{title}",
            columns=("run", "status", "epoch", *_ACCURACIES, "reason"),
            rows=tuple(cells),
            text_columns=("run", "status", "reason"),
        ).print(console)
        for line in chain(comparisons(outputs), under_way(outputs)):
            console.print(printable(line), markup=False, emoji=False)

    command(body)


if __name__ == "__main__":
    main()
