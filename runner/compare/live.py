"""What a comparison shows while it runs: a live table for people, plain lines for files and pipes.

A round calls ``begun`` and ``ended`` for each job, from any thread, and ``looked`` after each look.
"""

from collections.abc import Sequence
from types import TracebackType
from typing import Any, TypeAlias

from runner.compare.question import Job

Outcome: TypeAlias = Any  # until runner.jobs and runner.report have them
ComparisonAnswer: TypeAlias = Any


class Live:
    """Shows a comparison while it runs; use it as a context manager."""

    def __enter__(self) -> "Live":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    @property
    def is_live(self) -> bool:
        """Whether a live table has the terminal, so that jobs must be quiet."""
        return False

    def line(self, text: str) -> None:
        """Print a line above the table."""

    def round(self, jobs: Sequence[Job]) -> None:
        """Show that these jobs are the next ones."""

    def begun(self, job: Job) -> None:
        """Show that a job runs."""

    def ended(self, job: Job, outcome: Outcome) -> None:
        """Show how a job ended."""

    def looked(self, answer: ComparisonAnswer) -> None:
        """Show what is known after a look."""
