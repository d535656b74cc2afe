"""A command in a process of its own, whose error becomes an exception again."""

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

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
    )  # fmt: skip
    lines: list[str] = []

    def follow() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line.rstrip("\n"))
            if not _is_of_error(lines):
                print(lines[-1])

    assert process.stdout is not None
    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        output = process.stdout.read()
        code = process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        process.wait()
        raise
    finally:
        thread.join()
        for stream in (process.stdout, process.stderr):
            stream.close()  # type: ignore[union-attr]
    if code in (129, 130, 143):
        raise KeyboardInterrupt("\n".join(lines[-1:]))
    if code != 0:
        raise _error(code, lines)
    return output


def _is_of_error(lines: Sequence[str]) -> bool:
    return any(line.startswith("error: ") for line in lines)


def _error(code: int, lines: Sequence[str]) -> RunnerError:
    """The error that a command has printed, as the exception that it was."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    kind = next(
        (one for one in kinds if issubclass(one, RunnerError) and one.exit_code == code),
        RunnerError,
    )
    starts = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    text = "\n".join(lines[starts[0] :] if starts else lines[-20:]).removeprefix("error: ")
    parts = re.fullmatch(
        r"(?P<what>.*?)(?:\nwhere: (?P<where>.*?))?(?:\nfix: (?P<fix>.*))?", text, re.DOTALL
    )
    assert parts is not None
    return kind(parts["what"], where=parts["where"] or "", fix=parts["fix"] or "")
