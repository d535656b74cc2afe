"""The processes that share one run: torchrun's, or the tasks of one submitit job.

All processes compute; only the first one writes files and prints. Torch is imported only if there
are several, so that a finished run of one process is reported immediately.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from runner.errors import ConfigError, RunnerError, StorageError, first_line
from runner.machine.hardware import own_gpu, tasks_on_node
from runner.machine.signals import Interrupted, at_once

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

_MEETING = timedelta(minutes=10)  # in which all processes must start
_TIMEOUT = timedelta(hours=6)  # the others wait while the first decodes a data set
_VARIABLES = {
    "rank": "RANK",
    "count": "WORLD_SIZE",
    "local_rank": "LOCAL_RANK",
    "local_count": "LOCAL_WORLD_SIZE",
}


@dataclass(frozen=True)
class Processes:
    """The place of this process among those that share the run.

    Attributes:
        rank: number of this process, from 0.
        count: number of processes.
        local_rank: number of this process on its machine.
        local_count: number of processes on this machine.
        cores_shared_by: how many of the processes share the cores that
            :func:`runner.machine.hardware.num_cores` counts: those of torchrun on this machine.
            Each task of Slurm and submitit has cores of its own.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1
    cores_shared_by: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and prints for all."""
        return self.rank == 0

    def share(self, num_items: int) -> "NDArray[np.int64]":
        """Return this process's indices in 0..num_items-1: every ``count``-th, from its rank on."""
        import numpy as np

        return np.arange(self.rank, num_items, self.count)

    def sum(self, tensor: "Tensor") -> "Tensor":
        """Add up ``tensor`` over the processes, in place."""
        if self.count > 1:
            import torch.distributed

            torch.distributed.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Return whether ``flag`` is set on any of the processes; all get the same answer."""
        if self.count == 1:
            return flag
        return self._total(int(flag)) > 0

    def have_same(self, number: int) -> bool:
        """Return whether all processes have the same number; all get the same answer.

        Args:
            number: a number of this process, from 0 to 2**60.
        """
        if self.count == 1:
            return True
        of_first = self._total(number if self.is_first else 0)
        return not self.any(number != of_first)

    def _total(self, number: int) -> int:
        """Return the sum of a number of each process."""
        import torch

        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        return int(self.sum(torch.tensor([number], device=device)))

    def stop_if(self, flag: bool) -> None:
        """End the work of all processes if ``flag`` is set on any of the processes.

        Raises:
            Interrupted: ``flag`` is set; raised on all processes.
        """
        if self.any(flag):
            raise Interrupted(signal.SIGTERM)

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Run the block in the first process, then in the others, which use its results."""
        if self.count > 1 and not self.is_first:
            self.any(False)
        try:
            yield
        finally:
            if self.count > 1 and self.is_first:
                self.any(False)

    def agree(self, error: RunnerError | None) -> None:
        """End all processes if the first one met an error.

        Args:
            error: the error of this process, or None; None on all processes but the first.

        Raises:
            RunnerError: ``error``, on the first process.
            SystemExit: on the other processes, without a message.
        """
        is_bad = self.any(error is not None)
        if error is not None:
            raise error
        if is_bad:
            raise SystemExit(RunnerError.exit_code)


ALONE = Processes()


def from_environment() -> Processes:
    """Read how torchrun or submitit started this process; ``ALONE`` if neither did.

    Raises:
        ConfigError: the environment variables contradict one another.
    """
    has_own_cores = False
    if "SUBMITIT_EXECUTOR" in os.environ:
        import submitit

        if submitit.JobEnvironment().num_tasks > 1:
            has_own_cores = True
            # Every task of Slurm sees all GPUs of its node: local_rank picks one.
            submitit.helpers.TorchDistributedEnvironment().export(
                overwrite=True, set_cuda_visible_devices=False
            )
    if "WORLD_SIZE" not in os.environ:
        return ALONE
    try:
        numbers = {
            name: int(os.environ[variable])
            for name, variable in _VARIABLES.items()
            if variable in os.environ
        }
    except ValueError as error:
        raise ConfigError(
            f"not a number in the environment of torchrun: {error}",
            where=", ".join(_VARIABLES.values()),
            fix="torchrun --nproc-per-node=2 -m runner.train …",
        ) from error
    found = Processes(**numbers)
    if not (0 <= found.rank < found.count and 0 <= found.local_rank < found.local_count):
        raise ConfigError(
            f"the environment contradicts itself: {found}",
            where=", ".join(_VARIABLES.values()),
            fix="torchrun --nproc-per-node=2 -m runner.train …",
        )
    if has_own_cores:
        return found
    return replace(found, cores_shared_by=max(1, found.local_count // tasks_on_node()))


@contextmanager
def joined(processes: Processes, device_kind: str) -> Iterator[None]:
    """Connect the processes for the block: by nccl on GPUs, by gloo on CPUs.

    Raises:
        ConfigError: this machine has fewer GPUs than processes of the run, or an Apple GPU is
            requested, which processes cannot share.
        StorageError: not all processes connected in time.
    """
    if processes.count == 1:
        yield
        return
    if device_kind == "mps":
        raise ConfigError(
            f"{processes.count} processes cannot share a run on an Apple GPU",
            where=f"device=mps, WORLD_SIZE={processes.count}",
            fix="device=cpu, or one process: python -m runner.train device=mps …",
        )
    import torch
    from torch.distributed.rendezvous import rendezvous

    if device_kind == "cuda":
        torch.cuda.set_device(own_gpu(processes.local_count, processes.local_rank))
    backend = "nccl" if device_kind == "cuda" else "gloo"
    try:
        with at_once():
            store, rank, count = next(rendezvous("env://", timeout=_MEETING))
            torch.distributed.init_process_group(
                backend, store=store, rank=rank, world_size=count, timeout=_TIMEOUT
            )
    except (torch.distributed.DistError, ValueError) as error:
        raise StorageError(
            f"the {processes.count} processes of this run did not meet: {first_line(error)}",
            where="the environment: MASTER_ADDR, MASTER_PORT, RANK, WORLD_SIZE",
            fix="torchrun --nproc-per-node=2 -m runner.train …; for one process, unset WORLD_SIZE",
        ) from error
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()
