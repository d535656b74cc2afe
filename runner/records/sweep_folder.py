"""The folder of a sweep, with a file per job; and the watching and stopping of its jobs.

    outputs/sweeps/TIME-PID/   (TIME-PID-2 if another container has just created TIME-PID)
        sweep.json   the jobs, the process and machine of the sweep, and its start
        0.json …     the status of a job: queued, waiting, running, finished, skipped, resumed,
                     evaluated, failed, crashed, interrupted, cancelled or busy; its accuracy, or
                     the reason
        0.log …      the output of a job that does not share the terminal; why the job failed
        slurm.json   the id of each job in Slurm, and of each job of another sweep
                     that this sweep watches too
        stop         exists once the sweep has been stopped: no further job begins

Each job writes its own file, in any process and on any machine, so the table of a sweep can be read
at any time and does not depend on how the jobs ended. After a crash, the file of the job still says
*running*, but its process no longer exists. Only Slurm knows whether a job of Slurm exists;
see :mod:`runner.jobs.slurm`.
"""

import json
import os
import re
import shlex
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from runner.machine import fields
from runner.machine.files import new_folder, read_end, read_whole, replace_whole
from runner.machine.locks import one_locked
from runner.machine.slurm import scancel
from runner.records.run_folder import redacted_words

ALIVE = ("queued", "waiting", "running")
GOOD = ("finished", "skipped", "resumed", "evaluated")
ENDED = (*GOOD, "failed", "crashed")
_KNOWN = (*ALIVE, *ENDED, "interrupted", "cancelled", "busy", "pending")
_FOLDER = "sweeps"
_NAME = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9]+(-[0-9]+)?")
_NUMBER = re.compile(r"[0-9]{1,5}")
_ID = re.compile(r"[0-9]+(_[0-9]+)?")
_LARGEST_SLURM = 2**26  # bytes of the file of a sweep of some hundred thousand jobs
_LARGEST = 2**20  # bytes of a file that is read, or of its end
_STOPPING = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


@dataclass(frozen=True)
class SlurmRecord:
    """Where a job of a sweep is in Slurm.

    Attributes:
        id: id in Slurm, such as ``12_3``.
        sweep: name of the folder of the sweep that submitted the job; None for this sweep itself.
        number: number of the job in that sweep.
        asked: a hash over the work of the job.
    """

    id: str
    sweep: str | None
    number: int
    asked: str = ""


class SweepFolder:
    """The files of one sweep."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._slurm: dict[int, SlurmRecord] | None = None
        self._others = dict[str, SweepFolder]()

    @classmethod
    def create(cls, outputs: Path, jobs: Sequence[Sequence[str]]) -> "SweepFolder":
        """Create a new folder for a sweep that starts now.

        Raises:
            StorageError: the folder cannot be written.
        """
        now = datetime.now(UTC)
        name = f"{now:%Y%m%d-%H%M%S}-{os.getpid()}"
        folder = cls(new_folder(outputs.expanduser().absolute() / _FOLDER / name))
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

    @property
    def pasted(self) -> str:
        """The folder as a word for a shell in the working directory."""
        return shlex.quote(str(from_here(self.path)))

    def scancel(self, numbers: Iterable[int]) -> str:
        """Return the command that cancels these jobs in Slurm, and no job of another sweep."""
        records = [self.slurm[number] for number in numbers]
        own = [record.id for record in records if record.sweep is None]
        others = [record.id for record in records if record.sweep is not None]
        return scancel(own, others)

    @property
    def slurm(self) -> Mapping[int, SlurmRecord]:
        """The jobs that were submitted to Slurm, by number; read once."""
        if self._slurm is None:
            self._slurm = {}
            with suppress(OSError, ValueError):
                content = fields.section(self._parsed("slurm.json", at_most=_LARGEST_SLURM), "jobs")
                for number in content:
                    one = fields.section(content, number)
                    sweep = one.get("sweep")
                    if sweep is not None and not _NAME.fullmatch(fields.text(one, "sweep")):
                        raise ValueError("not the name of a sweep")
                    if not _NUMBER.fullmatch(number):
                        raise ValueError("not the number of a job")
                    if not _ID.fullmatch(fields.text(one, "id")):
                        raise ValueError("not an id of Slurm")
                    self._slurm[int(number)] = SlurmRecord(
                        fields.text(one, "id"),
                        sweep,
                        fields.whole(one, "number"),
                        fields.text(one, "asked"),
                    )
        return self._slurm

    def submitted(self, jobs: Mapping[int, SlurmRecord]) -> None:
        """Record that these jobs were submitted to Slurm."""
        self._record({**self.slurm, **jobs})

    def withdraw(self, numbers: Sequence[int]) -> None:
        """Forget that these jobs were submitted to Slurm."""
        if {*numbers} & {*self.slurm}:
            self._record({key: one for key, one in self.slurm.items() if key not in numbers})

    def _record(self, jobs: Mapping[int, SlurmRecord]) -> None:
        self._slurm = dict(jobs)
        content = {str(number): asdict(record) for number, record in self._slurm.items()}
        self._write("slurm.json", {"jobs": content})

    def jobs(self) -> list[list[str]]:
        """Return the words of each job, without secrets.

        Raises:
            OSError: the file cannot be read.
            ValueError: the file is damaged.
        """
        found = self._parsed("sweep.json")
        jobs = found.get("jobs")
        if not isinstance(jobs, list):
            raise ValueError("not a list of jobs")
        return [list(fields.texts({"job": job}, "job")) for job in jobs]

    @classmethod
    def all_in(cls, outputs: Path) -> "list[SweepFolder]":
        """Return the sweeps below ``outputs``, oldest first; other folders are skipped."""
        with suppress(OSError):
            paths = sorted((outputs / _FOLDER).iterdir())
            return [cls(path) for path in paths if cls(path).exists]
        return []

    @staticmethod
    def is_name(name: str) -> bool:
        """Return whether ``name`` can be that of a sweep's folder."""
        return bool(_NAME.fullmatch(name))

    @property
    def exists(self) -> bool:
        """Whether this is the folder of a sweep; its files may be damaged."""
        try:
            return self.is_name(self.path.name) and (self.path / "sweep.json").is_file()
        except (OSError, ValueError):
            return False

    @property
    def outputs(self) -> Path:
        """The folder of the runs."""
        return self.path.parent.parent

    def names(self) -> list[list[str]]:
        """Return the words of each job; ``job N`` for a job whose words are not recorded."""
        try:
            return self.jobs()
        except (OSError, ValueError):
            files = (path.stem for path in self.path.glob("*.json"))
            numbers = {*self.slurm, *(int(stem) for stem in files if _NUMBER.fullmatch(stem))}
            return [["job", str(number)] for number in range(max(numbers, default=-1) + 1)]

    @property
    def leader(self) -> tuple[int, str] | None:
        """Process and machine of the sweep, which may have ended; None if they are not known."""
        try:
            found = self._parsed("sweep.json")
            return fields.whole(found, "pid", at_least=1), fields.text(found, "host")
        except (OSError, ValueError):
            return None

    @property
    def is_led(self) -> bool | None:
        """Whether the process of the sweep lives; None if unknown, on another machine."""
        if self.leader is None:
            return False
        pid, host = self.leader
        return is_alive({"pid": pid, "host": host}) if host == socket.gethostname() else None

    def place(self, number: int) -> tuple["SweepFolder", int]:
        """Return the sweep that submitted job ``number``, and the number of the job there."""
        record = self.slurm.get(number)
        if record is not None and record.sweep is not None:
            other = self._others.setdefault(
                record.sweep, SweepFolder(self.path.parent / record.sweep)
            )
            there = other.slurm.get(record.number)
            if there is not None and there.sweep is None:  # else a damaged file could loop forever
                return other, record.number
        return self, number

    def log(self, number: int) -> Path:
        """Return the log file of job ``number``."""
        folder, number = self.place(number)
        return folder.path / f"{number}.log"

    def output_in_slurm(self, number: int) -> Path | None:
        """Return the file with the output of a Slurm job before its log was open; None if empty."""
        folder, own = self.place(number)
        if (record := folder.slurm.get(own)) is not None:
            for end in ("err", "out"):
                path = folder.path / "slurm" / record.id / f"{record.id}_0_log.{end}"
                with suppress(OSError):
                    if path.stat().st_size:
                        return path
        return None

    def write(self, number: int, status: str, **more: Any) -> None:
        """Record the status of job ``number``."""
        folder, own = self.place(number)
        if folder is not self:
            folder.write(own, status, **more)
            return
        self._write(
            f"{number}.json",
            {"status": status, "pid": os.getpid(), "host": socket.gethostname(), **more},
        )

    def read(self, number: int) -> dict[str, Any]:
        """Read the status of job ``number``: crashed if its process ended without recording one.

        A job that was submitted to Slurm and has not written anything is *queued*. Whether Slurm
        still has the job is not checked here.
        """
        folder, own = self.place(number)
        if folder is not self:
            return folder.read(own)
        try:
            found = self._parsed(f"{number}.json")
            status = fields.text(found, "status")
            if status not in _KNOWN:
                raise ValueError(f"unknown status: {status}")
            fields.whole(found, "pid", at_least=1)
            fields.text(found, "host")
            for key in ("folder", "evaluation", "error", "error_kind", "reason"):
                if found.get(key) is not None:
                    fields.text(found, key)
            for key in ("accuracy", "tta", "seconds"):
                if found.get(key) is not None:
                    fields.number(found, key)
        except (OSError, ValueError):
            return {"status": "queued" if number in self.slurm else "pending"}
        if number in self.slurm:
            return found
        if status in ALIVE and not is_alive(found):
            found |= {"status": "crashed", "error": self._last_words(number)}
        return found

    def has_state(self, number: int) -> bool:
        """Return whether job ``number`` of this sweep has recorded a status."""
        return (self.path / f"{number}.json").exists()

    def stop(self, signum: int) -> None:
        """Let no further job begin; the first signal is recorded."""
        if self.stopped_by is None:
            self._write("stop", {"signal": signum})

    @property
    def stopped_by(self) -> int | None:
        """Number of the signal that stopped the sweep; None if it was not stopped."""
        try:
            return fields.whole(self._parsed("stop"), "signal", at_least=1, at_most=64)
        except (OSError, ValueError):
            return None

    def _parsed(self, name: str, at_most: int = _LARGEST) -> dict[str, Any]:
        return fields.parsed(read_whole(self.path / name, at_most=at_most))

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        replace_whole(self.path / name, (json.dumps(content, indent=2) + "\n").encode())

    def _last_words(self, number: int) -> str:
        """Return the message of Python's fault handler, or the statement that there is none."""
        with suppress(OSError):
            words = read_end(self.log(number), _LARGEST).decode(errors="replace")
            for line in words.splitlines():
                if line.startswith("Fatal Python error: "):
                    return f"crashed: {line.removeprefix('Fatal Python error: ')}"
        return "crashed: its process ended without a message (killed, or out of memory)"

    @contextmanager
    def slot(self, num_slots: int) -> Iterator[int]:
        """Wait until fewer than ``num_slots`` jobs of this sweep hold a slot, and hold one.

        Yield the number of the slot, from 0.
        """
        with one_locked([self.path / f"slot-{slot}.lock" for slot in range(num_slots)]) as slot:
            yield slot


def from_here(path: Path) -> Path:
    """Return ``path``, relative to the working directory if it is below that."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def is_alive(job: Mapping[str, Any]) -> bool:
    """Return whether the process of a job lives; on another machine, it is assumed to live."""
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
    """Report each job that begins or ends in another process, and stop the jobs after a signal.

    Processes started in the block do not see a SIGINT or SIGTERM that is sent to all processes
    together, as by Ctrl-C in a terminal. After the first signal, this process sends them SIGTERM,
    so that they save and end. A second signal kills them.

    Args:
        folder: the folder of the sweep.
        numbers: numbers of the jobs that run now.
        on_end: called with the number of each job that has ended, after ``on_begin`` for that job.
        on_begin: called with the number of each job that has begun.
        can_stop: whether the jobs are processes of this machine; if not, they stay in their
            queue.
    """

    def __init__(
        self,
        folder: SweepFolder,
        numbers: Sequence[int],
        on_end: Callable[[int], None],
        *,
        on_begin: Callable[[int], None] = lambda number: None,
        can_stop: bool,
    ) -> None:
        self._folder = folder
        self._numbers = tuple(numbers)
        self._left = list(numbers)
        self._begun = set[int]()
        self._on_begin = on_begin
        self._on_end = on_end
        self._can_stop = can_stop
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watch":
        self._handlers = {
            signum: signal.signal(signum, self._stop)
            for signum in _STOPPING
            if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN  # nohup
        }
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
        self._report()

    def _watch(self) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
        while not self._is_over.wait(0.5):
            self._report()

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
        jobs = [self._folder.read(number) for number in self._numbers]
        return [job for job in jobs if job["status"] in ALIVE]

    def _report(self) -> None:
        for number in list(self._left):
            status = self._folder.read(number)["status"]
            if number not in self._begun and status in ("running", *ENDED):
                self._begun.add(number)
                self._on_begin(number)
            if status in ENDED:
                self._left.remove(number)
                self._on_end(number)


def _send(job: Mapping[str, Any], signum: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        if job["host"] == socket.gethostname():
            os.kill(job["pid"], signum)
