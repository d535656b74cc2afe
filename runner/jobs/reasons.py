"""Why a launcher could not run jobs: the errors of its libraries in the form of our own."""

import errno
from collections.abc import Mapping
from typing import Any

from runner.config.options import LAUNCHERS
from runner.errors import (
    ConfigError,
    RunnerError,
    StorageError,
    SweepError,
    first_line,
    of_system,
)
from runner.jobs.refusals import refused
from runner.machine.slurm import silence

_NAMES = {
    "BasicLauncher": "basic",
    "JoblibLauncher": "joblib",
    "LocalLauncher": "submitit_local",
    "SlurmLauncher": "submitit_slurm",
    "RayLauncher": "ray",
}
"""What is typed for a launcher, by the name of its class."""
_HERE = "leave hydra/launcher out: the jobs run one after the other in this process"


def explained(error: Exception, kind: str, launcher: Mapping[str, Any], where: str) -> RunnerError:
    """Return the error of a launcher in plain words, with a fix.

    Args:
        error: what the launcher raised.
        kind: name of the launcher's class.
        launcher: the values of ``hydra.launcher``.
        where: the folder of the jobs.
    """
    if isinstance(error, RunnerError):
        return error
    name, said = _NAMES.get(kind, kind), first_line(error)
    chosen = f"hydra/launcher={name}"
    if isinstance(error, ModuleNotFoundError):
        return ConfigError(
            f"the launcher needs {error.name}, which is not installed",
            where=chosen,
            fix=f"pip install 'trick-runner[{LAUNCHERS.get(name, 'parallel')}]'",
        )
    if _is_unsendable(error):
        return ConfigError(
            f"the jobs cannot be sent to other processes: {said}", where=chosen, fix=_HERE
        )
    if kind == "SlurmLauncher":
        if "srun" in said or isinstance(error, FileNotFoundError):
            return no_slurm()
        if problem := refused(str(error), launcher):
            return problem
        if no_answer := silence(str(error)):
            last = str(error).strip().rpartition("\n")[2]
            what, fix = no_answer
            return StorageError(f"{what}: {last}", where="sbatch", fix=fix)
    if type(error).__name__ in ("TerminatedWorkerError", "BrokenProcessPool"):
        return SweepError(
            "a worker process died: it was killed, or memory ran out",
            where=where,
            fix="fewer jobs at a time: hydra.launcher.n_jobs=1",
        )
    if type(error).__name__ in ("UncompletedJobError", "FailedJobError"):
        return SweepError(
            f"the process of a job ended without a result: {said}"
            if kind == "SlurmLauncher"
            else "the process of a job ended without a result: it was killed, or memory ran out",
            where=where,
            fix="the logs there say more; then the same command again",
        )
    if isinstance(error, OSError) and error.errno in (errno.EAGAIN, errno.ENOMEM):
        return StorageError(
            f"no further process can be started: {error.strerror}",
            where=chosen,
            fix="fewer jobs at a time, or a higher limit of processes (ulimit -u)",
        )
    return of_system(error) or SweepError(
        f"{chosen} could not run the jobs: {type(error).__name__}: {said}", where=where, fix=_HERE
    )


def no_slurm() -> ConfigError:
    """Return the error for a machine without Slurm's commands."""
    return ConfigError(
        "Slurm is not installed here: there is no sbatch",
        where="hydra/launcher=submitit_slurm",
        fix="the same command on a login node of the cluster; or on the cores of this machine: "
        "hydra/launcher=joblib",
    )


def _is_unsendable(error: Exception) -> bool:
    """Return whether the error is one of pickle, which uses errors of many kinds."""
    return "Pickling" in type(error).__name__ or (
        isinstance(error, TypeError | AttributeError | RecursionError)
        and "pickle" in str(error).lower()
    )
