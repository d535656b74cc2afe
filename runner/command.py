"""How every command ends: errors in one form, and an exit code that says which kind."""

import io
import os
import sys
import traceback
from collections.abc import Callable

from runner.display import printable
from runner.errors import ProcessError, RunnerError
from runner.signals import raise_on_signals


def command(
    body: Callable[[], None],
    translated: Callable[[Exception], RunnerError | None] = lambda error: None,
    *,
    if_interrupted: str = "interrupted",
) -> None:
    """Run the body of a command, tell its errors in one form, and exit with their code.

    Exit codes are those of ``runner.errors``; 1 for a bug of ours; 130 and 143 after SIGINT and
    SIGTERM.

    Args:
        body: does the work.
        translated: gives a library's error in our form, or None where it is not the user's.
        if_interrupted: what to say then.
    """
    raise_on_signals()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may not know all characters
            stream.reconfigure(errors="backslashreplace")
    try:
        body()
        sys.stdout.flush()
    except KeyboardInterrupt as interrupt:
        if _speaks():
            print(if_interrupted, file=sys.stderr)
        sys.exit(getattr(interrupt, "exit_code", 130))
    except BrokenPipeError:
        # `| head` closed our output. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        known = error if isinstance(error, RunnerError) else translated(error)
        if not (_speaks() or isinstance(known, ProcessError)):
            sys.exit(known.exit_code if known else 1)
        if known is None or os.environ.get("RUNNER_DEBUG"):
            traceback.print_exc()
        if known is None:
            print("this is a bug of trick-runner", file=sys.stderr)
            sys.exit(1)
        print(printable(f"error: {known}"), file=sys.stderr)
        sys.exit(known.exit_code)


def _speaks() -> bool:
    """Whether this process tells of errors: of several that share a run, the first."""
    return os.environ.get("RANK", "0") == "0"
