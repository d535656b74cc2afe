"""What each job gets of the machine when several run at the same time: cores and GPUs."""

import json
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, read_write

from runner.errors import ConfigError, StorageError
from runner.machine import fields
from runner.machine.files import read_whole, replace_whole
from runner.machine.hardware import num_cores, precisions_of_gpus, visible_gpus
from runner.machine.locks import one_locked
from runner.machine.processes import from_environment
from runner.records.sweep_folder import SweepFolder, is_alive

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_POLL_SECONDS = 0.2
_BEGIN_SECONDS = 600  # until the first process of a job has started
_LARGEST = 4096  # bytes of a file that says which slot a job has


@dataclass(frozen=True)
class Share:
    """The share of a job.

    Attributes:
        threads: threads for each process of a job if its configuration does not set them, and the
            number of cores that the process uses at most; 0 leaves both open.
        num_slots: how many jobs may run at the same time if the launcher does not limit their
            number; or the number of workers that keep a slot. 0 for no slots.
        gpus: for each slot, the GPUs of the job in it, as ``CUDA_VISIBLE_DEVICES`` names them; the
            slots after the last take the first again. Empty if the launcher, Slurm or Ray chooses
            the GPUs.
        workers: folder for the locks of workers, which run many jobs and keep their slot until they
            end; None if each job takes a slot.
        note: what the user should know; or empty.
        is_open: whether the user has left open how many jobs run at the same time on CPUs, and with
            how many threads.
    """

    threads: int = 0
    num_slots: int = 0
    gpus: tuple[str, ...] = ()
    workers: Path | None = None
    note: str = ""
    is_open: bool = False

    @contextmanager
    def taken(self, folder: SweepFolder, number: int) -> Iterator[None]:
        """Wait for a slot, and let this process see the GPUs of that slot alone.

        To be entered before this process uses CUDA, which reads the variable once.

        Args:
            folder: the folder of the sweep.
            number: number of the job, which this process runs alone or with others.

        Raises:
            StorageError: a lock cannot be created, or the first process of the job has ended.
        """
        if not self.num_slots:
            yield
        elif self.workers is not None:
            self._show_gpus(_kept_slot(self.workers, self.num_slots))
            yield
        elif not (processes := from_environment()).is_first:
            self._show_gpus(_slot_of_first(folder, number))
            yield
        else:
            folder.write(number, "waiting")
            if processes.count > 1:
                _write_slot(folder, number, None)
            with folder.slot(self.num_slots) as slot:
                if processes.count > 1:
                    _write_slot(folder, number, slot)
                self._show_gpus(slot)
                yield

    def _show_gpus(self, slot: int) -> None:
        if self.gpus:
            os.environ[_VISIBLE] = self.gpus[slot % len(self.gpus)]


def share_of(config: DictConfig, kind: str, jobs: Sequence[Sequence[str]]) -> Share:
    """Return the share of each job of a launcher.

    Sets what the launcher needs to know: the number of joblib's workers and the number of GPUs of a
    job of submitit_local.

    Args:
        config: the composed configuration, with the launcher.
        kind: name of the launcher's class.
        jobs: the words of each job.

    Raises:
        ConfigError: jobs ask for more GPUs than there are.
    """
    launcher = config.hydra.launcher
    if kind == "JoblibLauncher":
        return _share_of_worker(config, jobs)
    if kind == "LocalLauncher":
        return _share_of_local(config, jobs)
    if kind == "SlurmLauncher":
        return Share(threads=launcher.cpus_per_task or 0)
    if kind == "RayLauncher":
        count = OmegaConf.select(launcher, "ray.remote.num_cpus")
        return Share(threads=max(1, int(count)) if isinstance(count, int | float) else 1)
    return Share()


def _share_of_worker(config: DictConfig, jobs: Sequence[Sequence[str]]) -> Share:
    launcher, cores, gpus = config.hydra.launcher, num_cores(), _gpus(config, jobs)
    _require_devices(config, jobs, gpus, per_job=1)
    per_job = _threads(config, jobs) or 1
    is_open = launcher.n_jobs <= 0 and not _threads(config, jobs)
    at_once = launcher.n_jobs if launcher.n_jobs > 0 else len(gpus) or max(1, cores // per_job)
    with read_write(config):
        launcher.n_jobs = at_once = min(at_once, len(jobs))
    threads = max(1, cores // at_once)
    if not gpus:
        return Share(threads=threads, is_open=is_open)
    _require_one_precision(config, jobs, gpus[:at_once])
    sharing = -(-at_once // len(gpus))
    of_all = _number_of_gpus(len(gpus))
    note = f"{at_once} jobs at a time on {of_all}: up to {sharing} jobs share a GPU"
    return Share(
        threads, at_once, gpus, workers=_locks_of_workers(), note=note if sharing > 1 else ""
    )


def _share_of_local(config: DictConfig, jobs: Sequence[Sequence[str]]) -> Share:
    launcher, cores = config.hydra.launcher, num_cores()
    tasks, wanted = launcher.tasks_per_node, launcher.gpus_per_node
    gpus = visible_gpus() if wanted else _gpus(config, jobs)
    per_job = wanted if wanted is not None else tasks if gpus else 0
    if per_job > len(gpus) or 0 < per_job < tasks:
        limit = f" ({_VISIBLE}={os.environ[_VISIBLE]})" if _VISIBLE in os.environ else ""
        raise ConfigError(
            f"a job asks for {_number_of_gpus(per_job)}, and this machine has "
            f"{_number_of_gpus(len(gpus))}{limit}"
            if per_job > len(gpus)
            else f"each of the {tasks} processes of a job needs a GPU of its own",
            where=f"hydra.launcher.gpus_per_node={wanted}"
            if wanted is not None
            else f"hydra.launcher.tasks_per_node={tasks}",
            fix=f"hydra.launcher.gpus_per_node={tasks if tasks <= len(gpus) else 0}"
            + (" (CPUs only)" if tasks > len(gpus) else ""),
        )
    _require_devices(config, jobs, gpus if per_job else (), per_job=per_job)
    if not per_job:
        per_task = launcher.cpus_per_task or _threads(config, jobs) or 1
        return Share(threads=per_task, num_slots=max(1, cores // (per_task * tasks)))
    with read_write(config):
        launcher.gpus_per_node = per_job
    at_once = min(len(gpus) // per_job, len(jobs))
    per_task = launcher.cpus_per_task
    if per_task:
        at_once = max(1, min(at_once, cores // (per_task * tasks)))
    else:
        per_task = max(1, cores // (at_once * tasks))
    _require_one_precision(config, jobs, gpus[: at_once * per_job])
    groups = [gpus[slot * per_job : (slot + 1) * per_job] for slot in range(at_once)]
    return Share(per_task, at_once, tuple(",".join(group) for group in groups))


def _number_of_gpus(count: int) -> str:
    return f"{count} GPU{'' if count == 1 else 's'}" if count else "none"


def _gpus(config: DictConfig, jobs: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Return the GPUs that this process may use; none if all jobs compute on CPUs."""
    on_cpu = all(_device(config, job) == "cpu" for job in jobs)
    return () if on_cpu else visible_gpus()


def _device(config: DictConfig, job: Sequence[str]) -> str:
    """Return the ``device`` of a job."""
    return _value(config, job, "device").replace("\\", "")  # cuda\:1


def _threads(config: DictConfig, jobs: Sequence[Sequence[str]]) -> int:
    """Return the largest number of ``threads`` that a job sets; 0 if none does."""
    named = (_value(config, job, "threads") for job in jobs)
    return max((int(value) for value in named if value.isdecimal()), default=0)


def _value(config: DictConfig, job: Sequence[str], name: str) -> str:
    """Return the value of a key without a group in a job."""
    words = [word.lstrip("+").partition("=") for word in job]
    named = [value for key, _, value in words if key == name]
    return named[-1] if named else str(config.get(name))


def _require_devices(
    config: DictConfig, jobs: Sequence[Sequence[str]], gpus: Sequence[str], *, per_job: int
) -> None:
    """Raise if a job names a GPU that is not among its own, which it counts from 0."""
    for job in jobs if gpus else ():
        device = _device(config, job)
        index = device.partition(":")[2]
        if index.isdecimal() and int(index) >= per_job:
            one = gpus[int(index)] if int(index) < len(gpus) else gpus[0]
            raise ConfigError(
                f"this launcher gives each job a GPU of its own, and a job with "
                f"{_number_of_gpus(per_job)} has no {device}",
                where=f"device={device}",
                fix=f"device=auto; for jobs on that GPU alone, {_VISIBLE}={one} before the command",
            )


@cache
def _temporary_folder() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="trick-runner-gpus-")


def _require_one_precision(
    config: DictConfig, jobs: Sequence[Sequence[str]], gpus: Sequence[str]
) -> None:
    """Raise if ``precision=auto`` would let the precision of a job depend on the GPU that it gets.

    The precision is a part of what a run is, and a job that runs again may get another GPU.
    """
    is_open = any(
        _value(config, job, "precision") == "auto" and _device(config, job) != "cpu" for job in jobs
    )
    if len(gpus) < 2 or not is_open:
        return
    of_gpu = dict(zip(visible_gpus(), precisions_of_gpus(), strict=False))
    fast = [gpu for gpu in gpus if of_gpu.get(gpu) == "bf16"]
    slow = [gpu for gpu in gpus if of_gpu.get(gpu) == "fp32"]
    if fast and slow:
        raise ConfigError(
            f"the GPUs of the jobs differ: precision=auto is bf16 on {_named_gpus(fast)} and fp32 "
            f"on {_named_gpus(slow)}, so what a job trains would depend on the GPU that it gets",
            where="precision=auto",
            fix=f"precision=fp32; or {_VISIBLE}={','.join(fast)} before the command",
        )


def _named_gpus(gpus: Sequence[str]) -> str:
    return f"GPU{'' if len(gpus) == 1 else 's'} {', '.join(gpus)}"


def _locks_of_workers() -> Path:
    """Return a folder for the locks of the workers of this process.

    They live on from one sweep of this process to the next, so it cannot be that of a sweep.
    """
    return Path(_temporary_folder().name)


_for_life = ExitStack()  # is never closed: the kernel frees the lock when this worker ends
_kept = dict[Path, int]()


def _kept_slot(folder: Path, num_slots: int) -> int:
    """Return the slot of this worker, taken at its first job."""
    if folder not in _kept:
        places = [folder / f"slot-{slot}.lock" for slot in range(num_slots)]
        _kept[folder] = _for_life.enter_context(one_locked(places))
    return _kept[folder]


def _own_job() -> str:
    return os.environ.get("SUBMITIT_LOCAL_JOB_ID", "")


def _write_slot(folder: SweepFolder, number: int, slot: int | None) -> None:
    """Tell the other processes of a job of this process its slot; None while it waits."""
    content = {"job": _own_job(), "pid": os.getpid(), "slot": slot}
    replace_whole(folder.path / f"{number}.slot", json.dumps(content).encode())


def _slot_of_first(folder: SweepFolder, number: int) -> int:
    """Wait until the first process of this job has a slot, and return the slot.

    Raises:
        StorageError: that process has ended, or did not begin.
    """
    until = time.monotonic() + _BEGIN_SECONDS
    is_there = True
    while is_there:
        found = dict[str, Any]()
        with suppress(OSError, ValueError):
            found = fields.parsed(read_whole(folder.path / f"{number}.slot", at_most=_LARGEST))
        if found.get("job") == _own_job():  # else it is of an earlier attempt at the job
            if found["slot"] is not None:
                return fields.whole(found, "slot", at_least=0)
            is_there = is_alive({"pid": found["pid"], "host": socket.gethostname()})
        else:
            is_there = time.monotonic() < until
        time.sleep(_POLL_SECONDS)
    raise StorageError(
        "the first process of this job ended or did not begin",
        where=str(folder.log(number)),
        fix="the same command again",
    )
