"""What is true of a job in Slurm, and why it waits, in plain words."""

import pytest

from runner.jobs.states import settled, why_waiting
from runner.machine.slurm import QueuedJob


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("Resources", "next in line, until enough cores, memory or GPUs are free (Resources)"),
        ("QOSMaxCpuPerUserLimit", "a limit of the quality of service (QOS) is reached (QOSMaxCpu"),
        ("ReqNodeNotAvail, UnavailableNodes:n[1-2]", "nodes are down, reserved or drained (Req"),
        ("launch_failed_requeued_held", "held after a failed start"),
        ("SomethingOfTomorrow", "SomethingOfTomorrow"),
        ("PrioritySomething", "PrioritySomething"),
        ("", "Slurm has not planned this yet"),
    ],
)
def test_why_a_job_waits_is_told_in_plain_words(reason: str, words: str) -> None:
    assert why_waiting(reason).startswith(words)


@pytest.mark.parametrize(
    ("status", "state", "expected"),
    [
        ("queued", "PENDING", "queued"),
        ("queued", "CONFIGURING", "queued"),
        ("queued", None, "cancelled"),
        ("running", "RUNNING", "running"),
        ("running", "PENDING", "queued"),
        ("running", "COMPLETED", "crashed"),
        ("running", "NODE_FAIL", "crashed"),
        ("running", "CANCELLED", "cancelled"),
        ("running", None, "crashed"),
        ("interrupted", "PENDING", "queued"),
        ("interrupted", "COMPLETING", "running"),
        ("interrupted", "CANCELLED", "cancelled"),
        ("interrupted", None, "interrupted"),
        ("finished", "RUNNING", "finished"),
        ("failed", "FAILED", "failed"),
    ],
)
def test_the_file_says_how_a_job_ended_and_the_queue_whether_it_exists(
    status: str, state: str | None, expected: str
) -> None:
    queued = None if state is None else QueuedJob("7_1", state, "Priority" * (state == "PENDING"))
    found = settled({"status": status, "pid": 1, "host": "far"}, queued)
    assert found["status"] == expected
    assert ("error" in found) == (expected in ("crashed", "cancelled"))
    assert ("reason" in found) == (state == "PENDING")
