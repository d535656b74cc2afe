"""The output of a sweep: a line per job as it ends, and a table when all jobs have ended."""

import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.config.words import shared_words, without_shared
from runner.terminal.console import PipeConsole, printable
from runner.terminal.tables import Table

_NAME_WIDTH = 40  # of a job that is alone, and so has no words of its own


def job_names(jobs: Sequence[Sequence[str]]) -> list[str]:
    """Return the words by which each job differs from the others; for a single job, its first."""
    if len(jobs) == 1:
        return [_first_words(jobs[0])]
    shared = shared_words(jobs)
    return [without_shared(job, shared) for job in jobs]


def _first_words(job: Sequence[str]) -> str:
    text = " ".join(job[:1])
    for word in job[1:]:
        if len(text) + len(word) >= _NAME_WIDTH:
            return f"{text} …"
        text = f"{text} {word}"
    return text


def counted(states: Sequence[Mapping[str, Any]]) -> str:
    """Return how many jobs there are of each status: ``3 jobs: 2 finished, 1 failed``."""
    counts = Counter(str(state["status"]) for state in states)
    each = ", ".join(f"{count} {status}" for status, count in counts.items())
    return f"{len(states)} {'job' if len(states) == 1 else 'jobs'}{': ' if each else ''}{each}"


def print_line(outcome: Mapping[str, Any], name: str) -> None:
    """Print one line that says how the job of this name ended."""
    accuracy, tta = outcome.get("accuracy"), outcome.get("tta")
    reached = outcome.get("error", "") if accuracy is None else f"accuracy {accuracy:.2%}"
    if accuracy is not None and tta is not None:
        reached += f", with TTA {tta:.2%}"
    console = PipeConsole(highlight=False)
    line = printable(f"{outcome['status']}: {name}  {reached}".rstrip())
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
    names = job_names([outcome["job"] for outcome in outcomes])
    rows = []
    for name, outcome in zip(names, outcomes, strict=True):
        numbers = (outcome.get(key) for key in ("accuracy", "tta"))
        cells = ("" if number is None else f"{number:.2%}" for number in numbers)
        rows.append((name, outcome["status"], *cells))
    columns = ("job", "status", "accuracy", "TTA")
    Table(counted(outcomes), columns, tuple(rows), columns[:2]).print(console)
    if len(outcomes) > 1 and any(outcome.get("accuracy") is not None for outcome in outcomes):
        place = "" if outputs == Path("outputs") else f" {shlex.quote(str(outputs))}"
        console.print(f"does it help? python -m runner.report{place}", markup=False, soft_wrap=True)
    for number, (name, outcome) in enumerate(zip(names, outcomes, strict=True)):
        if "error" in outcome:
            text = f"{outcome['status']}: {name}\n  {outcome['error']}"
            text += f"\n  log: {log(number)}" if log(number).exists() else ""
            console.print(printable(text), markup=False, soft_wrap=True)
