"""Run jobs through one of Hydra's launchers until none is missing, and report their results."""

import hashlib
import math
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, read_write

from runner.config import compose
from runner.config.complaints import translated
from runner.config.idea import idea_of
from runner.config.requested import Requested, by_training
from runner.config.schema import RunConfig
from runner.errors import ConfigError, RunnerError, SweepError
from runner.jobs.checks import check_jobs
from runner.jobs.job import SweepJob
from runner.jobs.ray_jobs import RayJobs
from runner.jobs.reasons import explained, no_slurm
from runner.jobs.reporter import Reporter
from runner.jobs.shares import Share, share_of
from runner.jobs.slurm import SlurmJobs
from runner.jobs.splits import measured_split
from runner.machine.hardware import num_cores
from runner.machine.locks import is_held
from runner.machine.signals import Interrupted
from runner.records.run_folder import RunFolder
from runner.records.sweep_folder import ALIVE, ENDED, GOOD, SweepFolder, Watch
from runner.terminal.start import Task, Work, hydra_context
from runner.terminal.sweeps import job_names, print_line, print_sweep

_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        status: ``finished``, ``resumed`` (and finished), ``evaluated`` or ``skipped`` (finished
            before) of a job with a result; ``failed`` or ``crashed``; ``interrupted`` by a signal;
            ``cancelled`` in Slurm;
            ``pending`` if the job has not begun.
        folder: folder of the run; None if it is not known.
        evaluation: name of the evaluation in that folder; None for the plain view alone.
        accuracy: of the plain view, 0..1; None without a result.
        error: why the job failed, or how it crashed; else empty.
        error_kind: name of the class of the error of a failed job; else empty.
        seconds: of training and evaluation, in all attempts at the run; 0 without a result.
    """

    status: str
    folder: str | None = None
    evaluation: str | None = None
    accuracy: float | None = None
    error: str = ""
    error_kind: str = ""
    seconds: float = 0.0

    @property
    def is_good(self) -> bool:
        """Whether the job has a result."""
        return self.status in GOOD

    @property
    def is_failed(self) -> bool:
        """Whether the job failed or crashed; another attempt would probably end likewise."""
        return self.status in ENDED and self.status not in GOOD

    @property
    def is_diverged(self) -> bool:
        """Whether the training failed because a number was not finite."""
        return self.error_kind == "DivergedError"


@dataclass(frozen=True)
class JobsResult:
    """How the jobs of one call ended.

    Attributes:
        outcomes: of each job, in the order of the jobs.
        folder: with the state and the log of each job.
        stopped_by: the signal that stopped the jobs; None if they were not stopped.
        is_out_of_time: whether the deadline has passed.
    """

    outcomes: list[Outcome]
    folder: SweepFolder
    stopped_by: int | None
    is_out_of_time: bool = False


def run_jobs(
    jobs: Sequence[Sequence[str]],
    work: Work,
    launcher: Sequence[str],
    outputs: Path,
    *,
    config_dir: Path | None = None,
    configs: Sequence[RunConfig] | None = None,
    num_begun: int | None = None,
    on_begin: Callable[[int], None] | None = None,
    on_end: Callable[[int, Outcome], None] | None = None,
    is_quiet: bool = False,
    say: Callable[[str], None] | None = None,
    deadline: float | None = None,
) -> JobsResult:
    """Run jobs through a launcher, until none is missing, a signal comes or time is up.

    A job that fails or crashes stops no other. The function waits for runs that another process
    trains. Jobs that differ only in their evaluation are evaluated by the first of them, in one
    pass over the images; what it could not do, each does itself.

    Args:
        jobs: the words of each job, checked, and all different; ``outputs=`` is among them.
        work: what each job does: ``runner.train.WORK``.
        launcher: words such as ``hydra/launcher=joblib hydra.launcher.n_jobs=2``; none for one job
            after the other, each in a child of this process.
        outputs: folder of the runs; the states and logs of the jobs go to its ``sweeps``.
        config_dir: folder with option files of the user's own.
        configs: the configuration of each job; None to compose them if they are needed.
        num_begun: number of jobs, from the first one, that may begin; those after them end only if
            one of these can evaluate for them. None for all.
        on_begin: called in this process with the number of a job that begins; again if the job is
            tried again, as after another process was at its run or a neighbor died.
        on_end: called in this process with the number and the outcome of a job that has ended,
            once. Both may be called from another thread, but never at the same time; what they
            raise ends the work once the jobs that run have ended.
        is_quiet: write nothing to the terminal, the output of jobs included, which their logs get.
            A table may then be refreshed there by another thread.
        say: called with each line about the queue of a cluster; by default it is printed.
        deadline: time of :func:`time.monotonic` after which no job begins; None for none.

    Returns:
        The outcomes. After a first signal, running jobs save and end, and ``stopped_by`` says so; a
        second signal ends this process and its jobs at once. Jobs of Slurm go on.

    Raises:
        ConfigError: the words of the launcher are refused, or what they ask for.
        SweepError: the launcher could not begin.
        StorageError: the folder of the jobs cannot be written.
    """
    words = compose.words_to_compose(launcher, config_dir)
    compose.register()
    with compose.opened():
        config = compose.composed(words, is_sweep=True)
        config.outputs = str(outputs)
        _require_cluster(_kind(config))
        known = _composed(config, jobs) if configs is None else dict(enumerate(configs))
        num_begun = len(jobs) if num_begun is None else num_begun
        beginning = _beginning(config, work, num_begun, known)
        share = share_of(config, _kind(config), [jobs[number] for number in beginning])
        folder = SweepFolder.create(outputs, jobs)

        def ended(number: int) -> None:
            if on_end is not None:
                on_end(number, _outcome(folder, number))

        launch = _Launch(
            config,
            hydra_context(),
            Task(work),
            [list(job) for job in jobs],
            folder,
            share,
            configs=known,
            num_begun=num_begun,
            num_beginning=len(beginning),
            on_begin=on_begin,
            on_end=ended,
            is_quiet=is_quiet,
            say=say,
            deadline=math.inf if deadline is None else deadline,
        )
        launch.run()
    outcomes = [_outcome(folder, number) for number in range(len(jobs))]
    launch.tell_what_goes_on()
    launch.raise_problem()
    return JobsResult(outcomes, folder, launch.stopped_by, launch.is_out_of_time)


def _outcome(folder: SweepFolder, number: int) -> Outcome:
    found = folder.read(number)
    status = str(found["status"])
    return Outcome(
        status="pending" if status in ("busy", *ALIVE) else status,
        folder=found.get("folder") if status != "busy" else None,
        evaluation=found.get("evaluation"),
        accuracy=found.get("accuracy"),
        error=found.get("error", ""),
        error_kind=found.get("error_kind", ""),
        seconds=found.get("seconds") or 0.0,
    )


def run_sweep(
    config: DictConfig,
    context: HydraContext,
    task: Task,
    grid: Sequence[Sequence[str]],
    *,
    is_detached: bool = False,
) -> None:
    """Check all jobs, launch them until none is missing, and print the result of each.

    Args:
        config: the composed configuration of the sweep.
        context: Hydra's.
        task: what each job does.
        grid: the words of each job; equal jobs are run once.
        is_detached: return once the jobs are submitted; for Slurm alone, whose jobs outlive this
            process.

    Raises:
        ConfigError: the configuration of a job is wrong, or the jobs would end with this process
            and ``is_detached``, and nothing has been written; or Slurm refuses what the jobs ask
            for.
        SweepError: jobs failed; the other jobs have finished.
        Interrupted: a signal came; unfinished jobs resume when the sweep is run again.
    """
    if is_detached:
        _require_detachable(_kind(config))
    _require_cluster(_kind(config))
    jobs = [list(job) for job in dict.fromkeys(map(tuple, grid))]
    configs = check_jobs(jobs, context.config_loader, config, task.work.finished_before)
    known = dict(enumerate(configs))
    beginning = _beginning(config, task.work, len(jobs), known)
    share = share_of(config, _kind(config), [jobs[number] for number in beginning])
    folder = SweepFolder.create(Path(config.outputs), jobs)

    names = job_names(jobs)

    def on_end(number: int) -> None:
        if not launch.prints(number):
            print_line(folder.read(number), names[number])

    launch = _Launch(
        config,
        context,
        task,
        jobs,
        folder,
        share,
        configs=known,
        num_beginning=len(beginning),
        on_end=on_end,
        is_detached=is_detached,
    )
    launch.run()
    outcomes = [{"job": job, **folder.read(number)} for number, job in enumerate(jobs)]
    if all(outcome["status"] == "pending" for outcome in outcomes):
        launch.raise_problem()
    if not (is_detached and all(outcome["status"] in ALIVE for outcome in outcomes)):
        print_sweep(outcomes, folder.log, Path(config.outputs))
    launch.tell_what_goes_on()
    launch.raise_problem()
    if (signum := launch.stopped_by) is not None:
        raise Interrupted(signum)
    if is_detached and any(outcome["status"] in ALIVE for outcome in outcomes):
        return
    if failed := [outcome for outcome in outcomes if outcome["status"] in _BAD]:
        is_cancelled = all(outcome["status"] == "cancelled" for outcome in failed)
        raise SweepError(
            f"{len(failed)} of {len(outcomes)} jobs "
            + ("were cancelled" if is_cancelled else "failed"),
            where=str(folder.path),
            fix="the same command again, which resumes them"
            if is_cancelled
            else "fix the cause and run the same command again: finished jobs are not repeated",
        )


def _kind(config: DictConfig) -> str:
    """Return the name of the class of the launcher."""
    return str(config.hydra.launcher._target_).rpartition(".")[2]


def _composed(config: DictConfig, jobs: Sequence[Sequence[str]]) -> dict[int, RunConfig]:
    """Return the configurations of the jobs whose words are not refused.

    Only for launchers that divide this machine: without a launcher, the first job would wait.
    """
    found = dict[int, RunConfig]()
    if _kind(config) in ("JoblibLauncher", "LocalLauncher"):
        composed = compose.job_configs(config)
        for number, job in enumerate(jobs):
            with suppress(Exception):  # the job itself reports it, see `_Launch._config_of`
                found[number] = composed.of(job)
    return found


def _beginning(
    config: DictConfig, work: Work, num_begun: int, configs: Mapping[int, RunConfig]
) -> list[int]:
    """Return the numbers of the jobs for which no other job evaluates, finished or not.

    The machine is divided among these: the others do not begin unless their evaluation fails.
    """
    numbers = range(num_begun)
    if not _can_share(config, work):
        return [*numbers]
    waiting = {number for others in by_training(numbers, configs).values() for number in others}
    return [number for number in numbers if number not in waiting]


def _can_share(config: DictConfig, work: Work) -> bool:
    """Return whether a job can evaluate for others that need the same training.

    Jobs of Slurm go on without this process, which then could not begin the ones that wait. A job
    of several processes evaluates for no other.
    """
    num_processes = OmegaConf.select(config, "hydra.launcher.tasks_per_node") or 1
    return work.can_share and _kind(config) != "SlurmLauncher" and num_processes == 1


def _require_detachable(kind: str) -> None:
    """Raise ConfigError if the jobs of this kind of launcher end with the process that launches."""
    if kind != "SlurmLauncher":
        those = "without a launcher, they" if kind == "BasicLauncher" else f"those of {kind}"
        raise ConfigError(
            f"--detach leaves the jobs to Slurm; {those} end with this process",
            where="--detach",
            fix="hydra/launcher=submitit_slurm; or, on this machine: nohup python -m runner.train "
            "-m … > sweep.txt &",
        )


def _asked(config: RunConfig | None, words: Sequence[str]) -> str:
    """Return a hash over what a job is asked to do, and where; equal jobs are one.

    Args:
        config: the configuration of the job; None if its words are refused.
        words: its words.
    """
    code = None if config is None else idea_of(config)
    content = f"{config or words!r} {code.sha256 if code else None} {Path.cwd()}"
    return hashlib.sha256(content.encode()).hexdigest()


def _require_cluster(kind: str) -> None:
    """Raise ConfigError if the jobs of this kind of launcher cannot be submitted from here."""
    if kind == "SlurmLauncher" and shutil.which("sbatch") is None:
        raise no_slurm()


_BAD = ("failed", "crashed", "interrupted", "cancelled", "pending", *ALIVE)

# A job that dies ends no other, and is not tried again here: Ray's jobs have been.
_EACH_ALONE = ("BasicLauncher", "SlurmLauncher", "RayLauncher")


class _Launch:
    """Launches jobs, in as many rounds as it takes.

    Args:
        config: the composed configuration of the command, with the launcher.
        context: Hydra's.
        task: what each job does.
        jobs: the words of each job.
        folder: the folder of the jobs.
        share: what each job gets of the machine.
        configs: the configurations of jobs by number, as far as they are known.
        num_begun: see :func:`run_jobs`.
        num_beginning: number of jobs for which no other evaluates; None for all.
        on_begin: see :func:`run_jobs`.
        on_end: called with the number of a job that has ended.
        is_quiet: see :func:`run_jobs`.
        say: see :func:`run_jobs`.
        deadline: see :func:`run_jobs`.
        is_detached: see :func:`run_sweep`.

    Attributes:
        stopped_by: the signal that stopped this process; None if there was none.
    """

    def __init__(
        self,
        config: DictConfig,
        context: HydraContext,
        task: Task,
        jobs: list[list[str]],
        folder: SweepFolder,
        share: Share,
        *,
        configs: Mapping[int, RunConfig] | None = None,
        num_beginning: int | None = None,
        num_begun: int | None = None,
        on_begin: Callable[[int], None] | None = None,
        on_end: Callable[[int], None] | None = None,
        is_quiet: bool = False,
        say: Callable[[str], None] | None = None,
        deadline: float = math.inf,
        is_detached: bool = False,
    ) -> None:
        self._config = config
        self._context = context
        self._jobs = jobs
        self._folder = folder
        self._configs = dict(configs or {})
        self._composed: compose.Configs | None = None
        self._num_begun = len(jobs) if num_begun is None else num_begun
        self._num_beginning = self._num_begun if num_beginning is None else num_beginning
        self._finished_before = task.work.finished_before
        self._on_begin = on_begin
        self._on_end = on_end
        self._is_quiet = is_quiet
        self._say = say or partial(print, flush=True)
        self._has_notes = say is not None or not is_quiet
        self._is_detached = is_detached
        self._slurm: SlurmJobs | None = None
        self.stopped_by: int | None = None
        self._until = time.time() + (deadline - time.monotonic())
        self._is_late = False
        self._problem: Exception | None = None  # of a callback
        self._gave_up: RunnerError | None = None
        self._kind = _kind(config)
        self._can_share = _can_share(config, task.work)
        self._task = SweepJob(
            task,
            folder,
            jobs,
            sweeper=(os.getpid(), socket.gethostname()),
            share=share,
            is_worker=self._kind == "JoblibLauncher",
            is_quiet=is_quiet,
            until=self._until,
        )

    def run(self) -> None:
        """Launch the jobs until none is missing, a signal comes or time is up."""
        self._say_note(self._task.share.note)
        try:
            self._answer_finished(range(len(self._jobs)))
            self._split_cores()
            self.until_whole()
        except KeyboardInterrupt as interrupt:
            self.stopped_by = getattr(interrupt, "signum", signal.SIGINT)
            if self._slurm is None:  # whose jobs go on
                self._folder.stop(self.stopped_by)
        except Exception:
            self.tell_what_goes_on()
            raise
        else:
            self.stopped_by = self._folder.stopped_by

    def _split_cores(self) -> None:
        """Measure how many jobs at a time are fastest, if the user has left that open.

        All jobs that begin count, and the first job is measured, finished before or not: the same
        jobs have the same number of threads again, which decides their rounding.
        """
        todo = [n for n in range(self._num_begun) if self._folder.read(n)["status"] not in GOOD]
        rate_of = self._task.task.work.rate_of
        if not self._task.share.is_open or rate_of is None or not todo or not self._may_begin:
            return
        with suppress(RunnerError):  # of a configuration, which the job itself reports
            config = self._config_of(0)
            split = measured_split(config, rate_of, num_cores(), self._num_beginning)
            if split is None:
                return
            with read_write(self._config):
                self._config.hydra.launcher.n_jobs = split.at_once
            share = replace(self._task.share, threads=split.threads)
            self._task = replace(self._task, share=share)
            self._say_note(split.note)

    def _say_note(self, note: str) -> None:
        if note and self._has_notes:
            self._say(f"note: {note}")

    @property
    def _is_here(self) -> bool:
        """Whether the jobs are children of this process, one after the other.

        Those of joblib are, too, if there is one at a time: joblib itself would run it in this
        process, which a crash of the job would end.
        """
        if self._kind == "JoblibLauncher":
            return bool(self._config.hydra.launcher.n_jobs == 1)
        return self._kind == "BasicLauncher"

    def prints(self, number: int) -> bool:
        """Return whether a job has printed its result to the terminal of this process."""
        return self._is_here and not any(number in others for others in self._task.shared.values())

    def tell_what_goes_on(self) -> None:
        """Say which jobs go on without this process, and how to end and to watch them."""
        if self._slurm is not None:
            self._slurm.tell_what_goes_on()

    def raise_problem(self) -> None:
        """Raise what a callback raised; and, if a job could have begun and did not, the reason.

        Raises:
            ConfigError: the launcher refuses what the jobs ask for.
            StorageError: what the launcher submits jobs to does not answer.
            SweepError: the launcher gave up for another reason.
        """
        if self._problem is not None:
            raise self._problem
        states = [self._folder.read(number)["status"] for number in range(self._num_begun)]
        if self._gave_up is not None and "pending" in states and self._may_begin:
            raise self._gave_up

    def _give_up(self, error: Exception) -> None:
        """Keep the reason for which the launcher gave up, in plain words."""
        where = str(self._folder.path)
        self._gave_up = explained(error, self._kind, self._launcher_values, where)
        if self._gave_up is not error:
            self._gave_up.__cause__ = error

    @property
    def _launcher_values(self) -> dict[str, Any]:
        """The values of ``hydra.launcher``."""
        found: Any = OmegaConf.to_container(self._config.hydra.launcher, resolve=True)
        return {key: found[key] for key in found if key != "_target_"}

    def _answer_finished(self, numbers: Sequence[int]) -> None:
        """Record those of the jobs whose runs are finished, so that no launcher begins them.

        Jobs of this process say it themselves, as quickly.
        """
        if self._is_here or self._finished_before is None or not self._may_begin:
            return
        configs = self._accepted(numbers)
        found = self._finished_before([*configs.values()])
        for number, summary in zip(configs, found, strict=True):
            if summary is not None:
                self._folder.write(number, **summary)
                self._tell(self._on_begin, number)
                self._tell(self._on_end, number)

    def _config_of(self, number: int) -> RunConfig:
        """Return the configuration of one job, even if another cannot be composed.

        Raises:
            ConfigError: the words of the job are refused.
        """
        if number not in self._configs:
            self._composed = self._composed or compose.job_configs(self._config)
            try:
                self._configs[number] = self._composed.of(self._jobs[number])
            except RunnerError:
                raise
            except Exception as error:  # Hydra's own
                if (problem := translated(error)) is None:
                    raise
                raise problem from error
        return self._configs[number]

    def _accepted(self, numbers: Sequence[int]) -> dict[int, RunConfig]:
        """Return the configurations of those of the jobs whose words are not refused.

        A job whose words are refused reports that itself, and takes no other down.
        """
        found = dict[int, RunConfig]()
        for number in numbers:
            with suppress(RunnerError):
                found[number] = self._config_of(number)
        return found

    def until_whole(self) -> None:
        """Launch the unfinished jobs, in as many rounds as it takes, until the jobs are stopped.

        A launcher may give up when one of its processes dies, and end other jobs with it. So each
        job that died is tried again alone: a job that dies alone has crashed.
        """
        every, suspects = range(self._num_begun), list[int]()
        todo = [number for number in every if self._folder.read(number)["status"] not in GOOD]
        try:
            while (todo or suspects) and self._may_begin:
                batch = todo or suspects[:1]
                if not todo:  # or its death would be reported again before it begins
                    self._folder.write(batch[0], "pending")
                self._round(batch)
                if not todo:
                    del suspects[0]
                if self._is_detached:
                    return
                status = {number: str(self._folder.read(number)["status"]) for number in batch}
                if len(batch) > 1 and self._kind not in _EACH_ALONE and not self._is_here:
                    suspects += [number for number in batch if status[number] == "crashed"]
                todo = [number for number in batch if status[number] in ("busy", "pending")]
                if todo == batch and "busy" not in status.values():
                    return  # the launcher did nothing, so another round would change nothing
                busy = [number for number in todo if status[number] == "busy"]
                waiting = {other for number in busy for other in self._task.shared.get(number, ())}
                if busy and {*todo} <= {*busy, *waiting}:
                    self._wait_for_others(busy)
                    self._answer_finished(todo)
                    todo = [
                        number for number in todo if self._folder.read(number)["status"] not in GOOD
                    ]
        finally:
            for number in suspects:  # nothing is known against them
                self._folder.write(number, "pending")

    @property
    def _may_begin(self) -> bool:
        is_stopped = self._folder.stopped_by is not None or self._problem is not None
        return not is_stopped and not self.is_out_of_time

    @property
    def is_out_of_time(self) -> bool:
        """Whether no job begins any more; once it is so, it stays so if the clock is set back."""
        self._is_late = self._is_late or time.time() >= self._until
        return self._is_late

    def _round(self, numbers: list[int]) -> None:
        if self._kind == "SlurmLauncher":
            self._round_in_slurm(numbers)
            return
        self._task = replace(self._task, shared=self._shared(numbers))
        waiting = [other for others in self._task.shared.values() for other in others]
        beginning = [number for number in numbers if number not in waiting]
        if self._kind == "RayLauncher":
            self._round_in_ray(beginning)
            return
        if self._is_here:
            for number in beginning:
                self._run_here(number)
            return
        launcher = self._launcher()
        jobs = [self._jobs[number] for number in beginning]

        def on_end(number: int) -> None:
            is_alone = len(numbers) == 1
            if is_alone or self._folder.read(number)["status"] != "crashed":
                self._tell(self._on_end, number)

        def on_begin(number: int) -> None:
            self._tell(self._on_begin, number)

        can_stop = self._kind in ("JoblibLauncher", "LocalLauncher")
        watched = [*beginning, *waiting]
        with Watch(self._folder, watched, on_end, on_begin=on_begin, can_stop=can_stop):
            try:
                launcher.launch(jobs, initial_job_idx=0)
            except Exception as error:
                # The files of the jobs say how each ended; a launcher raises the first error only.
                self._give_up(error)
                if not self._is_quiet and self._gave_up is not None:
                    print(f"note: {self._gave_up.what}", file=sys.stderr)
            while any(map(self._is_running_here, beginning)):
                time.sleep(_POLL_SECONDS)

    def _shared(self, numbers: Sequence[int]) -> dict[int, dict[int, Requested]]:
        """Find the jobs for which another one evaluates: by its number, their requests."""
        more = range(self._num_begun, len(self._jobs))
        more_left = [n for n in more if self._folder.read(n)["status"] not in ENDED]
        together = [*numbers, *more_left]
        if not self._can_share or len(together) == 1:
            return {}
        configs = self._accepted(together)
        return {
            first: {n: Requested(configs[n], tuple(self._jobs[n])) for n in others}
            for first, others in by_training(together, configs).items()
            if first < self._num_begun
        }

    def _round_in_slurm(self, numbers: list[int]) -> None:
        from runner.jobs.slurm_launcher import SlurmArray  # submitit is an extra

        if self._slurm is None:
            values = self._launcher_values
            array = SlurmArray(**values)
            array.setup(hydra_context=self._context, task_function=self._task, config=self._config)
            accepted = self._accepted(range(len(self._jobs)))
            self._slurm = SlurmJobs(
                self._folder,
                self._jobs,
                [_asked(accepted.get(number), job) for number, job in enumerate(self._jobs)],
                values,
                array.submit,
                self._reporter(),
            )
        try:
            self._slurm.begin(numbers)
        except RunnerError:
            raise
        except Exception as error:  # submitit raises errors of many kinds
            self._give_up(error)
        if not self._is_detached:
            known = [number for number in numbers if number in self._folder.slurm]
            self._slurm.watch(known, lambda: self._may_begin)

    def _round_in_ray(self, numbers: list[int]) -> None:
        values = self._launcher_values["ray"]
        ray = RayJobs(self._folder, self._jobs, values, self._reporter())
        # Ray says which jobs are over, so the watch is for signals alone.
        with Watch(self._folder, numbers, lambda number: None, can_stop=True):
            ray.run(numbers, self._task, self._context, self._config, lambda: self._may_begin)
        for number in numbers:
            self._tell_others(number)

    def _reporter(self) -> Reporter:
        return Reporter(
            say=self._say,
            on_begin=partial(self._tell, self._on_begin),
            on_end=partial(self._tell, self._on_end),
        )

    def _run_here(self, number: int) -> None:
        """Run one job, without a launcher."""
        if not self._may_begin:
            self._folder.write(number, "pending")
            return
        self._tell(self._on_begin, number)
        try:
            self._task.run_in_child(number, self._config_or_error(number))
        except Exception as error:  # such as a full disk; the other jobs are independent of it
            if self._gave_up is None:
                self._give_up(error)
            return
        if self._folder.read(number)["status"] in ENDED:
            self._tell(self._on_end, number)
        self._tell_others(number)

    def _config_or_error(self, number: int) -> RunConfig | RunnerError:
        """Return the configuration of a job, or the error that the job has to report."""
        try:
            return self._config_of(number)
        except RunnerError as error:
            return error

    def _tell_others(self, number: int) -> None:
        """Tell of the jobs for which job ``number`` has evaluated."""
        for other in self._task.shared.get(number, ()):
            if self._folder.read(other)["status"] in ENDED:
                self._tell(self._on_begin, other)
                self._tell(self._on_end, other)

    def _tell(self, callback: Callable[[int], None] | None, number: int) -> None:
        if callback is None or self._problem is not None:
            return
        try:
            callback(number)
        except Exception as error:  # Hydra or a thread would lose it; see :meth:`raise_problem`
            self._problem = error

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
        if not self._is_quiet:
            print(f"waiting for jobs that other processes run: {len(folders)}", flush=True)
        while all(is_held(folder.lock) for folder in folders) and self._may_begin:
            time.sleep(_POLL_SECONDS)
