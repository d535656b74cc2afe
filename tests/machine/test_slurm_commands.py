"""What Slurm's commands print, printed here by scripts; tests/test_on_slurm.py has a real Slurm."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.errors import ConfigError, StorageError
from runner.machine import slurm
from runner.machine.slurm import Ending, Limits, QueuedJob

Fake = Callable[..., Path]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Let a command of Slurm's print this; returns the file with its words and variables."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def make(name: str, output: str = "", error: str = "", code: int = 0, body: str = "") -> Path:
        for suffix, text in ((".out", output), (".err", error)):
            (folder / f"{name}{suffix}").write_text(text)
        script, told = folder / name, folder / f"{name}.told"
        script.write_text(
            f'#!/bin/sh\nprintf "%s\\n" "$@" > {told}\nenv >> {told}\n'
            f"cat {script}.out\ncat {script}.err >&2\n{body}\nexit {code}\n"
        )
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        return told

    return make


def test_jobs_of_every_form_are_read(fake: Fake) -> None:
    told = fake(
        "squeue",
        "12_0|RUNNING|node[1-2]|None\n"
        "12_1|PENDING||(ReqNodeNotAvail, UnavailableNodes:a|b[1-3])\n"
        "12_[3-4,7,10-14:2%2]|PENDING||JobArrayTaskLimit\n"
        "13|CANCELLED by 0|node1|None\n"
        "14.batch|OUT_OF_ME+|node1|OutOfMemory\n"
        "15| FAILED |node1|(null)\n"
        "CLUSTER: far\n"
        "\n"
        "16|||\n",
    )
    found = slurm.queue(["12_0", "12_7", "13", "14"])
    assert found["12_0"] == QueuedJob("12_0", "RUNNING", "", "node[1-2]")
    reason = "(ReqNodeNotAvail, UnavailableNodes:a|b[1-3])"
    assert found["12_1"] == QueuedJob("12_1", "PENDING", reason, "")
    pending = [f"12_{index}" for index in (3, 4, 7, 10, 12, 14)]
    assert [found[one].reason for one in pending] == ["JobArrayTaskLimit"] * 6
    assert {*found} == {"12_0", "12_1", *pending, "13", "14", "15", "16"}
    assert found["13"].is_cancelled
    assert found["13"].is_over
    assert found["14"] == QueuedJob("14", "OUT_OF_MEMORY", "OutOfMemory", "node1")
    assert found["15"] == QueuedJob("15", "FAILED", "", "node1")
    assert not found["16"].is_over
    assert "--jobs=12,13,14" in told.read_text()


@pytest.mark.parametrize(
    ("state", "is_waiting", "is_over"),
    [
        ("PENDING", True, False),
        ("REQUEUED", True, False),
        ("SPECIAL_EXIT", True, False),
        ("CONFIGURING", False, False),
        ("RUNNING", False, False),
        ("SUSPENDED", False, False),
        ("STOPPED", False, False),
        ("COMPLETING", False, False),
        ("COMPLETED", False, True),
        ("COMPLETED+", False, True),
        ("PREEMPTED", False, True),
        ("NODE_FAIL", False, True),
        ("DEADLINE", False, True),
        ("NEVER_HEARD_OF", False, False),
    ],
)
def test_states(fake: Fake, state: str, is_waiting: bool, is_over: bool) -> None:
    fake("squeue", f"7|{state}|node1|None\n")
    found = slurm.queue(["7"])["7"]
    assert (found.is_waiting, found.is_over) == (is_waiting, is_over)


def test_a_job_that_slurm_has_forgotten_is_absent(fake: Fake) -> None:
    fake("squeue", error="slurm_load_jobs error: Invalid job id specified\n", code=1)
    assert slurm.queue(["7"]) == {}
    fake("squeue", "8|RUNNING|node1|None\n")
    assert {*slurm.queue(["7", "8"])} == {"8"}


def test_nothing_is_asked_of_no_jobs(fake: Fake) -> None:
    told = fake("squeue")
    assert slurm.queue([]) == {}
    assert not told.exists()


def test_defaults_of_the_user_hide_no_job(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SQUEUE_PARTITION", "SQUEUE_USERS", "SQUEUE_FORMAT", "SINFO_PARTITION"):
        monkeypatch.setenv(name, "nothing")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    told = fake("squeue", "7|RUNNING|node1|None\n").parent / "squeue.told"
    slurm.queue(["7"])
    assert "SQUEUE_" not in told.read_text()
    assert "SINFO_" not in told.read_text()
    assert "SLURM_CONF=/etc/slurm.conf" in told.read_text()


def test_a_missing_command_is_no_silent_controller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StorageError) as caught:
        slurm.queue(["7"])
    assert caught.value.what == "this machine has no Slurm: squeue is not on PATH"
    assert "module load slurm" in caught.value.fix


@pytest.mark.parametrize(
    ("error", "what", "fix"),
    [
        (
            "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
            "Slurm does not answer: Unable to contact slurm controller (connect failure)",
            "scontrol ping",
        ),
        (
            "squeue: error: slurm_receive_msgs: Socket timed out on send/recv operation\n"
            "squeue: fatal: Socket timed out on send/recv operation",
            "Slurm does not answer: slurm_receive_msgs: Socket timed out on send/recv operation; "
            "Socket timed out on send/recv operation",
            "scontrol ping",
        ),
        (
            "squeue: error: fetch_config: DNS SRV lookup failed\n"
            "squeue: fatal: Could not establish a configuration source",
            "this machine knows no Slurm cluster: fetch_config: DNS SRV lookup failed; "
            "Could not establish a configuration source",
            "export SLURM_CONF=/etc/slurm/slurm.conf",
        ),
        (
            "squeue: error: Access/permission denied",
            "Slurm refuses: Access/permission denied",
            "squeue --noheader --array --states=all --jobs=7 --format=%i|%T|%N|%r",
        ),
        (
            "",
            "Slurm refuses: exit code 1, without a message",
            "squeue --noheader --array --states=all --jobs=7 --format=%i|%T|%N|%r",
        ),
    ],
)
def test_errors_say_whether_slurm_answers(fake: Fake, error: str, what: str, fix: str) -> None:
    fake("squeue", error=error, code=1)
    with pytest.raises(StorageError) as caught:
        slurm.queue(["7"])
    assert (caught.value.what, caught.value.fix) == (what, fix)
    assert caught.value.where.startswith("squeue ")


def test_a_controller_that_says_nothing_is_given_up(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "_SECONDS", 0.2)
    fake("squeue", body="exec sleep 30")
    with pytest.raises(StorageError, match=r"did not answer within 0\.2 s"):
        slurm.queue(["7"])


def test_a_command_that_cannot_be_run(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    script = fake("squeue").parent / "squeue"
    script.write_text("no program\n")
    monkeypatch.setenv("PATH", str(script.parent))
    with pytest.raises(StorageError, match="squeue cannot be run: Exec format error"):
        slurm.queue(["7"])


def test_bytes_that_are_no_text_are_read(fake: Fake) -> None:
    output = fake("squeue").parent / "squeue.out"
    output.write_bytes(b"7|RUNNING|node1|held by J\xf6rg\n")
    assert slurm.queue(["7"])["7"].reason.startswith("held by J")


SINFO = """\
main*|infinite|64|256000+
main*|infinite|128+|515072
gpu|2-12:00:00|32|(null)
short|10:30|4|16000
"""


@pytest.mark.parametrize(
    ("partition", "expected"),
    [
        (None, Limits("main", None, 128, 503.0)),
        ("main", Limits("main", None, 128, 503.0)),
        ("gpu", Limits("gpu", 3600, 32, None)),
        ("short", Limits("short", 10, 4, 15.625)),
        ("short,gpu", Limits("short,gpu", 3600, 32, 15.625)),
        ("short,main", Limits("short,main", None, 128, 503.0)),
    ],
)
def test_limits_of_partitions(fake: Fake, partition: str | None, expected: Limits) -> None:
    fake("sinfo", SINFO)
    assert slurm.limits(partition) == expected


def test_partitions_that_do_not_exist(fake: Fake) -> None:
    fake("sinfo", SINFO)
    with pytest.raises(ConfigError) as caught:
        slurm.limits("short,gpus")
    assert caught.value.what == "the cluster has no partition gpus; it has gpu, main, short"
    assert caught.value.where == "hydra.launcher.partition=short,gpus"
    assert caught.value.fix == "hydra.launcher.partition=main"


def test_without_a_default_partition_no_limit_is_known(fake: Fake) -> None:
    fake("sinfo", SINFO.replace("*", ""))
    assert slurm.limits(None) == Limits("", None, None, None)


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("infinite", None),
        ("n/a", None),
        ("0:30", 0),
        ("10:00", 10),
        ("1:00:59", 60),
        ("7-00:00:00", 7 * 24 * 60),
    ],
)
def test_times(text: str, minutes: int | None) -> None:
    assert slurm._minutes(text) == minutes


def test_the_size_of_arrays(fake: Fake) -> None:
    fake("scontrol", "Configuration data\nMaxArraySize            = 4001\nMaxJobCount = 10000\n")
    assert slurm.max_array_size() == 4001
    fake("scontrol", "MaxArraySize = 0\n")  # arrays are turned off
    assert slurm.max_array_size() == 1
    fake("scontrol", "")
    assert slurm.max_array_size() == 1001


def test_the_own_id(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    assert slurm.own_id() is None
    monkeypatch.setenv("SLURM_JOB_ID", "15")
    assert slurm.own_id() == "15"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    assert slurm.own_id() == "15"
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert slurm.own_id() == "12_3"


def test_ids_are_written_short() -> None:
    ids = ["12_0", "12_1", "13", "12_5", "12_2", "14_7", "12_10", "12_9"]
    assert slurm.compressed(ids) == "12_[0-2,5,9-10] 13 14_7"
    assert slurm.compressed([]) == ""


def test_changes_name_the_job(fake: Fake) -> None:
    told = fake("scontrol")
    slurm.rename("12_3", "seed=3")
    assert told.read_text().startswith("update\njobid=12_3\njobname=seed=3\n")
    told = fake("scancel")
    slurm.cancel(["12_[0-2]", "13"])
    assert told.read_text().startswith("--quiet\n12_[0-2]\n13\n")
    fake("scancel", error="scancel: error: Kill job error on job id 5: Access denied", code=1)
    with pytest.raises(StorageError, match="Slurm refuses: Kill job error on job id 5"):
        slurm.cancel(["5"])


SHOWN = (
    "JobId=12 ArrayJobId=12 ArrayTaskId=1 JobName=lr=0.1 JobState={state} Reason=None Requeue=1 "
    "Restarts={restarts} ExitCode=0:15 RunTime={ran} TimeLimit={limit} "
    "StartTime=2026-11-27T07:27:19 EndTime={ended} Deadline=N/A PreemptTime={preempted} "
    "Command=/a b/job.sh\n"
)
THEN, LATER = "2026-11-27T07:27:24", "2026-11-27T07:27:54"


@pytest.mark.parametrize(
    ("state", "restarts", "ran", "limit", "ended", "preempted", "why"),
    [
        ("RUNNING", 0, "00:05:00", "1-00:00:00", LATER, "None", Ending.NONE),
        ("RUNNING", 0, "00:05:00", "1-00:00:00", LATER, THEN, Ending.PREEMPTED),
        ("COMPLETING", 1, "00:00:00", "1-00:00:00", "Unknown", "Unknown", Ending.REQUEUED),
        ("PENDING", 1, "00:00:00", "UNLIMITED", "Unknown", "None", Ending.REQUEUED),
        ("COMPLETING", 0, "00:05:00", "UNLIMITED", THEN, THEN, Ending.PREEMPTED),  # for good
        ("COMPLETING", 0, "00:05:00", "UNLIMITED", THEN, "None", Ending.CANCELLED),
        ("COMPLETING", 0, "00:05:00", "00:10:00", LATER, THEN, Ending.CANCELLED),  # meanwhile
        ("CANCELLED", 0, "00:05:00", "UNLIMITED", THEN, "N/A", Ending.CANCELLED),
        ("COMPLETING", 0, "00:10:00", "00:10:00", LATER, "None", Ending.TIME_LIMIT),
    ],
)
def test_why_a_job_was_told_to_end(
    fake: Fake,
    monkeypatch: pytest.MonkeyPatch,
    state: str,
    restarts: int,
    ran: str,
    limit: str,
    ended: str,
    preempted: str,
    why: Ending,
) -> None:
    text = SHOWN.format(
        state=state, restarts=restarts, ran=ran, limit=limit, ended=ended, preempted=preempted
    )
    fake("scontrol", text)
    assert slurm.ending("12_1") == why
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")  # this attempt at the job is the fourth
    fake("scontrol", text.replace(f"Restarts={restarts}", f"Restarts={restarts + 3}"))
    assert slurm.ending("12_1") == why
    fake("scontrol", "No jobs in the system\n")
    with pytest.raises(StorageError, match="does not know this job"):
        slurm.ending("12_1")


def test_a_job_is_requeued(fake: Fake) -> None:
    told = fake("scontrol")
    slurm.requeue("12_3")
    assert told.read_text().startswith("requeue\n12_3\n")
    fake("scontrol", error="Job is pending execution for job 12_3", code=1)
    with pytest.raises(StorageError, match="Job is pending execution"):
        slurm.requeue("12_3")
