"""How every command ends: errors in one form, and an exit code for each kind."""

import gc
import io
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

from runner.config.idea import blamed
from runner.errors import ConfigError, ProcessError, RunnerError, StorageError, of_system
from runner.machine.files import write_output
from runner.machine.signals import raise_on_signals
from runner.terminal.console import PipeConsole, printable
from runner.terminal.streams import open_outlets, output_error

_RARELY = 10_000  # once in so many times that newer objects are looked through


def command(
    body: Callable[[], None],
    translated: Callable[[Exception], RunnerError | None] = lambda error: None,
    *,
    if_interrupted: str = "interrupted",
    prints_result: bool = True,
) -> None:
    """Run the body of a command, report its errors in one form, and exit with their code.

    Exit codes are those of ``runner.errors``; 1 for a bug of ours; 129, 130 and 143 after SIGHUP,
    SIGINT and SIGTERM.

    Args:
        body: does the work.
        translated: returns a library's error in our form, or None if it is not the user's mistake.
        if_interrupted: the message after a signal.
        prints_result: whether the printed text is the result, so that the command has failed if
            the text could not be written; False if the result is in files.
    """
    _keep_what_is_old()
    raise_on_signals()
    open_outlets()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may not know all characters
            stream.reconfigure(errors="backslashreplace")
    try:
        _require_working_directory()
        body()
        _check_output(prints_result)
    except KeyboardInterrupt as interrupt:
        if _prints_errors():
            print(if_interrupted, file=sys.stderr)
        sys.exit(getattr(interrupt, "exit_code", 130))
    except BrokenPipeError:
        # `| head` closed our output. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        known = error if isinstance(error, RunnerError) else translated(error) or blamed(error)
        known = known or of_system(error)
        if not (_prints_errors() or isinstance(known, ProcessError)):
            sys.exit(known.exit_code if known else 1)
        if known is None or os.environ.get("RUNNER_DEBUG"):
            traceback.print_exc()
        if known is None:
            print("this is a bug of trick-runner", file=sys.stderr)
            sys.exit(1)
        print(printable(f"error: {known}"), file=sys.stderr)
        sys.exit(known.exit_code)


def _keep_what_is_old() -> None:
    """Look for garbage among new objects alone: those that a command has for long, it keeps.

    They are modules, mostly torch's. To look through them again and again, while more are imported
    and options composed, takes up to 0.4 s. In a notebook, which may run for days, nothing changes.
    """
    new, newer, _ = gc.get_threshold()
    gc.set_threshold(new, newer, _RARELY)


def _require_working_directory() -> None:
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise StorageError(
            "the working directory has been removed", fix="cd to a folder that exists"
        ) from error


def _check_output(is_result: bool) -> None:
    """Report that standard output could not be written; a reader such as ``head`` may close it."""
    error = output_error()
    if error is None or isinstance(error, BrokenPipeError):
        return
    if is_result:
        raise StorageError(
            f"the output could not be written: {error.strerror or error}",
            where="standard output",
            fix="another place: python -m … > FILE",
        )
    print(f"note: the output could not be written: {error.strerror or error}", file=sys.stderr)


def program(name: str) -> str:
    """Return the words with which the user called a command, such as ``trick-runner show``.

    Args:
        name: of the command. Called as a module, it is ``python -m runner.NAME``.
    """
    called = sys.argv[0]  # set by runner.__main__ where that started the command
    is_listed = called in (f"trick-runner {name}", f"python -m runner {name}")
    return called if is_listed else f"python -m runner.{name}"


def write_outputs(
    targets: Mapping[str, Path | None], contents: Mapping[str, Callable[[], str]]
) -> bool:
    """Write what the user asked for, each to its file, or to standard output for ``-``.

    Args:
        targets: the file by the name of an option; None if the option was not given.
        contents: a function by the same name, which returns the text of the file.

    Returns:
        Whether standard output was used.

    Raises:
        ConfigError: more than one goes to standard output.
        StorageError: a file cannot be written.
    """
    asked = {name: target for name, target in targets.items() if target is not None}
    printed = [name for name, target in asked.items() if target == Path("-")]
    if len(printed) > 1:
        where = " ".join(f"--{name} -" for name in printed)
        raise ConfigError("standard output takes one of them", where=where, fix="names of files")
    for name, target in asked.items():
        if name in printed:
            sys.stdout.write(contents[name]())
        else:
            write_output(target, contents[name]().encode(errors="backslashreplace"))
    return bool(printed)


def print_page(target: Path | None, *, is_read: bool) -> None:
    """Print the path of a page that was written to a file.

    Args:
        target: the file; nothing is printed for None, and for ``-``, standard output.
        is_read: a program reads standard output, so the path goes to standard error.
    """
    if target is not None and target != Path("-"):
        console = PipeConsole(stderr=is_read, highlight=False)
        console.print(printable(f"page: {target}"), markup=False, emoji=False, soft_wrap=True)


def _prints_errors() -> bool:
    """Return whether this process reports errors: only the first of a run's processes does."""
    return os.environ.get("RANK", "0") == "0"
