"""Completion of the words of a command line by TAB, through argcomplete.

    eval "$(register-python-argcomplete trick-runner)"

The shell then starts ``trick-runner`` with the line in its environment, and prints what this module
finds. It reads the schema and the names of option files, and runs nothing.
"""

import argparse
import importlib
import os
from collections.abc import Iterable, Mapping
from typing import Any

from runner.config.describe import group_keys, group_options, top_keys
from runner.config.options import GROUPS, OVERLAYS
from runner.terminal.arguments import Parser

_PATHS = ("code", "outputs", "run_dir", "data.root", "model.weights", "logger.folder")
_OF_WORDS = ("train", "lr_find", "compare", "look", "data")
_OPTIONS = ("--help", "--multirun", "--cfg", "--resolve", "--config-dir", "--detach", "--version")


def requested() -> bool:
    """Return whether a shell asks for completion, and not a user for a command."""
    return "_ARGCOMPLETE" in os.environ


def complete(modules: Mapping[str, str]) -> None:
    """Print the completions of the line in the environment, and exit.

    Args:
        modules: the module of each command, by name.
    """
    from argcomplete.completers import FilesCompleter
    from argcomplete.finders import CompletionFinder

    def words(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> Iterable[str]:
        command = parsed_args.command
        if prefix.startswith("-"):
            return options(command, modules)
        key, equals, value = prefix.partition("=")
        if equals and key in _PATHS:
            return [f"{key}={path}" for path in FilesCompleter()(value)]
        found = candidates(prefix) if command in _OF_WORDS else []
        return found or ([] if equals else FilesCompleter()(prefix))

    parser = Parser(add_help=False, prefix_chars="\0")
    parser.add_argument("command", choices=modules)
    parser.add_argument("words", nargs="*").completer = words  # type: ignore[attr-defined]
    CompletionFinder(parser, always_complete_options=False)(parser)


def candidates(prefix: str) -> list[str]:
    """Return the words of a configuration that begin with ``prefix``.

    Groups come alone; their keys follow when ``prefix`` has a dot, their options after ``=``.
    """
    key, equals, _ = prefix.partition("=")
    name = key.lstrip("+")
    if not equals:
        groups = [f"{'+' if group in OVERLAYS else ''}{group}=" for group in GROUPS]
        group = name.partition(".")[0]
        keys = group_keys(group) if "." in name else top_keys()
        found = [*groups, *(f"{one.name}=" for one in keys)]
    elif name in GROUPS:
        found = [f"{key}={one.words.partition('=')[2]}" for one in group_options(name)]
    else:
        keys = group_keys(name.partition(".")[0]) if "." in name else top_keys()
        found = [f"{key}={value}" for one in keys if one.name == name for value in one.choices]
    return [word for word in found if word.startswith(prefix)]


def options(command: str, modules: Mapping[str, str]) -> list[str]:
    """Return the options of a command."""
    make = getattr(importlib.import_module(modules[command]), "parser", None)
    return (
        list(_OPTIONS) if make is None else [name for name in make().options() if name[:2] == "--"]
    )
