"""A sweep over Hydra's grid: all jobs are checked first, run until none is missing, and reported.

Hydra's own sweeper writes ``multirun.yaml`` before it looks at the jobs, loses the results of all
jobs when one process dies, and reports only the first failure. This sweeper composes and checks
every job first, so that a mistake in the last of a hundred jobs is reported at once and nothing is
written. A job that fails or crashes does not stop the others. The sweep waits for a run that
another process has locked. The same command again runs the missing jobs.

The sweeper is in this folder because Hydra loads plugins only from ``hydra_plugins``.
"""

import faulthandler
import gc
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, read_write

from runner.config import compose
from runner.config.complaints import translated
from runner.config.idea import read_idea
from runner.errors import BusyError, CodeError, ConfigError, RunnerError, SweepError
from runner.machine.children import can_fork, in_child
from runner.machine.files import open_log, remove
from runner.machine.hardware import num_cores, num_gpus
from runner.machine.locks import is_held
from runner.machine.processes import from_environment
from runner.machine.signals import Interrupted, outliving_parent, raise_on_signals
from runner.records.run_folder import RunFolder
from runner.records.sweep_folder import ALIVE, SweepFolder, Watch
from runner.terminal.sweeps import print_job, print_sweep

_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class SweepJob:
    """The task of every job of a sweep: runs the job, and records its state and how it ended.

    Attributes:
        task: the task of the command; returns a summary, or a summary with an error.
        folder: the folder of the sweep.
        jobs: the words of each job of the sweep.
        sweeper: process and machine of the sweep itself.
        threads: threads for each process of a job if the configuration does not set them; 0 leaves
            the number open.
        num_slots: how many jobs may run at the same time if the launcher starts all of them at
            once; 0 for no limit.
        is_worker: whether a job runs in a child of the sweep that waits for a further job
            afterwards.
        forks: whether the launcher calls this in the process of the sweep, which then runs each job
            in a child: a job that crashes ends no other.
    """

    task: TaskFunction
    folder: SweepFolder
    jobs: list[list[str]]
    sweeper: tuple[int, str]
    threads: int
    num_slots: int
    is_worker: bool
    forks: bool = False

    def __call__(self, composed: DictConfig) -> None:
        """Run one job; Hydra's launchers call this."""
        words = list(HydraConfig.get().overrides.task)
        number = self.jobs.index(words)
        if self.forks and can_fork():
            self._fork(composed, number)
        else:
            self._run(composed, number)

    def _fork(self, composed: DictConfig, number: int) -> None:
        """Run one job in a child, and record how it ended if it could not."""

        def work() -> None:
            with ExitStack() as stack:
                log = stack.enter_context(open_log(self.folder.log(number)))
                faulthandler.enable(log)
                stack.callback(faulthandler.disable)
                self._run(composed, number, is_child=True)

        def on_signal(signum: int) -> bool:
            is_first = self.folder.stopped_by is None
            self.folder.stop(signum)
            return is_first

        if self.folder.stopped_by is not None:
            self.folder.write(number, "pending")
            return
        if number and self.folder.read(number - 1)["status"] not in ("skipped", "pending"):
            _import_what_jobs_do(str(composed.model.source))
        try:
            code = in_child(work, on_signal)
        except OSError as error:  # no process or no memory for one; Hydra would not say so
            reason = f"cannot start a process: {error.strerror or error}"
            self.folder.write(number, "failed", error=reason)
            return
        log = self.folder.log(number)
        if log.exists() and log.stat().st_size == 0:
            remove(log)
        found = self.folder.read(number)
        if found["status"] == "crashed" or (code != 0 and found["status"] == "pending"):
            how = _ending(code)
            said = str(found.get("error", "crashed: before it began")).partition(": ")[2]
            self.folder.write(number, "crashed", error=f"crashed ({how}): {said}")

    def _run(self, composed: DictConfig, number: int, *, is_child: bool = False) -> None:
        speaks = from_environment().is_first
        status, more = "pending", dict[str, Any]()
        with ExitStack() as stack:
            is_sweep = (os.getpid(), socket.gethostname()) == self.sweeper
            try:
                if not (is_sweep or is_child):
                    self._move_in(stack, number if speaks else None)
                if speaks:  # written before the check for a stop, so that no stop is missed
                    self.folder.write(number, "running")
                if self.folder.stopped_by is None:
                    status = "interrupted"
                    status, more = self._do(composed, number)
            except KeyboardInterrupt as interrupt:
                if is_sweep:  # a cluster may end one job without meaning the others
                    self.folder.stop(getattr(interrupt, "signum", signal.SIGINT))
            finally:  # also when submitit raises SystemExit to queue the job again
                if speaks:
                    self.folder.write(number, status, **more)

    def _do(self, composed: DictConfig, number: int) -> tuple[str, dict[str, Any]]:
        if self.threads and not composed.threads:
            composed.threads = self.threads
        try:
            summary = dict(self.task(composed))
            error = summary.pop("error", None)
        except Exception as caught:
            error = caught
        if error is None:
            return str(summary.pop("status")), summary
        if isinstance(error, BusyError):
            return "busy", {"folder": str(Path(error.where).parent)}
        with open_log(self.folder.log(number)) as log:
            log.writelines(traceback.format_exception(error))
        reason = error.what if isinstance(error, RunnerError) else f"a bug of ours: {error!r}"
        if isinstance(error, CodeError):  # the line of the user's file is what matters
            reason += f" ({error.where})"
        return "failed", {"error": reason}

    def _move_in(self, stack: ExitStack, number: int | None) -> None:
        """Set up a process that the launcher started: its signals, output and slot."""
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
            else open_log(self.folder.log(number))
        )
        stack.enter_context(redirect_stdout(log))
        stack.enter_context(redirect_stderr(log))
        faulthandler.enable(log)
        stack.callback(faulthandler.disable)
        if number is not None and self.num_slots:
            self.folder.write(number, "waiting")
            stack.enter_context(self.folder.slot(self.num_slots))


class CheckedSweeper(Sweeper):  # type: ignore[misc]  # Hydra is untyped to mypy
    """Runs every combination of the comma-separated values, through the chosen launcher."""

    def __init__(self) -> None:
        self.config: DictConfig | None = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what Hydra provides; Hydra calls this before :meth:`sweep`."""
        self.config = config
        self.hydra_context = hydra_context
        self.task_function = task_function

    def sweep(self, arguments: list[str]) -> Any:
        """Check all jobs, launch them until none is missing, and report how each job ended.

        Raises:
            ConfigError: the configuration of a job is wrong; nothing has been written.
            SweepError: jobs failed; the other jobs have finished.
            Interrupted: a signal came; unfinished jobs resume when the sweep is run again.
        """
        assert self.config is not None
        loader = self.hydra_context.config_loader
        parser = OverridesParser.create(config_loader=loader)
        (grid,) = BasicSweeper.split_arguments(parser.parse_overrides(arguments), None)
        jobs = [list(job) for job in dict.fromkeys(map(tuple, grid))]
        self._check(jobs)
        folder = SweepFolder.create(Path(self.config.outputs), jobs)
        launch = _Launch(self.config, self.hydra_context, self.task_function, jobs, folder)
        try:
            launch.until_whole()
        except KeyboardInterrupt as interrupt:
            folder.stop(getattr(interrupt, "signum", signal.SIGINT))
        outcomes = [{"job": job, **folder.read(number)} for number, job in enumerate(jobs)]
        print_sweep(outcomes, folder.log, Path(self.config.outputs))
        if (signum := folder.stopped_by) is not None:
            raise Interrupted(signum)
        if failed := [outcome for outcome in outcomes if outcome["status"] in _BAD]:
            raise SweepError(
                f"{len(failed)} of {len(outcomes)} jobs failed",
                where=str(folder.path),
                fix="fix the cause and run the same command again: finished jobs are not repeated",
            )

    def _check(self, jobs: Sequence[Sequence[str]]) -> None:
        problems: dict[str, RunnerError] = {}
        codes, trainings = set[str](), set[str]()
        for job in jobs:
            try:
                composed = self.hydra_context.config_loader.load_sweep_config(
                    self.config, list(job)
                )
                config = compose.run_config(composed)
                if config.force and repr(config.training) in trainings:
                    raise ConfigError(
                        "jobs that differ only in their evaluation are one training, which "
                        "force=true would repeat for each of them",
                        where="-m force=true",
                        fix="force=true for one of them, then all of them without it",
                    )
                trainings.add(repr(config.training))
                if config.code is not None and config.code not in codes:
                    codes.add(config.code)
                    _check_code(config.code)
            except Exception as error:
                problem = error if isinstance(error, RunnerError) else translated(error)
                if problem is None:
                    raise
                problems.setdefault(f"{problem.what}  [{' '.join(job)}]", problem)
        if problems:
            first = next(iter(problems.values()))
            raise ConfigError("\n".join(problems), where=first.where, fix=first.fix)


def _ending(code: int) -> str:
    """How a child with this exit code ended; see :func:`runner.machine.children.in_child`."""
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _import_what_jobs_do(source: str) -> None:
    """Import torch and what trains, which takes seconds, once for all jobs; nothing is computed."""
    import runner.data.dataset
    import runner.training.session  # noqa: F401
    from runner.models.build import import_timm

    if source == "timm":
        with suppress(ConfigError):  # the job says that it is not installed
            import_timm()
    gc.freeze()  # a collection in a child would copy all that it shares with this process


def _check_code(path: str) -> None:
    """Run an idea file as its jobs will; imports torch, so only when there is one.

    In a child: what the file computes would start threads, which children of this process lack.

    Raises:
        ConfigError: the file is refused.
    """
    from runner.tricks.idea import load_idea

    file = read_idea(path)
    if not can_fork():
        load_idea(file)
        return
    reader, writer = os.pipe()

    def work() -> None:
        try:
            load_idea(file)
        except RunnerError as error:
            said = [type(error).__name__, error.what, error.where, error.fix]
            os.write(writer, json.dumps(said).encode())

    signals = list[int]()

    def on_signal(signum: int) -> bool:
        signals.append(signum)
        return len(signals) == 1

    try:
        try:
            code = in_child(work, on_signal)
        finally:
            os.close(writer)
        said = os.read(reader, 65_536)  # what a pipe holds; a message is shorter
    finally:
        os.close(reader)
    if signals:
        raise Interrupted(signals[0])
    if said:
        kind, what, where, fix = json.loads(said)
        raise (CodeError if kind == "CodeError" else ConfigError)(what, where=where, fix=fix)
    if code != 0:
        raise ConfigError(
            f"the file ends the process that imports it ({_ending(code)})",
            where=f"code={path}",
            fix="code that runs only in the functions of the file",
        )


_BAD = ("failed", "crashed", "interrupted", "pending", *ALIVE)


class _Launch:
    """Launches the jobs of one sweep, in as many rounds as it takes."""

    def __init__(
        self,
        config: DictConfig,
        hydra_context: HydraContext,
        task_function: TaskFunction,
        jobs: list[list[str]],
        folder: SweepFolder,
    ) -> None:
        self._config = config
        self._context = hydra_context
        self._jobs = jobs
        self._folder = folder
        self._kind = str(config.hydra.launcher._target_).rpartition(".")[2]
        at_once, threads = self._share_cores()
        sweeper = (os.getpid(), socket.gethostname())
        is_worker = self._kind == "JoblibLauncher"
        forks = self._kind == "BasicLauncher"
        self._task = SweepJob(
            task_function, folder, jobs, sweeper, threads, at_once, is_worker, forks
        )

    def _share_cores(self) -> tuple[int, int]:
        """How many jobs may run at once, and the threads of each process.

        Either is 0 if the launcher or the job itself takes care of the number.
        """
        launcher, cores = self._config.hydra.launcher, num_cores()
        if self._kind == "JoblibLauncher":
            at_once = launcher.n_jobs if launcher.n_jobs > 0 else num_gpus() or cores
            with read_write(self._config):
                launcher.n_jobs = min(at_once, len(self._jobs))
            return 0, max(1, cores // launcher.n_jobs)
        if self._kind == "LocalLauncher":
            per_task = launcher.cpus_per_task or 1
            if launcher.gpus_per_node:
                return 1, per_task
            return max(1, cores // (per_task * launcher.tasks_per_node)), per_task
        return 0, 0

    def until_whole(self) -> None:
        """Launch the unfinished jobs, in as many rounds as it takes, until the sweep is stopped.

        A launcher may give up when one of its processes dies, and end other jobs with it. So each
        job that died is tried again alone: a job that dies alone has crashed.
        """
        todo, suspects = list(range(len(self._jobs))), list[int]()
        while (todo or suspects) and self._folder.stopped_by is None:
            batch = todo or [suspects.pop(0)]
            self._round(batch)
            status = {number: str(self._folder.read(number)["status"]) for number in batch}
            if len(batch) > 1 and self._kind != "BasicLauncher":  # there, each job was alone
                suspects += [number for number in batch if status[number] == "crashed"]
            todo = [number for number in batch if status[number] in ("busy", "pending")]
            if todo == batch and "busy" not in status.values():
                return  # the launcher did nothing, so another round would change nothing
            if todo and all(status[number] == "busy" for number in todo):
                self._wait_for_others(todo)

    def _round(self, numbers: list[int]) -> None:
        launcher = self._launcher()
        jobs = [self._jobs[number] for number in numbers]
        if self._kind == "BasicLauncher":
            launcher.launch(jobs, initial_job_idx=0)
            return

        def print_end(number: int) -> None:
            print_job(self._jobs[number], self._folder.read(number), self._jobs)

        can_stop = self._kind in ("JoblibLauncher", "LocalLauncher")
        with Watch(self._folder, numbers, print_end, can_stop=can_stop):
            try:
                launcher.launch(jobs, initial_job_idx=0)
            except Exception as error:
                # The files of the jobs say how each ended; a launcher raises the first error only.
                print(f"note: {self._kind} gave up: {type(error).__name__}", file=sys.stderr)
            while any(map(self._is_running_here, numbers)):
                time.sleep(_POLL_SECONDS)

    def _is_running_here(self, number: int) -> bool:
        # A job on another machine cannot be checked here; its launcher has waited for it.
        job = self._folder.read(number)
        return job["status"] in ALIVE and job["host"] == socket.gethostname()

    def _launcher(self) -> Launcher:
        launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self._context, task_function=self._task, config=self._config
        )
        return launcher

    def _wait_for_others(self, busy: Sequence[int]) -> None:
        """Wait until another process releases one of the runs of the jobs ``busy``."""
        folders = [RunFolder(Path(self._folder.read(number)["folder"])) for number in busy]
        print(f"waiting for jobs that other processes run: {len(folders)}", flush=True)
        while all(is_held(folder.lock) for folder in folders) and not self._folder.stopped_by:
            time.sleep(_POLL_SECONDS)
