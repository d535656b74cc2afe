"""The state of a job that was submitted to Slurm: by the file that the job writes, and the queue.

The file says how a job ended, and the queue whether it exists. A job that was killed says nothing,
and a job that waits to begin again still says what it did before.
"""

import re
from collections.abc import Mapping
from typing import Any

from runner.machine.slurm import QueuedJob
from runner.records.sweep_folder import ENDED

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
    (r"BeginTime", "queued again; Slurm waits two minutes before it begins the job"),
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
    """Why a job waits, in plain words with Slurm's own; Slurm's own alone if they are not known.

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


def settled(found: Mapping[str, Any], queued: QueuedJob | None) -> dict[str, Any]:
    """What is true of a job.

    Args:
        found: what the file of the job says, by :meth:`SweepFolder.read`.
        queued: what Slurm says of the job; None if Slurm does not know it (any more).

    Returns:
        ``found``, with another status where the queue knows better: ``queued`` with the ``reason``
        of the queue; ``running``; ``cancelled``; or ``crashed`` with an ``error``. The caller waits
        a few seconds before it believes in a crash: file systems of clusters show files late.
    """
    status = found["status"]
    if status in (*ENDED, "busy", "cancelled"):
        return dict(found)
    if queued is not None and queued.is_waiting:
        return {**found, "status": "queued", "reason": queued.reason}
    if queued is not None and not queued.is_over:
        begins_or_ends = {"pending": "queued", "interrupted": "running"}
        return {**found, "status": begins_or_ends.get(status, status)}
    if queued is not None and queued.is_cancelled:
        return {**found, "status": "cancelled", "error": "cancelled in Slurm"}
    if status in ("interrupted", "pending"):
        return dict(found)
    if queued is None and status == "queued":
        # Slurm forgets a task of an array at once if it is cancelled before it begins.
        error = "cancelled before it began: Slurm does not know it any more"
        return {**found, "status": "cancelled", "error": error}
    state = "unknown to Slurm" if queued is None else queued.state
    how = _HOW.get(state, "its process ended without a word")
    when = "before it began: " if status == "queued" else ""
    return {**found, "status": "crashed", "error": f"crashed ({state}): {when}{how}"}
