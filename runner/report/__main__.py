"""Compare finished runs and say which trick helps: ``python -m runner.report outputs``.

Runs that are equal except for trick and seed are compared, paired by seed, each trick with the
baseline; with --by, the values of other keys are compared instead. The verdict is helps, hurts, no
difference larger than the margin, or cannot tell, with advice on what would settle it. The command
works during a sweep, and changes no run; the first folder's cache/report.npz remembers which images
each run has right.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from runner.report import text
from runner.report.answer import Answer, answer
from runner.report.forest import Forest
from runner.report.found_comparisons import find_comparisons
from runner.report.metric import ACCURACY, METRICS, default_margins, margin_of, metric_of
from runner.report.pooled import pool_folds
from runner.report.runs import find_runs
from runner.report.scores import ScoreBook
from runner.terminal.arguments import Parser
from runner.terminal.command import command, print_page, program, write_outputs
from runner.terminal.console import PipeConsole, printable, table_console
from runner.terminal.tables import left_out_note


def parser() -> argparse.ArgumentParser:
    """Make the parser of the command's words."""
    parser = Parser(prog=program("report"), description=__doc__)
    parser.add_argument(
        "outputs", nargs="*", type=Path, help="folders of runs, or runs (default: outputs)"
    )
    parser.add_argument(
        "--by",
        metavar="KEY",
        action="append",
        default=[],
        help="compare the values of a group (augment), a key (optim.lr) or your code (code) "
        "instead of tricks; may be repeated; all: everything that differs between the runs",
    )
    parser.add_argument(
        "--baseline",
        metavar="TRICKS or KEY=VALUE",
        action="append",
        default=[],
        help="what to compare with: tricks, such as normalize or mixup+tta; with --by a value, "
        "such as optim.lr=0.01 or augment=none, once for each KEY (default: the default value)",
    )
    parser.add_argument(
        "--metric", default=ACCURACY.name, metavar="NAME",
        help=f"what the verdict is about: {', '.join(METRICS)} (default: accuracy)",
    )  # fmt: skip
    parser.add_argument(
        "--margin",
        help="smallest difference that matters, in percentage points, or for log loss and Brier "
        f"score in their own units (default: {default_margins()})",
    )
    parser.add_argument(
        "--per-class", action="store_true",
        help="also show precision, recall and F1 of each class, for each trick",
    )  # fmt: skip
    for kind, what in {
        "--html": "write a page with figures that needs no other file",
        "--csv": "write a line per trick; parts of 1, not percent",
        "--json": "write every number in full",
        "--markdown": "write the tables",
    }.items():
        parser.add_argument(kind, type=Path, metavar="FILE", help=f"{what}; - prints it")
    return parser


def main() -> None:
    """Run the command; see ``--help``."""
    arguments = parser().parse_args()
    command(lambda: _report(arguments))


def _report(arguments: argparse.Namespace) -> None:
    metric = metric_of(arguments.metric)
    margin = margin_of(arguments.margin, metric)
    places = arguments.outputs or [Path("outputs")]
    cache = places[0] / "cache"
    book = ScoreBook(cache / "report.npz")
    comparisons = find_comparisons(places, book)
    runs = find_runs(places)
    pool_folds(runs)
    found = answer(
        runs,
        book,
        margin,
        arguments.baseline,
        arguments.by,
        ("python", "-m", "runner.report", *map(str, arguments.outputs)),
        comparisons,
        metric,
    )
    if cache.is_dir():  # the folder is an ``outputs`` folder, not a copy of some runs
        book.save()
    contents: dict[str, Callable[[], str]] = {
        "html": lambda: _page(found, arguments.html),
        "csv": lambda: text.csv(found),
        "json": lambda: text.to_json(found),
        "markdown": lambda: text.markdown(found, per_class=arguments.per_class),
    }
    is_read = write_outputs({name: getattr(arguments, name) for name in contents}, contents)
    if not is_read:
        _print(found, table_console(), per_class=arguments.per_class)
    print_page(arguments.html, is_read=is_read)


def _page(found: Answer, target: Path) -> str:
    from runner.report.page import page  # imports matplotlib, which takes a second

    return page(found, None if target == Path("-") else target.parent)


def _print(found: Answer, console: PipeConsole, *, per_class: bool) -> None:
    left_out: list[str] = []
    for part in text.content(found, per_class=per_class):
        if isinstance(part, Forest):
            part.print(console)
        elif isinstance(part, str):
            console.print(
                printable(part), markup=False, emoji=False, soft_wrap=text.is_command(part)
            )
        else:
            part.print(console)
            left_out += part.left_out(console.width)
    if left_out:
        note = left_out_note(left_out, "--markdown -")
        console.print(printable(note), markup=False, emoji=False, soft_wrap=True)


if __name__ == "__main__":
    main()
