"""The output of a sweep: a line per job as it ends, and a table when all jobs have ended."""

import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.config.words import own_words
from runner.terminal.console import PipeConsole, printable
from runner.terminal.tables import Table


def print_job(
    job: Sequence[str], outcome: Mapping[str, Any], jobs: Sequence[Sequence[str]]
) -> None:
    """Print one line that says how a job of a sweep of ``jobs`` ended."""
    accuracy = outcome.get("accuracy")
    reached = outcome.get("error", "") if accuracy is None else f"accuracy {accuracy:.2%}"
    console = PipeConsole(highlight=False)
    line = printable(f"{outcome['status']}: {own_words(job, jobs)}  {reached}")
    console.print(line, markup=False, soft_wrap=True)


def print_sweep(
    outcomes: Sequence[Mapping[str, Any]], log: Callable[[int], Path], outputs: Path
) -> None:
    """Print the table of a sweep, a row per job, and the reasons of the jobs that failed.

    Args:
        outcomes: the outcome of each job, by its number: ``job``, the words of the job; ``status``;
            ``accuracy`` and ``tta`` of a finished job; ``error`` of a failed job.
        log: returns the log file of the job with that number.
        outputs: folder of the runs.
    """
    console = PipeConsole(highlight=False)
    jobs = [outcome["job"] for outcome in outcomes]
    counts = Counter(outcome["status"] for outcome in outcomes)
    title = ", ".join(f"{count} {status}" for status, count in counts.items())
    rows = []
    for outcome in outcomes:
        numbers = (outcome.get(key) for key in ("accuracy", "tta"))
        cells = ("" if number is None else f"{number:.2%}" for number in numbers)
        rows.append((own_words(outcome["job"], jobs), outcome["status"], *cells))
    columns = ("job", "status", "accuracy", "TTA")
    Table(f"{len(outcomes)} jobs: {title}", columns, tuple(rows), columns[:2]).print(console)
    if len(outcomes) > 1:
        place = "" if outputs == Path("outputs") else f" {shlex.quote(str(outputs))}"
        console.print(f"does it help? python -m runner.report{place}", markup=False, soft_wrap=True)
    for number, outcome in enumerate(outcomes):
        if "error" in outcome:
            text = f"{outcome['status']}: {own_words(outcome['job'], jobs)}\n  {outcome['error']}"
            text += f"\n  log: {log(number)}" if log(number).exists() else ""
            console.print(printable(text), markup=False, soft_wrap=True)
