"""A command in a process of its own, whose error becomes an exception again."""

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import IO

from runner import errors
from runner.errors import RunnerError


def output_of(module: str, arguments: Sequence[str]) -> str:
    """Run a command in a process of its own, show what it reports, and return its output.

    This process may have computed with torch, and such a process must not be forked, as sweeps and
    comparisons do for each training.

    Raises:
        RunnerError: the error of the command.
        KeyboardInterrupt: the command was interrupted, and has saved.
    """
    process = subprocess.Popen(  # noqa: S603  our own command
        [sys.executable, "-m", module, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="backslashreplace",
        # An interruption reaches this process alone and is passed on once: a second one would end
        # the command before it has saved.
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    lines: list[str] = []
    thread = threading.Thread(target=_follow, args=(process.stderr, lines), daemon=True)
    thread.start()
    try:
        output = process.stdout.read()
        code = process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        process.wait()
        raise
    finally:
        if process.poll() is None:  # interrupted again, or an error: nobody waits for it any more
            process.terminate()
        thread.join()
        process.stdout.close()
        process.stderr.close()
    if code in (129, 130, 143):
        raise KeyboardInterrupt("\n".join(lines[-1:]))
    if code != 0:
        raise _error(code, lines)
    return output


def _follow(stream: IO[str], lines: list[str]) -> None:
    """Keep the lines of a stream, and print them up to an error, which becomes an exception."""
    is_shown = True
    for line in stream:
        lines.append(line.rstrip("\n"))
        is_shown = is_shown and not line.startswith("error: ")
        if is_shown:
            with suppress(OSError, ValueError):  # nobody reads it; the command must not wait
                print(lines[-1])


def _error(code: int, lines: Sequence[str]) -> RunnerError:
    """The error that a command has printed, as the exception that it was."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    kind = next(
        (one for one in kinds if issubclass(one, RunnerError) and one.exit_code == code),
        RunnerError,
    )
    starts = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    text = "\n".join(lines[starts[0] :] if starts else lines[-20:]).removeprefix("error: ")
    text = text or f"the command ended with code {code} and no message"
    parts = re.fullmatch(
        r"(?P<what>.*?)(?:\nwhere: (?P<where>.*?))?(?:\nfix: (?P<fix>.*))?", text, re.DOTALL
    )
    assert parts is not None
    return kind(parts["what"], where=parts["where"] or "", fix=parts["fix"] or "")
