"""One job: as Hydra's launchers call it, anywhere; or in a child of the process of the sweep."""

import faulthandler
import math
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from runner.config.requested import Requested
from runner.config.schema import RunConfig
from runner.errors import BusyError, CodeError, RunnerError, StorageError, TrainingError
from runner.jobs.in_slurm import SlurmJob
from runner.jobs.shares import Share
from runner.machine.children import can_fork, ending, in_child
from runner.machine.files import open_log, remove
from runner.machine.hardware import limit_cores
from runner.machine.processes import from_environment
from runner.machine.signals import outliving_parent, raise_on_signals
from runner.machine.slurm import Ending
from runner.records.sweep_folder import GOOD, SweepFolder
from runner.terminal.start import Task

_Do = Callable[[], Mapping[str, Any]]
"""Does the work of a job; returns a summary, or a summary with an error."""


@dataclass(frozen=True)
class SweepJob:
    """Runs each job of a sweep, and records its state and how it ended.

    Hydra's launchers call this object with the composed configuration of a job, in any process.
    Without a launcher, :meth:`run_in_child` runs the jobs, in children of the sweep: a job that
    crashes ends no other.

    Attributes:
        task: the task of the command; returns a summary, or a summary with an error.
        folder: the folder of the sweep.
        jobs: the words of each job of the sweep.
        sweeper: process and machine of the sweep itself.
        share: what each job gets of the machine.
        is_worker: whether a job runs in a child of the sweep that waits for a further job
            afterwards.
        is_quiet: whether the output of a job in a child goes to its log. The output of a job in a
            process of a launcher always does.
        until: no job begins after this time, in seconds since the epoch: other machines have clocks
            of their own, but agree on this one.
        shared: for each job that begins, the number and the request of other jobs that wait for it,
            because they differ from it only in their evaluation.
    """

    task: Task
    folder: SweepFolder
    jobs: list[list[str]]
    sweeper: tuple[int, str]
    share: Share
    is_worker: bool
    is_quiet: bool = False
    until: float = math.inf
    shared: Mapping[int, Mapping[int, Requested]] = field(default_factory=dict)

    @property
    def number(self) -> int:
        """The number of the job that Hydra runs now."""
        return self.jobs.index(list(HydraConfig.get().overrides.task))

    def __call__(self, composed: DictConfig) -> None:
        """Run one job; Hydra's launchers call this."""
        number = self.number
        if time.time() >= self.until:
            if from_environment().is_first:
                self.folder.write(number, "pending")
            return

        def do() -> dict[str, Any]:
            if self.share.threads and not composed.threads:
                composed.threads = self.share.threads
            return self.task(composed, self._others(number))

        job = SlurmJob.of_this_process(is_first=from_environment().is_first)
        if job is None:
            self._run(do, number)
        else:
            self._run_in_slurm(do, number, job)

    def run_in_child(self, number: int, config: RunConfig | RunnerError) -> None:
        """Run one job in a child of this process, the sweep; in this process if it cannot fork.

        Hydra is not needed.

        Args:
            number: number of the job.
            config: its checked configuration; or the error with which the job fails.
        """

        def do() -> dict[str, Any]:
            if isinstance(config, RunnerError):
                return {"error": config}
            return self.task.run(config, self.jobs[number], self._others(number))

        if not can_fork():
            self._run_here(do, number)
            return
        if self.folder.stopped_by is not None:
            self.folder.write(number, "pending")
            return
        if self.task.work.prepare is not None and isinstance(config, RunConfig):
            self.task.work.prepare(config)
        self._fork(do, number)

    def _others(self, number: int) -> list[Requested]:
        """What other jobs that wait for this job request of its training."""
        return [*self.shared.get(number, {}).values()]

    def _fork(self, do: _Do, number: int) -> None:
        """Run one job in a child, and record how it ended if it could not."""

        def work() -> None:
            with ExitStack() as stack:
                log = stack.enter_context(open_log(self.folder.log(number)))
                if self.is_quiet:
                    _write_to(self.folder.log(number))
                faulthandler.enable(log)
                stack.callback(faulthandler.disable)
                self._run(do, number, is_child=True)

        def on_signal(signum: int) -> bool:
            is_first = self.folder.stopped_by is None
            self.folder.stop(signum)
            return is_first

        try:
            code = in_child(work, on_signal)
        except OSError as error:  # no process or no memory for one; Hydra would hide the reason
            reason = f"cannot start a process: {error.strerror or error}"
            self.folder.write(number, "failed", error=reason)
            return
        log, found = self.folder.log(number), self.folder.read(number)
        is_told = self.is_quiet and found["status"] in GOOD  # the log has progress only
        if log.exists() and (is_told or log.stat().st_size == 0):
            remove(log)
        if found["status"] == "crashed" or (code != 0 and found["status"] == "pending"):
            how = ending(code)
            said = str(found.get("error", "crashed: before it began")).partition(": ")[2]
            self.folder.write(number, "crashed", error=f"crashed ({how}): {said}")

    def _run_here(self, do: _Do, number: int) -> None:
        """Run one job in this process, which cannot fork."""
        with ExitStack() as stack:
            if self.is_quiet:
                log = stack.enter_context(open_log(self.folder.log(number)))
                stack.enter_context(redirect_stdout(log))
                stack.enter_context(redirect_stderr(log))
            self._run(do, number)

    def _run_in_slurm(self, do: _Do, number: int, job: SlurmJob) -> None:
        """Run one job in a task of Slurm; a job without a result leaves its process here.

        What a task returns is its result to submitit, and to Slurm an exit code of 0.
        """
        status, code = "failed", 0
        try:
            status, code = self._run(do, number, job=job)
            if status == "interrupted" and job.is_first:
                status, code = self._end_in_slurm(number, job)
        except SystemExit as left:  # as the others do if the first task has met an error
            code = left.code if isinstance(left.code, int) else 1
        except Exception as error:  # such as a full disk; Hydra would return it as a result
            code = _exit_code(error)
            print(error if code > 1 else traceback.format_exc(), file=sys.stderr, flush=True)
        if status in ("failed", "interrupted", "queued", "cancelled"):
            job.leave(code if job.is_first else 0)

    def _end_in_slurm(self, number: int, job: SlurmJob) -> tuple[str, int]:
        """Put a job that had to end, and has saved, back into the queue, or not."""
        ending = job.ending
        if ending == Ending.CANCELLED:
            self.folder.write(number, "cancelled", error="cancelled in Slurm")
            return "cancelled", 0
        try:
            if ending is None:
                raise StorageError("told to end, and Slurm does not answer why")
            self.folder.write(number, "queued", reason=str(ending))
            launcher = HydraConfig.get().launcher
            job.requeue(launcher.timeout_min, launcher.max_num_timeout)
        except RunnerError as error:
            status = "failed" if isinstance(error, TrainingError) else "interrupted"
            self.folder.write(number, status, **_described(error))
            return status, error.exit_code
        return "queued", 0

    def _run(
        self,
        do: _Do,
        number: int,
        *,
        is_child: bool = False,
        job: SlurmJob | None = None,
    ) -> tuple[str, int]:
        """Run one job; return how it ended, and the exit code of its error."""
        speaks = from_environment().is_first
        status, more, code = "pending", dict[str, Any](), 0
        with ExitStack() as stack:
            is_sweep = job is None and (os.getpid(), socket.gethostname()) == self.sweeper
            try:
                if not (is_sweep or is_child):
                    self._move_in(stack, number if speaks else None, job)
                if speaks:  # written before the check for a stop, so that no stop is missed
                    self.folder.write(number, "running")
                if self.folder.stopped_by is None:
                    status = "interrupted"
                    status, more, code = self._do(do, number)
                if job is not None:
                    job.ignore_signals()
            except KeyboardInterrupt as interrupt:
                if is_sweep:  # a cluster may end one job without meaning the others
                    self.folder.stop(getattr(interrupt, "signum", signal.SIGINT))
                if job is not None and status == "pending":
                    status = "interrupted"
            except Exception as error:  # before the work, such as a log that cannot be written
                status, more = "failed", _described(error)
                raise
            finally:  # also when submitit raises SystemExit to queue the job again
                if speaks:
                    self.folder.write(number, status, **more)
        return status, code

    def _do(self, do: _Do, number: int) -> tuple[str, dict[str, Any], int]:
        limit_cores(self.share.threads or None)
        others = self.shared.get(number, {})
        try:
            summary = dict(do())
            error = summary.pop("error", None)
        except Exception as caught:
            error = caught
        if error is None:
            for other, found in zip(others, summary.pop("others", ()), strict=False):
                if found is not None:
                    self.folder.write(other, **found)
            return str(summary.pop("status")), summary, 0
        if isinstance(error, BusyError):
            return "busy", {"folder": str(Path(error.where).parent)}, 0
        with open_log(self.folder.log(number)) as log:
            log.writelines(traceback.format_exception(error))
        more = _described(error)
        if isinstance(error, CodeError):  # the line of the user's file is what matters
            more["error"] += f" ({error.where})"
        if isinstance(error, RunnerError) and error.run is not None:
            more["folder"] = error.run
        return "failed", more, _exit_code(error)

    def _move_in(self, stack: ExitStack, number: int | None, job: SlurmJob | None) -> None:
        """Set up a process that the launcher started: its signals, output and slot."""
        if job is not None:
            job.begin()
        else:
            raise_on_signals()
        # Ctrl-C in a terminal, and its end, reach all processes; the sweep passes on SIGTERM.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        if self.is_worker:
            stack.enter_context(outliving_parent(self.sweeper[0]))
        log = stack.enter_context(
            Path(os.devnull).open("a")  # noqa: SIM115  the stack closes it
            if number is None
            else _opened(self.folder.log(number))
        )
        stack.enter_context(_output_to(log))
        faulthandler.enable(log)
        stack.callback(faulthandler.disable)
        hydra = HydraConfig.get()
        if job is not None and hydra.launcher.name == hydra.job.name:  # none of the user's
            job.take_name(self.jobs[self.number], self.jobs)
        stack.enter_context(self.share.taken(self.folder, self.number))


def _described(error: Exception) -> dict[str, str]:
    """Return what the status of a job says of its error."""
    reason = error.what if isinstance(error, RunnerError) else f"a bug of ours: {error!r}"
    return {"error": reason, "error_kind": type(error).__name__}


def _exit_code(error: Exception) -> int:
    return error.exit_code if isinstance(error, RunnerError) else 1


def _opened(path: Path) -> TextIO:
    try:
        return open_log(path)
    except OSError as error:
        raise StorageError(
            f"the log of the job cannot be written: {error.strerror}",
            where=str(path),
            fix="free space, or permission to write there; then the same command again",
        ) from error


@contextmanager
def _output_to(log: TextIO) -> Iterator[None]:
    """Send what this process writes in the block to ``log``, whatever writes it."""
    own = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}
    try:
        for descriptor in own:
            os.dup2(log.fileno(), descriptor)
        with redirect_stdout(log), redirect_stderr(log):
            yield
    finally:
        for descriptor, copy in own.items():
            os.dup2(copy, descriptor)
            os.close(copy)


def _write_to(path: Path) -> None:
    """Let a forked process, and those that it starts, write to the file alone from now on.

    Another thread of the parent may have held a lock of the parent's streams when the process was
    forked, such as a table that is refreshed. So nothing of them is used again, not even to flush.
    """
    log = open_log(path)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    sys.stdout = sys.stderr = log
