"""How the jobs of a sweep stand, read from files that anybody may have written, and from Slurm."""

import os
import socket
from collections.abc import Iterable
from pathlib import Path

import pytest
from fake_cluster import DEAD, JOBS, Cluster, edit, submitted

from runner.jobs import overview as overviews
from runner.jobs import states
from runner.jobs.overview import JobState, Overview
from runner.jobs.states import Queue
from runner.machine.locks import locked
from runner.records.run_folder import RunFolder
from runner.records.sweep_folder import SlurmRecord, SweepFolder


def statuses(states: Iterable[JobState]) -> list[str]:
    return [one.status for one in states]


def test_of_a_job_in_slurm_the_queue_knows_whether_it_exists(
    tmp_path: Path, cluster: Cluster
) -> None:
    folder = submitted(tmp_path)
    folder.write(0, "running")
    folder.write(1, "running")
    folder.write(2, "interrupted")
    cluster.put("7_0", "RUNNING", node="far")
    cluster.put("7_2", "PENDING", reason="BeginTime")
    cluster.put("7_3", "CANCELLED")
    overview = Overview(folder)
    assert statuses(overview.look()) == ["running", "crashed", "queued", "cancelled"]
    assert [one.node for one in overview.states] == ["far", "", "", ""]
    assert overview.states[2].state["reason"] == "BeginTime"
    assert overview.is_at_work
    for number in range(4):
        folder.write(number, "finished", accuracy=0.5)
    assert statuses(overview.look()) == ["finished"] * 4
    assert not overview.is_at_work
    asked = len(cluster.asked)
    overview.look()
    assert len(cluster.asked) == asked, "nothing is asked of jobs that have ended"


def test_a_file_that_comes_late_is_no_crash(
    tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "LATE_SECONDS", 3600)
    folder = submitted(tmp_path)
    folder.write(0, "running")
    for number in range(1, 4):
        cluster.put(f"7_{number}", "PENDING")
    overview = Overview(folder)
    assert statuses(overview.look())[0] == "running"
    assert overview.is_doubtful
    folder.write(0, "finished", accuracy=0.5)
    assert statuses(overview.look())[0] == "finished"
    folder.write(0, "running")
    monkeypatch.setattr(states, "LATE_SECONDS", 0)
    again = Overview(folder)
    assert statuses(again.look())[0] == "crashed"
    assert not again.is_doubtful
    assert statuses(again.look())[0] == "crashed"


def test_without_an_answer_of_slurm_the_files_are_shown(tmp_path: Path, cluster: Cluster) -> None:
    folder = submitted(tmp_path)
    folder.write(0, "running")
    cluster.problem = "Slurm does not answer: no route"
    overview = Overview(folder)
    assert statuses(overview.look()) == ["running", "queued", "queued", "queued"]
    assert overview.queue.problem == cluster.problem
    assert overview.is_at_work
    cluster.problem = ""
    assert statuses(overview.look()) == ["crashed", "cancelled", "cancelled", "cancelled"]
    assert overview.queue.problem == ""


def test_slurm_is_asked_rarely(
    tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overviews, "_QUEUE_SECONDS", 3600)
    queue = Queue()
    one, other = submitted(tmp_path), submitted(tmp_path)
    for folder in (one, other, one):
        Overview(folder, queue).look()
    assert cluster.asked == [["7_0", "7_1", "7_2", "7_3"]]
    queue.ask(["8_0"], every=3600)
    assert cluster.asked[1:] == [["8_0"]], "of a job that is new, nothing is known"


def test_jobs_of_another_sweep_are_read_there(tmp_path: Path, cluster: Cluster) -> None:
    first = submitted(tmp_path)
    first.write(2, "finished", accuracy=0.25)
    second = SweepFolder.create(tmp_path, JOBS[:3])
    second.submitted(
        {number: SlurmRecord(f"7_{number}", first.path.name, number) for number in (1, 2)}
    )
    second.write(0, "skipped", accuracy=0.75)
    cluster.put("7_1", "RUNNING")
    found = Overview(second).look()
    assert statuses(found) == ["skipped", "queued", "finished"]
    assert [one.state.get("accuracy") for one in found] == [0.75, None, 0.25]


def test_a_sweep_without_slurm_ends_with_its_process(tmp_path: Path) -> None:
    folder = SweepFolder.create(tmp_path, JOBS)
    overview = Overview(folder)
    overview.look()
    assert overview.is_at_work, "this process lives, and jobs are pending"
    folder.write(0, "running")
    edit(folder, "0.json", pid=DEAD)
    edit(folder, "sweep.json", pid=DEAD)
    assert statuses(overview.look()) == ["crashed", "pending", "pending", "pending"]
    assert not overview.is_at_work
    folder.write(1, "running")
    overview.look()
    assert overview.is_at_work, "a worker outlives the sweep"


def test_a_sweep_of_another_machine_counts_as_ended_when_nothing_is_at_work_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = SweepFolder.create(tmp_path, JOBS)
    edit(folder, "sweep.json", host="elsewhere")
    overview = Overview(folder)
    overview.look()
    assert overview.is_at_work
    monkeypatch.setattr(overviews, "_UNLED_SECONDS", 0)
    assert not overview.is_at_work


def test_the_epoch_is_that_of_the_run_of_the_same_process(tmp_path: Path) -> None:
    folder = SweepFolder.create(tmp_path, JOBS)
    folder.write(0, "running")
    folder.write(1, "running")
    edit(folder, "1.json", pid=os.getppid())
    what = {"identity": "0" * 16, "fingerprint": "f", "values": {"seed": 0}}
    for name in ("before", "run"):
        run = RunFolder(tmp_path / name)
        run.begin(what, {"budget": {"epochs": 12}}, [])
        run.append_row({"epoch": 3, "val_accuracy": 0.5})
    RunFolder(tmp_path / "before").write_status("failed", "of the same worker")
    overview = Overview(folder)
    with locked(run.lock):
        first, second = overview.look()[:2]
    assert (first.epoch, first.epochs) == (3, 12)
    assert (second.epoch, second.epochs) == (None, None)
    run.finish({"config": {}})
    assert overview.look()[0].epoch is None, "the process is at another run"
    assert first.node == "", "of this machine"


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00", '{"jobs": 3}', '{"jobs": [[1]]}'])
def test_damaged_files_hide_only_what_they_said(
    tmp_path: Path, cluster: Cluster, content: str
) -> None:
    folder = submitted(tmp_path)
    (folder.path / "sweep.json").write_text(content)
    (folder.path / "99999999999.json").write_text("{}")
    cluster.put("7_1", "RUNNING")
    overview = Overview(SweepFolder(folder.path))
    assert [one.name for one in overview.look()] == ["0", "1", "2", "3"]
    assert statuses(overview.states)[1] == "queued"
    (folder.path / "slurm.json").write_text(content)
    (folder.path / "1.json").write_text(content)
    found = Overview(SweepFolder(folder.path)).look()
    assert statuses(found)[:2] == ["queued", "pending"], "this process lives"
    assert found[0].state["host"] == socket.gethostname()
