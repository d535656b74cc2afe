"""Where text goes: consoles that survive a closed pipe, and text that cannot steer a terminal."""

import os
import sys

from rich.console import Console

TABLE_WIDTH = 120
"""Columns of characters that the widest table needs."""


def printable(text: str) -> str:
    """``text`` with control characters spelled out: a file's name must not steer the terminal."""
    return "".join(
        character if character.isprintable() or character == "\n" else repr(character)[1:-1]
        for character in text
    )


class PipeConsole(Console):
    """A console whose closed pipe, as after ``| head``, does not end the training behind it."""

    def on_broken_pipe(self) -> None:
        """Write no more."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def table_console() -> PipeConsole:
    """A console for tables; in a pipe, which has no width of its own, as wide as they need."""
    console = PipeConsole(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = TABLE_WIDTH
    return console
