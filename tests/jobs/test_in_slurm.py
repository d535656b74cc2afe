"""What a job does inside Slurm: signals, requeues, names, exit codes; scontrol is a script here.

Each job is a process that submitit runs, as on a cluster; tests/test_on_slurm.py has a real Slurm.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import kill
import pytest
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton

from runner.config import compose
from runner.config.schema import RunConfig
from runner.errors import BusyError, DataError
from runner.jobs.job import SweepJob
from runner.jobs.shares import Share
from runner.machine.signals import Interrupted, deferred
from runner.records.sweep_folder import SlurmRecord, SweepFolder
from runner.terminal.start import Task, Work, hydra_context

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="forks"),
    pytest.mark.timeout(120),
]

RUNNING = "JobState=RUNNING Restarts=0 EndTime=2026-11-27T07:27:54 PreemptTime=None"
PREEMPTED = RUNNING.replace("None", "2026-11-27T07:27:24")  # and has time to save
REQUEUED = "JobState=COMPLETING Restarts=1 EndTime=Unknown"
CANCELLED = RUNNING.replace("RUNNING", "COMPLETING")
TERM, CONT, USR2 = signal.SIGTERM, signal.SIGCONT, signal.SIGUSR2

SCONTROL = """\
#!/bin/sh
echo "$@" >> told
case "$*" in
  *show*) cat show; [ -e show-next ] && mv show-next show; [ -s show-error ] && exit 1 ;;
  requeue*)
    cat sweeps/*/0.json >> file-at-requeue
    for signum in $(cat signals-at-requeue); do kill -$signum 0; done
    sleep 0.2
    cat requeue-error >&2; [ -s requeue-error ] && exit 1 ;;
esac
exit 0
"""


def work(config: RunConfig, words: list[str]) -> dict[str, Any]:
    """Ends as the seed says; trains and saves by default."""
    if config.seed == 1:
        raise DataError("no such image", where="a.png")
    if config.seed == 2:
        raise BusyError("another process is at it", where=str(Path("run/run.lock").absolute()))
    if config.seed == 3:
        return {"status": "finished", "folder": "run", "accuracy": 0.5}
    if config.seed == 4:
        raise SystemExit(1)  # as tasks do if the first one has met an error
    with deferred() as should_stop:
        Path("trains").touch()
        while not should_stop():
            time.sleep(0.005)
        Path("saves").touch()
        while Path("hold").exists():
            time.sleep(0.005)
        with Path("saved").open("a") as file:
            file.write("saved\n")
    raise AssertionError("not interrupted")


def interrupted_by_another(config: RunConfig, words: list[str]) -> dict[str, Any]:
    """Work of several tasks: another one got its signal first, and this one gets it later."""
    with deferred():
        try:
            raise Interrupted(TERM)
        finally:
            Path("trains").touch()
    raise AssertionError("not interrupted")


def run_in_slurm(seed: int, work: Callable[..., Any], launcher: tuple[str, ...]) -> None:
    """Instead of a command: what ``srun`` starts in a job of Slurm."""
    from submitit.core.submission import process_job
    from submitit.core.utils import DelayedSubmission

    compose.register()
    words = ["hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=7", *launcher]
    job = [f"seed={seed}"]
    with compose.opened():
        config = compose.composed(words, is_sweep=True)
        task = SweepJob(
            Task(Work(work)), SweepFolder(next(Path("sweeps").iterdir())), [job, ["seed=9"]],
            sweeper=(1, "login"), share=Share(), is_worker=False,
        )  # fmt: skip
        plugin = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context(), task_function=task, config=config
        )
        delayed = DelayedSubmission(plugin, job, "hydra.sweep.dir", 0, "id", Singleton.get_state())
        delayed.set_timeout(7, int(config.hydra.launcher.max_num_timeout))
    Path("submitit/12_0").mkdir(parents=True, exist_ok=True)
    delayed.dump("submitit/12_0/12_0_submitted.pkl")
    try:
        process_job(Path("submitit/%j"))
    except SystemExit as left:
        sys.stdout.flush()
        os._exit(left.code)
    os._exit(0)


class Job:
    """A job of Slurm in a folder of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rank = 0
        (root / "sweeps").mkdir()
        self.folder = SweepFolder.create(root, [["seed=0"]])
        self.folder.submitted({0: SlurmRecord("12_0", None, 0)})
        (root / "bin").mkdir()
        script = root / "bin" / "scontrol"
        script.write_text(SCONTROL)
        script.chmod(0o755)
        self.slurm(RUNNING)

    def slurm(
        self, show: str, *, later: str = "", refuses: str = "", silent: str = "", sends: str = ""
    ) -> None:
        """What Slurm says of the job, at first and later, and what it does on a requeue."""
        for name, text in (("show", show), ("requeue-error", refuses), ("show-error", silent)):
            (self.root / name).write_text(text)
        (self.root / "signals-at-requeue").write_text(sends)
        if later:
            (self.root / "show-next").write_text(later)

    def start(
        self, seed: int = 0, *launcher: str, work: Callable[..., Any] = work, count: int = 1
    ) -> kill.Attempt:
        variables = {
            "SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "13", "SLURM_ARRAY_JOB_ID": "12",
            "SLURM_ARRAY_TASK_ID": "0", "SLURM_NTASKS": str(count), "SLURM_JOB_NUM_NODES": "1",
            "SLURM_PROCID": str(self.rank), "SLURM_LOCALID": str(self.rank),
            "PATH": f"{self.root / 'bin'}:/usr/bin:/bin",
        }  # fmt: skip
        setup = [
            partial(kill.set_variables, variables),
            partial(run_in_slurm, seed, work, launcher),
        ]
        return kill.Attempt(self.root, (), setup=setup)

    def start_training(self, *launcher: str, **more: Any) -> kill.Attempt:
        attempt = self.start(0, *launcher, **more)
        attempt.wait_for(lambda: (self.root / "trains").exists())
        return attempt

    @property
    def state(self) -> dict[str, Any]:
        return self.folder.read(0)

    @property
    def asked(self) -> list[str]:
        """What Slurm was asked, without the name that the job takes."""
        told = (self.root / "told").read_text().splitlines()
        return [line for line in told if not line.startswith("update")]

    @property
    def has_result(self) -> bool:
        return (self.root / "submitit" / "12_0" / "12_0_0_result.pkl").exists()


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    yield Job(tmp_path)
    kill.end_all()


SHOW = "--oneliner show job 12_0"
REQUEUE = "requeue 12_0"


@pytest.mark.parametrize(
    ("signals", "show", "reason", "asked"),
    [
        pytest.param([USR2], RUNNING, "time limit", [SHOW, REQUEUE], id="time limit"),
        pytest.param(
            [CONT, TERM],
            PREEMPTED,
            "preempted",
            [SHOW, REQUEUE],
            id="grace time",
            marks=pytest.mark.whole,
        ),
        pytest.param(
            [USR2],
            PREEMPTED,
            "preempted",
            [SHOW, REQUEUE],
            id="user signal",
            marks=pytest.mark.whole,
        ),
        pytest.param([TERM, CONT, TERM], REQUEUED, "requeued by Slurm", [SHOW], id="at once"),
        pytest.param(
            [TERM], RUNNING, "signal", [SHOW, REQUEUE], id="signal", marks=pytest.mark.whole
        ),
    ],
)
def test_a_job_that_is_told_to_end_saves_once_and_is_queued_once(
    job: Job, signals: list[int], show: str, reason: str, asked: list[str]
) -> None:
    """Slurm sends more signals than one, also to the commands that the job runs."""
    job.slurm(show, sends="TERM CONT TERM USR2")
    (job.root / "hold").touch()
    attempt = job.start_training()
    for signum in signals:
        os.kill(attempt.pid, signum)
    attempt.wait_for(lambda: (job.root / "saves").exists())
    for signum in (TERM, CONT, USR2, TERM):
        os.kill(attempt.pid, signum)
    (job.root / "hold").unlink()
    assert attempt.wait().code == 0
    assert (job.root / "saved").read_text() == "saved\n"
    assert job.asked == asked
    assert job.state["status"] == "queued"
    assert job.state["reason"] == reason
    if REQUEUE in asked:
        assert json.loads((job.root / "file-at-requeue").read_text())["status"] == "queued"
    assert not job.has_result
    assert "Traceback" not in attempt.err + attempt.out


def end(job: Job, attempt: kill.Attempt) -> tuple[int | None, dict[str, Any]]:
    """Exit code and state of a job that gets a SIGTERM while it trains."""
    os.kill(attempt.pid, TERM)
    attempt.wait()
    assert (job.root / "saved").read_text() == "saved\n"
    assert not job.has_result
    assert "Traceback" not in attempt.err + attempt.out
    return attempt.code, job.state


def test_a_job_that_somebody_cancels_saves_and_stays_away(job: Job) -> None:
    job.slurm(CANCELLED)
    code, state = end(job, job.start_training())
    assert (code, state["status"], job.asked) == (0, "cancelled", [SHOW])


@pytest.mark.whole
def test_a_job_that_is_queued_meanwhile_is_not_queued_twice(job: Job) -> None:
    job.slurm(PREEMPTED, later=REQUEUED, refuses="Job is pending execution for job 12_0")
    code, state = end(job, job.start_training())
    assert (code, state["status"], job.asked) == (0, "queued", [SHOW, REQUEUE, SHOW])


@pytest.mark.whole
def test_a_cluster_that_requeues_nothing(job: Job) -> None:
    job.slurm(PREEMPTED, refuses="Requested operation is presently disabled")
    code, state = end(job, job.start_training())
    assert (code, state["status"]) == (4, "interrupted")
    assert state["error"] == "Slurm refuses: Requested operation is presently disabled"


@pytest.mark.whole
def test_a_job_that_may_be_cancelled_is_not_queued_again(job: Job) -> None:
    job.slurm("", silent="x")
    code, state = end(job, job.start_training())
    assert (code, state["status"], {*job.asked}) == (4, "interrupted", {SHOW})
    assert "Slurm does not answer" in state["error"]


def test_the_time_limit_came_more_often_than_is_allowed(job: Job) -> None:
    attempt = job.start_training("hydra.launcher.max_num_timeout=0")
    os.kill(attempt.pid, USR2)
    attempt.wait()
    assert (attempt.code, job.state["status"], job.asked) == (5, "failed", [SHOW])
    for words in ("hydra.launcher.max_num_timeout=0", "hydra.launcher.timeout_min", "saved"):
        assert words in job.state["error"]
    assert not job.has_result
    assert "Traceback" not in attempt.err + attempt.out


@pytest.mark.parametrize(
    ("seed", "code", "status", "has_result"),
    [
        pytest.param(1, 3, "failed", False, id="failed"),
        pytest.param(2, 0, "busy", True, id="busy", marks=pytest.mark.whole),
        pytest.param(3, 0, "finished", True, id="finished"),
    ],
)
def test_a_failed_job_is_failed_to_slurm(
    job: Job, seed: int, code: int, status: str, has_result: bool
) -> None:
    attempt = job.start(seed).wait()
    assert (attempt.code, job.state["status"]) == (code, status)
    assert job.has_result is has_result
    assert "Traceback" not in attempt.err + attempt.out
    assert job.asked == []


def test_a_job_whose_log_cannot_be_written_has_failed(job: Job) -> None:
    job.folder.log(0).mkdir()
    attempt = job.start(3).wait()
    assert (attempt.code, job.state["status"]) == (4, "failed"), attempt.err
    assert job.state["error"].startswith("the log of the job cannot be written: ")
    assert "Traceback" not in attempt.err
    assert not job.has_result


def test_the_first_task_speaks_for_all(job: Job) -> None:
    job.rank = 1
    attempt = job.start_training(count=2)
    os.kill(attempt.pid, TERM)
    assert attempt.wait().code == 0
    assert not (job.root / "told").exists()
    assert job.state["status"] == "queued"  # as it was submitted
    assert not job.has_result
    attempt = job.start(4, count=2).wait()  # the first one has met an error
    assert (attempt.code, attempt.err.count("Traceback")) == (0, 0)


@pytest.mark.whole
@pytest.mark.parametrize("rank", [0, 1])
def test_a_task_may_get_its_signal_after_another_one(job: Job, rank: int) -> None:
    job.rank = rank
    attempt = job.start_training(work=interrupted_by_another, count=2)
    assert attempt.wait().code == 0
    assert job.state["status"] == "queued"
    assert (job.root / "told").exists() is (rank == 0)


def test_a_job_has_its_own_words_as_its_name(job: Job) -> None:
    job.start(3).wait()
    assert (job.root / "told").read_text() == "update jobid=12_0 jobname=seed=3\n"
    (job.root / "told").unlink()
    assert job.start(3, "hydra.launcher.name=mine").wait().code == 0  # the user's own is kept
    assert not (job.root / "told").exists()
