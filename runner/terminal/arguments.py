"""Options of the command line: no abbreviations, and mistakes in the form of all errors."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from runner.config.words import nearest
from runner.errors import ConfigError
from runner.terminal.console import printable


class Parser(argparse.ArgumentParser):
    """A parser of ``argparse`` that knows no abbreviations and reports mistakes as commands do.

    An abbreviation is one more spelling of an option: a check of the full name would miss it.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does; words that it does not know are refused in our form."""
        found, unknown = self.parse_known_args(args, namespace)
        self._check(unknown, args)
        return found

    def parse_intermixed_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse options between other words; see :meth:`parse_args`."""
        found, unknown = self.parse_known_intermixed_args(args, namespace)
        self._check(unknown, args)
        return found

    def _check(self, unknown: Sequence[str], given: Sequence[str] | None) -> None:
        words = sys.argv[1:] if given is None else [*given]
        for word in unknown:
            if word.startswith("-"):
                self.refuse(self.unknown_option(word, words[words.index(word) + 1 :]))
        if unknown:
            self.refuse(ConfigError("too many words", where=unknown[0], fix=f"{self.prog} --help"))

    def unknown_option(self, option: str, following: Sequence[str]) -> ConfigError:
        """Return the error for an option that does not exist.

        Args:
            option: the option as it was typed, perhaps with ``=VALUE``.
            following: the words that came after the option.
        """
        name, separator, value = option.partition("=")
        # A long option alone: `-m` is close to any short word.
        known = [known for known in self.options() if known.startswith("--")]
        guess = nearest(name, known)
        return ConfigError(
            f"no such option: {name}" + (f" (did you mean {guess}?)" if guess else ""),
            where=option,
            fix=f"{guess}{separator}{value}" if guess else f"{self.prog} --help",
        )

    def options(self) -> list[str]:
        """Return every spelling of every option."""
        return [name for action in self._actions for name in action.option_strings]

    def error(self, message: str) -> NoReturn:
        """End the command because of an argument; argparse calls this."""
        self.refuse(ConfigError(message, fix=f"{self.prog} --help"))

    def refuse(self, error: ConfigError) -> NoReturn:
        """Print ``error`` as commands do and exit with its code."""
        print(printable(f"error: {error}"), file=sys.stderr)
        sys.exit(error.exit_code)
