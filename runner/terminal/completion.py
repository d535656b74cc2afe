"""Completion of the words of a command line by TAB, through argcomplete.

    eval "$(register-python-argcomplete trick-runner)"

The shell then starts ``trick-runner`` with the line in its environment, and prints what this module
finds. It reads the schema and the names of option files, and runs nothing.
"""

import argparse
import ast
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from runner.config.describe import group_keys, top_keys
from runner.config.options import EVALUATION_KEYS, GROUPS, OVERLAYS, option_names
from runner.config.schema import RunConfig
from runner.terminal.arguments import Parser
from runner.terminal.usage import WordsParser

_PATHS = ("code", "outputs", "run_dir", "data.root", "model.weights", "logger.folder")
_OF_WORDS = ("train", "lr_find", "compare", "look", "data", "evaluate")
_OF_RUNS = ("look", "evaluate")  # the folder of a run is a word as well
_PACKAGE = Path(__file__).parents[1]


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
            return options(modules[command])
        key, equals, value = prefix.partition("=")
        if equals and key in _PATHS:
            return [f"{key}={path}" for path in FilesCompleter()(value)]
        found = candidates(prefix) if command in _OF_WORDS else []
        if command == "evaluate":
            found = [word for word in found if _is_of_evaluation(word)]
        has_paths = command in _OF_RUNS or not found
        return [*found, *(FilesCompleter()(prefix) if has_paths and not equals else [])]

    parser = Parser(add_help=False, prefix_chars="\0")
    parser.add_argument("command", choices=modules)
    parser.add_argument("words", nargs="*").completer = words  # type: ignore[attr-defined]
    CompletionFinder(parser, always_complete_options=False)(parser)


def candidates(prefix: str) -> list[str]:
    """Return the words of a configuration that begin with ``prefix``.

    Groups come alone; their keys follow when ``prefix`` has a dot, their options after ``=``.
    A group without options comes as its keys. After a comma, options and values come again.
    """
    key, equals, typed = prefix.partition("=")
    before = typed[: typed.rfind(",") + 1]
    name = key.lstrip("+")
    if not equals:
        groups = [f"{'+' if group in OVERLAYS else ''}{group}=" for group in GROUPS]
        group = name.partition(".")[0]
        keys = group_keys(group) if "." in name else top_keys()
        found = [*groups, *(f"{one.name}=" for one in keys)]
        if prefix:
            bare = [group for group in RunConfig().groups if group not in GROUPS]
            found += [f"{one.name}=" for group in bare for one in group_keys(group)]
    elif name in GROUPS:
        found = [f"{key}={before}{option}" for option in option_names(name)]
    else:
        keys = group_keys(name.partition(".")[0]) if "." in name else top_keys()
        values = [value for one in keys if one.name == name for value in one.choices]
        found = [f"{key}={before}{value}" for value in values]
    return [word for word in dict.fromkeys(found) if word.startswith(prefix)]


def _is_of_evaluation(word: str) -> bool:
    key = word.partition("=")[0]
    return key in EVALUATION_KEYS or key.startswith("tta.")


def options(module: str) -> list[str]:
    """Return the long options of a command, as its function ``parser`` spells them.

    The source is read: to import a command takes up to a second.

    Args:
        module: the module of the command.
    """
    path = _PACKAGE.parent.joinpath(*module.split(".")).with_suffix(".py")
    tree = ast.parse(path.read_bytes())
    for item in tree.body:
        if isinstance(item, ast.FunctionDef) and item.name == "parser":
            return ["--help", *filter(re.compile("--[a-z][a-z-]*").fullmatch, _texts(item))]
    keywords = [ast.unparse(item) for item in ast.walk(tree) if isinstance(item, ast.keyword)]
    can_sweep = "can_sweep=False" not in keywords
    names = WordsParser("", can_sweep=can_sweep).options()
    return [name for name in names if name[:2] == "--" and (can_sweep or name != "--multirun")]


def _texts(item: ast.AST) -> list[str]:
    constants = (node.value for node in ast.walk(item) if isinstance(node, ast.Constant))
    return list(dict.fromkeys(value for value in constants if isinstance(value, str)))
