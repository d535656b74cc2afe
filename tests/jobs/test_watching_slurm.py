"""Jobs in Slurm, watched from outside: what is submitted, said, believed and recorded.

The cluster here is a table of what Slurm would say, and its time passes as fast as it is slept
away; ``tests/test_on_slurm.py`` has a real one.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from runner.errors import ConfigError, StorageError
from runner.jobs.reporter import Reporter
from runner.jobs.slurm import SlurmJobs
from runner.machine.signals import Interrupted, raise_on_signals
from runner.machine.slurm import Limits, QueuedJob
from runner.records.sweep_folder import SweepFolder

LAUNCHER = {"cpus_per_task": 4, "timeout_min": 1440, "array_parallelism": 16}


class Cluster:
    """What Slurm says, and files that jobs write, at set times.

    Attributes:
        now: seconds since the start.
        said: what the user was told.
        arrays: of each submission, the number of jobs, and how many of them run at a time.
        cancelled: ids that were cancelled.
        events: what happens, by time.
    """

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, size: int = 1001) -> None:
        self.root = root
        self.now = 0.0
        self.said = list[str]()
        self.begun, self.ended = list[int](), list[int]()
        self.arrays = list[tuple[int, int]]()
        self.cancelled = list[str]()
        self.events = list[tuple[float, Callable[[], None]]]()
        self.states = dict[str, QueuedJob]()
        self.is_silent = False
        self.next = 7
        for room in ("slurm", "states"):
            monkeypatch.setattr(f"runner.jobs.{room}.time", self)
        monkeypatch.setattr("runner.jobs.slurm.slurm.queue", self.queue)
        monkeypatch.setattr("runner.jobs.slurm.slurm.cancel", self.cancel)
        monkeypatch.setattr("runner.jobs.slurm.slurm.max_array_size", lambda: size)
        self.limits = Limits("main", None, None, None)
        monkeypatch.setattr("runner.jobs.slurm.slurm.limits", lambda partition: self.limits)

    def monotonic(self) -> float:
        return self.now

    time = monotonic

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        assert self.now < 500, "nothing will ever end this"
        for event in [event for event in self.events if event[0] <= self.now]:
            self.events.remove(event)
            event[1]()

    def queue(self, ids: Sequence[str]) -> dict[str, QueuedJob]:
        if self.is_silent:
            raise StorageError("Slurm does not answer: down", where="squeue", fix="wait")
        return {one: self.states[one] for one in ids if one in self.states}

    def cancel(self, ids: Sequence[str], is_waiting: bool = False) -> None:
        self.cancelled.extend(ids)
        self.states |= {one: QueuedJob(one, "CANCELLED") for one in ids}

    def submit(self, jobs: Sequence[Sequence[str]], folder: Path, at_once: int) -> list[str]:
        self.arrays.append((len(jobs), at_once))
        array, self.next = self.next, self.next + 1
        ids = [f"{array}_{at}" for at in range(len(jobs))] if len(jobs) > 1 else [f"{array}"]
        self.states |= {one: QueuedJob(one, "PENDING") for one in ids}
        return ids

    def jobs(self, count: int, name: str = "20260101-000000-1") -> SlurmJobs:
        """The jobs of a new sweep."""
        words = [[f"seed={seed}"] for seed in range(count)]
        self.folder = SweepFolder(self.root / "sweeps" / name)
        self.folder.path.mkdir(parents=True)
        (self.folder.path / "sweep.json").write_text(json.dumps({"jobs": words}))
        return SlurmJobs(
            self.folder,
            words,
            [f"asked {seed}" for seed in range(count)],
            LAUNCHER,
            self.submit,
            Reporter(say=self.said.append, on_begin=self.begun.append, on_end=self.ended.append),
        )

    def at(self, seconds: float, one: str, state: str, reason: str = "") -> None:
        """Slurm says so from then on; an empty state: it does not know the job any more."""

        def change() -> None:
            self.states.pop(one)
            if state:
                self.states[one] = QueuedJob(one, state, reason)

        self.events.append((seconds, change))

    def file(self, seconds: float, number: int, status: str) -> None:
        """The job writes so then."""
        self.events.append((seconds, lambda: self.folder.write(number, status)))

    def statuses(self, count: int) -> list[str]:
        return [str(self.folder.read(number)["status"]) for number in range(count)]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(tmp_path, monkeypatch)


def test_jobs_are_watched_until_all_have_ended(cluster: Cluster) -> None:
    jobs = cluster.jobs(2)
    jobs.begin([0, 1])
    assert cluster.statuses(2) == ["queued", "queued"]
    assert "2 jobs submitted to Slurm: 7_[0-1]" in cluster.said[0]
    assert "scancel 7 ends them" in cluster.said[2]
    for number, end in enumerate([20, 40]):
        cluster.at(3, f"7_{number}", "RUNNING")
        cluster.file(4, number, "running")
        cluster.file(end, number, "finished")
        cluster.at(end + 5, f"7_{number}", "COMPLETED")
    jobs.watch([0, 1])
    assert cluster.statuses(2) == ["finished", "finished"]
    assert (cluster.begun, cluster.ended) == ([0, 1], [0, 1])
    assert 40 <= cluster.now <= 41, "the file is enough; Slurm need not say so too"
    assert len(cluster.arrays) == 1


def test_a_job_that_dies_elsewhere_is_tried_again_once_and_alone(cluster: Cluster) -> None:
    jobs = cluster.jobs(3)
    jobs.begin([0, 1, 2])
    for number in range(3):
        cluster.at(1, f"7_{number}", "RUNNING")
        cluster.file(1, number, "running")
    cluster.at(10, "7_1", "FAILED")  # and its file goes on to say that it runs
    cluster.file(200, 0, "finished")
    cluster.file(200, 2, "finished")
    cluster.at(60, "8", "RUNNING")
    cluster.file(60, 1, "running")
    cluster.at(100, "8", "OUT_OF_MEMORY")
    jobs.watch([0, 1, 2])
    assert cluster.arrays == [(3, 16), (1, 16)], "no other job is submitted again"
    assert cluster.statuses(3) == ["finished", "crashed", "finished"]
    assert "hydra.launcher.mem_gb" in cluster.folder.read(1)["error"]
    assert sorted(cluster.ended) == [0, 1, 2]
    assert cluster.begun.count(1) == 1
    assert any("seed=1" in line and "FAILED" in line for line in cluster.said)


@pytest.mark.parametrize(("late", "tries"), [(6.0, 1), (60.0, 2)])
def test_the_file_of_a_job_may_come_late(cluster: Cluster, late: float, tries: int) -> None:
    jobs = cluster.jobs(1)
    jobs.begin([0])
    cluster.at(1, "7", "RUNNING")
    cluster.file(1, 0, "running")
    cluster.at(10, "7", "")  # Slurm has forgotten it
    cluster.file(10 + late, 0, "finished")
    cluster.events.append((100, lambda: cluster.folder.write(0, "finished")))
    jobs.watch([0])
    assert len(cluster.arrays) == tries
    assert cluster.statuses(1) == ["finished"]


def test_a_job_that_never_began_may_have_crashed(cluster: Cluster) -> None:
    jobs = cluster.jobs(1)
    jobs.begin([0])
    cluster.at(5, "7", "FAILED")
    cluster.at(40, "8", "FAILED")
    jobs.watch([0])
    assert cluster.statuses(1) == ["crashed"]
    assert "before it began" in cluster.folder.read(0)["error"]
    assert cluster.now < 60


def test_nothing_is_believed_while_slurm_does_not_answer(cluster: Cluster) -> None:
    jobs = cluster.jobs(1)
    jobs.begin([0])
    cluster.at(1, "7", "RUNNING")
    cluster.file(1, 0, "running")
    cluster.events.append((5, lambda: setattr(cluster, "is_silent", True)))
    cluster.file(400, 0, "finished")
    jobs.watch([0])
    assert len(cluster.arrays) == 1
    assert sum("does not answer" in line for line in cluster.said) == 1


def test_reasons_are_told_within_half_a_minute_and_once(cluster: Cluster) -> None:
    jobs = cluster.jobs(2)
    jobs.begin([0, 1])
    submitted = len(cluster.said)
    told = list[float]()

    def say(line: str) -> None:
        told.append(cluster.now)
        cluster.said.append(line)

    jobs._reporter.say = say
    for number in range(2):
        cluster.at(1, f"7_{number}", "PENDING", "Resources")
        cluster.at(100, f"7_{number}", "PENDING", "JobHeldUser")
        cluster.file(200, number, "finished")
    jobs.watch([0, 1])
    first, second = cluster.said[submitted:]
    assert "7_[0-1]" in first
    assert "(Resources)" in first
    assert "scontrol release" in second
    assert told[0] < 30
    assert 100 <= told[1] < 130


@pytest.mark.parametrize(
    ("reason", "key"),
    [("PartitionConfig", "cpus_per_task=4"), ("PartitionTimeLimit", "timeout_min=1440")],
)
def test_what_can_never_begin_is_cancelled(cluster: Cluster, reason: str, key: str) -> None:
    jobs = cluster.jobs(2)
    jobs.begin([0, 1])
    for number in range(2):
        cluster.at(1, f"7_{number}", "PENDING", reason)
    with pytest.raises(ConfigError) as caught:
        jobs.watch([0, 1])
    assert f"hydra.launcher.{key}" in str(caught.value.where)
    assert cluster.cancelled == ["7_0", "7_1"]
    assert cluster.now < 30


@pytest.mark.parametrize(
    ("limits", "where", "fix"),
    [
        (Limits("main", 60, 8, 100), "timeout_min=1440", "timeout_min=60"),
        (Limits("main", None, 2, 100), "cpus_per_task=4", "cpus_per_task=2"),
        (Limits("main", 1440, 4, None), None, None),
    ],
)
def test_what_is_more_than_the_partition_has_is_not_submitted(
    cluster: Cluster, limits: Limits, where: str | None, fix: str | None
) -> None:
    cluster.limits = limits
    jobs = cluster.jobs(2)
    if where is None:
        jobs.begin([0, 1])
        return
    with pytest.raises(ConfigError) as caught:
        jobs.begin([0, 1])
    assert (caught.value.where, caught.value.fix) == (
        f"hydra.launcher.{where}", f"hydra.launcher.{fix}",
    )  # fmt: skip
    assert cluster.arrays == []
    assert cluster.statuses(2) == ["pending", "pending"]


def test_a_job_that_is_queued_again_is_waited_for(cluster: Cluster) -> None:
    jobs = cluster.jobs(1)
    jobs.begin([0])
    cluster.at(1, "7", "RUNNING")
    cluster.file(1, 0, "running")
    cluster.file(20, 0, "interrupted")
    cluster.at(25, "7", "PENDING", "BeginTime")
    cluster.at(150, "7", "RUNNING")
    cluster.file(151, 0, "running")
    cluster.file(180, 0, "resumed")
    jobs.watch([0])
    assert len(cluster.arrays) == 1
    assert (cluster.begun, cluster.ended) == ([0], [0])
    assert any("(BeginTime)" in line for line in cluster.said)


@pytest.mark.parametrize("began", [False, True])
def test_a_job_that_is_cancelled_is_not_submitted_again(cluster: Cluster, began: bool) -> None:
    jobs = cluster.jobs(2)
    jobs.begin([0, 1])
    if began:
        cluster.at(1, "7_0", "RUNNING")
        cluster.file(1, 0, "running")
    cluster.at(10, "7_0", "CANCELLED")
    cluster.file(60, 1, "finished")
    jobs.watch([0, 1])
    assert len(cluster.arrays) == 1
    assert cluster.statuses(2) == ["cancelled", "finished"]
    assert cluster.ended == [0, 1]


def test_a_large_sweep_goes_in_arrays_that_share_the_limit_of_jobs_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(tmp_path, monkeypatch, size=3)
    jobs = cluster.jobs(7)
    jobs.begin([*range(7)])
    assert cluster.arrays == [(3, 5), (2, 5), (2, 5)]
    ids = {number: one.id for number, one in cluster.folder.slurm.items()}
    assert sorted(ids) == [*range(7)]
    assert {*ids.values()} == {"7_0", "7_1", "7_2", "8_0", "8_1", "9_0", "9_1"}
    assert ids[0] == "7_0"
    assert ids[4] == "8_1", "the jobs are dealt out"
    assert "7_[0-2] 8_[0-1] 9_[0-1]" in cluster.said[0]
    assert "scancel 7 8 9" in cluster.said[2]


def test_the_jobs_that_slurm_takes_are_kept_if_it_refuses_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(tmp_path, monkeypatch, size=3)
    jobs = cluster.jobs(4)
    submit = jobs._submit

    def refuse_the_second(*arguments: Any) -> list[str]:
        if cluster.arrays:
            raise RuntimeError("sbatch: error: AssocMaxSubmitJobLimit")
        return submit(*arguments)

    jobs._submit = refuse_the_second
    with pytest.raises(RuntimeError):
        jobs.begin([0, 1, 2, 3])
    assert cluster.statuses(4) == ["queued", "pending", "queued", "pending"]


def test_the_same_words_again_watch_what_slurm_has(cluster: Cluster) -> None:
    earlier = cluster.jobs(3)
    earlier.begin([0, 1, 2])
    cluster.folder.write(0, "finished")
    cluster.at(0, "7_2", "FAILED")
    cluster.sleep(0)
    owner = cluster.folder
    jobs = cluster.jobs(4, name="20260101-000001-2")
    jobs.begin([0, 1, 2, 3])
    assert cluster.arrays == [(3, 16), (3, 16)], "the second job is not submitted again"
    assert "Slurm has 1 of these jobs already: 7_1" in cluster.said
    owner.write(1, "running")
    assert cluster.statuses(4) == ["queued", "running", "queued", "queued"]
    assert cluster.folder.log(1) == owner.log(1)
    cluster.said.clear()
    jobs.tell_what_goes_on()
    assert "scancel 8 7_1 ends them" in cluster.said[1], "the rest of the other sweep goes on"
    third = cluster.jobs(2, name="20260101-000002-3")
    third.begin([0, 1])
    assert cluster.folder.place(1)[0].path == owner.path, "whoever watches too"
    assert len(cluster.arrays) == 2


def test_two_that_watch_a_job_try_it_again_once(cluster: Cluster) -> None:
    first = cluster.jobs(1)
    first.begin([0])
    owner = cluster.folder
    second = cluster.jobs(1, name="20260101-000001-2")
    second.begin([0])
    watcher = cluster.folder
    cluster.at(1, "7", "FAILED")
    cluster.events.append((60, lambda: watcher.write(0, "finished")))
    second.watch([0])
    assert len(cluster.arrays) == 2
    owner.write(0, "running")
    watcher.write(0, "running")
    cluster.now = 0
    cluster.events.append((60, lambda: watcher.write(0, "finished")))
    first.watch([0])
    assert len(cluster.arrays) == 2, "the first one watches the job that the second has submitted"


def test_a_job_that_cannot_be_tried_again_stops_no_other(cluster: Cluster) -> None:
    jobs = cluster.jobs(2)
    jobs.begin([0, 1])
    for number in range(2):
        cluster.at(1, f"7_{number}", "RUNNING")
        cluster.file(1, number, "running")
    cluster.at(10, "7_0", "FAILED")
    cluster.file(90, 1, "finished")

    def refuse(*arguments: Any) -> list[str]:
        raise RuntimeError("sbatch: error: no more")

    jobs._submit = refuse
    jobs.watch([0, 1])
    assert cluster.statuses(2) == ["crashed", "finished"]
    assert "no more" in cluster.folder.read(0)["error"]
    assert cluster.ended == [0, 1]


def test_a_job_of_an_earlier_command_that_never_begins_gives_way(cluster: Cluster) -> None:
    cluster.jobs(1).begin([0])
    cluster.states["7"] = QueuedJob("7", "PENDING", "PartitionTimeLimit")
    jobs = cluster.jobs(1, name="20260101-000001-2")
    jobs.begin([0])
    assert cluster.cancelled == ["7"]
    assert cluster.folder.slurm[0].id == "8"


def test_what_has_not_begun_leaves_the_queue_when_time_is_up(cluster: Cluster) -> None:
    jobs = cluster.jobs(2)
    jobs.begin([0, 1])
    cluster.at(1, "7_0", "RUNNING")
    cluster.file(1, 0, "running")
    cluster.file(90, 0, "finished")
    jobs.watch([0, 1], lambda: cluster.now < 60)
    assert cluster.cancelled == ["7_1"]
    assert cluster.statuses(2) == ["finished", "pending"]
    assert cluster.ended == [0]


def test_what_goes_on_is_told_with_the_way_to_end_it(cluster: Cluster) -> None:
    jobs = cluster.jobs(3)
    jobs.begin([0, 1, 2])
    cluster.folder.write(0, "finished")
    cluster.said.clear()
    jobs.tell_what_goes_on()
    assert "2 jobs go on in Slurm: 7_[1-2]" in cluster.said[0]
    assert "scancel 7" in cluster.said[1]
    assert "python -m runner.show" in cluster.said[-1]
    for number in (1, 2):
        cluster.folder.write(number, "finished")
    cluster.said.clear()
    jobs.tell_what_goes_on()
    assert cluster.said == []


def test_a_signal_does_not_come_between_a_submission_and_its_record(cluster: Cluster) -> None:
    jobs = cluster.jobs(2)
    submit = jobs._submit

    def interrupted(*arguments: Any) -> list[str]:
        ids = submit(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        return ids

    jobs._submit = interrupted
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)}
    raise_on_signals()
    try:
        with pytest.raises(Interrupted):
            jobs.begin([0, 1])
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    assert [one.id for one in cluster.folder.slurm.values()] == ["7_0", "7_1"]
