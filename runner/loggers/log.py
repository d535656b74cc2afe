"""The logger of a run, as the training sees it: it starts, receives news, and ends.

The work is done by :mod:`runner.loggers.copier` in a process of its own. Nothing here waits while
the run trains, and nothing raises: a logger that fails is reported once.
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import runner
from runner.config.schema import RunConfig
from runner.loggers.copier import END_SECONDS
from runner.loggers.tool import FOLDERS, VIEWERS

_WITH_PASSWORD = re.compile(r"//[^/@\s]+@")  # of an address in the message of a library
_LONGEST = 4096  # bytes of a message


class RunLog:
    """Copies the records of a run to the tool that its configuration names, if any.

    Use it as a context manager around everything that writes the run; at the end it waits
    ``END_SECONDS`` at most for the tool.

    Args:
        config: configuration of the run.
        run: the folder of the run.
        is_first: whether this process writes the run; no other process logs.
        say: prints a line for the user.
    """

    def __init__(
        self, config: RunConfig, run: Path, *, is_first: bool, say: Callable[[str], None]
    ) -> None:
        self._config, self._run, self._say = config, run.absolute(), say
        self._is_on = is_first and config.logger.is_on
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def start(self) -> None:
        """Begin to copy; the run must have ``run.json``, and no row that is to be taken back."""
        if not self._is_on:
            return
        logger = self._config.logger
        below = Path(self._config.outputs).expanduser() / FOLDERS[logger.name]
        place = below if logger.folder is None else Path(logger.folder).expanduser()
        settings = {
            "name": logger.name,
            "run": str(self._run),
            "folder": str(place.absolute()),
            "project": logger.project,
            "online": logger.online,
            "tags": self._config.tricks,
        }
        # The same package, whatever the current folder has.
        root = str(Path(runner.__file__).parent.parent)
        paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        command = [sys.executable, "-P", "-m", "runner.loggers.copier", json.dumps(settings)]
        try:
            self._process = subprocess.Popen(  # noqa: S603  our own module
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C is for the training, which then ends the copy
            )
        except OSError as error:
            self._failed(str(error))
            return
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        os.set_blocking(self._process.stdout.fileno(), False)
        if not logger.online:
            command_to_view = VIEWERS[logger.name].format(folder=place, project=logger.project)
            self._say(f"logger: {logger.name}; to view: {command_to_view}")

    def news(self) -> None:
        """Say that there is a new row; returns at once."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        # A full pipe holds more such lines, and a broken one is noticed below.
        with suppress(OSError):
            os.write(self._process.stdin.fileno(), b"\n")
        if self._process.poll() is not None:
            self._failed(self._reason())

    def _end(self) -> None:
        """Wait for the copy of what is new, and end it if that takes too long."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        try:
            if self._process.wait(END_SECONDS) != 0:
                self._failed(self._reason())
        except subprocess.TimeoutExpired:
            self._failed(f"not done {END_SECONDS} s after the end of the run")
        finally:
            self._kill()

    def _reason(self) -> str:
        """Why the process has ended, in its own words if it has left any."""
        assert self._process is not None
        assert self._process.stdout is not None
        with suppress(OSError):
            if said := os.read(self._process.stdout.fileno(), _LONGEST):
                return _WITH_PASSWORD.sub("//…@", said.decode(errors="replace"))
        return f"its process ended with code {self._process.returncode}"

    def _failed(self, reason: str) -> None:
        self._kill()
        self._say(
            f"warning: logger={self._config.logger.name} stopped: {reason}; the run is not "
            f"affected, and its records are complete in {self._run}"
        )

    def _kill(self) -> None:
        """End the process and what it has started, and forget it."""
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(OSError):
            # Also if the process has ended: a tool may have left processes of its own.
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdin, process.stdout):
            with suppress(OSError):
                if stream is not None:
                    stream.close()
