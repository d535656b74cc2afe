"""What is true of a job in Slurm, and why it waits, in plain words."""

import pytest

from runner.jobs.states import why_waiting


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("Resources", "it is next, once enough cores, memory or GPUs are free (Resources)"),
        ("QOSMaxCpuPerUserLimit", "a limit of its quality of service (QOS) is reached (QOSMaxCpu"),
        ("ReqNodeNotAvail, UnavailableNodes:n[1-2]", "nodes are down, reserved or drained (Req"),
        ("launch_failed_requeued_held", "it was held after a failed start"),
        ("SomethingOfTomorrow", "SomethingOfTomorrow"),
        ("PrioritySomething", "PrioritySomething"),
        ("", "Slurm has not looked at it yet"),
    ],
)
def test_why_a_job_waits_is_told_in_plain_words(reason: str, words: str) -> None:
    assert why_waiting(reason).startswith(words)
