"""Consoles that survive a closed pipe, and text that cannot control a terminal."""

import os
import sys
import unicodedata
from collections.abc import Sequence

from rich.console import Console

TABLE_WIDTH = 120
"""Width of the widest table, in characters."""


def printable(text: str) -> str:
    """Escape the control characters of ``text``: a file name must not control the terminal."""
    return "".join(
        character if character.isprintable() or character == "\n" else repr(character)[1:-1]
        for character in text
    )


def legible(name: str) -> str:
    """Escape ``name``, line breaks included, for a message or a line of a list."""
    return printable(name).replace("\n", "\\n")


def distinguishable(names: Sequence[str]) -> list[str]:
    """Make ``names`` legible, in ASCII if two differ only in their Unicode forms."""
    forms: dict[str, set[str]] = {}
    for name in names:
        forms.setdefault(unicodedata.normalize("NFKC", name), set()).add(name)
    return [
        ascii(name) if len(forms[unicodedata.normalize("NFKC", name)]) > 1 else legible(name)
        for name in names
    ]


class PipeConsole(Console):
    """A console that outlives its pipe: a pipe closed by ``| head`` does not end the training."""

    def on_broken_pipe(self) -> None:
        """Stop writing."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class LiveConsole(PipeConsole):
    """A console that leaves the cursor visible: a process that is killed could not restore it."""

    def show_cursor(self, show: bool = True) -> bool:
        """Do nothing."""
        return False


def table_console() -> PipeConsole:
    """Return a console for tables; in a pipe, it is as wide as the widest table."""
    console = PipeConsole(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = TABLE_WIDTH
    return console


def note(text: str) -> None:
    """Print a line about something that is found far below a command, such as a damaged cache.

    On standard error, because standard output may hold the result of the command.
    """
    PipeConsole(stderr=True, highlight=False).print(
        f"note: {printable(text)}", markup=False, soft_wrap=True
    )
