"""What is true of a job in Slurm, and why it waits, in plain words."""

from pathlib import Path

import pytest
from fake_cluster import Cluster, submitted

from runner.jobs.states import Queue, States, settled, why_waiting
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
        ("cancelled", "PENDING", "queued"),
        ("cancelled", "RUNNING", "running"),
        ("cancelled", "COMPLETING", "cancelled"),
        ("cancelled", None, "cancelled"),
        ("finished", "RUNNING", "finished"),
        ("failed", "FAILED", "failed"),
    ],
)
def test_the_file_says_how_a_job_ended_and_the_queue_whether_it_exists(
    status: str, state: str | None, expected: str
) -> None:
    queued = None if state is None else QueuedJob("7_1", state, "Priority" * (state == "PENDING"))
    error = {"error": "cancelled in Slurm"} if status == "cancelled" else {}
    found = settled({"status": status, "pid": 1, "host": "far", **error}, queued)
    assert found["status"] == expected
    assert ("error" in found) == (expected in ("crashed", "cancelled"))
    assert ("reason" in found) == (state == "PENDING")


def test_a_job_that_saved_is_not_said_to_have_never_begun() -> None:
    found = {"status": "queued", "pid": 1, "host": "far", "reason": "time limit"}
    error = settled(found, QueuedJob("7_1", "TIMEOUT"))["error"]
    assert error == "crashed (TIMEOUT): saved, and ended before it was at work again"
    assert "before it began again" in settled(found, None)["error"]


@pytest.mark.parametrize("end", ["err", "out"])
def test_what_a_job_printed_before_its_log_is_named(
    tmp_path: Path, cluster: Cluster, end: str
) -> None:
    """Such as a node without Python: the commonest first failure on a cluster."""
    folder = submitted(tmp_path)
    place = folder.path / "slurm" / "7_1"
    place.mkdir(parents=True)
    (place / "7_1_0_log.err").touch()
    (place / f"7_1_0_log.{end}").write_text("python: not found")
    queue = Queue()
    for number in range(2):
        cluster.put(f"7_{number}", "FAILED")
    queue.ask(["7_0", "7_1"], every=0)
    crashed = "crashed (FAILED): before it began: its process ended without a message"
    states = States(queue)
    assert states.state(folder, 0)["error"] == crashed
    output = f"; its output: {place / f'7_1_0_log.{end}'}"
    assert states.state(folder, 1)["error"] == crashed + output
    folder.log(1).touch()
    assert states.state(folder, 1)["error"] == crashed + output, "the log is of an earlier attempt"
    folder.write(1, "running")
    assert "output" not in states.state(folder, 1)["error"], "the log says more"
