"""What is true of a job in Slurm, and why it waits, in plain words."""

import pytest

from runner.jobs.states import why_waiting


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
