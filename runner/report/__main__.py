"""Does it help? ``python -m runner.report [OUTPUTS …]`` compares the runs below a folder.

Runs that are equal but for trick and seed are compared, paired by seed, each trick with the
baseline; the verdict is helps, hurts, no difference larger than the margin, or cannot tell, and
then what would settle it. Reads run folders only, also while a sweep is at them.
"""

import argparse
import os
import sys
from pathlib import Path

from runner.command import command
from runner.display import PipeConsole, printable
from runner.errors import ConfigError
from runner.report import text
from runner.report.answer import Answer, answer
from runner.report.runs import find_runs
from runner.report.scores import ScoreBook
from runner.storage import write_output

_STDOUT = Path("-")
_WIDTH = 120  # columns that the widest table needs


def parser() -> argparse.ArgumentParser:
    """Of the command's words."""
    parser = argparse.ArgumentParser(prog="python -m runner.report", description=__doc__)
    parser.add_argument(
        "outputs", nargs="*", type=Path, help="folders of runs, or runs (default: outputs)"
    )
    parser.add_argument("--baseline", metavar="TRICKS", help="such as normalize or mixup+tta")
    parser.add_argument(
        "--margin", type=float, default=0.5, metavar="POINTS",
        help="smallest difference that matters, in percentage points (default: 0.5)",
    )  # fmt: skip
    for kind, what in {
        "html": "write a page with figures that needs no other file",
        "csv": "write a line per trick; parts of 1, not percent",
        "json": "write every number in full",
        "markdown": "write the tables",
    }.items():
        parser.add_argument(f"--{kind}", type=Path, metavar="FILE", help=f"{what}; - prints it")
    return parser


def main() -> None:
    """The command; see ``--help``."""
    arguments = parser().parse_args()
    command(lambda: _report(arguments))


def _report(arguments: argparse.Namespace) -> None:
    if not 0 < arguments.margin < 100:
        raise ConfigError(
            "the margin must be above 0 and below 100 percentage points",
            where=f"--margin {arguments.margin:g}",
            fix="--margin 0.5",
        )
    places = arguments.outputs or [Path("outputs")]
    cache = places[0] / "cache"
    book = ScoreBook(cache / "report.npz")
    found = answer(find_runs(places), book, arguments.margin / 100, arguments.baseline)
    if cache.is_dir():  # a folder of ours, not a copy of some runs
        book.save()
    contents = {"csv": text.csv, "json": text.to_json, "markdown": text.markdown}
    if arguments.html:
        from runner.report.page import page  # brings matplotlib, which takes a second

        contents["html"] = page
    is_told = False
    for kind, content in contents.items():
        if path := getattr(arguments, kind):
            is_told |= _write(path, content(found))
    if not is_told:
        console = PipeConsole(highlight=False)
        if not console.is_terminal and "COLUMNS" not in os.environ:
            console.width = _WIDTH  # a pipe has no width of its own
        _tell(found, console)


def _write(path: Path, content: str) -> bool:
    """Write a file, or to the terminal; whether it was the terminal."""
    if path == _STDOUT:
        sys.stdout.write(content)
        return True
    write_output(path, content.encode(errors="backslashreplace"))
    return False


def _tell(found: Answer, console: PipeConsole) -> None:
    # A narrow terminal shows what decides.
    left_out = () if console.width >= _WIDTH else ("over seeds", "p (Holm)")
    for part in text.content(found):
        if isinstance(part, str):
            console.print(
                printable(part), markup=False, emoji=False, soft_wrap=text.is_command(part)
            )
        else:
            part.without(*left_out).print(console)


if __name__ == "__main__":
    main()
