"""Reports of jobs that run elsewhere to the command that has these jobs."""

from collections.abc import Callable

from runner.records.sweep_folder import ENDED


class Reporter:
    """Reports that jobs begin, each once, and end; and lines for the user.

    Args:
        say: called with each line for the user.
        on_begin: called with the number of each job that begins.
        on_end: called with the number of each job that has ended.
    """

    def __init__(
        self,
        *,
        say: Callable[[str], None],
        on_begin: Callable[[int], None],
        on_end: Callable[[int], None],
    ) -> None:
        self.say = say
        self.on_end = on_end
        self._on_begin = on_begin
        self._begun = set[int]()

    def found(self, number: int, status: str) -> None:
        """Report that a job has begun, if its status says so for the first time."""
        if number not in self._begun and status in ("running", *ENDED):
            self._begun.add(number)
            self._on_begin(number)

    def has_begun(self, number: int) -> bool:
        """Return whether the begin of a job was reported."""
        return number in self._begun
