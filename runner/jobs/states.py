"""The states of jobs that were submitted to Slurm: by the files that jobs write, and the queue.

The file says how a job ended, and the queue whether it exists. A job that was killed says nothing,
and a job that waits to begin again still says what it did before.
"""

import math
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from runner.errors import StorageError
from runner.machine import slurm
from runner.machine.slurm import QueuedJob
from runner.records.sweep_folder import ALIVE, ENDED, SweepFolder

LATE_SECONDS = 10.0  # until the file of a job that is over is there; NFS shows changes late

_HOW = {
    "OUT_OF_MEMORY": "it used more memory than it was given; hydra.launcher.mem_gb=… gives more",
    "TIMEOUT": "its time was up before it could save; a larger hydra.launcher.signal_delay_s warns "
    "it earlier",
    "NODE_FAIL": "its machine failed",
    "BOOT_FAIL": "its machine did not start",
    "DEADLINE": "its deadline has passed",
}

_WAITING = (
    (r"Resources", "next in line, until enough cores, memory or GPUs are free"),
    (r"Priority", "jobs of higher priority come first"),
    (r"JobArrayTaskLimit", "hydra.launcher.array_parallelism jobs are at work already"),
    (r"BeginTime", "its time to begin has not come; that is two minutes after it is queued again"),
    (r"Dependency", "the jobs before have not ended"),
    (r"DependencyNeverSatisfied", "a job before has failed, so this never begins"),
    (r"PartitionTimeLimit", "the partition does not allow so much time, so this never begins"),
    (r"PartitionConfig|PartitionNodeLimit|BadConstraints",
     "no node of the partition has what is asked for, so this never begins"),
    (r"PartitionDown|PartitionInactive", "an administrator closed the partition"),
    (r"JobHeldUser", "held by scontrol hold; scontrol release ID ends that"),
    (r"JobHeldAdmin", "held by an administrator"),
    (r"launch failed requeued held|job requeued in held state",
     "held after a failed start; scontrol release ID tries again"),
    (r"ReqNodeNotAvail.*|Nodes required for job are .*", "nodes are down, reserved or drained"),
    (r"NodeDown", "the node is down"),
    (r"Reservation.*", "the reservation has not begun"),
    (r"Licenses", "a license is not free"),
    (r"QOS.*", "a limit of the quality of service (QOS) is reached"),
    (r"Assoc.*", "a limit of the account is reached"),
    (r"Cleaning", "what ran before is being cleaned up"),
)  # fmt: skip
"""Reasons of the queue, which Slurm also writes with ``_`` for spaces, in plain words."""


def why_waiting(reason: str) -> str:
    """Explain why a job waits, in plain words and Slurm's own; Slurm's alone if unknown.

    Args:
        reason: in Slurm's words; empty if Slurm gives none.
    """
    if not reason or reason == "None":
        return "Slurm has not planned this yet"
    said = reason.replace("_", " ")
    for pattern, words in _WAITING:
        if re.fullmatch(pattern, said):
            return f"{words} ({reason})"
    return reason


def reasons(waiting: Iterable[QueuedJob]) -> dict[str, str]:
    """Return a line about the waiting jobs for each of Slurm's reasons."""
    ids = defaultdict[str, list[str]](list)
    for job in waiting:
        ids[job.reason].append(job.id)
    return {
        reason: f"{slurm.compressed(those)} {'waits' if len(those) == 1 else 'wait'}: "
        + why_waiting(reason)
        for reason, those in ids.items()
    }


class Queue:
    """What Slurm says of jobs, asked rarely; what it said last is kept while it does not answer.

    Attributes:
        problem: why Slurm did not answer the last question; empty if it did.
    """

    def __init__(self) -> None:
        self._known: dict[str, QueuedJob | None] = {}  # None: Slurm does not know it (any more)
        self._asked_at = -math.inf
        self.problem = ""

    def ask(self, ids: Iterable[str], *, every: float) -> bool:
        """Ask for jobs, unless the last answer about them is young; return whether it was asked.

        Args:
            ids: of the jobs.
            every: seconds for which an answer is young.
        """
        wanted = {*ids}
        is_young = time.monotonic() - self._asked_at < every
        if not wanted or (is_young and (self.problem or wanted <= {*self._known})):
            return False
        try:
            self._known |= dict.fromkeys(wanted) | slurm.queue(wanted)
            self.problem = ""
        except StorageError as error:
            self.problem = error.what
        self._asked_at = time.monotonic()
        return True

    def add(self, jobs: Mapping[str, QueuedJob]) -> None:
        """Add what is known of jobs without a question."""
        self._known |= jobs

    def knows(self, one: str) -> bool:
        """Return whether Slurm was asked for this job and has answered."""
        return one in self._known

    def get(self, one: str) -> QueuedJob | None:
        """Return what Slurm said last of a job; None if it does not know it, or was not asked."""
        return self._known.get(one)


class States:
    """The states of the jobs of a sweep, by their files and what Slurm said last.

    Args:
        queue: what Slurm says.
    """

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._over_since: dict[int, float] = {}

    def state(self, folder: SweepFolder, number: int) -> dict[str, Any]:
        """Return the state of a job; of a job that Slurm knows, as :func:`settled` returns it.

        That a job is over is not believed before its file had time to say so itself.
        """
        found, record = folder.read(number), folder.slurm.get(number)
        if record is None or not self._queue.knows(record.id):
            return found
        state = settled(found, self._queue.get(record.id))
        if state["status"] in ALIVE or state["status"] == found["status"]:
            self._over_since.pop(number, None)
        elif found["status"] in ALIVE and not self._is_surely_over(number):
            return found
        if state["status"] == "crashed" and found["status"] in ALIVE:
            has_log = found["status"] != "queued" and folder.log(number).exists()
            if not has_log and (output := folder.output_in_slurm(number)) is not None:
                state["error"] += f"; its output: {output}"
        return state

    @property
    def is_doubtful(self) -> bool:
        """Whether Slurm says of a job that it is over, and its file does not yet."""
        return not all(map(self._is_surely_over, [*self._over_since]))

    def _is_surely_over(self, number: int) -> bool:
        since = self._over_since.setdefault(number, time.monotonic())
        return time.monotonic() - since >= LATE_SECONDS


def settled(found: Mapping[str, Any], queued: QueuedJob | None) -> dict[str, Any]:
    """Combine the file of a job and the queue into its state.

    Args:
        found: what the file of the job says, by :meth:`SweepFolder.read`.
        queued: what Slurm says of the job; None if Slurm does not know it (any more).

    Returns:
        ``found``, with another status where the queue knows better: ``queued`` with the ``reason``
        of the queue; ``running``; ``cancelled``; or ``crashed`` with an ``error``.
    """
    status = found["status"]
    if status in (*ENDED, "busy"):
        return dict(found)
    going_on = {key: value for key, value in found.items() if key not in ("error", "error_kind")}
    if queued is not None and queued.is_waiting:
        return {**going_on, "status": "queued", "reason": queued.reason}
    if status == "cancelled" and (queued is None or queued.state != "RUNNING"):
        return dict(found)  # COMPLETING: it ends
    if queued is not None and not queued.is_over:
        others = {"pending": "queued", "interrupted": "running", "cancelled": "running"}
        return {**going_on, "status": others.get(status, status)}
    if queued is not None and queued.is_cancelled:
        return {**found, "status": "cancelled", "error": "cancelled in Slurm"}
    if status in ("interrupted", "pending"):
        return dict(found)
    has_saved = status == "queued" and "reason" in found  # the job itself wrote why it ended
    if queued is None and status == "queued":
        # Slurm forgets a task of an array at once if it is cancelled before it begins.
        again = " again" if has_saved else ""
        error = f"cancelled before it began{again}: Slurm does not know it any more"
        return {**found, "status": "cancelled", "error": error}
    state = "unknown to Slurm" if queued is None else queued.state
    how = _HOW.get(state, "its process ended without a message")
    if has_saved:
        how = "saved, and ended before it was at work again"
    elif status == "queued":
        how = f"before it began: {how}"
    return {**found, "status": "crashed", "error": f"crashed ({state}): {how}"}
