"""List the commands, or run one: ``trick-runner COMMAND …`` or ``python -m runner COMMAND …``.

Every module that says ``python -m runner.NAME`` in the first sentence of its docstring is a
command; the list is read from the source files, so that it needs neither torch nor Hydra. The same
command also runs as ``python -m runner.NAME``.
"""

import ast
import importlib
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from runner import __version__
from runner.config.words import nearest
from runner.errors import ConfigError
from runner.terminal import completion
from runner.terminal.command import command

_FIRST_SENTENCE = re.compile(
    r"(?P<summary>[^`]+): ``python -m runner\.(?P<name>\w+)(?P<example>[^`]*)``"
)


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        module: the module whose ``main`` runs the command.
        summary: one line on what the command does.
        example: words that the command takes.
    """

    module: str
    summary: str
    example: str


def commands() -> dict[str, Command]:
    """Return the commands by name, in alphabetical order."""
    folder = Path(__file__).parent
    found = {}
    for path in [*folder.glob("*.py"), *folder.glob("*/__main__.py")]:
        docstring = ast.get_docstring(ast.parse(path.read_bytes())) or ""
        if match := _FIRST_SENTENCE.match(" ".join(docstring.split())):
            module = ".".join(("runner", *path.relative_to(folder).with_suffix("").parts))
            found[match["name"]] = Command(module, match["summary"], match["example"].strip())
    return dict(sorted(found.items()))


def overview(program: str) -> str:
    """Return the text of ``--help``, at most 80 characters wide.

    Args:
        program: how the program was called, such as ``trick-runner``.
    """
    lines = ["Does this training trick help on your images?", "", f"  {program} COMMAND …", ""]
    for name, found in commands().items():
        lines += [f"  {name:<9} {found.summary}"]
        lines += [f"            {program} {name} {found.example}"]
    lines += ["", f"  {program} COMMAND --help     what a command takes"]
    lines += [f"  {program} --version"]
    return "\n".join(lines)


def main() -> None:
    """Run the command that the first word names; see ``--help``."""
    program = "trick-runner" if Path(sys.argv[0]).stem == "trick-runner" else "python -m runner"
    words, known = sys.argv[1:], commands()
    if completion.requested():
        completion.complete({name: found.module for name, found in known.items()})
    if not words or words[0] in ("-h", "--help"):
        command(lambda: print(overview(program)))
    elif words[0] == "--version":
        command(lambda: print(f"trick-runner {__version__}"))
    elif words[0] in known:
        sys.argv = [f"{program} {words[0]}", *words[1:]]
        importlib.import_module(known[words[0]].module).main()
    else:
        command(lambda: _refuse(program, words, known))


def _refuse(program: str, words: Sequence[str], known: Mapping[str, Command]) -> None:
    first, names = words[0], ", ".join(known)
    if "=" in first or first.startswith(("-", "+", "~")):  # words without their command
        raise ConfigError(
            f"the first word must be a command: {names}",
            where=first,
            fix=f"{program} train {shlex.join(words)}",
        )
    guess = nearest(first, list(known))
    raise ConfigError(
        "no such command" + (f" (did you mean {guess}?)" if guess else ""),
        where=first,
        fix=f"{program} {guess} …" if guess else f"one of {names}",
    )


if __name__ == "__main__":
    main()
