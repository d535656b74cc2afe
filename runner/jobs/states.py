"""The state of a job that was submitted to Slurm: by the file that the job writes, and the queue.

The file says how a job ended, and the queue whether it exists. A job that was killed says nothing,
and a job that waits to begin again still says what it did before.
"""

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
    state = "unknown to Slurm" if queued is None else queued.state
    how = _HOW.get(state, "its process ended without a word")
    when = "before it began: " if status == "queued" else ""
    return {**found, "status": "crashed", "error": f"crashed ({state}): {when}{how}"}
