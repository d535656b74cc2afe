"""The jobs of one command as tasks of Ray: finds Ray or starts it, submits the jobs, watches them.

Hydra's plugin for Ray waits for the results of all tasks, says nothing while it waits, and raises
what the first one raised. Here Ray is asked which tasks are over, and the files of the jobs say how
they ended. What no machine of Ray has is refused, instead of waited for without end.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import run_job, setup_globals
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict

from runner.config.words import own_words
from runner.errors import ConfigError, StorageError, SweepError, first_line
from runner.jobs.job import SweepJob
from runner.jobs.reporter import Reporter
from runner.machine.signals import Interrupted
from runner.records.sweep_folder import ALIVE, ENDED, SweepFolder

_POLL_SECONDS = 0.5
_REACH_SECONDS = 10.0  # for a connection to the head; Ray itself would try for minutes
_QUIET_SECONDS = 10.0  # in which jobs begin if nothing is in their way
_STOP_SECONDS = 1.0  # between two looks of a job on another machine for the end of the sweep
_UNITS = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
_STORE_BYTES = 75 * 2**20  # the least that Ray takes: jobs exchange files, not objects


class RayJobs:
    """Jobs of one command.

    Args:
        folder: the folder of the sweep.
        jobs: the words of each job.
        values: the values of ``hydra.launcher.ray``.
        reporter: of the command.
    """

    def __init__(
        self,
        folder: SweepFolder,
        jobs: Sequence[Sequence[str]],
        values: Mapping[str, Any],
        reporter: Reporter,
    ) -> None:
        self._folder = folder
        self._jobs = jobs
        self._init = dict(values.get("init") or {})
        self._remote = dict(values.get("remote") or {})
        self._retries = self._remote.pop("max_retries", 0) or 0
        self._reporter = reporter
        self._restarts = dict[int, int]()
        self._problem: SweepError | None = None
        self._idle_since, self._is_told = time.monotonic(), False

    def run(
        self,
        numbers: Sequence[int],
        task: SweepJob,
        context: HydraContext,
        config: DictConfig,
        may_begin: Callable[[], bool],
    ) -> None:
        """Run jobs, and wait for their end.

        Args:
            numbers: of the jobs.
            task: the task of every job.
            context: Hydra's.
            config: the composed configuration of the sweep.
            may_begin: whether a job may begin now; if not, those that have not begun are withdrawn.

        Raises:
            ConfigError: Ray does not know an option, or no machine of Ray has what a job asks for.
            StorageError: Ray cannot be reached, or cannot start.
            SweepError: Ray could not begin a job.
            Interrupted: a signal came while Ray was starting.
        """
        import ray

        self._function()  # refused before Ray starts
        self._connect()
        if self._remote.get("num_gpus") is None:
            self._remote["num_gpus"] = int(any("GPU" in has for has in _machines()))
        self._require_room()
        if not may_begin():
            return
        function, state = self._function(), Singleton.get_state()

        def submitted(number: int) -> Any:
            composed = context.config_loader.load_sweep_config(config, list(self._jobs[number]))
            with open_dict(composed):
                composed.hydra.job.id = f"job_id_for_{number}"
                composed.hydra.job.num = number
            return function.remote(number, task, context, composed, state, str(Path.cwd()))

        left = {submitted(number): number for number in numbers}
        is_withdrawn = False
        self._idle_since = time.monotonic()
        while left:
            ready, _ = ray.wait([*left], num_returns=1, timeout=_POLL_SECONDS)
            self._tell_begun([*left.values()])
            if not (is_withdrawn or may_begin()):
                is_withdrawn = True
                for reference, number in left.items():
                    if self._folder.read(number)["status"] == "pending":
                        ray.cancel(reference)
            for reference in ready:
                number = left.pop(reference)
                if not self._is_over(number, reference, may_begin):
                    left[submitted(number)] = number
            if left and not is_withdrawn:
                self._tell_waiting([*left.values()])
        if self._problem is not None:
            raise self._problem

    def _function(self) -> Any:
        """Return what Ray runs for a job.

        Raises:
            ConfigError: Ray does not know an option.
        """
        import ray

        options = {key: value for key, value in self._remote.items() if value is not None}
        try:
            # Deaths are counted and reported here: by itself, Ray is silent about them, and starts
            # a job that needs too much memory again without end.
            return ray.remote(**options, max_retries=0)(_run)
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"Ray refuses an option: {first_line(error)}",
                where=f"hydra.launcher.ray.remote: {options}",
                fix="leave the option out, or correct it",
            ) from error

    def _connect(self) -> None:
        """Connect this process to Ray, which is started if there is no address."""
        import ray

        if ray.is_initialized():
            return
        init = {"log_to_driver": False, "logging_level": "error", **self._init}
        address = init.pop("address", None) or os.environ.get("RAY_ADDRESS") or "local"
        where = f"hydra.launcher.ray.init.address={address}"
        if address == "local":
            where = "hydra.launcher.ray.init"
            self._reporter.say("Ray is starting on this machine")
            init = {"object_store_memory": _STORE_BYTES, "include_dashboard": False, **init}
        else:
            self._reporter.say(f"connecting to Ray: {address}")
        try:
            _require_reachable(address)
            with _own_handlers():
                ray.init(address=address, **init)
        except Exception as error:  # Ray raises errors of many kinds, also RuntimeError
            raise StorageError(
                f"Ray cannot be used: {first_line(error)}",
                where=where,
                fix="ray start --head, on the first machine of the cluster; RAY_AUTH_MODE=token "
                "before the command, if the cluster asks for its token; or leave the address "
                "out, for a Ray of this machine"
                if address != "local"
                else "hydra/launcher=joblib",
            ) from error
        if not init["log_to_driver"]:
            _silence_raylets()
        machines = _machines()
        has = {unit: sum(one.get(unit, 0) for one in machines) for unit in ("CPU", "GPU")}
        where = "1 machine" if len(machines) == 1 else f"{len(machines)} machines"
        self._reporter.say(f"Ray has {_listed(has)} on {where}")

    def _wanted(self) -> dict[str, float]:
        """Return what a job asks of its machine, by Ray's names."""
        named = {unit: self._remote.get(key) for key, unit in _UNITS.items()}
        if named["CPU"] is None:
            named["CPU"] = 1  # Ray's own default
        wanted = {**named, **(self._remote.get("resources") or {})}
        return {name: float(number) for name, number in wanted.items() if number}

    def _require_room(self) -> None:
        """Raise if no machine has what a job asks for: Ray would wait without end.

        Raises:
            ConfigError: naming the key to change.
        """
        machines, wanted = _machines(), self._wanted()
        if any(_fits(wanted, has) for has in machines):
            return
        largest = {name: max((has.get(name, 0) for has in machines), default=0) for name in wanted}
        short = next((name for name in wanted if largest[name] < wanted[name]), None)
        if short is None:
            raise ConfigError(
                f"no single machine of Ray has all that a job asks for: {_listed(wanted)}",
                where="hydra.launcher.ray.remote",
                fix="smaller values, such as hydra.launcher.ray.remote.num_cpus=1",
            )
        key = {unit: key for key, unit in _UNITS.items()}.get(short, f"resources.{short}")
        most = f"more than {largest[short]:g}" if largest[short] else "any"
        asked = _listed({short: wanted[short]})
        raise ConfigError(
            f"each job asks for {asked}, and no machine of Ray has {most}",
            where=f"hydra.launcher.ray.remote.{key}={wanted[short]:g}",
            fix=f"hydra.launcher.ray.remote.{key}={largest[short]:g}",
        )

    def _is_over(self, number: int, reference: Any, may_begin: Callable[[], bool]) -> bool:
        """Return whether the job of an ended task is over, and need not start again."""
        import ray
        from ray import exceptions

        refusal = death = ""
        try:
            refusal = ray.get(reference)
        except exceptions.TaskCancelledError:
            pass
        except (
            exceptions.WorkerCrashedError,
            exceptions.OutOfMemoryError,
            exceptions.NodeDiedError,
            exceptions.LocalRayletDiedError,
        ) as error:
            death = _DEATHS.get(type(error).__name__) or first_line(error)
        except Exception as error:  # whatever the task raised, or Ray met while it began
            refusal = _reason(error)
        found = self._folder.read(number)
        status = found["status"]
        if death and status in ("pending", "crashed", *ALIVE):
            said = str(found.get("error", ""))  # of Python's fault handler, in the log
            self._folder.write(number, "crashed", error=said if said else f"crashed: {death}")
        elif status in ALIVE:
            self._folder.write(number, "crashed", error=f"crashed: {refusal or 'it said no more'}")
        elif status == "pending" and refusal and self._problem is None:
            self._problem = SweepError(
                f"Ray could not begin a job: {refusal}",
                where=str(self._folder.path),
                fix="the same trick-runner, and the same folders, on all machines of Ray",
            )
        self._tell_begun([number])
        found = self._folder.read(number)
        status = found["status"]
        # Without a stop of the sweep, a job is interrupted because its machine is taken away.
        if (death and status == "crashed") or status == "interrupted":
            self._restarts[number] = self._restarts.get(number, 0) + 1
            if self._restarts[number] <= self._retries and may_begin():
                self._folder.write(number, "pending")
                attempt = f"{self._restarts[number]} of {self._retries}"
                reason = found.get("error", "interrupted")
                self._reporter.say(f"{reason}; started again ({attempt}): {self._name(number)}")
                return False
        if status in ENDED:
            self._reporter.on_end(number)
        return True

    def _name(self, number: int) -> str:
        return own_words(self._jobs[number], self._jobs)

    def _tell_begun(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            if not self._reporter.has_begun(number):
                self._reporter.found(number, self._folder.read(number)["status"])

    def _tell_waiting(self, numbers: Sequence[int]) -> None:
        """Say what jobs wait for, once each time that none of them has run for a while."""
        if any(self._folder.read(number)["status"] != "pending" for number in numbers):
            self._idle_since, self._is_told = time.monotonic(), False
        elif not self._is_told and time.monotonic() - self._idle_since > _QUIET_SECONDS:
            wanted = self._wanted()
            what = "1 job waits" if len(numbers) == 1 else f"{len(numbers)} jobs wait"
            self._reporter.say(f"{what} for Ray: each asks for {_listed(wanted)}; {_free(wanted)}")
            self._is_told = True


def _run(
    number: int,
    task: SweepJob,
    context: HydraContext,
    config: DictConfig,
    state: Any,
    cwd: str,
) -> str:
    """Run one job, in a worker of Ray; return why it could not begin, or an empty text."""
    host = socket.gethostname()
    if not (task.folder.path / "sweep.json").exists():
        return f"the folder of the sweep is not on {host}: {task.folder.path}"
    try:
        os.chdir(cwd)
    except OSError as error:
        return f"the working directory cannot be entered on {host}: {cwd}: {error.strerror}"
    handlers = {signum: signal.getsignal(signum) for signum in _HANDLED}
    try:
        setup_globals()
        Singleton.set_state(state)
        HydraConfig.instance().set_config(config)
        with _stopped_with_sweep(task, number):
            done = run_job(
                hydra_context=context,
                task_function=task,
                config=config,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
            )
        done.return_value  # noqa: B018  raises what the job raised
    except KeyboardInterrupt:  # a signal that came when the job had just ended
        pass
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)  # the worker may wait for another job
    return ""


_DEATHS = {
    "WorkerCrashedError": "its process ended without a message (killed, or out of memory)",
    "NodeDiedError": "its machine left Ray",
    "LocalRayletDiedError": "Ray ended on its machine",
}
_HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def _stopped_with_sweep(task: SweepJob, number: int) -> Iterator[None]:
    """Let the job save and end once the sweep has been stopped, if that is on another machine.

    The sweep sends SIGTERM to the jobs of its own machine. To those elsewhere it can only write a
    file.
    """
    if task.sweeper[1] == socket.gethostname():
        yield
        return
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(_STOP_SECONDS):
            if task.folder.stopped_by is None:
                continue
            if task.folder.read(number)["status"] == "running":  # else it does not begin
                os.kill(os.getpid(), signal.SIGTERM)
            return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


@contextmanager
def _own_handlers() -> Iterator[None]:
    """Keep the handlers of this process, which ``ray.init`` replaces by one that exits."""
    handlers = {signum: signal.getsignal(signum) for signum in _HANDLED}
    try:
        yield
    except SystemExit as end:
        raise Interrupted(signal.SIGTERM) from end
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


def _silence_raylets() -> None:
    """Let Ray not print what its daemons report, such as pages about a machine that it has lost.

    No option of Ray's does that, and a table may be refreshed in the terminal. What matters to the
    jobs is said here.
    """
    with suppress(ImportError):
        from ray._private import worker

        worker.print_to_stdstream = lambda *_, **__: None


def _require_reachable(address: str) -> None:
    """Raise OSError if nothing listens at an address such as ``host:6379``."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        with socket.create_connection((host, int(port)), _REACH_SECONDS):
            pass


def _machines() -> list[dict[str, float]]:
    """Return what each machine of Ray has, by Ray's names."""
    import ray

    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def _fits(wanted: Mapping[str, float], has: Mapping[str, float]) -> bool:
    return all(has.get(name, 0) >= number for name, number in wanted.items())


def _free(wanted: Mapping[str, float]) -> str:
    """Return how much of what is wanted is free, in words."""
    import ray

    free, total = ray.available_resources(), ray.cluster_resources()
    parts = [f"{free.get(it, 0):g} of {_listed({it: total.get(it, 0)})}" for it in wanted]
    return f"free: {', '.join(parts)}"


def _listed(wanted: Mapping[str, float]) -> str:
    return ", ".join(
        f"{number:g} {name}{'s' if name in ('CPU', 'GPU') and number != 1 else ''}"
        for name, number in wanted.items()
    )


def _reason(error: Exception) -> str:
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {first_line(cause)}"
