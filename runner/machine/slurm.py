"""What Slurm says of jobs, by its own commands; nothing here knows what the jobs do.

Everything is asked of the controller (``squeue``, ``scontrol``), which every cluster has; the
accounting that ``sacct`` reads is off on many. The controller forgets a job some minutes after its
end (``MinJobAge``).
"""

import os
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from runner.errors import StorageError

_SECONDS = 60  # until a command that the controller does not answer is given up


@dataclass(frozen=True)
class QueuedJob:
    """A job as Slurm sees it.

    Attributes:
        id: ``12_3`` of a job in an array, otherwise ``12``.
        state: in Slurm's words, such as PENDING, RUNNING, COMPLETING, COMPLETED, FAILED, CANCELLED,
            TIMEOUT, NODE_FAIL or OUT_OF_MEMORY.
        reason: in Slurm's words, why the job waits or how it failed; empty if Slurm gives none.
        node: the machine of the job; empty if it has none.
    """

    id: str
    state: str
    reason: str = ""
    node: str = ""

    @property
    def is_waiting(self) -> bool:
        """Whether the job has not begun, or waits to begin again."""
        return self.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")

    @property
    def is_over(self) -> bool:
        """Whether the job has ended and Slurm will not begin it again."""
        return self.state in _OVER

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody cancelled the job."""
        return self.state == "CANCELLED"


_OVER = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "REVOKED", "TIMEOUT",
}  # fmt: skip


def queue(ids: Iterable[str]) -> dict[str, QueuedJob]:
    """The jobs with these ids, by id; without those that Slurm does not know any more.

    Args:
        ids: such as ``12_3`` and ``12``; ids of arrays may be used for all of their jobs.

    Raises:
        StorageError: Slurm does not answer, so nothing is known.
    """
    wanted = sorted({*ids})
    if not wanted:
        return {}
    arrays = ",".join(sorted({one.partition("_")[0] for one in wanted}))
    try:
        said = _run("squeue", "--noheader", "--array", "--states=all", f"--jobs={arrays}",
                    "--format=%i|%T|%r|%N")  # fmt: skip
    except StorageError as error:
        if "Invalid job id" in error.what:  # it knows none of them
            return {}
        raise
    found = {}
    for line in said.splitlines():
        number, state, reason, node = line.split("|")
        found[number] = QueuedJob(number, state, "" if reason == "None" else reason, node)
    return found


def own_id() -> str | None:
    """The id of the job that this process is in, such as ``12_3``; None outside of Slurm."""
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def rename(number: str, name: str) -> None:
    """Give a job the name under which ``squeue`` lists it.

    Raises:
        StorageError: Slurm refuses it or does not answer.
    """
    _run("scontrol", "update", f"jobid={number}", f"jobname={name}")


def cancel(ids: Sequence[str]) -> None:
    """Cancel jobs.

    Raises:
        StorageError: Slurm refuses it or does not answer.
    """
    _run("scancel", *ids)


def compressed(ids: Iterable[str]) -> str:
    """Ids as ``scancel`` takes them, in few characters: ``12_[0-2,5] 13``."""
    arrays: dict[str, list[int]] = {}
    for one in ids:
        array, _, index = one.partition("_")
        arrays.setdefault(array, []).extend([int(index)] if index else [])
    return " ".join(
        f"{array}_[{_ranges(sorted({*indexes}))}]" if indexes else array
        for array, indexes in arrays.items()
    )


def max_array_size() -> int:
    """How many jobs an array of this cluster can have at most.

    Raises:
        StorageError: Slurm does not answer.
    """
    for line in _run("scontrol", "show", "config").splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "MaxArraySize":
            return int(value)
    return 1001  # Slurm's default


def _ranges(indexes: list[int]) -> str:
    parts: list[list[int]] = []
    for index in indexes:
        if parts and index == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], index]
        else:
            parts.append([index])
    return ",".join("-".join(map(str, part)) for part in parts)


def _run(*words: str) -> str:
    """The output of a command of Slurm's."""
    try:
        done = subprocess.run(  # noqa: S603
            words, capture_output=True, text=True, timeout=_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        raise StorageError(
            f"Slurm does not answer: {said.strip().partition(chr(10))[0]}",
            where=" ".join(words),
            fix=" ".join(words[:1]),
        ) from error
    return done.stdout
