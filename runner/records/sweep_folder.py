"""What a sweep writes while it runs, a file per job, and how its jobs are watched and stopped.

    outputs/sweeps/TIME-PID/
        sweep.json   the command, the number of jobs, who runs it since when
        0.json …     how a job stands: waiting, running, finished, skipped, resumed, failed,
                     interrupted or busy; accuracy, reason
        0.log …      what a job said, where it does not share the terminal; why it failed
        stop         there once the sweep was asked to end: no further job begins

Each job writes its own file, in whichever process or on whichever machine it runs, so the table of
a sweep can be read at any time and does not depend on how the jobs ended. A crash leaves the file
of its job at *running* with a process that is gone.
"""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from runner.errors import BusyError
from runner.machine import fields
from runner.machine.files import replace_whole
from runner.machine.locks import locked
from runner.records.run_folder import redacted_words

ALIVE = ("waiting", "running")
_TOLD = ("finished", "skipped", "resumed", "failed")
_STOPPING = {signal.SIGINT, signal.SIGTERM}


class SweepFolder:
    """The files of one sweep."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, outputs: Path, jobs: Sequence[Sequence[str]]) -> "SweepFolder":
        """A folder of its own for a sweep that starts now.

        Raises:
            StorageError: it cannot be written.
        """
        now = datetime.now(UTC)
        name = f"{now:%Y%m%d-%H%M%S}-{os.getpid()}"
        folder = cls(outputs.expanduser().absolute() / "sweeps" / name)
        folder._write(
            "sweep.json",
            {
                "jobs": [redacted_words(job) for job in jobs],
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "since": now.isoformat(timespec="seconds"),
            },
        )
        return folder

    def log(self, number: int) -> Path:
        """Where job ``number`` says what it has to say."""
        return self.path / f"{number}.log"

    def write(self, number: int, status: str, **more: Any) -> None:
        """Say how job ``number`` stands."""
        self._write(
            f"{number}.json",
            {"status": status, "pid": os.getpid(), "host": socket.gethostname(), **more},
        )

    def read(self, number: int) -> dict[str, Any]:
        """How job ``number`` stands; a job whose process is gone without a word has crashed."""
        try:
            found = fields.parsed((self.path / f"{number}.json").read_bytes())
            status = fields.text(found, "status")
        except (OSError, ValueError):
            return {"status": "pending"}
        if status in ALIVE and not _is_alive(found):
            found |= {"status": "crashed", "error": self._last_words(number)}
        return found

    def stop(self, signum: int) -> None:
        """Let no further job begin; who says so first is remembered."""
        if self.stopped_by is None:
            self._write("stop", {"signal": signum})

    @property
    def stopped_by(self) -> int | None:
        """Number of the signal that ended the sweep; None while it may go on."""
        try:
            return fields.whole(fields.parsed((self.path / "stop").read_bytes()), "signal")
        except (OSError, ValueError):
            return None

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        replace_whole(self.path / name, (json.dumps(content, indent=2) + "\n").encode())

    def _last_words(self, number: int) -> str:
        """What Python's fault handler wrote, or that nothing was said."""
        with suppress(OSError):
            for line in self.log(number).read_text(errors="replace").splitlines():
                if line.startswith("Fatal Python error: "):
                    return f"crashed: {line.removeprefix('Fatal Python error: ')}"
        return "crashed: its process ended without a word (killed, or out of memory)"

    @contextmanager
    def slot(self, num_slots: int) -> Iterator[None]:
        """Wait until fewer than ``num_slots`` jobs of this sweep hold a slot, and hold one."""
        with ExitStack() as stack:
            while True:
                for slot in range(num_slots):
                    with suppress(BusyError):
                        stack.enter_context(locked(self.path / f"slot-{slot}.lock", wait=False))
                        yield
                        return
                time.sleep(0.2)


def _is_alive(job: Mapping[str, Any]) -> bool:
    """Whether the process of a job lives; of one on another machine it is assumed."""
    if job["host"] != socket.gethostname():
        return True
    try:
        state = Path(f"/proc/{job['pid']}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z"
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return False
    except OSError:
        pass
    try:
        os.kill(job["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


class Watch:
    """While jobs run in other processes: tells of each that ends, and stops them when asked to.

    Processes that the block starts do not see a SIGINT or SIGTERM that is sent to all at once, as
    Ctrl-C in the terminal is; the first here passes on SIGTERM, at which they save and end. A
    second kills them.

    Args:
        folder: of the sweep.
        numbers: of the jobs that run now.
        tell: called with the number of each job that has ended.
        can_stop: the jobs are processes of this machine; or they are left to their queue.
    """

    def __init__(
        self,
        folder: SweepFolder,
        numbers: Sequence[int],
        tell: Callable[[int], None],
        *,
        can_stop: bool,
    ) -> None:
        self._folder = folder
        self._left = list(numbers)
        self._tell = tell
        self._can_stop = can_stop
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watch":
        self._handlers = {signum: signal.signal(signum, self._stop) for signum in _STOPPING}
        # Processes inherit the mask of the thread that starts them. Signals to this process reach
        # it through the thread below, and Python runs their handler in the main thread.
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        self._tell_of_ended()

    def _watch(self) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
        while not self._is_over.wait(0.5):
            self._tell_of_ended()

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        is_second = self._folder.stopped_by is not None
        if is_second or not self._can_stop:
            for job in self._running() if self._can_stop else ():
                _send(job, signal.SIGKILL)
            os._exit(128 + signum)
        self._folder.stop(signum)
        for job in self._running():
            _send(job, signal.SIGTERM)

    def _running(self) -> list[dict[str, Any]]:
        jobs = [self._folder.read(number) for number in self._left]
        return [job for job in jobs if job["status"] in ALIVE]

    def _tell_of_ended(self) -> None:
        for number in list(self._left):
            if self._folder.read(number)["status"] in _TOLD:
                self._left.remove(number)
                self._tell(number)


def _send(job: Mapping[str, Any], signum: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        if job["host"] == socket.gethostname():
            os.kill(job["pid"], signum)
