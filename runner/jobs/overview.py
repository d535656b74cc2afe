"""The states of the jobs of a sweep, from their files, the queue of Slurm and their runs.

It is read by any process, on any machine that sees the files, while the jobs are at work or later.
Nothing here imports Hydra or writes a file.
"""

import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from runner.jobs.states import Queue, States
from runner.machine.files import read_whole
from runner.machine.slurm import QueuedJob
from runner.records.run_folder import RunFolder, run_folders
from runner.records.sweep_folder import ALIVE, ENDED, GOOD, SweepFolder
from runner.terminal.sweeps import job_names

_QUEUE_SECONDS = 10.0  # between two questions to Slurm
_RUNS_SECONDS = 10.0  # between two searches for the run of a job
_UNLED_SECONDS = 60.0  # without a job at work until a sweep on another machine counts as ended
_LARGEST_CONFIG = 2**16  # bytes
_RUN_ENDED = ("finished", "failed")
_SURE = (*GOOD, "failed")  # no later attempt of the same sweep changes these


@dataclass(frozen=True)
class JobState:
    """The state of a job.

    Attributes:
        number: number of the job in its sweep.
        name: the words by which the job differs from the others.
        state: as :func:`runner.jobs.states.settled` returns it.
        id: Slurm's; empty if the job was not submitted to Slurm.
        queued: what Slurm says; None if it does not know the job, or was not asked.
        epoch: the last epoch that the run has evaluated; None if the run is not known.
        epochs: how many epochs the run is to train; None if it is not known.
    """

    number: int
    name: str
    state: Mapping[str, Any]
    id: str = ""
    queued: QueuedJob | None = None
    epoch: int | None = None
    epochs: float | None = None

    @property
    def status(self) -> str:
        """The status of the job."""
        return str(self.state["status"])

    @property
    def is_good(self) -> bool:
        """Whether the job has a result."""
        return self.status in GOOD

    @property
    def node(self) -> str:
        """The machine of a job that runs, if it is not this one."""
        if self.queued is not None:
            return self.queued.node
        host = str(self.state.get("host", "")) if self.status in ("running", "waiting") else ""
        return "" if host == socket.gethostname() else host


class Overview:
    """Read the states of the jobs of a sweep repeatedly.

    Args:
        folder: the folder of the sweep.
        queue: what Slurm says; shared by several sweeps if they are read together.
    """

    def __init__(self, folder: SweepFolder, queue: Queue | None = None) -> None:
        self._path = folder.path
        self.jobs: Sequence[Sequence[str]] = folder.names()
        self.names = job_names(self.jobs) if self.jobs else []
        self.queue = queue or Queue()
        self.states: list[JobState] = []
        self._runs = _Runs(folder.outputs)
        self._truth = States(self.queue)
        self._idle_since: float | None = None

    @property
    def folder(self) -> SweepFolder:
        """The folder of the sweep, read anew: further jobs may have been submitted."""
        return SweepFolder(self._path)

    def look(self) -> Sequence[JobState]:
        """Read the states of all jobs anew; also kept as ``states``."""
        folder = self.folder
        ids = {number: record.id for number, record in folder.slurm.items()}
        sure = {one.number: one for one in self.states if one.status in _SURE}
        # Slurm is asked before the files are read: of a job that is over, they are the last word.
        asked = (one for number, one in ids.items() if number not in sure)
        self.queue.ask(asked, every=_QUEUE_SECONDS)
        found = [
            sure.get(number) or self._state(folder, number, ids.get(number, ""))
            for number in range(len(self.jobs))
        ]
        self.states = self._runs.added_to(found)
        return self.states

    def _state(self, folder: SweepFolder, number: int, own: str) -> JobState:
        state = self._truth.state(folder, number)
        return JobState(number, self.names[number], state, own, self.queue.get(own))

    @property
    def is_doubtful(self) -> bool:
        """Whether Slurm says of a job that it is over and its file does not yet."""
        return self._truth.is_doubtful

    @property
    def is_at_work(self) -> bool:
        """Whether jobs are at work, or will be, as :meth:`look` found it last."""
        if any(one.status in ALIVE for one in self.states):
            self._idle_since = None
            return True
        if all(one.status in _SURE for one in self.states):
            return False
        is_led = self.folder.is_led
        if is_led is not None:
            return is_led and not all(one.status in ENDED for one in self.states)
        if all(one.id for one in self.states):
            return False
        self._idle_since = self._idle_since or time.monotonic()
        return time.monotonic() - self._idle_since < _UNLED_SECONDS


class _Runs:
    """Finds the runs of jobs by the process that trains them, which both record."""

    def __init__(self, outputs: Path) -> None:
        self._outputs = outputs
        self._by_process: dict[str, RunFolder] = {}
        self._epochs: dict[Path, float | None] = {}
        self._finished = set[Path]()
        self._searched_at = -float("inf")

    def added_to(self, states: Sequence[JobState]) -> list[JobState]:
        """Return the states, with the epoch of each job whose run is under way and can be found."""
        wanted = {one.number: key for one in states if (key := _process(one)) is not None}
        for process in wanted.values():
            run = self._by_process.get(process)
            if run is not None and run.status()["status"] in _RUN_ENDED:
                del self._by_process[process]  # it may be at another run now
        if {*wanted.values()} - {*self._by_process}:
            self._search()
        return [
            self._with_epoch(one, self._by_process.get(wanted[one.number]))
            if one.number in wanted
            else one
            for one in states
        ]

    def _search(self) -> None:
        if time.monotonic() - self._searched_at < _RUNS_SECONDS:
            return
        self._searched_at = time.monotonic()
        for run in run_folders(self._outputs):
            if run.path in self._finished:
                continue
            status = run.status()
            if status["status"] == "finished":
                self._finished.add(run.path)
            elif status["status"] not in _RUN_ENDED:
                process = f"{status.get('pid')} {status.get('host')}"
                if status["status"] == "running" or process not in self._by_process:
                    self._by_process[process] = run

    def _with_epoch(self, one: JobState, run: RunFolder | None) -> JobState:
        if run is None:
            return one
        if run.path not in self._epochs:
            self._epochs[run.path] = num_epochs(run)
        epoch = run.last_row().get("epoch", 0)
        is_known = isinstance(epoch, int)
        return replace(one, epoch=epoch if is_known else None, epochs=self._epochs[run.path])


def _process(one: JobState) -> str | None:
    """Process and machine of a job whose run is under way, or of the last attempt at it."""
    if one.status not in ALIVE or "pid" not in one.state:
        return None
    return f"{one.state['pid']} {one.state['host']}"


def num_epochs(run: RunFolder) -> float | None:
    """Return how many epochs a run is to train; None if that cannot be read."""
    with suppress(OSError, ValueError, yaml.YAMLError, TypeError, KeyError, RecursionError):
        found = yaml.safe_load(read_whole(run.path / "config.yaml", at_most=_LARGEST_CONFIG))
        return float(found["budget"]["epochs"])
    return None
