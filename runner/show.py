"""List the runs below a folder, also while they run: ``python -m runner.show outputs``.

Comparisons are named below the table; ``python -m runner.report`` has their verdicts.

The command only reads run folders, so it works during a run, and does not import torch.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runner.errors import ArtefactError, DataError
from runner.records.comparison_folder import ComparisonFolder
from runner.records.run_folder import run_folders
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


def main() -> None:
    """Run the command; see ``--help``."""
    parser = Parser(prog=program("show"), description=__doc__)
    parser.add_argument("outputs", nargs="?", default="outputs", type=Path)
    outputs = parser.parse_args().outputs

    def body() -> None:
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
        for line in comparisons(outputs):
            console.print(printable(line), markup=False, emoji=False)

    command(body)


if __name__ == "__main__":
    main()
